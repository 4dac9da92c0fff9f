const origin = window.location.origin;
const v1 = `/v1/models/${facts.name}:predict`;
const v2 = `/v2/models/${facts.name}/infer`;

// In single quotes a shell takes everything as it is, but the quote itself.
function curl(path, body) {
  return make("pre", {}, `curl ${origin}${path} -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`);
}

function tensors(title, items) {
  return card(title, make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ["name", "datatype", "shape", "element"].map((text) => make("th", {}, text)))),
    make("tbody", {}, items.map((item) => make("tr", {},
      make("td", {}, make("code", {}, item.name)), make("td", {}, item.datatype),
      make("td", {}, `[${item.shape.map((size) => (size < 0 ? "n" : size)).join(", ")}]`),
      make("td", {}, item.json ? "one JSON document" : "one value")))))));
}

const schemas = facts.openapi.components.schemas;
const paths = Object.entries(facts.openapi.paths).flatMap(([path, methods]) => Object.entries(methods).map(
  ([method, about]) => make("li", {},
    make("div", {}, make("span", { class: "method" }, method.toUpperCase()), " ", make("code", {}, path)),
    make("small", {}, `${about.summary}. Answers: ${Object.entries(about.responses).map(
      ([code, response]) => (code === "200" ? code : `${code} ${response.description}`)).join("; ")}.`))));
page.append(
  heading(`${facts.name}: interface`, "/try", "try it"),
  card("V1: one object an instance", curl(v1, { instances: [facts.openapi.paths[v1].post.requestBody.content["application/json"].example.instances[0]] })),
  card("V2: tensors, over HTTP and gRPC", curl(v2, facts.v2)),
  make("div", { class: "columns pair" }, tensors("V2 inputs", facts.inputs), tensors("V2 outputs", facts.outputs)),
  card("Paths", make("ul", { class: "rows" }, paths)),
  make("div", { class: "columns pair" },
    card("An instance", pretty(schemas.Instance)), card("A prediction", pretty(schemas.Prediction))),
  make("p", { class: "muted" }, "For programs: ", make("a", { href: "/openapi.json" }, "OpenAPI 3.1"), " and ",
    make("a", { href: "/metrics" }, "Prometheus metrics"), "."));

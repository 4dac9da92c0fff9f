const results = make("div", { class: "results", id: "results", "aria-live": "polite" });
const status = make("span", { class: "status" });

async function ask(instance) {
  const started = performance.now();
  const response = await fetch(facts.url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ instances: [instance] }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  status.textContent = `answered in ${Math.round(performance.now() - started)} ms`;
  return answer;
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function drawTopics(topics) {
  return make("ul", { class: "topics" }, topics.map((topic) => make("li", {},
    make("div", { class: "line" }, make("span", {}, topic.name), make("span", { class: "number" }, percent(topic.weight))),
    make("progress", { max: 1, value: topic.weight, "aria-label": topic.name }),
    topic.terms && topic.terms.length
      ? make("ul", { class: "chips", title: "the keywords that brought most of it" }, topic.terms.map((term) => make("li", {}, term)))
      : null)));
}

function drawRows(items, empty) {
  if (!items.length) return make("p", { class: "muted" }, empty);
  return make("ul", { class: "rows" }, items.map(([name, value, small]) => make("li", {},
    make("div", { class: "line" }, make("span", {}, name), make("span", { class: "number" }, value)),
    small ? make("small", {}, small) : null)));
}

function drawCampaign(answer) {
  const found = answer.predictions[0];
  const known = found.unknown_share === null ? null
    : `${percent(1 - found.unknown_share)} of the words are known to the model.`;
  results.replaceChildren(...[
    found.note ? make("p", { class: "note" }, found.note) : null,
    card("Topics", found.topics.length ? drawTopics(found.topics) : make("p", { class: "muted" }, "No topic."),
      known ? make("p", { class: "muted" }, known) : null),
    make("div", { class: "columns pair" },
      card("Similar campaigns", drawRows(
        found.neighbours.map((item) => [item.campaign_id, item.similarity.toFixed(3), null]), "None.")),
      card("Recommended keywords", drawRows(
        found.recommended.map((item) => [item.term, item.score.toFixed(3),
          item.evidence.neighbours.length ? `used by ${item.evidence.neighbours.slice(0, 3).join(", ")}` : null]), "None."))),
    make("details", {}, make("summary", {}, "Whole answer"), pretty(answer)),
  ].filter((part) => part !== null));
}

function drawAnything(answer) {
  results.replaceChildren(card("Answer", pretty(answer)));
}

// A form with one text area; `read` turns its text into an instance.
function makeForm(id, label, text, read, draw, isCode) {
  const area = make("textarea", { id, name: id, spellcheck: "false", class: isCode ? "code" : "" });
  area.value = text;
  const button = make("button", { type: "submit" }, "Predict");
  const form = make("form", { id: `${id}-form` }, make("label", { for: id }, label), area,
    make("div", { class: "actions" }, button, isCode ? null : status));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    status.textContent = "asking …";
    try {
      draw(await ask(read(area.value)));
    } catch (error) {
      status.textContent = "";
      results.replaceChildren(make("p", { class: "error", role: "alert" }, error.message));
    } finally {
      button.disabled = false;
    }
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return form;
}

const json = makeForm("instance", "One instance, as JSON", JSON.stringify(facts.example, null, 2), JSON.parse,
  facts.campaign ? drawCampaign : drawAnything, true);
const forms = [];
if (facts.campaign) {
  const lines = (text) => ({ terms: text.split("\n").map((line) => line.trim()).filter((line) => line) });
  forms.push(make("div", { class: "card" },
    makeForm("keywords", "Keywords, one a line", facts.example.terms.join("\n"), lines, drawCampaign, false)));
  forms.push(make("details", { class: "card" }, make("summary", {}, "Ask with JSON instead"), json));
} else {
  forms.push(make("div", { class: "card" }, json, status));
}
page.append(heading(`Try ${facts.name}`, "/docs", "how to ask from a program"),
  make("div", { class: "columns form" }, make("div", { class: "results" }, forms), results));

// A link such as /try#running%20shoes|trail%20shoes asks at once, so that an answer can be shown to somebody else.
const linked = decodeURIComponent(location.hash.slice(1));
if (facts.campaign && linked) {
  document.getElementById("keywords").value = linked.split("|").join("\n");
  document.getElementById("keywords-form").requestSubmit();
}

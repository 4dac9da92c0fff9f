"use strict";
const facts = JSON.parse(document.getElementById("facts").textContent);
const page = document.getElementById("page");

// Builds an element. Children are elements or texts; a text is never markup.
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, String(value));
  }
  for (const child of children.flat()) if (child !== null) element.append(child);
  return element;
}

function card(title, ...children) {
  return make("section", { class: "card" }, make("h2", {}, title), ...children);
}

function pretty(value) {
  return make("pre", {}, JSON.stringify(value, null, 2));
}

function heading(title, other, otherText) {
  return make("header", {},
    make("h1", {}, title),
    make("p", { class: "muted" }, "Version ", make("b", {}, facts.version), " · ", make("a", { href: other }, otherText)));
}

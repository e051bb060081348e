"use strict";
// Everything that comes from a model or a person is inserted as text, never as HTML.

const $ = id => document.getElementById(id);
const client = String(Math.random()).slice(2);  // names this tab to the server

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function say(text) { $("message").textContent = text; }

async function api(path, body, signal) {
  const options = body ? {method: "POST", body: JSON.stringify(body), signal,
                          headers: {"Content-Type": "application/json"}} : {signal};
  const response = await fetch(path, options);
  const found = await response.json();
  if (!response.ok) throw Object.assign(new Error(found.error.message), {status: response.status});
  return found;
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name, k) => {
    const option = element("option", name);
    option.value = k;
    return option;
  }));
  if (names.includes(chosen)) select.value = names.indexOf(chosen);
}

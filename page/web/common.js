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

// ------------------------------------------------------------------ who answers: the server, or a worker

async function served(path, body, signal) {
  const options = body ? {method: "POST", body: JSON.stringify(body), signal,
                          headers: {"Content-Type": "application/json"}} : {signal};
  const response = await fetch(path, options);
  const found = await response.json();
  if (!response.ok) throw Object.assign(new Error(found.error.message), {status: response.status});
  return found;
}

// The page in one file: what it was written with, and a worker that runs model.js.
class Offline {
  constructor(data) {
    this.data = data;
    this.asked = new Map();  // number of a question: what to call with the answer
    const code = new Blob([$("model").textContent], {type: "text/javascript"});
    this.worker = new Worker(URL.createObjectURL(code));
    this.worker.postMessage(data);
    this.worker.onmessage = ({data: {number, found, failed}}) => {
      const [resolve, reject] = this.asked.get(number);
      this.asked.delete(number);
      failed ? reject(new Error(failed)) : resolve(found);
    };
  }

  async answer(path, body, signal) {
    if (path === "/api/about") return this.data.about;
    if (path === "/api/watch") return this.data.episodes[body.row][body.problem];
    const number = this.number = (this.number ?? 0) + 1;
    this.worker.postMessage({number, path, body});
    const found = await new Promise((...settle) => this.asked.set(number, settle));
    signal?.throwIfAborted();
    return found;
  }
}

const offline = $("data") && new Offline(JSON.parse($("data").textContent));

async function api(path, body, signal) {
  return offline ? offline.answer(path, body, signal) : served(path, body, signal);
}

// A slider of eta: 0 at its left end, then six steps from 0.01 bits to each doubling; 0.32 and 4 are
// among them.
function etaAt(position) {
  const eta = position > 0 ? 0.01 * 2 ** ((position - 1) / 6) : 0;
  return Math.abs(eta - 4) < 0.1 ? 4 : Math.min(8, Number(eta.toPrecision(2)));
}

// The place of the step that is nearest to eta.
function placeOf(eta) {
  const places = [...Array(60).keys()];
  return places.sort((a, b) => Math.abs(etaAt(a) - eta) - Math.abs(etaAt(b) - eta))[0];
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name, k) => {
    const option = element("option", name);
    option.value = k;
    return option;
  }));
  if (names.includes(chosen)) select.value = names.indexOf(chosen);
}

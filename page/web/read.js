// The view Read: Algorithm 1 (Section 4.2), and a program under it.

// empower_lengths and left_to_human in Python: the tokens (indices) that the human types, when
// the assistant may spend eta bits at a time.
function leftToHuman(nll, eta) {
  const cum = [0], typed = [];
  for (const bits of nll) cum.push(cum.at(-1) + bits);
  let n = 0, end = 0;
  while (n < nll.length) {
    const limit = cum[n] + eta;
    end = Math.max(end, n);
    while (end < nll.length && cum[end + 1] <= limit) end++;
    if (end >= nll.length) break;
    typed.push(end);
    n = end + 1;
  }
  return typed;
}

// The same when the assistant writes n tokens at a time, whatever they cost.
function everyNth(count, n) {
  return Array.from({length: Math.floor(count / (n + 1))}, (_, k) => (k + 1) * (n + 1) - 1);
}

const reader = {tokens: [], at: 0, number: 0, pinned: false};

function shade(bits) {  // opacity of the colour, 0.1 to 8 bits and more
  return bits < 0.1 ? 0 : 0.08 + 0.77 * Math.min(1, Math.log2(1 + bits) / Math.log2(9));
}

// A suggestion of white space alone would not be seen.
function visible(text) { return text.trim() ? text : text.replaceAll("\n", "⏎\n").replaceAll(" ", "·"); }

function quoted(text) { return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·"); }

async function read(text) {
  const number = ++reader.number;
  try {
    const found = await api("/api/read", {client, text});
    if (number !== reader.number) return;  // typing has overtaken it
    reader.tokens = found.tokens;
    say(found.of === found.tokens.length ? "" :
        `Only the first ${found.tokens.length} of ${found.of} tokens are read.`);
  } catch (error) {
    reader.tokens = [];
    say(error.message);
  }
  reader.at = 0;
  pin(false);
  for (const id of ["empower", "sft"]) {
    $(id).replaceChildren(...reader.tokens.map((token, k) => {
      const span = element("span", token.text, token.text.startsWith("\n") ? "newline" : "");
      span.style.setProperty("--a", shade(token.bits));
      span.dataset.k = k;
      return span;
    }));
  }
  drawBars();
}

function drawBars() {
  const nll = reader.tokens.map(token => token.bits), eta = etaAt(Number($("eta").value));
  const n = Math.max(1, Math.floor(Number($("n").value)) || 1);
  $("eta-value").textContent = `${eta} bits`;
  $("eta").setAttribute("aria-valuetext", $("eta-value").textContent);
  reader.stops = {empower: leftToHuman(nll, eta), sft: everyNth(nll.length, n)};
  for (const [id, stops] of Object.entries(reader.stops)) {
    const typed = new Set(stops);
    const spent = id === "empower" ? budget(nll, typed, eta) : budget(nll.map(() => 1), typed, n);
    [...$(id).children].forEach((span, k) => {
      span.classList.toggle("human", typed.has(k));
      span.style.setProperty("--spent", spent[k]);
    });
    $(`${id}-shares`).textContent = shares(nll, stops);
  }
  showToken(reader.at, document.activeElement === $("sft") ? "sft" : "empower");
}

// After each token, the share of the budget that is spent since the last stop: the running sum of
// Algorithm 1. What the human types costs nothing.
function budget(costs, typed, limit) {
  let sum = 0;
  return costs.map((cost, k) => {
    sum = typed.has(k) ? 0 : sum + cost;
    return limit ? Math.min(1, sum / limit).toFixed(3) : 0;
  });
}

function shares(nll, stops) {
  const all = nll.length, human = stops.length, typed = new Set(stops);
  if (!all) return "";
  const part = Math.round(100 * human / all);
  const choices = nll.filter((bits, k) => bits > 1 && !typed.has(k)).length;
  return `Written by the assistant: ${100 - part}% (${count(all - human, "token")}), of which ` +
    `${choices} ${choices === 1 ? "was a choice" : "were choices"} of more than 1 bit. ` +
    `By the human: ${part}% (${count(human, "token")}).`;
}

function showToken(k, id = "empower") {
  document.querySelectorAll(".picture .at").forEach(span => span.classList.remove("at"));
  const token = reader.tokens[k];
  if (!token) return $("token").replaceChildren("Give a program to see what is obvious in it.");
  [reader.at, reader.id] = [k, id];
  $(id).children[k].classList.add("at");
  const last = reader.stops[id].filter(stop => stop < k).at(-1) ?? -1;
  const sum = reader.tokens.slice(last + 1, k + 1).reduce((bits, each) => bits + each.bits, 0);
  const line = element("div"), others = element("div", "Likeliest here: ", "likeliest");
  line.append(element("code", quoted(token.text)), ` costs ${token.bits.toFixed(2)} bits (probability ` +
    `${percent(2 ** -token.bits)}); ` + (reader.stops[id].includes(k) ? "the human types it." :
    `${sum.toFixed(2)} bits since the last stop.`));
  for (const [text, p] of token.likeliest) {
    const one = element("span"), bar = element("i");
    bar.style.width = `${60 * p}px`;
    one.append(element("code", quoted(text)), bar, ` ${percent(p)}`);
    others.append(one);
  }
  $("token").replaceChildren(line, others, element("div", reader.pinned ? "Pinned: Esc or a click lets go." :
    "Point at a token and click to pin it, or focus a program and use the arrow keys.", "faint"));
}

function pin(pinned) { reader.pinned = pinned; }

// The token that a key leads to: the next one, the nearest one in the next line, the first, the last.
function reached(key, id) {
  const last = reader.tokens.length - 1, spans = [...$(id).children];
  if (key === "Home") return 0;
  if (key === "End") return last;
  if (key === "ArrowRight") return Math.min(last, reader.at + 1);
  if (key === "ArrowLeft") return Math.max(0, reader.at - 1);
  const way = {ArrowUp: -1, ArrowDown: 1}[key];
  if (!way) return null;
  const place = k => [...spans[k].getClientRects()].at(-1), from = place(reader.at);
  let best = reader.at, line = null;
  for (let k = reader.at + way; spans[k]; k += way) {
    const box = place(k);
    if (Math.abs(box.top - from.top) < 4) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > 4) break;
    if (best === reader.at || Math.abs(box.left - from.left) < Math.abs(place(best).left - from.left)) best = k;
  }
  return best;
}

// The address keeps eta and the program: one of those offered, or its text if it is short.
function addressOf(text, number) {
  const kept = new URLSearchParams({eta: etaAt(Number($("eta").value))});
  if (number >= 0) kept.set("program", number);
  else if (text.length < 4000) kept.set("text", text);
  return `#read&${kept}`;
}

function count(n, what) { return `${n} ${what}${n === 1 ? "" : "s"}`; }

function percent(p) { return p < 0.001 ? "under 0.1%" : `${(100 * p).toFixed(1)}%`; }

function startReading(about) {
  fill($("texts"), about.texts.map(text => text.name));
  $("reader").textContent = about.reader;
  const remember = () => {
    if (!$("read").hidden) history.replaceState(null, "", addressOf($("source").value, $("texts").selectedIndex));
  };
  const choose = text => {
    $("source").value = text;
    const statement = about.texts[$("texts").value]?.statement ?? "";
    $("goal").hidden = !statement;
    $("goal").lastElementChild.textContent = statement.replace(/^# ?/gm, "").trim();
    remember();
    return read(text);
  };
  $("texts").onchange = () => {
    $("file").value = "";
    choose(about.texts[$("texts").value].text);
  };
  $("file").onchange = async () => {
    $("texts").selectedIndex = -1;
    if ($("file").files[0]) choose(await $("file").files[0].text());
  };
  let pause;
  $("source").oninput = () => {
    $("texts").selectedIndex = -1;
    clearTimeout(pause);
    pause = setTimeout(choose, 300, $("source").value);
  };
  $("eta").oninput = $("n").oninput = () => { drawBars(); remember(); };
  $("edit").onclick = () => {  // the program in the place of its picture
    const editing = $("source").hidden;
    $("source").hidden = !editing;
    $("empower").hidden = editing;
    $("edit").setAttribute("aria-pressed", editing);
    $("edit").textContent = editing ? "Done" : "Edit";
    if (editing) $("source").focus();
  };
  $("edges").onchange = () => $("read").classList.toggle("edges", $("edges").checked);
  for (const id of ["empower", "sft"]) {
    $(id).onpointermove = event => {  // not pointerover: what scrolls under it was not pointed at
      if (event.target.dataset.k && !reader.pinned) showToken(Number(event.target.dataset.k), id);
    };
    $(id).onclick = event => {
      if (!event.target.dataset.k) return;
      pin(!reader.pinned);
      showToken(Number(event.target.dataset.k), id);
    };
    $(id).onkeydown = event => {
      if (event.key === "Escape") pin(false);
      const k = event.key === "Escape" ? reader.at : reached(event.key, id);
      if (k === null || !reader.tokens.length) return;
      event.preventDefault();
      showToken(k, id);
      $(id).children[k].scrollIntoView({block: "nearest"});
    };
  }
  $("legend").append("bits:", ...[0.1, 0.5, 1, 2, 4, 8].map(bits => {
    const box = element("i", String(bits));
    box.style.setProperty("--a", shade(bits));
    return box;
  }), element("b", "the assistant stops"));
  const kept = new URLSearchParams(location.hash.split("&").slice(1).join("&"));
  $("eta").value = placeOf(Number(kept.get("eta") ?? 0.32));
  $("texts").selectedIndex = kept.has("text") ? -1 : about.texts[kept.get("program")] ? kept.get("program") : 0;
  choose(kept.get("text") ?? about.texts[$("texts").selectedIndex].text);
}

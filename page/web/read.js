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

const reader = {tokens: [], at: 0, number: 0};

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
  const nll = reader.tokens.map(token => token.bits), eta = Number($("eta").value);
  const n = Math.max(1, Math.floor(Number($("n").value)) || 1);
  $("eta-value").textContent = `${eta.toFixed(2)} bits`;
  $("eta").setAttribute("aria-valuetext", $("eta-value").textContent);
  reader.stops = {empower: leftToHuman(nll, eta), sft: everyNth(nll.length, n)};
  for (const [id, stops] of Object.entries(reader.stops)) {
    const typed = new Set(stops);
    [...$(id).children].forEach((span, k) => span.classList.toggle("human", typed.has(k)));
    $(`${id}-shares`).textContent = shares(nll, stops);
  }
  showToken(reader.at, document.activeElement === $("sft") ? "sft" : "empower");
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
  reader.at = k;
  $(id).children[k].classList.add("at");
  const last = reader.stops[id].filter(stop => stop < k).at(-1) ?? -1;
  const sum = reader.tokens.slice(last + 1, k + 1).reduce((bits, each) => bits + each.bits, 0);
  const line = element("div"), others = element("div", "Likeliest here: ");
  line.append(element("code", quoted(token.text)), ` costs ${token.bits.toFixed(2)} bits (probability ` +
    `${percent(2 ** -token.bits)}); ${sum.toFixed(2)} bits since the last stop.`);
  token.likeliest.forEach(([text, p], j) => others.append(
    j ? ", " : "", element("code", quoted(text)), ` ${percent(p)}`));
  $("token").replaceChildren(line, others,
    element("div", "Point at a token, or focus a program and press ← or →.", "faint"));
}

function count(n, what) { return `${n} ${what}${n === 1 ? "" : "s"}`; }

function percent(p) { return p < 0.001 ? "under 0.1%" : `${(100 * p).toFixed(1)}%`; }

function startReading(about) {
  fill($("texts"), about.texts.map(text => text.name));
  const choose = text => { $("source").value = text; read(text); };
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
    pause = setTimeout(read, 300, $("source").value);
  };
  $("eta").oninput = $("n").oninput = drawBars;
  for (const id of ["empower", "sft"]) {
    $(id).onpointerover = event => {
      if (event.target.dataset.k) showToken(Number(event.target.dataset.k), id);
    };
    $(id).onkeydown = event => {
      const move = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!move) return;
      event.preventDefault();
      showToken(Math.min(reader.tokens.length - 1, Math.max(0, reader.at + move)), id);
    };
  }
  $("legend").append("bits:", ...[0.1, 0.5, 1, 2, 4, 8].map(bits => {
    const box = element("i", String(bits));
    box.style.setProperty("--a", shade(bits));
    return box;
  }), element("b", "the assistant stops"));
  choose(about.texts[0].text);
}

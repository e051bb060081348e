// The small models without Python: tokens, costs and suggestions, as in model.py, realcode/suggest.py
// and page/assistants.py. It runs in a worker of the static page; nothing here knows the page.
// Letters of shapes: C hidden_size, D head_dim, S positions in the cache, V vocab_size.

const WINDOW = 2048;      // tokens before the caret that are read at most
const LIKELIEST = 5;      // alternatives that are shown for each token
const NEAR = 16;          // tokens before the caret that may be chosen again
const TRIED = 32;         // tokens after a cut, to see how the text before it would be written
const FOLLOWING = ["", "\u0436", "0"];  // white space: nothing, a word, a number

// ------------------------------------------------------------------ tokens

// data.PATTERN, in the classes that tiktoken's regexes mean by \w, \d and \s.
const PIECES = new RegExp(String.raw`\n *| ?[\p{Alphabetic}\p{M}\p{Pc}\u200c\u200d]+| ?\p{Nd}|` +
  String.raw` ?[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{White_Space}\u200c\u200d]+|\p{White_Space}`, "gu");

// Bytes are the characters 0 to 255 of a string, so that they can be cut, compared and looked up.
class Tokens {
  constructor(tokens, stop) {  // tokens: the bytes of each id; stop: begins and ends a document
    Object.assign(this, {tokens, stop, known: new Map(tokens.map((bytes, id) => [bytes, id]))});
    this.known.delete(tokens[stop]);
    this.sorted = [...this.known].sort(([a], [b]) => a < b ? -1 : 1);
  }

  encode(text) {
    return (text.match(PIECES) ?? []).flatMap(piece => this.merge(
      Array.from(new TextEncoder().encode(piece), byte => String.fromCharCode(byte))));
  }

  merge(parts) {  // byte-pair encoding: the pair with the lowest id first, the leftmost of equal ones
    for (;;) {
      let best = Infinity, at;
      for (let k = 0; k + 1 < parts.length; k++) {
        const id = this.known.get(parts[k] + parts[k + 1]);
        if (id < best) [best, at] = [id, k];
      }
      if (best === Infinity) return parts.map(part => this.known.get(part));
      parts.splice(at, 2, this.tokens[best]);
    }
  }

  bytes(ids) { return ids.map(id => this.tokens[id]).join(""); }

  beginning(bytes) {  // the ids of all tokens that begin with these bytes
    return this.sorted.filter(([token]) => token.startsWith(bytes)).map(([, id]) => id);
  }
}

// The text of each piece; a character split over several pieces goes to the last of them.
function texts(pieces) {
  const decoder = new TextDecoder("utf-8", {ignoreBOM: true});
  return pieces.map(bytes => decoder.decode(Uint8Array.from(bytes, c => c.charCodeAt(0)), {stream: true}));
}

// ------------------------------------------------------------------ the network

function fromBase64(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)); }

// {name: Float32Array} of a safetensors file in bfloat16, which is the upper half of a float32.
function readWeights(file) {
  const size = Number(new DataView(file.buffer).getBigUint64(0, true)), weights = {};
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + size)));
  for (const [name, {data_offsets: [begin, end]}] of Object.entries(header)
    .filter(([name]) => name !== "__metadata__")) {
    const halves = new Uint16Array(file.slice(8 + size + begin, 8 + size + end).buffer);
    weights[name] = new Float32Array(Uint32Array.from(halves, half => half << 16).buffer);
  }
  return weights;
}

// out[i] = row i of the matrix times x.
function times(matrix, x, out) {
  for (let i = 0, at = 0; i < out.length; i++) {
    let sum = 0;
    for (let j = 0; j < x.length; j++) sum += matrix[at++] * x[j];
    out[i] = sum;
  }
  return out;
}

function normed(x, weight, eps, out) {  // RMSNorm
  let squares = 0;
  for (const value of x) squares += value * value;
  const scale = 1 / Math.sqrt(squares / x.length + eps);
  for (let i = 0; i < x.length; i++) out[i] = x[i] * scale * weight[i];
  return out;
}

function rotate(x, position, frequencies) {  // RoPE: feature i pairs with i + D/2
  const half = frequencies.length;
  for (let i = 0; i < half; i++) {
    const cos = Math.cos(position * frequencies[i]), sin = Math.sin(position * frequencies[i]);
    [x[i], x[i + half]] = [x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin];
  }
}

class GPT {
  constructor(config, weights) {
    Object.assign(this, {config, weights, vocab: weights["model.embed_tokens.weight"]});
    const half = config.head_dim / 2;
    this.frequencies = Float32Array.from({length: half}, (_, i) => config.rope_theta ** (-i / half));
  }

  // The logits (V) after a token; `cache` holds the keys and values (S, Hkv * D) of each layer.
  step(id, position, cache) {
    const {hidden_size: C, rms_norm_eps: eps} = this.config, fresh = new Float32Array(C);
    const h = this.vocab.slice(id * C, (id + 1) * C);
    for (let n = 0; n < this.config.num_hidden_layers; n++) {
      const weight = name => this.weights[`model.layers.${n}.${name}.weight`];
      const add = change => change.forEach((value, i) => { h[i] += value; });
      add(this.attend(normed(h, weight("input_layernorm"), eps, fresh), position, cache[n], weight));
      const x = normed(h, weight("post_attention_layernorm"), eps, fresh);
      const inner = () => new Float32Array(this.config.intermediate_size);
      const gate = times(weight("mlp.gate_proj"), x, inner()), up = times(weight("mlp.up_proj"), x, inner());
      for (let i = 0; i < gate.length; i++) gate[i] *= up[i] / (1 + Math.exp(-gate[i]));  // SwiGLU
      add(times(weight("mlp.down_proj"), gate, new Float32Array(C)));
    }
    normed(h, this.weights["model.norm.weight"], eps, fresh);
    return times(this.vocab, fresh, new Float32Array(this.config.vocab_size));  // tied
  }

  attend(x, position, {keys, values}, weight) {
    const {head_dim: D, num_attention_heads: H, num_key_value_heads: Hkv, rms_norm_eps: eps} = this.config;
    const width = Hkv * D, q = times(weight("self_attn.q_proj"), x, new Float32Array(H * D));
    const k = times(weight("self_attn.k_proj"), x, keys.subarray(position * width, (position + 1) * width));
    times(weight("self_attn.v_proj"), x, values.subarray(position * width, (position + 1) * width));
    for (const [all, name] of [[q, "self_attn.q_norm"], [k, "self_attn.k_norm"]]) {
      for (let at = 0; at < all.length; at += D) {
        const head = all.subarray(at, at + D);
        rotate(normed(head, weight(name), eps, head), position, this.frequencies);
      }
    }
    const y = new Float32Array(H * D), p = new Float64Array(position + 1);
    for (let head = 0; head < H; head++) {
      const own = head * D, shared = Math.floor(head * Hkv / H) * D;  // grouped queries
      let most = -Infinity, sum = 0;
      for (let s = 0; s <= position; s++) {
        let score = 0;
        for (let i = 0; i < D; i++) score += q[own + i] * keys[s * width + shared + i];
        p[s] = score / Math.sqrt(D);
        most = Math.max(most, p[s]);
      }
      for (let s = 0; s <= position; s++) sum += p[s] = Math.exp(p[s] - most);
      for (let s = 0; s <= position; s++) {
        const share = p[s] / sum;
        for (let i = 0; i < D; i++) y[own + i] += share * values[s * width + shared + i];
      }
    }
    return times(weight("self_attn.o_proj"), y, new Float32Array(x.length));
  }
}

// ------------------------------------------------------------------ a cache that knows its text

class KVCache {
  constructor(model) {
    const {num_hidden_layers: layers, num_key_value_heads: Hkv, head_dim: D} = model.config;
    const room = () => new Float32Array(WINDOW * Hkv * D);
    Object.assign(this, {model, ids: [], rows: []});
    this.layers = Array.from({length: layers}, () => ({keys: room(), values: room()}));
  }

  // The logits after each of the ids; only those after the common beginning are computed.
  logits(ids) {
    let same = 0;
    while (same < ids.length && ids[same] === this.ids[same]) same++;
    [this.ids, this.rows] = [ids.slice(0, same), this.rows.slice(0, same)];
    for (let k = same; k < ids.length; k++) {
      this.rows.push(this.model.step(ids[k], k, this.layers));
      this.ids.push(ids[k]);
    }
    return this.rows;
  }
}

function logSum(values) {  // log of the sum of exp
  let most = -Infinity, sum = 0;
  for (const value of values) most = Math.max(most, value);
  for (const value of values) sum += Math.exp(value - most);
  return most + Math.log(sum);
}

function bitsOf(logits, id) { return (logSum(logits) - logits[id]) / Math.LN2; }

// ------------------------------------------------------------------ what the page asks for

function readProgram(tokens, cache, text) {  // as page/assistants.py: read_program
  const whole = tokens.encode(text), ids = whole.slice(0, WINDOW - 1);
  const pieces = texts(ids.map(id => tokens.tokens[id]));
  const rows = cache.logits([tokens.stop, ...ids.slice(0, -1)]);
  return {of: whole.length, tokens: ids.map((id, k) => {
    const all = logSum(rows[k]), order = Array.from(rows[k], (logit, i) => [logit, i])
      .sort(([a], [b]) => b - a).slice(0, LIKELIEST);
    return {text: pieces[k], bits: (all - rows[k][id]) / Math.LN2, likeliest: order.map(
      ([logit, i]) => [i === tokens.stop ? "" : texts([tokens.tokens[i]])[0], Math.exp(logit - all)])};
  })};
}

// The first of these ids, as many as have `size` bytes; null if one of them goes on after it.
function idsOf(tokens, ids, size) {
  for (let n = 0; ; n++) {
    if (size <= 0 || n === ids.length) return size ? null : ids.slice(0, n);
    size -= tokens.tokens[ids[n]].length;
  }
}

// [the ids for these bytes where the first of the tokens that may follow them does so]
function writtenBefore(tokens, bytes, fits) {
  const every = 1 + Math.floor(fits.length / TRIED), decoder = new TextDecoder("utf-8", {fatal: true, ignoreBOM: true});
  for (const token of fits.filter((_, k) => k % every === 0)) {
    let whole;
    try {
      whole = decoder.decode(Uint8Array.from(bytes + tokens.tokens[token], c => c.charCodeAt(0)));
    } catch { continue; }  // a cut inside a character
    for (const following of /\s$/u.test(whole) ? FOLLOWING : [""]) {
      const ids = tokens.encode(whole + following), path = idsOf(tokens, ids, bytes.length);
      if (path && ids[path.length] === token) return [path];
    }
  }
  return [];
}

// All ways to write the end of a text so that its last token may be longer: [{path, typed, fits}].
function ways(tokens, tail) {
  const bytes = tokens.bytes(tail), found = new Map();
  for (let cut = 0; cut < bytes.length; cut++) {
    const fits = tokens.beginning(bytes.slice(cut));
    if (!fits.length) continue;
    for (const path of [idsOf(tokens, tail, cut), ...writtenBefore(tokens, bytes.slice(0, cut), fits)]) {
      if (path) found.set(path.join(), {path, typed: bytes.length - cut, fits});
    }
  }
  return [...found.values()];
}

// The word at the caret, written again with a token that begins with it: {ids, typed, bits}.
function heal(tokens, cache, ids) {  // as realcode/suggest.py: heal
  const before = ids.slice(0, Math.max(0, ids.length - NEAR)), some = ways(tokens, ids.slice(before.length));
  if (!some.length) return {ids, typed: tokens.bytes(ids.slice(-1)).length, bits: 0};
  const all = [];
  let best = {total: -Infinity};
  for (const {path, typed, fits} of some.sort((a, b) => b.path.length - a.path.length)) {
    const rows = cache.logits([tokens.stop, ...before, ...path]).slice(before.length);
    const kept = path.reduce((sum, id, k) => sum + rows[k][id] - logSum(rows[k]), 0);
    const row = rows[path.length], most = logSum(row);
    for (const token of fits) {
      const total = kept + row[token] - most;
      all.push(total);
      if (total > best.total) best = {total, ids: [...before, ...path, token], typed};
    }
  }
  return {...best, bits: Math.max(0, (logSum(all) - best.total) / Math.LN2)};
}

// The end of the ids that is read, cut by half a window at a time, so that the cache stays of use.
function windowOf(ids, room) {
  const limit = WINDOW - room, half = Math.floor(limit / 2);
  return ids.slice(Math.max(0, Math.ceil((ids.length - limit) / half)) * half);
}

// choice: {max_tokens, healing}; healing: bits that the rest of a word may cost, null for any.
function suggest(tokens, cache, choice, text, eta) {  // as page/assistants.py: Models._suggest
  const {ids, typed, bits} = heal(tokens, cache, windowOf(tokens.encode(text), choice.max_tokens + 2));
  if (bits > Math.min(eta, choice.healing ?? Infinity)) return {suggestion: "", tokens: 0, bits: 0};
  const rest = tokens.bytes(ids.slice(-1)).slice(typed), pieces = rest ? [rest] : [];
  const written = [tokens.stop, ...ids];
  let cost = 0;
  for (let n = 0; n < choice.max_tokens; n++) {
    const row = cache.logits(written).at(-1);
    const id = row.reduce((best, logit, i) => logit > row[best] ? i : best, 0);
    const more = bitsOf(row, id);
    if (id === tokens.stop || bits + cost + more > eta) break;
    cost += more;
    written.push(id);
    pieces.push(tokens.tokens[id]);
  }
  return {suggestion: texts(pieces).join(""), tokens: pieces.length, bits: cost + (rest ? bits : 0)};
}

class Local {
  // data: {tokens, stop, models: {name: {config, weights in base64}}, choices: {assistant: ...}}
  constructor({tokens, stop, models, choices}) {
    this.tokens = new Tokens(tokens, stop);
    this.choices = choices;
    this.models = Object.fromEntries(Object.entries(models).map(([name, {config, weights}]) =>
      [name, new GPT(config, readWeights(fromBase64(weights)))]));
    this.caches = {};
  }

  cache(use, model) { return this.caches[`${use} ${model}`] ??= new KVCache(this.models[model]); }

  answer(path, body) {
    const text = body.text.replaceAll("\r\n", "\n");
    if (path === "/api/read") return readProgram(this.tokens, this.cache("read", "base"), text);
    const choice = this.choices[body.assistant];
    return suggest(this.tokens, this.cache("write", choice.model), choice, text,
                   choice.needs_eta ? body.eta : Infinity);
  }
}

// In the worker: the first message is the data; of several requests by the same asker only the
// newest is worked on.
if (typeof document === "undefined") {
  let local;
  const waiting = new Map();
  const work = () => {
    const [[key, {number, path, body}]] = waiting;
    waiting.delete(key);
    try {
      postMessage({number, found: local.answer(path, body)});
    } catch (error) { postMessage({number, failed: error.message}); }
  };
  self.onmessage = ({data}) => {
    if (data.models) return void (local = new Local(data));
    const key = [data.path, data.body.client, data.body.assistant].join("\n"), older = waiting.get(key);
    if (older) postMessage({number: older.number, found: {overtaken: true, suggestion: "", tokens: 0}});
    waiting.delete(key);
    waiting.set(key, data);
    if (!older) setTimeout(work, 0);
  };
}

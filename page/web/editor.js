// An editor with grey suggestions, of the view Write and of the study.

// Counted in characters, as in Python, not in the UTF-16 units of JavaScript.
function points(text) { return [...text].length; }

// [start, end of what was removed, what was inserted]: from one text to the next, whose caret stands
// after what was inserted.
function difference(before, after, caret) {
  let tail = before.endsWith(after.slice(caret)) ? after.length - caret : 0;
  if (caret + tail !== after.length) {  // undo may leave the caret anywhere
    while (tail < Math.min(before.length, after.length) &&
           before.at(-1 - tail) === after.at(-1 - tail)) tail++;
  }
  let start = 0;
  const most = Math.min(before.length, after.length) - tail;
  while (start < most && before[start] === after[start]) start++;
  const inside = (text, at) => /[\udc00-\udfff]/.test(text[at] ?? "");  // a character of two units
  while (start && (inside(before, start) || inside(after, start))) start--;
  while (tail && (inside(before, before.length - tail) || inside(after, after.length - tail))) tail--;
  return [start, before.length - tail, after.slice(start, after.length - tail)];
}

class Editor {
  // suggest(text before the caret, signal) gives the text to show; log(type, info, caret) is told
  // what happens, in the words of the published editor.
  constructor(root, suggest, log = () => {}) {
    [this.mirror, this.area, this.touch] = root.children;
    Object.assign(this, {suggest, log, value: "", caret: 0, end: 0, ghost: "", accepting: false,
                         logged: -1});
    for (const [button, work] of [[0, () => this.accept()], [1, () => this.dismiss()]]) {
      this.touch.children[button].onpointerdown = event => event.preventDefault();  // keep the focus
      this.touch.children[button].onclick = work;
    }
    // The grey text moves what is below it, but not the text that the pointer meets.
    this.area.addEventListener("pointermove", () => {
      if (this.ghost && this.before !== this.area.value.trimEnd()) this.dismiss();
    });
    this.area.addEventListener("input", () => this.changed());
    this.area.addEventListener("keydown", event => this.key(event));
    document.addEventListener("selectionchange", () => this.moved());
  }

  tell(type, info, caret) {
    this.log(type, info, caret);
    this.logged = caret;
  }

  set(text) {
    this.logged = -1;  // whoever reads the log does not know where the caret is
    this.dismiss();
    this.area.value = this.value = text;
    this.area.setSelectionRange(text.length, text.length);
    this.caret = this.end = text.length;
    this.draw();
  }

  get before() { return this.area.value.slice(0, this.area.selectionStart); }

  draw() {
    const at = this.area.selectionStart, text = this.area.value;
    const ghost = element("span", visible(this.ghost), "ghost");
    this.mirror.replaceChildren(text.slice(0, at), ghost, text.slice(at) + "\n");
  }

  changed() {
    const after = this.area.value, caret = this.area.selectionStart;
    const [start, end, inserted] = difference(this.value, after, caret);
    const removed = this.value.slice(start, end), at = points(after.slice(0, start));
    if (removed) this.tell("deletion", String(points(removed)), at);
    // The log counts what is inserted from the caret on.
    if (inserted && this.logged !== at) this.tell("cursor_moved", "", at);
    if (inserted) this.tell(this.accepting ? "accepted_suggestion" : "character_typed", inserted,
                            at + points(inserted));
    [this.value, this.caret, this.end, this.ghost] = [after, caret, caret, ""];
    this.draw();
    this.inView();
    this.ask();
  }

  inView() { this.mirror.querySelector(".ghost").scrollIntoView({block: "nearest"}); }

  moved() {
    const {selectionStart, selectionEnd} = this.area;
    if (document.activeElement !== this.area || this.area.value !== this.value) return;
    if (selectionStart === this.caret && selectionEnd === this.end) return;
    [this.caret, this.end] = [selectionStart, selectionEnd];
    this.tell("cursor_moved", "", points(this.before));
    this.dismiss();
    this.ask();
  }

  key(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      this.tabLeaves = !this.ghost;
      this.dismiss();
    } else if (event.key === "Tab" && (this.ghost && !event.shiftKey || !this.tabLeaves)) {
      event.preventDefault();
      event.shiftKey ? this.dedent() : this.ghost ? this.accept() : this.indent();
    } else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      this.insert("\n" + this.before.split("\n").at(-1).match(/^[ \t]*/)[0]);
    } else if (event.key !== "Shift" && event.key !== "Tab") {
      this.tabLeaves = false;
    }
  }

  accept() {
    this.accepting = Boolean(this.ghost);
    if (this.ghost) this.insert(this.ghost);
    this.accepting = false;
  }

  indent() {  // at the caret, or all lines of the selection
    const {selectionStart: start, selectionEnd: end, value} = this.area;
    if (start === end) return this.insert("    ");
    this.area.setSelectionRange(value.lastIndexOf("\n", start - 1) + 1, end);
    this.insert(value.slice(this.area.selectionStart, end).replace(/^(?=.)/gm, "    "));
  }

  dedent() {  // the line of the caret, or all lines of the selection
    const {selectionStart: start, selectionEnd: end, value} = this.area;
    const from = value.lastIndexOf("\n", start - 1) + 1, rest = value.indexOf("\n", end);
    const lines = value.slice(from, rest < 0 ? value.length : rest), less = lines.replace(/^( {1,4}|\t)/gm, "");
    if (less === lines) return;
    this.area.setSelectionRange(from, from + lines.length);
    this.insert(less);
    const back = start === end ? Math.max(from, start - (lines.length - less.length)) : from;
    this.area.setSelectionRange(back, start === end ? back : from + less.length);
  }

  insert(text) {  // so that the browser's undo knows of it, where it can
    if (!document.execCommand("insertText", false, text)) {
      this.area.setRangeText(text, this.area.selectionStart, this.area.selectionEnd, "end");
      this.changed();
    }
  }

  dismiss() {
    clearTimeout(this.pause);
    this.waiting?.abort();
    this.ghost = "";
    this.draw();
  }

  ask() {
    clearTimeout(this.pause);
    this.waiting?.abort();
    this.pause = setTimeout(() => this.show(), 40);
  }

  async show() {
    const waiting = this.waiting = new AbortController(), asked = this.area.value, before = this.before;
    if (this.area.selectionStart !== this.area.selectionEnd) return;
    let suggestion = "";
    try {
      suggestion = await this.suggest(before, waiting.signal);
    } catch (error) {
      if (error.name !== "AbortError") say(error.name === "TypeError" ?
        "The server does not answer: your text is kept here, and suggestions come when it is back." : error.message);
      if (error.name === "TypeError") this.pause = setTimeout(() => this.show(), 2000);
      return;
    }
    if (waiting.signal.aborted || asked !== this.area.value || before !== this.before) return;
    say("");
    if (suggestion) this.tell("proposed_suggestion", suggestion, points(before));
    this.ghost = suggestion;
    this.draw();
    this.inView();
  }
}

// The study: its steps, and what is kept in the browser until the server has it.

function keep(key, value) {  // in this browser, as long as there is room
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch { say("This browser has no room left: do not reload the page without a connection."); }
}

// What happens in the editor, numbered, kept in this browser until the server has written it.
class Recorder {
  constructor(word) {
    this.word = word;
    this.key = `empower ${word}`;
    this.queue = JSON.parse(localStorage.getItem(this.key) ?? "[]");
    this.last = this.queue.at(-1)?.n ?? 0;
    this.stamp = this.queue.at(-1)?.ms ?? 0;  // of the last event, by which the next one names it
    this.late = false;  // these events were typed here while the person went on in another browser
    this.refused = 0;  // how often the server refused events, one time after another
    this.sending = Promise.resolve();
  }

  add(type, info, caret) {
    const used = Math.round(10 * study.used) / 10, after = this.stamp;
    this.stamp = Date.now();
    this.queue.push({n: ++this.last, after, part: study.state.part, ms: this.stamp, type, info, caret, used});
    clearTimeout(this.pause);
    this.pause = setTimeout(() => this.send(), 100);
    this.save();
  }

  save() { keep(this.key, this.queue); }

  // Sends until nothing is left; what is lost on the way is sent again. Resolves when all is written.
  send() { return this.sending = this.sending.then(() => this.sendAll()); }

  async sendAll() {
    while (this.queue.length) {
      try {
        let size = 0;  // a request has a limit
        const events = this.queue.slice(0, 100).filter(
          ({info}, k) => (size += info.length) < 150000 || k === 0);
        const found = await api("/api/study/events", {word: this.word, tab: client, events, late: this.late});
        this.late ||= found.taken > found.last;
        this.queue = this.queue.filter(event => event.n > found.taken);
        this.save();
        this.refused = 0;
        say("");
      } catch (error) {
        if (error.status === 423) return study.stop();
        if (error.status && error.status < 500 && await this.agree().then(() => true, () => false)) {
          return;
        }
        say("No connection to the server: go on, what you type is kept here and sent later.");
        await new Promise(resolve => setTimeout(resolve, 1000));
      }
    }
    this.late = false;
  }

  // The server rejected these events: it keeps them apart, and gets the program as it is now.
  async agree() {
    const state = await api("/api/study/state", {word: this.word, tab: client});
    for (let k = 0; k < this.queue.length; k += 50) {
      await api("/api/study/events", {word: this.word, tab: client, events: this.queue.slice(k, k + 50), late: true})
        .catch(error => { if (!(error.status < 500)) throw error; });  // one of them may be malformed
    }
    this.queue = [];
    [this.last, this.stamp] = [state.last, state.stamp];
    this.save();
    if (study.ticking === null) return;  // `enter` asked, and goes on
    if (state.part !== study.state.part) return void setTimeout(enter, 0, this.word);
    if (++this.refused > 3) return say("Your last change cannot be kept: undo it, please.");
    this.add("current_code", study.editor.value, points(study.editor.before));
  }
}

const study = {used: 0, state: null, recorder: null, editor: null, ticking: null, entered: 0};

study.show = id => {
  for (const each of $("study").children) each.hidden = ![`study-${id}`, "who"].includes(each.id);
  const title = document.querySelector(`#study-${id} h2`);
  if (title) {  // a screen reader says where one is
    title.tabIndex = -1;
    title.focus();
  }
};

study.pause = () => {
  clearInterval(study.ticking);
  study.ticking = null;
};

study.stop = () => {
  study.pause();
  study.editor.dismiss();
  say("");
  study.show("stopped");
};

study.title = () => {
  const {parts, part} = study.state, name = parts[part];
  return `Part ${part + 1} of ${parts.length}: ` +
    (name === "alone" ? "without an assistant" : `with assistant ${name.split("_")[1]}`);
};

async function enter(word) {  // to where this person is in the study
  study.pause();
  const entered = ++study.entered;  // a second click, or another attempt, overtakes this one
  study.recorder = new Recorder(word);
  try {
    study.state = await api("/api/study/state", {word, tab: client});  // this tab may write now
    if (entered !== study.entered) return;
    if (study.recorder.queue.length) {  // from before the page was closed
      await study.recorder.send();
      study.state = await api("/api/study/state", {word, tab: client});
    }
    if (entered !== study.entered) return;
  } catch (error) {
    if (entered !== study.entered) return;
    say(error.message);
    if (error.status !== 403) return setTimeout(enter, 1000, word);
    localStorage.removeItem("empower word");
    return study.show("join");
  }
  localStorage.setItem("empower word", word);
  say(study.over ? "The time for this part is over." : "");
  study.over = false;
  $("who").replaceChildren(`Your code word: ${word} `, $("leave"));
  $("leave").hidden = false;
  [study.recorder.last, study.recorder.stamp] = [study.state.last, study.state.stamp];
  const [clocked, seconds] = JSON.parse(localStorage.getItem(`clock ${word}`) ?? "[-1, 0]");
  study.used = Math.max(study.state.used, clocked === study.state.part ? seconds : 0);
  const {part, parts, answered, begun, statement} = study.state;
  if (answered) return study.show("thanks");
  if (part >= parts.length) return ask();
  $("intro-title").textContent = $("work-title").textContent = study.title();
  $("intro-statement").textContent = $("work-statement").textContent = statement;
  $("intro-text").textContent = `You have ${study.state.minutes[part]} minutes` +
    (part ? " to go on with your program." : " for this problem.") + " The clock starts when you begin.";
  begun ? work() : study.show("intro");
}

function work() {
  const {code, part, minutes, run_programs} = study.state;
  study.pause();
  study.show("work");
  $("test").hidden = !run_programs;
  $("verdict").textContent = "";
  study.editor.area.disabled = false;
  study.editor.set(code);
  study.editor.area.focus();
  study.recorder.send().then(() => study.editor.ask());  // suggestions come once the part has begun
  $("work-keys").hidden = study.state.parts[part] === "alone";
  study.editor.touch.hidden = $("work-keys").hidden;
  let ticks = 0, before = Date.now();
  const tick = () => {
    // Also while a dialog is open or the lid is closed.
    study.used = Math.min(60 * minutes[part], study.used + (Date.now() - before) / 1000);
    before = Date.now();
    const left = Math.max(0, 60 * minutes[part] - study.used);
    $("clock").textContent = `${Math.floor(left / 60)}:${String(Math.floor(left % 60)).padStart(2, "0")}`;
    if (left === 0) {
      study.over = true;
      return leave("tick");
    }
    keep(`clock ${study.recorder.word}`, [part, study.used]);
    if (++ticks % 5 === 0) study.recorder.add("tick", "", 0);
  };
  tick();
  study.ticking = setInterval(tick, 1000);
}

async function leave(type) {  // this part is over
  study.pause();
  study.editor.dismiss();
  study.editor.area.disabled = true;
  study.recorder.add(type, "", 0);
  await study.recorder.send();
  enter(study.recorder.word);
}

function ask() {
  const choices = study.state.parts.filter(part => part !== "alone");
  study.show("questions");
  $("questions").replaceChildren(...study.state.questions.map((question, k) => {
    const set = element("fieldset");
    set.append(element("legend", question), ...choices.map(choice => {
      const label = element("label"), input = element("input");
      Object.assign(input, {type: "radio", name: `question ${k}`, value: choice});
      label.append(input, ` ${choice.replace("_", " ")} `);
      return label;
    }));
    return set;
  }));
}

function startStudy(about) {
  $("study").hidden = false;
  document.title = document.querySelector("h1").textContent = "A study";  // not what it is about
  $("consent").textContent = about.consent.replace(/(\S)\n(?=\S)/g, "$1 ");  // paragraphs
  study.editor = new Editor($("study-editor"), async (text, signal) =>
    study.state.parts[study.state.part] === "alone" ? "" : (await api("/api/study/suggest", {
      word: study.recorder.word, text}, signal).catch(error => {
        if (error.name === "TypeError") return {suggestion: ""};  // the recorder says so
        throw error;
      })).suggestion,
    (type, info, caret) => {
      if (["character_typed", "accepted_suggestion", "deletion"].includes(type)) $("verdict").textContent = "";
      study.recorder.add(type, info, caret);
    });
  $("join").onclick = async () => {
    $("join").disabled = true;  // a second click would be a second person
    try {
      const {word} = await api("/api/study/join", {join_code: $("join-code").value});
      $("word").textContent = word;
      localStorage.setItem("empower word", word);
      say("");
      study.show("word");
    } catch (error) { say(error.message); }
    $("join").disabled = false;
  };
  $("go-on").onclick = () => enter($("known-word").value.trim().toLowerCase());
  $("word-read").onclick = () => enter($("word").textContent);
  $("leave").onclick = async () => {
    await study.recorder.send();
    const {key, word} = study.recorder;
    for (const kept of ["empower word", key, `clock ${word}`]) localStorage.removeItem(kept);
    location.reload();
  };
  $("begin").onclick = () => {
    study.state.begun = true;
    study.recorder.add("current_code", study.state.code, points(study.state.code));
    work();
  };
  $("finish").onclick = () => {
    if (confirm("Finish this part? You cannot come back to it.")) leave("done");
  };
  $("test").onclick = async () => {
    const {part} = study.state;
    $("test").disabled = true;
    $("verdict").textContent = "running...";
    try {
      const found = await api("/api/study/test", {word: study.recorder.word,
                                                  text: study.editor.area.value});
      if (part === study.state.part) $("verdict").textContent = found.passed ? `passed all ${found.tests} tests` :
        `test ${found.test + 1} of ${found.tests}: ${found.outcome}`;
    } catch (error) {
      $("verdict").textContent = error.name === "TypeError" ? "no connection to the server" : error.message;
    }
    $("test").disabled = false;
  };
  $("answer").onclick = async () => {
    const answers = {};
    study.state.questions.forEach((question, k) => {
      answers[question] = document.querySelector(`input[name="question ${k}"]:checked`)?.value;
    });
    if (Object.values(answers).includes(undefined)) return say("Answer every question, please.");
    try {
      await api("/api/study/answers", {word: study.recorder.word, answers});
      enter(study.recorder.word);
    } catch (error) { say(error.message); }
  };
  for (const [input, button] of [["join-code", "join"], ["known-word", "go-on"]]) {
    $(input).onkeydown = event => { if (event.key === "Enter") $(button).click(); };
  }
  const word = localStorage.getItem("empower word");
  if (word) enter(word);
}

// The view Watch.

const watcher = {episodes: [null, null], step: 0};

function startWatching(about) {
  if (!about.rows.length) {
    return $("watch").replaceChildren(element("p", "This run has no episodes to watch."));
  }
  fill($("problem"), about.problems.map((_, k) => String(k + 1)));
  const empower = about.rows.find(name => name.startsWith("Empower")) ?? about.rows[0];
  fill($("left"), about.rows, empower);
  fill($("right"), about.rows, about.rows.find(name => name.startsWith("SFT-")) ?? about.rows.at(-1));
  async function load() {
    const problem = Number($("problem").value);
    $("statement").textContent = about.problems[problem].replace(/^# ?/gm, "");
    try {
      watcher.episodes = await Promise.all([$("left"), $("right")].map(select =>
        api("/api/watch", {problem, row: about.rows[select.value]})));
    } catch (error) { return say(error.message); }
    $("step").max = Math.max(...watcher.episodes.map(episode => 3 * episode.turns.length + 1));
    show(0);
  }
  function show(step) {
    watcher.step = step;
    $("step").value = step;
    $("step-value").textContent = `${step} of ${$("step").max}`;
    $("screens").replaceChildren(...watcher.episodes.map((episode, k) =>
      screen(about.rows[[$("left"), $("right")][k].value], episode, step)));
    if (step >= Number($("step").max)) stop();
  }
  $("shipped").hidden = about.own;
  function stop() {
    clearInterval(watcher.playing);
    watcher.playing = null;
    $("play").textContent = "Play";
  }
  $("problem").onchange = $("left").onchange = $("right").onchange = () => { stop(); load(); };
  $("step").oninput = () => { stop(); show(Number($("step").value)); };
  $("speed").onchange = () => { if (watcher.playing) { stop(); $("play").onclick(); } };
  $("play").onclick = () => {
    if (watcher.playing) return stop();
    if (watcher.step >= Number($("step").max)) show(0);
    $("play").textContent = "Pause";
    watcher.playing = setInterval(() => show(watcher.step + 1), Number($("speed").value));
  };
  load();
}

// An episode after some steps; a turn has three: a suggestion, her verdict, what she types.
function screen(name, episode, step) {
  const turn = Math.floor(step / 3), phase = step % 3, code = element("pre");
  episode.turns.forEach((each, k) => {
    const last = k === turn ? phase : 2 * (k < turn);  // what of this turn has happened
    if (k > turn) return;
    if (each.accepted && (k < turn || last >= 1)) {
      code.append(element("span", each.suggestion, "by-assistant"));
    }
    if (k < turn || last >= 2) code.append(element("span", each.typed));
  });
  const now = episode.turns[turn], verdict = element("p", " ", "faint");
  const result = element("p", " ", "result");
  if (!now) {
    const offered = episode.turns.filter(each => each.suggestion);
    result.textContent = episode.passed ? "passes every test" : "fails a test";
    verdict.textContent = `${episode.finished ? "She is done" : "The rounds are used up"} after ` +
      `${count(episode.turns.length, "round")}. She accepted ` +
      `${offered.filter(each => each.accepted).length} of ${count(offered.length, "suggestion")}, and ` +
      `was shown ${count(offered.reduce((sum, each) => sum + each.tokens, 0), "token")}.`;
    const unread = offered.filter(each => each.read === false).length;
    if (unread) verdict.textContent += ` She did not look at ${unread} of these suggestions.`;
  } else if (!now.suggestion) {
    verdict.textContent = phase === 2 ? "She types on." : "The assistant leaves it to her.";
  } else {
    if (phase === 0) code.append(element("span", visible(now.suggestion), "ghost"));  // at her caret
    if (phase === 1 && !now.accepted) code.append(element("span", visible(now.suggestion), "ghost rejected"));
    verdict.textContent = `${count(now.tokens, "token")} that cost her ${now.bits.toFixed(1)} bits` +
      (phase ? now.accepted ? now.read === false ? ": accepted without reading it." : ": accepted."
                            : ": rejected." : "");
  }
  const figure = element("figure"), caption = element("figcaption", name);
  caption.append(element("span", ` turn ${Math.min(turn + 1, episode.turns.length)} of ` +
                         `${episode.turns.length}`, "faint"));
  figure.append(caption, result, verdict, code);
  return figure;
}

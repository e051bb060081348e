// The view Write.

function startWriting(about) {
  const names = about.assistants.map(each => each.name);
  const chosen = () => about.assistants[$("assistant").value];
  const eta = () => etaAt(Number($("write-eta").value));
  const ask = (each, text, signal) => api("/api/suggest", {
    client: signal ? client : `${client} compares`, text, assistant: each.name, eta: eta()}, signal);
  let pause, slow, compared = 0;
  const editor = new Editor($("editor"), async (text, signal) => {
    clearTimeout(pause);
    clearTimeout(slow);
    slow = setTimeout(() => { $("latency").textContent = "the assistant is reading…"; }, 300);
    const begin = performance.now();
    const found = await ask(chosen(), text, signal).finally(() => {
      if (!signal.aborted) clearTimeout(slow);
    });
    if (!signal.aborted) pause = setTimeout(compare, 250, text);  // it waits for the editor's own
    if (!found.overtaken) {
      $("latency").textContent = `${Math.round(performance.now() - begin)} ms; ` + (found.suggestion ?
        `${count(found.tokens, "token")}, ${found.bits.toFixed(2)} bits to the assistant's own model` :
        "silent: it leaves this to you");
    }
    return found.suggestion;
  });
  editor.area.addEventListener("input", () => keep("empower program", editor.value));

  async function compare(text) {
    const number = ++compared;
    if (!$("compare").checked) return $("comparison").tBodies[0].replaceChildren();
    $("comparison").classList.add("old");  // until the answers are there
    const rows = await Promise.all(about.assistants.map(async each => {
      const row = element("tr"), cell = element("td");
      const found = await ask(each, text).catch(error => ({suggestion: "", failed: error.message}));
      cell.append(found.suggestion ? element("pre", visible(found.suggestion)) :
                  element("span", found.failed ?? "silent", "faint"));
      row.append(element("th", each.name), cell);
      return row;
    }));
    if (number !== compared) return;
    $("comparison").classList.remove("old");
    $("comparison").tBodies[0].replaceChildren(...rows);
  }

  fill($("assistant"), names);
  $("compare").onchange = () => compare(editor.before);
  $("assistant").onchange = $("write-eta").oninput = () => {
    $("write-eta-value").textContent = `${eta()} bits`;
    $("write-eta-row").hidden = !chosen().needs_eta;
    editor.dismiss();
    editor.ask();
  };
  const anew = "n = int(input())\n";
  $("reset").onclick = () => {
    editor.set(anew);
    keep("empower program", anew);
    editor.area.focus();
    editor.ask();
  };
  $("assistant").onchange();
  editor.set(JSON.parse(localStorage.getItem("empower program")) ?? anew);
  return editor;
}

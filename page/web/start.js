// The views, and where the page begins.

let writer;  // the Editor of the view Write

function showView(view) {
  for (const tab of document.querySelectorAll("nav button")) {
    const chosen = tab.dataset.view === view;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.dataset.view).hidden = !chosen;
  }
  if (named() !== view || !location.hash) history.replaceState(null, "", `#${view}`);
  if (view === "write") {
    document.querySelector("#editor textarea").focus();
    writer.ask();
  }
}

const named = () => ["read", "write", "watch"].find(view => location.hash.split("&")[0] === `#${view}`) ?? "read";

async function start() {
  let about;
  try {
    about = await api("/api/about");
  } catch (error) {
    say(`The server does not answer (${error.message}): reload the page when it is back.`);
    return;
  }
  if (about.study) return startStudy(about);
  document.querySelector("nav").hidden = false;
  for (const tab of document.querySelectorAll("nav button")) {
    tab.onclick = () => showView(tab.dataset.view);
    tab.onkeydown = event => {
      const next = {ArrowRight: tab.nextElementSibling, ArrowLeft: tab.previousElementSibling}[event.key];
      next?.click();
      next?.focus();
    };
  }
  startReading(about);
  writer = startWriting(about);
  startWatching(about);
  showView(named());
  window.onhashchange = () => showView(named());
}

start();

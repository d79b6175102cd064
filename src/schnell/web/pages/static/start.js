// A press of Draw that comes before the scripts would load the page anew: it is held, and counts once they are there.
const form = document.getElementById("settings");
let asked = false;
function hold(event) {
  event.preventDefault();
  asked = true;
}
form.addEventListener("submit", hold);
function begin() {
  form.removeEventListener("submit", hold);
  if (asked) form.requestSubmit();
}

// The page is complete without scripts, so they wait until it has been painted: asked for before, they would take the time
// of drawing it. Then every module is asked for at once. A hidden tab is not painted, and not every browser tells.
function start() {
  const links = document.getElementById("start").dataset.modules.trim().split(" ");
  document.head.append(...links.map((href) => Object.assign(document.createElement("link"), { rel: "modulepreload", href })));
  import(links.at(-1)).then(begin);
}
if (document.hidden || !PerformanceObserver.supportedEntryTypes?.includes("paint")) start();
else new PerformanceObserver((_, observer) => { observer.disconnect(); start(); }).observe({ type: "paint", buffered: true });

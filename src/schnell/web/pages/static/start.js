// The page is complete without scripts, so it is painted first: then every module is asked for at once. A hidden tab has
// no frames to wait for.
function start() {
  const links = document.getElementById("start").dataset.modules.trim().split(" ");
  document.head.append(...links.map((href) => Object.assign(document.createElement("link"), { rel: "modulepreload", href })));
  import("./playground.js");
}
if (document.hidden) start();
else requestAnimationFrame(() => setTimeout(start));

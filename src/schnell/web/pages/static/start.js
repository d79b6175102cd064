// The page is whole without scripts: it is shown first. A hidden tab draws no frames to wait for.
const start = () => import("./playground.js");
if (document.hidden) start();
else requestAnimationFrame(() => setTimeout(start));

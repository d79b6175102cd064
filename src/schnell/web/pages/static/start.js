// The page is complete without scripts, so it is painted first. A hidden tab has no frames to wait for.
const start = () => import("./playground.js");
if (document.hidden) start();
else requestAnimationFrame(() => setTimeout(start));

// Focus never falls to <body>: when the focused element goes, what stood nearest to it gets the focus.

const FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex]";
let last = null;
let around = [];

function isUsable(element) {
  return element.isConnected && !element.disabled && element.getClientRects().length > 0;
}

function rescue() {
  if (document.activeElement !== document.body || !last || isUsable(last)) return;
  // from the place inside out: something usable in the closest part of the page that is still there
  for (const place of around) {
    if (!isUsable(place)) continue;
    const found = [...place.querySelectorAll(FOCUSABLE)].find((each) => each.tabIndex >= 0 && isUsable(each));
    if (found) return found.focus({ preventScroll: true });
  }
  document.getElementById("main").focus({ preventScroll: true });
}

export function guardFocus() {
  document.addEventListener("focusin", ({ target }) => {
    last = target;
    around = [];
    for (let place = target.parentElement; place && place !== document.body; place = place.parentElement) around.push(place);
  });
  const look = () => requestAnimationFrame(rescue);
  new MutationObserver(look).observe(document.body, {
    subtree: true,
    childList: true,
    attributeFilter: ["hidden", "style", "disabled", "open", "class"],
  });
}

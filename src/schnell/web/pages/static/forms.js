// Scripts send forms without an address of their own. One that is sent before its script has come would load the page anew,
// with what was typed (a password) in its address: it is held, and counts once the page's scripts are there.
let held = null;
function hold(event) {
  if (event.target.hasAttribute("action")) return;
  event.preventDefault();
  held = event.target;
}
document.addEventListener("submit", hold);
addEventListener("load", () => {
  document.removeEventListener("submit", hold);
  held?.requestSubmit();
});

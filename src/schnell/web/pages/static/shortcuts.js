// Keyboard shortcuts of a page, and the sheet that lists them. Single keys can be switched off, as WCAG 2.1.4 asks.

import { t } from "./texts.js";

const OFF = "schnell-single-keys-off";
const TYPED = "input:not([type=checkbox]):not([type=radio]):not([type=range]):not([type=file]), textarea, select, [contenteditable]";
// what the arrow keys move in already
const WITH_ARROWS = "[type=radio], [type=range], [role=tab], [role=option]";
let listed = [];

/**
 * `shortcuts`: {keys, label, run, anywhere}. `keys` is what `KeyboardEvent.key` says, several separated by spaces;
 * without `run` a shortcut is only listed. With `anywhere` it works also while an open dialog or a list has the focus.
 */
export function installShortcuts(shortcuts) {
  listed = [...shortcuts, { keys: "?", label: t("Show these shortcuts"), run: showSheet, anywhere: true }];
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (localStorage.getItem(OFF) || event.target.closest?.(TYPED)) return;
    if (event.key.startsWith("Arrow") && event.target.closest?.(WITH_ARROWS)) return;
    const found = listed.find((each) => each.run && each.keys.split(" ").includes(event.key));
    if (!found || (!found.anywhere && document.querySelector("dialog[open]"))) return;
    event.preventDefault();
    found.run(event);
  });
  const button = document.getElementById("shortcuts");
  button.hidden = false;
  button.addEventListener("click", showSheet);
}

function showSheet() {
  const dialog = document.getElementById("shortcut-sheet") ?? makeSheet();
  if (dialog.open) return;
  const list = dialog.querySelector("dl");
  list.replaceChildren(...listed.flatMap(({ keys, shown, label }) => [term(shown ?? keys), description(label)]));
  dialog.showModal();
}

function makeSheet() {
  const dialog = document.createElement("dialog");
  dialog.className = "question sheet";
  dialog.id = "shortcut-sheet";
  dialog.setAttribute("aria-labelledby", "shortcut-title");
  const title = document.createElement("h2");
  title.id = "shortcut-title";
  title.textContent = t("Keyboard shortcuts");
  const close = document.createElement("button");
  Object.assign(close, { type: "button", className: "button small", textContent: t("Close") });
  close.addEventListener("click", () => dialog.close());
  const head = document.createElement("div");
  head.className = "card-head";
  head.append(title, close);
  dialog.append(head, document.createElement("dl"), switchOfKeys());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  return dialog;
}

function switchOfKeys() {
  const label = document.createElement("label");
  label.className = "switch";
  const text = document.createElement("span");
  const name = document.createElement("strong");
  const note = document.createElement("small");
  name.textContent = t("Single keys");
  note.textContent = t("Off: only keys with Ctrl or ⌘ work, and this sheet opens by its button");
  text.append(name, note);
  const box = document.createElement("input");
  Object.assign(box, { type: "checkbox", checked: !localStorage.getItem(OFF) });
  box.setAttribute("role", "switch");
  box.addEventListener("change", () => (box.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "yes")));
  label.append(text, box);
  return label;
}

function term(keys) {
  const element = document.createElement("dt");
  const named = { ArrowLeft: "←", ArrowRight: "→", Escape: t("Esc"), Delete: t("Del") };
  element.append(
    ...keys.split(" ").map((key) => Object.assign(document.createElement("kbd"), { textContent: named[key] ?? key })),
  );
  return element;
}

function description(label) {
  return Object.assign(document.createElement("dd"), { textContent: label });
}

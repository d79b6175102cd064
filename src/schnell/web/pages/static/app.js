// What every page needs: the theme, copy buttons, short messages, calls of the API.

import { guardFocus } from "./focus.js";
import { forgetAll } from "./memory.js";
import { t } from "./texts.js";

const KEY = "schnell-key";

/** The API key of this tab's sign-in, if it came through this tab. The session itself is a cookie that scripts cannot read. */
export function rememberedKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function rememberKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** A short message. With `action`, {label, run}, it holds a button and stays until that loses the focus. */
export function say(message, action = null) {
  const toast = document.getElementById("toast");
  toast.textContent = message;
  // above whatever dialog is open
  toast.hidePopover();
  toast.showPopover();
  clearTimeout(say.timer);
  const hide = () => toast.hidePopover();
  say.timer = setTimeout(hide, action ? 12_000 : 2600);
  if (!action) return;
  const button = Object.assign(document.createElement("button"), { type: "button", className: "toast-action", textContent: action.label });
  button.addEventListener("click", () => {
    hide();
    action.run();
  });
  // who needs longer than the message would stay is there with the focus
  button.addEventListener("focus", () => clearTimeout(say.timer));
  button.addEventListener("blur", () => (say.timer = setTimeout(hide, 4000)));
  toast.append(button);
  button.focus({ preventScroll: true });
}

export async function copy(text, told = t("Copied")) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // without a secure context there is no clipboard API
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(told);
}

/** The API's answer as JSON (null for 204). Throws an Error with the API's message, its `answer` and `status`. */
export async function call(method, path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({ message: t("The server answered {status}.", { status: response.status }) }));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.message), { answer, status: response.status });
}

/** A picture's URL without this server's own host, so that it also loads when the page was reached by another name. */
export function localUrl(url) {
  const { publicUrl } = document.body.dataset;
  return url.startsWith(`${publicUrl}/`) ? url.slice(publicUrl.length) : url;
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  // a cookie, so that pages come in the chosen theme and need no script before their first paint
  document.cookie = `schnell_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
}

function addCopyButtons() {
  for (const frame of document.querySelectorAll("[data-copyable]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button small copy-code";
    button.textContent = t("Copy");
    // what stands around it may be in English
    button.lang = document.documentElement.lang;
    button.addEventListener("click", () => copy(frame.querySelector("code").textContent));
    frame.append(button);
  }
}

/** Loads the page anew where it is: an invite's secret stands behind `#`, which a redirect of the server would lose. */
async function switchLanguage(event) {
  event.preventDefault();
  const chosen = new URLSearchParams({ language: event.submitter.value });
  await fetch("/language", { method: "POST", body: chosen, redirect: "manual" });
  location.reload();
}

document.getElementById("theme").addEventListener("click", switchTheme);
document.getElementById("language").addEventListener("submit", switchLanguage);
addCopyButtons();
guardFocus();
// on a machine that several people use, nothing of the person before is left
if (!document.body.dataset.user) forgetAll();

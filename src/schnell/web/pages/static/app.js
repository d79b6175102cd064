// What every page needs: the theme, copy buttons, short messages, calls of the API.

const KEY = "schnell-key";

/** The API key of this tab's sign-in, if it came through this tab. The session itself is a cookie that scripts cannot read. */
export function rememberedKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function rememberKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function say(message) {
  const toast = document.getElementById("toast");
  toast.textContent = message;
  toast.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (toast.hidden = true), 2600);
}

export async function copy(text) {
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
  say("Copied");
}

/** The API's answer as JSON (null for 204). Throws an Error with the API's message, its `answer` and `status`. */
export async function call(method, path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({ message: `The server answered ${response.status}.` }));
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
  localStorage.setItem("schnell-theme", root.dataset.theme);
}

function addCopyButtons() {
  for (const frame of document.querySelectorAll("[data-copyable]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button small copy-code";
    button.textContent = "Copy";
    button.addEventListener("click", () => copy(frame.querySelector("code").textContent));
    frame.append(button);
  }
}

document.getElementById("theme").addEventListener("click", switchTheme);
addCopyButtons();

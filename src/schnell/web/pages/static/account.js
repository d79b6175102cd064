import { call, copy, rememberKey } from "./app.js";

const find = (id) => document.getElementById(id);
const team = find("keys").dataset.team;

async function create(event) {
  event.preventDefault();
  const form = event.target;
  const scopes = [...form.querySelectorAll("[name=scope]:checked")].map((box) => box.value);
  find("key-problem").textContent = "";
  if (!scopes.length) return (find("key-problem").textContent = "A key must be able to do something: choose at least one.");
  const body = { name: form.elements.name.value.trim(), scopes };
  const rate = form.elements.rateLimit.value.trim();
  if (rate) body.rateLimit = rate;
  try {
    const made = await call("POST", `/api/admin/teams/${team}/keys`, body);
    find("secret").textContent = made.key;
    find("made-key").hidden = false;
    form.reset();
    await showKeys();
    find("secret").focus();
  } catch (error) {
    find("key-problem").textContent = error.message;
  }
}

/** Replaces the table's rows by those of a page fetched anew. */
async function showKeys() {
  const fresh = new DOMParser().parseFromString(await (await fetch("/account")).text(), "text/html");
  document.querySelector("#keys tbody").replaceWith(fresh.querySelector("#keys tbody"));
}

function ask(text) {
  find("question-text").textContent = text;
  const dialog = find("question");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function revoke(button) {
  const own = "own" in button.dataset;
  const more = own ? " You are signed in with it, so this signs you out." : " Whoever uses it is refused from now on.";
  if (!(await ask(`Revoke the key “${button.dataset.name}”?${more}`))) return;
  try {
    await call("DELETE", `/api/admin/keys/${button.dataset.revoke}`);
  } catch (error) {
    find("key-problem").textContent = error.message;
    return;
  }
  if (own) await signOut();
  else await showKeys();
}

async function signOut() {
  await call("DELETE", "/api/session");
  rememberKey("");
  location.assign("/");
}

find("new-key")?.addEventListener("submit", create);
find("copy-secret")?.addEventListener("click", () => copy(find("secret").textContent));
find("sign-out").addEventListener("click", signOut);
find("keys").addEventListener("click", (event) => {
  const button = event.target.closest("[data-revoke]");
  if (button) revoke(button);
});

import { call, copy, rememberKey, say } from "./app.js";
import { t } from "./texts.js";

const find = (id) => document.getElementById(id);
const { team } = find("keys").dataset;

/** Replaces parts of the page by those of the page fetched anew; a row that is being changed stays open, with what was typed. */
async function refresh(...ids) {
  const fresh = new DOMParser().parseFromString(await (await fetch("/account")).text(), "text/html");
  for (const id of ids.filter(find)) {
    const open = new Map([...find(id).querySelectorAll("tr[data-editing]")].map((row) => [changeButton(row).dataset.id, typedIn(row)]));
    find(id).replaceWith(fresh.getElementById(id));
    for (const row of [...find(id).querySelectorAll("tr")].filter((each) => open.has(changeButton(each)?.dataset.id))) {
      edit(row);
      const typed = open.get(changeButton(row).dataset.id);
      for (const field of row.querySelectorAll("input")) field.value = typed[field.name];
    }
  }
}

const changeButton = (row) => row.querySelector("[data-do=change]");
const typedIn = (row) => Object.fromEntries([...row.querySelectorAll("input")].map((field) => [field.name, field.value]));

/** Shows a key's fields in place of what they say. */
function edit(row) {
  row.dataset.editing = "";
  for (const each of row.querySelectorAll("input, [data-shown]")) each.hidden = !each.hidden;
  changeButton(row).textContent = t("Save");
}

/** The beginning of a day, in the zone that the server counts in. */
function atMidnight(day) {
  return `${day}T00:00:00Z`;
}

/** A field of a key as the API takes it: an empty limit or end is none. */
function keyValue({ name, value }) {
  const text = value.trim();
  if (name === "name") return text;
  return text ? (name === "expiresAt" ? atMidnight(text) : text) : null;
}

async function createKey(form) {
  const scopes = [...form.querySelectorAll("[name=scope]:checked")].map((box) => box.value);
  if (!scopes.length) throw new Error(t("A key must be able to do something: choose at least one."));
  const body = { name: form.elements.name.value.trim(), scopes };
  const rate = form.elements.rateLimit.value.trim();
  if (rate) body.rateLimit = rate;
  const end = form.elements.expiresAt.value;
  if (end) body.expiresAt = atMidnight(end);
  const made = await call("POST", "/api/keys", body);
  find("secret").textContent = made.key;
  find("made-for").textContent = made.details.userName;
  find("made-key").hidden = false;
  form.reset();
  await refresh("own-keys");
  find("secret").focus();
}

async function invite(form) {
  const body = { name: form.elements.name.value.trim(), role: form.elements.role.value };
  showLink(await call("POST", `/api/admin/teams/${team}/invites`, body));
  form.reset();
  await refresh("invites");
}

function showLink(made) {
  find("invite-link").textContent = made.link;
  find("invite-for").textContent = made.details.userName;
  find("made-invite").hidden = false;
  find("invite-link").focus();
}

async function setPassword(form) {
  const { login, password, current } = form.elements;
  const body = { name: login.value, password: password.value };
  if (current) body.current = current.value;
  await call("PUT", "/api/password", body);
  await refresh("sign-ins");
  find("sign-ins").querySelector("h2").focus();
  say(t("Saved. Sign in with it from now on."));
}

function ask(text, yes) {
  find("question-text").textContent = text;
  find("question-yes").textContent = yes;
  const dialog = find("question");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function signOut() {
  await call("DELETE", "/api/session");
  rememberKey("");
  location.assign("/");
}

const forms = { "new-key": createKey, "new-invite": invite, "new-password": setPassword };
const actions = {
  async revoke({ id, name, own, others }) {
    const question =
      own === undefined
        ? t("Revoke the key “{name}”? Whoever uses it is refused from now on.", { name })
        : t("Revoke the key “{name}”? You are signed in with it, so this signs you out.", { name });
    if (!(await ask(question, t("Revoke")))) return;
    await call("DELETE", others === undefined ? `/api/keys/${id}` : `/api/admin/keys/${id}`);
    if (own !== undefined) return signOut();
    await refresh("own-keys", "other-keys");
    find(others === undefined ? "own-keys" : "other-keys").focus();
  },
  async change({ id, others }, button) {
    const row = button.closest("tr");
    const fields = [...row.querySelectorAll("input")];
    if (fields[0].hidden) {
      edit(row);
      fields[0].select();
      return;
    }
    // what was not touched stays to the second: a key may end at noon, of which the field shows the day alone
    const body = {};
    for (const field of fields) if (field.value !== field.defaultValue) body[field.name] = keyValue(field);
    await call("PATCH", others === undefined ? `/api/keys/${id}` : `/api/admin/keys/${id}`, body);
    delete row.dataset.editing;
    const part = others === undefined ? "own-keys" : "other-keys";
    await refresh(part);
    find(part).querySelector(`[data-do=change][data-id="${id}"]`).focus();
  },
  async uninvite({ id, name }) {
    if (!(await ask(t("Take back the invite of “{name}”? Its link opens nothing any more.", { name }), t("Take back")))) return;
    await call("DELETE", `/api/admin/invites/${id}`);
    await refresh("invites");
    find("invite-name").focus();
  },
  async relink({ id, name }) {
    if (!(await ask(t("Make a link with which {name} chooses a password anew? Using it signs them out everywhere.", { name }), t("Make a link")))) return;
    showLink(await call("POST", `/api/admin/teams/${team}/users/${id}/invites`));
    await refresh("invites");
  },
  async end({ id }) {
    await call("DELETE", `/api/sessions/${id}`);
    await refresh("sign-ins");
    find("sign-ins").querySelector("h2").focus();
  },
  async endothers() {
    await call("DELETE", "/api/sessions");
    await refresh("sign-ins");
    find("sign-ins").querySelector("h2").focus();
    say(t("Signed out everywhere else"));
  },
};

// parts of the page are replaced, so their forms and buttons are listened for above them
document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!(form.id in forms)) return;
  event.preventDefault();
  const problem = form.querySelector(".problem");
  problem.textContent = "";
  await forms[form.id](form).catch((error) => (problem.textContent = error.message));
});
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-do]");
  if (button) await actions[button.dataset.do](button.dataset, button).catch((error) => say(error.message));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("td input")) event.target.closest("tr").querySelector("[data-do=change]").click();
});
find("copy-secret").addEventListener("click", () => copy(find("secret").textContent));
find("copy-link")?.addEventListener("click", () => copy(find("invite-link").textContent));
find("sign-out").addEventListener("click", signOut);

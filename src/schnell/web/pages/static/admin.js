// The administrators' pages: forms and buttons that call the API, and the part that is shown anew every few seconds.

import { call, copy, say } from "./app.js";

const find = (id) => document.getElementById(id);

/** What a field said when the page came. */
function valueBefore(field) {
  return field.tagName === "SELECT" ? [...field.options].find((each) => each.defaultSelected)?.value : field.defaultValue;
}

const nameOf = (element) => element.id || element.ariaLabel;
const fieldKey = (field) => `${field.form.dataset.path} ${field.name}`;
const fieldsOf = (part) => [...part.querySelectorAll("[name]")].filter((field) => field.form?.dataset.path);

/** What somebody has typed in other rows, or since `sent` (the values of the form that was sent, by `fieldKey`). */
function typedSince(sent, part) {
  const kept = new Map();
  for (const field of fieldsOf(part)) {
    if (field.value !== (sent.get(fieldKey(field)) ?? valueBefore(field))) kept.set(fieldKey(field), field.value);
  }
  return kept;
}

/** Replaces a part of the page by the same part of the page fetched anew. */
async function showAgain(id, sent = new Map()) {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(id);
  if (!fresh) return;
  // what somebody has unfolded stays unfolded
  const before = find(id).querySelectorAll("details");
  fresh.querySelectorAll("details").forEach((each, place) => (each.open = each.open || Boolean(before[place]?.open)));
  const typed = typedSince(sent, find(id));
  const focused = find(id).contains(document.activeElement) ? nameOf(document.activeElement) : null;
  find(id).replaceChildren(...fresh.childNodes);
  for (const field of fieldsOf(find(id))) field.value = typed.get(fieldKey(field)) ?? field.value;
  // the focus stays where it was, on the element that has taken that one's place
  if (focused) [...find(id).querySelectorAll("[id], [aria-label]")].find((each) => nameOf(each) === focused)?.focus();
}

/** The fields that differ from what the page came with; those of a new thing, all that have a value. */
function changed(form) {
  const body = {};
  for (const field of form.elements) {
    if (!field.name) continue;
    if (form.dataset.method === "PATCH" && field.value === valueBefore(field)) continue;
    const text = field.value.trim();
    // what is no number goes as it is: the API says what is wrong with it
    body[field.name] = "number" in field.dataset && /^\d+$/.test(text) ? Number(text) : text;
    if ("day" in field.dataset) body[field.name] = `${text}T00:00:00Z`;
    // no limit, or no end
    if ("null" in field.dataset && !text) body[field.name] = null;
  }
  return body;
}

async function act(element, body) {
  find("problem").textContent = "";
  const sent = new Map([...(element.elements ?? [])].filter((field) => field.name).map((field) => [fieldKey(field), field.value]));
  let answer;
  try {
    answer = await call(element.dataset.method, element.dataset.path, body);
  } catch (error) {
    find("problem").textContent = error.message;
    find("problem").scrollIntoView({ block: "center" });
    return;
  }
  say(element.dataset.done);
  await showAgain("content", sent);
  find("made").hidden = !("link" in element.dataset);
  if (!find("made").hidden) {
    find("made-link").textContent = answer.link;
    find("made-link").focus();
  }
}

function ask(text) {
  find("question-text").textContent = text;
  const dialog = find("question");
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

find("content").addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.dataset.path) return;
  event.preventDefault();
  act(form, changed(form));
});
find("content").addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-path]");
  if (button && (await ask(button.dataset.ask))) act(button);
});

find("copy-link").addEventListener("click", () => copy(find("made-link").textContent));

/** Only while nobody is in the middle of something there, and the tab is seen. */
async function refresh() {
  const live = find("live");
  if (live && !document.hidden && !find("question").open && !live.contains(document.activeElement)) {
    await showAgain("live").catch(() => {});
  }
}

// on a narrow screen the sections scroll sideways, and the last ones would be out of sight
document.querySelector(".sections [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
if (find("live")) setInterval(refresh, Number(find("live").dataset.refresh) * 1000);

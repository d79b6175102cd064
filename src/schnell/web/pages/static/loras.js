import { addFromPlace, uploadFile } from "./lora-adding.js";
import { call, copy, say } from "./app.js";
import { openSweep } from "./lora-sweep.js";

const find = (id) => document.getElementById(id);
const PREVIEW_WAITS = 40;

const dialog = find("add-dialog");
const form = find("add-lora");

async function add(event) {
  event.preventDefault();
  const isFile = form.elements.from.value === "file";
  const name = form.elements.name.value.trim();
  const file = form.elements.file.files[0];
  const source = form.elements.source.value.trim();
  showProblems({});
  if (isFile && !file) return showProblems({ file: "Choose a file first." });
  if (!isFile && !source) return showProblems({ source: "Name a place first." });
  busy(true);
  try {
    const lora = isFile ? await uploadFile(file, name, showProgress) : await addFromPlace(source, name, showProgress);
    await showAdded(lora);
  } catch (error) {
    showProblems(problemsOf(error, isFile ? "file" : "source"));
  }
  busy(false);
}

/** The messages of an error by field; without a list of fields, the message of `field`. */
function problemsOf(error, field) {
  if (error.answer?.errorCode === "CONFLICT") return { name: error.message };
  try {
    const details = JSON.parse(error.answer?.details ?? "[]");
    const known = details.filter((each) => ["source", "name", "file"].includes(each.field));
    if (known.length) return Object.fromEntries(known.map((each) => [each.field, each.message]));
  } catch {
    // `details` is no JSON: the message has to do
  }
  return { [field]: error.message };
}

function showProblems(problems) {
  for (const [name, input] of [["source", "source"], ["file", "file"], ["name", "lora-name"]]) {
    find(`${name}-problem`).textContent = problems[name] ?? "";
    find(input).setAttribute("aria-invalid", String(name in problems));
    if (name in problems) find(input).focus();
  }
}

function busy(is) {
  find("add").disabled = is;
  find("add-progress").hidden = !is;
  if (is) showProgress(null, "Asking …");
}

/** `part` is 0 to 1, or null where the size is unknown. */
function showProgress(part, text) {
  if (part === null) find("upload").removeAttribute("value");
  else find("upload").value = part;
  find("add-state").textContent = text;
}

async function showAdded(lora) {
  form.reset();
  chooseFrom();
  showFile();
  dialog.close();
  await redraw();
  const card = cardOf(lora.name);
  card?.scrollIntoView({ block: "center" });
  card?.classList.add("new");
  say(`Added ${lora.name}`);
  awaitPreview(lora.name, PREVIEW_WAITS);
}

function cardOf(name) {
  return [...find("loras").querySelectorAll(".lora-card")].find((card) => card.dataset.name === name);
}

/** Replaces the cards by those of a page fetched anew. */
async function redraw() {
  const fresh = new DOMParser().parseFromString(await (await fetch("/loras")).text(), "text/html");
  find("loras").replaceChildren(...fresh.getElementById("loras").children);
  search();
}

/** Redraws until the card has its preview, which the server draws after its answer; gives up after `waits` seconds. */
async function awaitPreview(name, waits) {
  if (!waits || !cardOf(name)?.matches("[data-undrawn]")) return;
  await new Promise((resolve) => setTimeout(resolve, 1000));
  await redraw();
  awaitPreview(name, waits - 1);
}

async function remove(card, button) {
  if (button.dataset.sure !== "yes") {
    button.dataset.sure = "yes";
    button.textContent = "Remove for good?";
    return;
  }
  try {
    await call("DELETE", `/api/loras/${encodeURIComponent(card.dataset.name)}`);
    await redraw();
    say("Removed");
  } catch (error) {
    say(error.message);
  }
}

function search() {
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const cards = [...find("loras").querySelectorAll(".lora-card")];
  for (const card of cards) {
    const text = `${card.dataset.name} ${card.dataset.words}`.toLowerCase();
    card.hidden = !words.every((word) => text.includes(word));
  }
  find("none-match").hidden = !words.length || cards.some((card) => !card.hidden);
}

function chooseFrom() {
  const isFile = form.elements.from.value === "file";
  find("from-place").hidden = isFile;
  find("from-file").hidden = !isFile;
  showProblems({});
}

function showFile() {
  const file = find("file").files[0];
  find("file-name").textContent = file ? file.name : "Choose a .safetensors file";
  find("file-size").textContent = file ? `${(file.size / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB` : "or drop it here";
  if (file) showProblems({});
}

function dropFile(event) {
  event.preventDefault();
  if (!event.dataTransfer.files.length) return;
  form.elements.from.value = "file";
  chooseFrom();
  find("file").files = event.dataTransfer.files;
  showFile();
}

find("open-add")?.addEventListener("click", () => dialog.showModal());
form.addEventListener("submit", add);
for (const choice of form.elements.from) choice.addEventListener("change", chooseFrom);
find("file").addEventListener("change", showFile);
dialog.addEventListener("dragover", (event) => event.preventDefault());
dialog.addEventListener("drop", dropFile);
find("search").addEventListener("input", search);
for (const each of document.querySelectorAll("dialog")) {
  each.addEventListener("click", (event) => {
    if (event.target === each || event.target.closest("[data-close]")) each.close();
  });
}
find("loras").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const card = event.target.closest(".lora-card");
  if (button?.matches("[data-word]")) copy(button.textContent);
  if (button?.matches("[data-sweep]")) openSweep(card.dataset.name, card.dataset.words.split(", ").filter(Boolean));
  if (button?.matches("[data-remove]")) remove(card, button);
});

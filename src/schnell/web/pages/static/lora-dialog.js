// The dialog that adds a LoRA, on whichever page holds it; a file may be dropped anywhere on that page.

import { say } from "./app.js";
import { addFromPlace, uploadFile } from "./lora-adding.js";
import { locale, t } from "./texts.js";

const find = (id) => document.getElementById(id);
// the API's names of the fields, and the inputs that they are filled in with
const FIELDS = [["source", "source"], ["file", "file"], ["name", "lora-name"], ["triggerWords", "lora-words"], ["licence", "lora-licence"], ["public", "lora-visibility"]];
const dialog = find("add-dialog");
const form = find("add-lora");

/** `added` is called with each LoRA that was added, once the dialog is closed. */
export function installDialog(added) {
  if (!dialog) return;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    add(added);
  });
  for (const choice of form.elements.from) choice.addEventListener("change", chooseFrom);
  find("file").addEventListener("change", showFile);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}

export function openDialog() {
  if (!dialog.open) dialog.showModal();
}

export function isLoraFile(file) {
  return /\.(safetensors|tar|gz)$/i.test(file?.name ?? "");
}

/** Opens the dialog with files that were dropped. */
export function takeFiles(files) {
  if (!dialog) return say(t("Sign in with a key that may generate to add LoRAs"));
  form.elements.from.value = "file";
  chooseFrom();
  find("file").files = files;
  showFile();
  openDialog();
}

/** Files that are dropped anywhere on the page are taken. */
export function acceptDrops() {
  const frame = document.getElementById("main");
  addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    frame.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? frame.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    frame.classList.remove("dropping");
    const { files } = event.dataTransfer;
    if (files.length && isLoraFile(files[0])) takeFiles(files);
    else if (files.length) say(t("LoRAs are .safetensors files"));
  });
}

async function add(added) {
  const isFile = form.elements.from.value === "file";
  const file = form.elements.file.files[0];
  const source = form.elements.source.value.trim();
  showProblems({});
  if (isFile && !file) return showProblems({ file: t("Choose a file first.") });
  if (!isFile && !source) return showProblems({ source: t("Name a place first.") });
  busy(true);
  try {
    const lora = isFile ? await uploadFile(file, labels(), showProgress) : await addFromPlace(source, labels(), showProgress);
    form.reset();
    chooseFrom();
    showFile();
    dialog.close();
    say(t("Added {name}", { name: lora.name }));
    await added(lora);
  } catch (error) {
    showProblems(problemsOf(error, isFile ? "file" : "source"));
  }
  busy(false);
}

function labels() {
  const words = form.elements.words.value.split(",").map((word) => word.trim()).filter(Boolean);
  const given = { name: form.elements.name.value.trim(), licence: form.elements.licence.value.trim() };
  return {
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value)),
    ...(words.length ? { triggerWords: words } : {}),
    ...(form.elements.visibility.value === "public" ? { public: true } : {}),
  };
}

/** The messages of an error by field; without a list of fields, the message of `field`. */
function problemsOf(error, field) {
  if (error.answer?.errorCode === "CONFLICT") return { name: error.message };
  try {
    const details = JSON.parse(error.answer?.details ?? "[]");
    const known = details.filter((each) => FIELDS.some(([name]) => name === each.field));
    if (known.length) return Object.fromEntries(known.map((each) => [each.field, each.message]));
  } catch {
    // `details` is no JSON: the message has to do
  }
  return { [field]: error.message };
}

function showProblems(problems) {
  for (const [name, input] of FIELDS) {
    find(`${name}-problem`).textContent = problems[name] ?? "";
    find(input).setAttribute("aria-invalid", String(name in problems));
  }
  const first = FIELDS.find(([name]) => name in problems);
  if (first) find(first[1]).focus();
}

function busy(is) {
  find("add").disabled = is;
  find("add-progress").hidden = !is;
  if (is) showProgress(null, t("Asking …"));
}

/** `part` is 0 to 1, or null where the size is unknown. */
function showProgress(part, text) {
  if (part === null) find("upload").removeAttribute("value");
  else find("upload").value = part;
  find("add-state").textContent = text;
}

function chooseFrom() {
  const isFile = form.elements.from.value === "file";
  find("from-place").hidden = isFile;
  find("from-file").hidden = !isFile;
  showProblems({});
}

function showFile() {
  const file = find("file").files[0];
  find("file-name").textContent = file ? file.name : t("Choose a .safetensors file");
  find("file-size").textContent = file ? `${(file.size / 1e6).toLocaleString(locale, { maximumFractionDigits: 1 })} MB` : t("or drop it here");
  if (file) showProblems({});
}

// A table of pictures with one prompt and one seed: LoRAs down, scales across.

import { call, localUrl } from "./app.js";
import { n, t } from "./texts.js";

const AT_ONCE = 4;
const MOST = 48;
const find = (id) => document.getElementById(id);
let opened = null;
let round = 0;

/** `options`: {config, library, promptObject, use}. `use` gets the settings of a picture that is chosen. */
export function openGrid(options) {
  opened = options;
  const { library, promptObject } = options;
  const chosen = [promptObject.lora_weights, promptObject.extra_lora].filter(Boolean);
  const known = library.filter((lora) => chosen.includes(lora.name) || lora.also.some((name) => chosen.includes(name)));
  find("grid-loras").replaceChildren(...library.map((lora) => box(lora.name, known.length ? known.includes(lora) : lora === library[0])));
  find("grid-prompt").value = promptObject.prompt;
  find("grid-table").replaceChildren();
  find("grid-problem").textContent = "";
  tell();
  find("grid-dialog").showModal();
}

function box(name, checked) {
  const label = document.createElement("label");
  label.className = "check";
  const input = Object.assign(document.createElement("input"), { type: "checkbox", name: "lora", value: name, checked });
  label.append(input, name);
  return label;
}

function asked() {
  const loras = [...find("grid-loras").querySelectorAll(":checked")].map((each) => each.value);
  const scales = find("grid-scales").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  return { loras, scales };
}

/** What is wrong with the choice, or "". */
function problem({ loras, scales }) {
  if (!loras.length) return t("Choose at least one LoRA.");
  if (!scales.length || scales.some((scale) => !(scale >= 0 && scale <= 3))) return t("Scales are numbers from 0 to 3, such as 0, 0.5, 1.");
  if (loras.length * scales.length > MOST) return t("At most {most} pictures at once.", { most: MOST });
  return "";
}

function tell() {
  const choice = asked();
  const wrong = problem(choice);
  find("grid-problem").textContent = wrong;
  find("grid-count").textContent = wrong ? "" : n("{count} picture", "{count} pictures", choice.loras.length * choice.scales.length);
  find("grid-draw").disabled = wrong !== "";
}

async function drawAll() {
  const mine = ++round;
  const { loras, scales } = asked();
  const prompt = find("grid-prompt").value.trim();
  const seed = opened.promptObject.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const cells = table(loras, scales);
  const left = [...cells];
  const work = async () => {
    while (left.length && mine === round && find("grid-dialog").open) await drawCell(left.shift(), prompt, seed);
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  } catch (error) {
    left.length = 0;
    if (mine === round) find("grid-problem").textContent = error.message;
  }
  for (const { place } of cells) place.classList.remove("waiting");
}

function table(loras, scales) {
  const head = document.createElement("tr");
  head.append(document.createElement("td"), ...scales.map((scale) => heading(String(scale), "col")));
  const cells = [];
  const rows = loras.map((lora) => {
    const row = document.createElement("tr");
    row.append(heading(lora, "row"));
    for (const scale of scales) {
      const cell = document.createElement("td");
      const place = Object.assign(document.createElement("div"), { className: "lora-picture waiting" });
      cell.append(place);
      row.append(cell);
      cells.push({ lora, scale, place });
    }
    return row;
  });
  find("grid-table").replaceChildren(head, ...rows);
  return cells;
}

function heading(text, scope) {
  return Object.assign(document.createElement("th"), { textContent: text, scope });
}

async function drawCell({ lora, scale, place }, prompt, seed) {
  const { extra_lora, extra_lora_scale, num_outputs, ...given } = opened.promptObject;
  const promptObject = { ...given, prompt, seed, lora_weights: lora, lora_scale: scale };
  try {
    const { aiRecord } = await call("POST", "/api/features", { type: "IMAGE_GENERATOR", model: opened.config.model, promptObject });
    const image = Object.assign(document.createElement("img"), { src: localUrl(aiRecord.temporaryUrl), alt: t("{lora} at {scale}", { lora, scale }) });
    const button = Object.assign(document.createElement("button"), { type: "button", title: t("Use these settings") });
    button.append(image);
    button.addEventListener("click", () => {
      opened.use({ ...promptObject, seed: String(seed) });
      find("grid-dialog").close();
    });
    place.replaceChildren(button);
  } finally {
    place.classList.remove("waiting");
  }
}

find("grid-form")?.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!problem(asked())) drawAll();
});
find("grid-form")?.addEventListener("input", tell);
find("grid-dialog")?.addEventListener("click", ({ target, currentTarget }) => {
  if (target === currentTarget || target.closest("[data-close]")) currentTarget.close();
});

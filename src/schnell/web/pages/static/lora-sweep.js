// One LoRA at five scales, with one prompt and one seed.

import { call, localUrl } from "./app.js";
import { locale, t } from "./texts.js";

const find = (id) => document.getElementById(id);
const SCALES = [0, 0.4, 0.8, 1.2, 1.6];
const SEED = 7;
let swept = "";
let run = 0;

export function openSweep(name, words) {
  swept = name;
  find("sweep-title").textContent = name;
  find("sweep-prompt").value = ["a red apple", ...words.slice(0, 1)].join(", ");
  find("sweep-dialog").showModal();
  sweep();
}

async function sweep() {
  const mine = ++run;
  const prompt = find("sweep-prompt").value.trim();
  find("sweep-problem").textContent = "";
  find("sweep").replaceChildren(...SCALES.map(place));
  const drawn = SCALES.map((scale, index) => draw(prompt, scale, find("sweep").children[index]));
  const results = await Promise.allSettled(drawn);
  const failed = results.find((each) => each.status === "rejected");
  if (failed && mine === run) find("sweep-problem").textContent = failed.reason.message;
}

function place(scale) {
  const figure = document.createElement("figure");
  const picture = document.createElement("div");
  const caption = document.createElement("figcaption");
  picture.className = "lora-picture waiting";
  caption.textContent = scale === 0 ? t("0 (without)") : scale.toLocaleString(locale);
  figure.append(picture, caption);
  return figure;
}

async function draw(prompt, scale, figure) {
  const promptObject = { prompt, seed: SEED, lora_weights: swept, lora_scale: scale, megapixels: "0.25" };
  try {
    const { aiRecord } = await call("POST", "/api/features", { type: "IMAGE_GENERATOR", model: find("loras").dataset.model, promptObject });
    const image = document.createElement("img");
    const link = document.createElement("a");
    Object.assign(image, { src: localUrl(aiRecord.temporaryUrl), width: 512, height: 512, alt: t("{prompt}, scale {scale}", { prompt, scale }) });
    link.href = `/?${new URLSearchParams({ prompt, seed: SEED, lora_weights: swept, lora_scale: scale })}`;
    link.title = t("Use this scale");
    link.append(image);
    figure.firstChild.replaceChildren(link);
  } finally {
    figure.firstChild.classList.remove("waiting");
  }
}

find("sweep-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (find("sweep-prompt").value.trim()) sweep();
});

// Two pictures: beside each other with what differs marked, or one above the other under a slider.

import { dataOf, facts, fillFacts } from "./viewer.js";

const find = (id) => document.getElementById(id);
const dialog = find("comparison");

export function compare(tiles) {
  const pair = tiles.map(dataOf);
  const [left, right] = pair.map((picture) => new Map(facts(picture).map(([name, value]) => [name, String(value)])));
  const differing = new Set([...left.keys(), ...right.keys()].filter((name) => left.get(name) !== right.get(name)));
  find("pair").replaceChildren(...pair.map((picture) => column(picture, differing)));
  find("overlay-pictures").replaceChildren(...pair.map(picture));
  find("overlay-pictures").style.setProperty("--ratio", String(pair[0].width / pair[0].height));
  slide();
  chooseWay();
  dialog.showModal();
}

function picture({ url, prompt, width, height }) {
  return Object.assign(document.createElement("img"), { src: url, alt: prompt.slice(0, 300), width, height });
}

function column(shown, differing) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const prompt = document.createElement("p");
  const list = document.createElement("dl");
  prompt.textContent = shown.prompt;
  list.className = "facts";
  fillFacts(list, shown, differing);
  caption.append(prompt, list);
  figure.append(picture(shown), caption);
  return figure;
}

function slide() {
  find("overlay-pictures").style.setProperty("--part", `${find("overlay-slider").value}%`);
}

function chooseWay() {
  const slides = dialog.querySelector("[name=way]:checked").value === "slider";
  find("overlay").hidden = !slides;
  find("pair").classList.toggle("facts-only", slides);
}

find("overlay-slider").addEventListener("input", slide);
for (const way of dialog.querySelectorAll("[name=way]")) way.addEventListener("change", chooseWay);

import { call, say } from "./app.js";
import { download } from "./results.js";

const find = (id) => document.getElementById(id);
const pictures = find("pictures");
const viewer = find("viewer");
const comparison = find("comparison");
const chosen = [];
let shown = null;

const dataOf = (tile) => JSON.parse(tile.dataset.picture);

function facts(picture) {
  const made = new Date(picture.created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const rows = [["Size", `${picture.width} × ${picture.height}`], ["Seed", picture.seed], ["Steps", picture.steps]];
  if (picture.loras) rows.push(["LoRA", picture.loras]);
  rows.push(["Drawn", made]);
  return rows;
}

function fillFacts(list, picture, differing = new Set()) {
  list.replaceChildren(
    ...facts(picture).flatMap(([name, value]) => {
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      text.classList.toggle("differs", differing.has(name));
      return [term, text];
    }),
  );
}

function open(tile) {
  shown = { tile, picture: dataOf(tile) };
  const { picture } = shown;
  const image = find("viewer-image");
  Object.assign(image, { src: picture.url, alt: picture.prompt, width: picture.width, height: picture.height });
  find("viewer-prompt").textContent = picture.prompt;
  fillFacts(find("viewer-facts"), picture);
  find("viewer-recall").href = picture.recall;
  find("viewer-variations").href = picture.variations;
  find("viewer-download").href = picture.url;
  find("viewer-download").download = picture.file;
  find("viewer-problem").textContent = "";
  find("viewer-newer").disabled = !neighbour(-1);
  find("viewer-older").disabled = !neighbour(1);
  showRating(picture.rating);
  calm();
  if (!viewer.open) viewer.showModal();
}

function neighbour(by) {
  const tiles = [...pictures.querySelectorAll(".tile")];
  return tiles[tiles.indexOf(shown.tile) + by] ?? null;
}

function turn(by) {
  const tile = neighbour(by);
  if (!tile) return;
  open(tile);
  tile.scrollIntoView({ block: "nearest" });
}

function showRating(rating) {
  for (const star of find("viewer-stars").querySelectorAll("button")) {
    star.classList.toggle("lit", Number(star.dataset.rating) <= rating);
    star.setAttribute("aria-pressed", String(Number(star.dataset.rating) === rating));
  }
}

async function rate(rating) {
  const next = shown.picture.rating === rating ? null : rating;
  try {
    await call("POST", `/api/results/${shown.picture.record}/rating`, { rating: next });
  } catch (error) {
    find("viewer-problem").textContent = error.message;
    return;
  }
  for (const tile of pictures.querySelectorAll(`[data-record="${shown.picture.record}"]`)) {
    tile.dataset.picture = JSON.stringify({ ...dataOf(tile), rating: next ?? 0 });
    const mark = tile.querySelector(".tile-rating");
    mark.hidden = next === null;
    mark.querySelector("span").textContent = String(next ?? 0);
  }
  shown.picture.rating = next ?? 0;
  showRating(next ?? 0);
}

async function remove() {
  const button = find("viewer-delete");
  const siblings = [...pictures.querySelectorAll(`[data-record="${shown.picture.record}"]`)];
  if (button.dataset.sure !== "yes") {
    button.dataset.sure = "yes";
    button.textContent = siblings.length > 1 ? `Delete all ${siblings.length} of this run?` : "Delete for good?";
    return;
  }
  try {
    await call("DELETE", `/api/results/${shown.picture.record}`);
  } catch (error) {
    find("viewer-problem").textContent = error.message;
    return;
  }
  for (const tile of siblings) {
    unchoose(tile);
    tile.remove();
  }
  viewer.close();
  say("Deleted");
}

function calm() {
  const button = find("viewer-delete");
  delete button.dataset.sure;
  button.textContent = "Delete";
}

function save(event) {
  // browsers ignore `download` on links to another origin, such as an S3 store
  if (new URL(shown.picture.url, location.href).origin === location.origin) return;
  event.preventDefault();
  download(shown.picture);
}

function unchoose(tile) {
  const place = chosen.indexOf(tile);
  if (place === -1) return;
  chosen.splice(place, 1);
  tile.querySelector(".compare-box").checked = false;
  showChosen();
}

function choose(tile) {
  chosen.push(tile);
  if (chosen.length > 2) unchoose(chosen[0]);
  showChosen();
}

function showChosen() {
  find("compare-bar").hidden = chosen.length === 0;
  find("compare-count").textContent = chosen.length === 2 ? "Two pictures chosen" : "Choose one more to compare";
  find("compare").disabled = chosen.length !== 2;
}

function compare() {
  const pair = chosen.map(dataOf);
  const [left, right] = pair.map((picture) => new Map(facts(picture).map(([name, value]) => [name, String(value)])));
  const differing = new Set([...left.keys(), ...right.keys()].filter((name) => left.get(name) !== right.get(name)));
  find("pair").replaceChildren(...pair.map((picture) => column(picture, differing)));
  comparison.showModal();
}

function column(picture, differing) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  const prompt = document.createElement("p");
  const list = document.createElement("dl");
  Object.assign(image, { src: picture.url, alt: picture.prompt, width: picture.width, height: picture.height });
  prompt.textContent = picture.prompt;
  list.className = "facts";
  fillFacts(list, picture, differing);
  caption.append(prompt, list);
  figure.append(image, caption);
  return figure;
}

pictures.addEventListener("click", (event) => {
  const button = event.target.closest(".tile-open");
  if (button) open(button.closest(".tile"));
});
pictures.addEventListener("change", (event) => {
  const tile = event.target.closest(".tile");
  if (event.target.checked) choose(tile);
  else unchoose(tile);
});
find("viewer-stars").addEventListener("click", (event) => {
  const star = event.target.closest("button");
  if (star) rate(Number(star.dataset.rating));
});
find("viewer-delete").addEventListener("click", remove);
find("viewer-download").addEventListener("click", save);
find("viewer-newer").addEventListener("click", () => turn(-1));
find("viewer-older").addEventListener("click", () => turn(1));
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});
viewer.addEventListener("close", calm);
find("compare").addEventListener("click", compare);
find("compare-clear").addEventListener("click", () => [...chosen].forEach(unchoose));
for (const dialog of [viewer, comparison]) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target === pictures) find("compare-clear").click();
});

// The gallery's viewer: one picture with its facts, rated, shared, enlarged.

import { call, copy, say } from "./app.js";
import { download } from "./results.js";
import { locale, t } from "./texts.js";

const find = (id) => document.getElementById(id);
const pictures = find("pictures");
const viewer = find("viewer");
let shown = null;

export const dataOf = (tile) => JSON.parse(tile.dataset.picture);

/** Changes what the page knows of a tile's picture. */
function note(tile, changes) {
  tile.dataset.picture = JSON.stringify({ ...dataOf(tile), ...changes });
}

export function facts(picture) {
  const made = new Date(picture.created).toLocaleString(locale, { dateStyle: "medium", timeStyle: "short" });
  const rows = [[t("Size"), `${picture.width} × ${picture.height}`], [t("Seed"), picture.seed], [t("Steps"), picture.steps]];
  if (picture.loras) rows.push(["LoRA", picture.loras]);
  if (picture.author) rows.push([t("By"), picture.author]);
  rows.push([t("Drawn"), made]);
  return rows;
}

export function fillFacts(list, picture, differing = new Set()) {
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

/** The tile that is shown, or null. */
export function shownTile() {
  return viewer.open ? shown.tile : null;
}

export function open(tile) {
  shown = { tile, picture: dataOf(tile) };
  const { picture } = shown;
  const image = find("viewer-image");
  Object.assign(image, { src: picture.url, alt: picture.prompt.slice(0, 300), width: picture.width, height: picture.height });
  find("viewer-prompt").textContent = picture.prompt;
  find("viewer-prompt").scrollTop = 0;
  fillFacts(find("viewer-facts"), picture);
  find("viewer-recall").href = picture.recall;
  find("viewer-variations").href = `${picture.recall}#vary`;
  find("viewer-download").href = picture.url;
  find("viewer-download").download = picture.file;
  find("viewer-problem").textContent = "";
  find("viewer-newer").disabled = !neighbour(-1);
  find("viewer-older").disabled = !neighbour(1);
  const count = pictures.querySelectorAll(`[data-record="${picture.record}"]`).length;
  find("viewer-delete").hidden = !picture.deletable;
  find("viewer-delete").textContent = count > 1 ? t("Delete all {count} of this run", { count }) : t("Delete");
  zoom(false);
  showRating(picture.rating);
  showShare();
  if (!viewer.open) viewer.showModal();
}

export function close() {
  viewer.close();
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

export async function rate(rating) {
  const next = shown.picture.rating === rating ? null : rating;
  if (!(await tried(() => call("POST", `/api/results/${shown.picture.record}/rating`, { rating: next })))) return;
  for (const tile of pictures.querySelectorAll(`[data-record="${shown.picture.record}"]`)) {
    note(tile, { rating: next ?? 0 });
    const mark = tile.querySelector(".tile-rating");
    mark.hidden = next === null;
    mark.querySelector("span").textContent = String(next ?? 0);
  }
  shown.picture.rating = next ?? 0;
  showRating(next ?? 0);
}

async function share() {
  const answer = await tried(() => call("POST", "/gallery/share", { key: shown.picture.key }));
  if (!answer) return;
  setShare(answer.path);
  await copy(location.origin + answer.path, t("Link copied: whoever has it sees this picture"));
}

async function unshare() {
  if (!(await tried(async () => (await call("POST", "/gallery/unshare", { key: shown.picture.key })) ?? true))) return;
  setShare("");
  find("viewer-share").focus();
  say(t("The link opens nothing any more"));
}

function setShare(path) {
  shown.picture.share = path;
  note(shown.tile, { share: path });
  showShare();
}

function showShare() {
  find("viewer-shared").hidden = !shown.picture.share;
  find("viewer-page").href = shown.picture.share || "/";
}

/** The result of an action; null, with the reason told, where it failed. */
async function tried(action) {
  try {
    return await action();
  } catch (error) {
    find("viewer-problem").textContent = error.message;
    return null;
  }
}

/** Twice the size, moved by the pointer; centred for the keyboard. */
function zoom(is, event) {
  const frame = find("viewer-zoom");
  frame.setAttribute("aria-pressed", String(is));
  frame.classList.toggle("zoomed", is);
  const byPointer = is && event?.clientX;
  if (byPointer) follow(event);
  else find("viewer-image").style.transformOrigin = "center";
}

function follow(event) {
  const frame = find("viewer-zoom");
  if (!frame.classList.contains("zoomed")) return;
  const box = frame.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  find("viewer-image").style.transformOrigin = `${Math.round(x * 100)}% ${Math.round(y * 100)}%`;
}

export function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else find("viewer-picture").requestFullscreen().catch(() => say(t("This browser has no full screen")));
}

function save(event) {
  // browsers ignore `download` on links to another origin, such as an S3 store
  if (new URL(shown.picture.url, location.href).origin === location.origin) return;
  event.preventDefault();
  download(shown.picture);
}

find("viewer-stars").addEventListener("click", (event) => {
  const star = event.target.closest("button");
  if (star) rate(Number(star.dataset.rating));
});
find("viewer-download").addEventListener("click", save);
find("viewer-newer").addEventListener("click", () => turn(-1));
find("viewer-older").addEventListener("click", () => turn(1));
find("viewer-share").addEventListener("click", share);
find("viewer-unshare").addEventListener("click", unshare);
find("viewer-copy-link").addEventListener("click", () => copy(location.origin + shown.picture.share));
find("viewer-copy").addEventListener("click", () => copy(shown.picture.prompt));
find("viewer-full").addEventListener("click", fullScreen);
find("viewer-zoom").addEventListener("click", (event) => zoom(!event.currentTarget.classList.contains("zoomed"), event.detail ? event : null));
find("viewer-zoom").addEventListener("pointermove", follow);
viewer.addEventListener("keydown", (event) => {
  if (event.target === find("viewer-prompt")) return;
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});
viewer.addEventListener("close", () => {
  // turned to another picture, it is that one's tile that the visitor has come from
  shown.tile.querySelector(".tile-open")?.focus({ preventScroll: true });
});

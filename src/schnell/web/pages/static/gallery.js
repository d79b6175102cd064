import { call, say } from "./app.js";
import { compare } from "./comparison.js";
import { installShortcuts } from "./shortcuts.js";
import { n, t } from "./texts.js";
import { close, dataOf, fullScreen, open, rate, shownTile } from "./viewer.js";

const find = (id) => document.getElementById(id);
const pictures = find("pictures");
let chosen = [];
let lastChosen = null;
let removed = null;

const tiles = () => [...pictures.querySelectorAll(".tile")];
const boxOf = (tile) => tile.querySelector(".compare-box");

function choose(tile, is) {
  boxOf(tile).checked = is;
  chosen = chosen.filter((each) => each !== tile);
  if (is) chosen.push(tile);
  showChosen();
}

/** With the shift key, everything from the last choice up to here. */
function chooseUpTo(tile, is) {
  const all = tiles();
  const [first, last] = [all.indexOf(lastChosen), all.indexOf(tile)].sort((one, other) => one - other);
  for (const each of all.slice(Math.max(0, first), last + 1)) choose(each, is);
}

function showChosen() {
  const count = chosen.length;
  find("compare-bar").hidden = count === 0;
  find("compare-count").textContent = n("One chosen", "{count} chosen", count);
  find("compare").disabled = count !== 2;
  find("delete-chosen").disabled = !chosen.some((tile) => dataOf(tile).deletable);
}

function clear() {
  for (const tile of [...chosen]) choose(tile, false);
}

/** Deletes the runs of these tiles; every picture of a run goes, and comes back with "Undo". */
async function remove(of) {
  const records = [...new Set(of.filter((tile) => dataOf(tile).deletable).map((tile) => tile.dataset.record))];
  if (!records.length) return say(t("Only who drew a picture, or an administrator, may delete it"));
  try {
    await call("POST", "/gallery/delete", { records });
  } catch (error) {
    return say(error.message);
  }
  const gone = tiles().filter((tile) => records.includes(tile.dataset.record));
  // what comes after each tile, the last tile first: put back in that order, each finds its place
  removed = { records, places: gone.reverse().map((tile) => [tile, tile.nextSibling]) };
  for (const tile of gone) {
    choose(tile, false);
    tile.remove();
  }
  close();
  say(n("Deleted", "{count} pictures deleted", gone.length), { label: t("Undo"), run: undo });
}

async function undo() {
  if (!removed) return;
  const { records, places } = removed;
  removed = null;
  try {
    await call("POST", "/gallery/restore", { records });
  } catch (error) {
    return say(error.message);
  }
  for (const [tile, next] of places) pictures.insertBefore(tile, next?.parentNode === pictures ? next : null);
  places.at(-1)?.[0].querySelector(".tile-open").focus();
  say(t("Restored"));
}

function downloadZip() {
  find("zip-keys").value = chosen.map((tile) => tile.dataset.key).join(" ");
  find("zip").submit();
}

function openCollect() {
  find("collect-form").reset();
  find("collect-problem").textContent = "";
  const within = find("collection").value !== "";
  find("take-out").hidden = find("remove-collection").hidden = !within;
  find("collect-dialog").showModal();
}

async function collect(event) {
  event.preventDefault();
  const form = find("collect-form");
  const name = form.elements.name.value.trim();
  const existing = form.querySelector("[name=collection]:checked")?.value;
  if (!name && !existing) return (find("collect-problem").textContent = t("Choose a collection, or name a new one."));
  await collecting(async () => {
    const id = name ? (await call("POST", "/gallery/collections", { name })).id : existing;
    const { added } = await call("POST", `/gallery/collections/${id}/add`, { keys: chosen.map((tile) => tile.dataset.key) });
    if (name) addCollection(id, name);
    clear();
    say(n("One picture added", "{count} pictures added", added));
  });
}

async function takeOut() {
  await collecting(async () => {
    await call("POST", `/gallery/collections/${find("collection").value}/take-out`, { keys: chosen.map((tile) => tile.dataset.key) });
    const gone = [...chosen];
    clear();
    for (const tile of gone) tile.remove();
    say(t("Taken out of the collection"));
  });
}

async function removeCollection() {
  await collecting(async () => {
    await call("DELETE", `/gallery/collections/${find("collection").value}`);
    location.href = "/gallery";
  });
}

async function collecting(action) {
  try {
    await action();
    find("collect-dialog").close();
  } catch (error) {
    find("collect-problem").textContent = error.message;
  }
}

function addCollection(id, name) {
  find("collection").append(new Option(name, id));
  const label = document.createElement("label");
  label.className = "check";
  label.append(Object.assign(document.createElement("input"), { type: "radio", name: "collection", value: id }), ` ${name}`);
  find("collect-list").append(label);
  find("collect-existing").hidden = false;
}

/** Moves the focus from tile to tile. */
function step(by) {
  const all = tiles();
  const place = all.indexOf(document.activeElement?.closest(".tile"));
  const next = all[place === -1 ? 0 : Math.min(all.length - 1, Math.max(0, place + by))];
  next?.querySelector(".tile-open").focus();
}

/** How many tiles stand in a row. */
function columns() {
  const [first, ...others] = tiles();
  return first ? others.filter((tile) => tile.offsetTop === first.offsetTop).length + 1 : 1;
}

pictures.addEventListener("click", (event) => {
  const button = event.target.closest(".tile-open");
  if (button) open(button.closest(".tile"));
  const box = event.target.closest(".compare-box");
  if (!box) return;
  const tile = box.closest(".tile");
  if (event.shiftKey && lastChosen) chooseUpTo(tile, box.checked);
  else choose(tile, box.checked);
  lastChosen = tile;
});
find("viewer-delete").addEventListener("click", () => remove([shownTile()]));
find("compare").addEventListener("click", () => compare(chosen));
find("compare-clear").addEventListener("click", clear);
find("choose-all").addEventListener("click", () => tiles().forEach((tile) => choose(tile, true)));
find("delete-chosen").addEventListener("click", () => remove(chosen));
find("download-chosen").addEventListener("click", downloadZip);
find("collect").addEventListener("click", openCollect);
find("collect-form").addEventListener("submit", collect);
find("take-out").addEventListener("click", takeOut);
find("remove-collection").addEventListener("click", removeCollection);
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target === pictures) clear();
});

const focused = () => document.activeElement?.closest?.(".tile") ?? null;
installShortcuts([
  { keys: "/", label: t("Search"), run: () => find("q").focus() },
  { keys: "ArrowLeft", label: t("Newer picture"), run: () => step(-1) },
  { keys: "ArrowRight", label: t("Older picture"), run: () => step(1) },
  { keys: "ArrowUp", label: t("The row above"), run: () => step(-columns()) },
  { keys: "ArrowDown", label: t("The row below"), run: () => step(columns()) },
  { keys: "Enter", label: t("Open the picture") },
  { keys: "x", label: t("Choose the picture"), run: () => focused() && choose(focused(), !boxOf(focused()).checked) },
  { keys: "a", label: t("Choose all that are shown"), run: () => tiles().forEach((tile) => choose(tile, true)) },
  { keys: "Escape", label: t("Choose none"), run: clear },
  { keys: "c", label: t("Compare two"), run: () => chosen.length === 2 && compare(chosen) },
  { keys: "Delete", label: t("Delete"), anywhere: true, run: () => (shownTile() ? remove([shownTile()]) : remove(chosen.length ? chosen : [focused()].filter(Boolean))) },
  { keys: "u", label: t("Undo the deletion"), run: undo },
  { keys: "f", label: t("Full screen"), anywhere: true, run: () => shownTile() && fullScreen() },
  { keys: "1 2 3 4 5", label: t("Rate the open picture"), anywhere: true, run: (event) => shownTile() && rate(Number(event.key)) },
]);

import { call, copy, say } from "./app.js";
import { acceptDrops, installDialog, openDialog } from "./lora-dialog.js";
import { openSweep } from "./lora-sweep.js";
import { installShortcuts } from "./shortcuts.js";
import { t } from "./texts.js";

const find = (id) => document.getElementById(id);
const PREVIEW_WAITS = 40;

/** A card that was just added is shown, and gets its preview once that is drawn. */
async function showAdded(lora) {
  await redraw();
  const card = cardOf(lora.name);
  card?.scrollIntoView({ block: "center" });
  card?.classList.add("new");
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
    button.textContent = t("Remove for good?");
    return;
  }
  try {
    await call("DELETE", `/api/loras/${encodeURIComponent(card.dataset.name)}`);
    await redraw();
    say(t("Removed"));
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

find("open-add")?.addEventListener("click", () => openDialog());
installDialog(showAdded);
acceptDrops();
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
installShortcuts([
  { keys: "/", label: t("Search"), run: () => find("search").focus() },
  { keys: "a", label: t("Add a LoRA"), run: () => find("open-add") && openDialog() },
]);

import { call, say } from "./app.js";

const find = (id) => document.getElementById(id);
const SCALES = [0, 0.4, 0.8, 1.2, 1.6];
const SEED = 7;

function upload(form) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/loras");
    request.upload.addEventListener("progress", (event) => (find("upload").value = event.loaded / event.total));
    request.addEventListener("error", () => reject(new Error("The server could not be reached.")));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve();
      else reject(new Error(messageIn(request.responseText)));
    });
    request.send(form);
  });
}

function messageIn(text) {
  try {
    return JSON.parse(text).message;
  } catch {
    return "The server refused the file.";
  }
}

async function add(event) {
  event.preventDefault();
  const { source, name, file } = event.target.elements;
  find("add-problem").textContent = "";
  if (!source.value.trim() && !file.files.length) return (find("add-problem").textContent = "Name a source, or choose a file.");
  find("add-state").textContent = "Fetching and checking …";
  event.submitter?.setAttribute("disabled", "");
  try {
    if (file.files.length) await addFile(file.files[0], name.value.trim());
    else await call("POST", "/api/loras", { source: source.value.trim(), ...(name.value.trim() && { name: name.value.trim() }) });
    location.reload();
  } catch (error) {
    find("add-problem").textContent = error.message;
  }
  find("add-state").textContent = "";
  find("upload").hidden = true;
  event.submitter?.removeAttribute("disabled");
}

async function addFile(file, name) {
  const form = new FormData();
  if (name) form.append("name", name);
  form.append("file", file);
  find("upload").hidden = false;
  await upload(form);
}

async function sweep(card) {
  const words = card.dataset.words.split(", ").filter(Boolean);
  const prompt = ["a red apple", ...words.slice(0, 1)].join(", ");
  find("sweep-title").textContent = `${card.dataset.name}: scales, one seed`;
  find("sweep-problem").textContent = "";
  find("sweep").replaceChildren(...SCALES.map(place));
  find("sweep-card").hidden = false;
  find("sweep-card").scrollIntoView({ behavior: "smooth", block: "center" });
  const drawings = SCALES.map((scale, index) => draw(card.dataset.name, prompt, scale, find("sweep").children[index]));
  await Promise.all(drawings).catch((error) => (find("sweep-problem").textContent = error.message));
}

function place(scale) {
  const figure = document.createElement("figure");
  const picture = document.createElement("div");
  const caption = document.createElement("figcaption");
  picture.className = "lora-picture";
  picture.textContent = "…";
  caption.textContent = `scale ${scale}`;
  figure.append(picture, caption);
  return figure;
}

async function draw(name, prompt, scale, figure) {
  const promptObject = { prompt, seed: SEED, lora_weights: name, lora_scale: scale, megapixels: "0.25" };
  const { aiRecord } = await call("POST", "/api/features", { type: "IMAGE_GENERATOR", model: find("sweep-card").dataset.model, promptObject });
  const image = document.createElement("img");
  const url = new URL(aiRecord.temporaryUrl);
  image.src = url.pathname.startsWith("/files/") ? url.pathname + url.search : aiRecord.temporaryUrl;
  image.alt = `${prompt}, scale ${scale}`;
  figure.firstChild.replaceChildren(image);
}

async function remove(card, button) {
  if (button.dataset.sure !== "yes") {
    button.dataset.sure = "yes";
    button.textContent = "Remove for good?";
    return;
  }
  try {
    await call("DELETE", `/api/loras/${encodeURIComponent(card.dataset.name)}`);
    card.remove();
    say("Removed");
  } catch (error) {
    say(error.message);
  }
}

find("add-lora").addEventListener("submit", add);
find("loras").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const card = event.target.closest(".lora-card");
  if (button?.matches("[data-sweep]")) sweep(card);
  if (button?.matches("[data-remove]")) remove(card, button);
});

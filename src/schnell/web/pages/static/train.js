import { call, say } from "./app.js";
import { t } from "./texts.js";

const find = (id) => document.getElementById(id);
const form = find("train");
const ENDINGS = /\.(png|jpe?g|webp|bmp)$/i;
const STAGES = {
  preparing: t("Reading the pictures"),
  training: t("Training"),
  adding: t("Adding it to the library"),
  done: t("Done: it is in the library"),
  failed: t("It did not work"),
  cancelled: t("Stopped"),
};
let files = [];
let shown = JSON.parse(find("training").textContent);

function take(added) {
  const pictures = [...added].filter((file) => ENDINGS.test(file.name));
  if (pictures.length < added.length) say(t("Only PNG, JPEG, WebP and BMP pictures are used"));
  files = [...files, ...pictures];
  problem("pictures", "");
  find("chosen").append(...pictures.map(row));
}

function row(file) {
  const item = document.createElement("li");
  const image = Object.assign(document.createElement("img"), { src: URL.createObjectURL(file), alt: "", width: 64, height: 64 });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  const caption = Object.assign(document.createElement("input"), { className: "input", placeholder: t("What it shows"), maxLength: 500 });
  caption.setAttribute("aria-label", t("What {name} shows", { name: file.name }));
  const remove = Object.assign(document.createElement("button"), { type: "button", className: "button small", textContent: t("Remove") });
  remove.setAttribute("aria-label", t("Remove {name}", { name: file.name }));
  remove.addEventListener("click", () => {
    files = files.filter((each) => each !== file);
    (item.nextElementSibling ?? item.previousElementSibling)?.querySelector("button").focus();
    item.remove();
  });
  item.append(image, caption, remove);
  return item;
}

function problem(name, text) {
  find(`${name}-problem`).textContent = text;
  find(name).setAttribute("aria-invalid", String(text !== ""));
}

async function start(event) {
  event.preventDefault();
  for (const name of ["pictures", "trigger", "name", "minutes"]) problem(name, "");
  if (!files.length) return refuse("pictures", t("Choose pictures first."));
  if (!form.elements.trigger.value.trim()) return refuse("trigger", t("Choose a trigger word."));
  const body = new FormData();
  for (const name of ["trigger", "name", "minutes"]) body.append(name, form.elements[name].value.trim());
  const captions = [...find("chosen").querySelectorAll("input")].map((each) => each.value);
  files.forEach((file, index) => {
    body.append("pictures", file);
    body.append("captions", captions[index]);
  });
  find("start").disabled = true;
  const answer = await fetch("/train", { method: "POST", body }).catch(() => null);
  find("start").disabled = false;
  const told = await answer?.json().catch(() => null);
  if (answer?.ok) follow(told);
  else showRefusal(told ?? { message: t("The server could not be reached.") });
}

function showRefusal(answer) {
  let details = [];
  try {
    details = JSON.parse(answer.details ?? "[]");
  } catch {
    // `details` is no JSON: the message has to do
  }
  const known = details.filter((each) => ["pictures", "trigger", "name", "minutes"].includes(each.field));
  for (const each of known) refuse(each.field, each.message);
  if (!known.length) refuse("pictures", answer.message);
}

function refuse(name, text) {
  problem(name, text);
  find(name).focus();
}

async function follow(training) {
  shown = training;
  show();
  find("progress").scrollIntoView({ block: "start", behavior: "smooth" });
  while (!shown.ended) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    try {
      shown = await call("GET", `/train/${training.id}`);
    } catch (error) {
      // a server that is started again has forgotten it
      shown = { ...shown, ended: true, stage: "failed", message: error.message };
    }
    show();
  }
}

function show() {
  const { name, stage, done, message, lora, ended, samples, trigger } = shown;
  find("progress").hidden = false;
  find("progress-name").textContent = name;
  const text = stage === "training" ? `${STAGES[stage]}: ${Math.round(done * 100)} %` : STAGES[stage];
  // said anew only when it changes: it is read aloud
  if (find("stage").textContent !== text) find("stage").textContent = text;
  find("bar").hidden = ended;
  find("bar").value = stage === "adding" ? 1 : done;
  find("message").textContent = message;
  if (ended && document.activeElement === find("cancel")) find("progress-name").scrollIntoView();
  find("cancel").hidden = ended || stage === "adding";
  find("try").hidden = !lora;
  find("try").href = `/?${new URLSearchParams({ prompt: `red apple, ${trigger}`, lora_weights: lora, lora_scale: "1" })}`;
  const known = find("samples").children.length;
  find("samples").append(...samples.slice(known).map(sheet));
}

function sheet(url) {
  const figure = document.createElement("figure");
  const step = Number(/step-(\d+)/.exec(url)[1]);
  const caption = step ? t("Step {step}", { step }) : t("Before");
  const image = Object.assign(document.createElement("img"), { src: url, alt: t("Samples: {caption}", { caption }) });
  figure.append(image, Object.assign(document.createElement("figcaption"), { textContent: caption }));
  return figure;
}

function tellMinutes() {
  const input = find("minutes");
  find("minutes-value").textContent = input.value;
  input.style.setProperty("--fill", `${((input.value - input.min) / Math.max(1, input.max - input.min)) * 100}%`);
}

if (form) {
  form.addEventListener("submit", start);
  find("pictures").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
  find("minutes").addEventListener("input", tellMinutes);
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
  tellMinutes();
}
find("cancel").addEventListener("click", async () => {
  shown = await call("POST", `/train/${shown.id}/cancel`);
  show();
});
if (shown) follow(shown);

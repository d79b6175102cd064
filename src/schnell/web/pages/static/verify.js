// Checks a picture that was dropped or chosen, and shows what it carries.

import { locale, t } from "./texts.js";

const find = (id) => document.getElementById(id);
const input = find("file");
// our English is British: no comma before the last of a list
const lists = new Intl.ListFormat(document.documentElement.lang === "en" ? "en-GB" : document.documentElement.lang);
const ORIENTATIONS = {
  upright: t("upright"),
  mirrored: t("mirrored"),
  "turned by 180 degrees": t("turned by 180 degrees"),
  "mirrored and turned by 180 degrees": t("mirrored and turned by 180 degrees"),
  "turned by 90 degrees": t("turned by 90 degrees"),
  "mirrored and turned by 90 degrees": t("mirrored and turned by 90 degrees"),
  "turned by 270 degrees": t("turned by 270 degrees"),
  "mirrored and turned by 270 degrees": t("mirrored and turned by 270 degrees"),
};
const STATES = {
  trusted: ({ signer }) => t("Valid, signed by {signer}, whom this server trusts", { signer }),
  valid: ({ signer }) => t("Valid, signed by {signer}, who is unknown here", { signer: signer ?? t("a nameless signer") }),
  invalid: ({ problems }) => t("Broken: {problems}", { problems: problems.join(", ") }),
  absent: () => t("None"),
};

async function check() {
  const [file] = input.files;
  if (!file) return;
  const tooLarge = file.size > Number(input.dataset.most);
  showProblem(tooLarge ? t("This file has {size} MB.", { size: (file.size / 1048576).toLocaleString(locale, { maximumFractionDigits: 1 }) }) : "");
  find("file-name").textContent = file.name;
  find("result").hidden = true;
  if (tooLarge) return;
  find("file-size").textContent = t("Checking …");
  try {
    const answer = await fetch(`/api/verify?thorough=${find("thorough").checked}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.message ?? t("It did not work."));
    show(found, file);
  } catch (error) {
    showProblem(error.message);
  }
  find("file-size").textContent = t("or drop another one here");
}

function show(found, file) {
  find("summary").textContent = capital(summaryText(found));
  find("facts").replaceChildren(...facts(found).flatMap(([name, text, language]) => [element("dt", name), element("dd", text, language)]));
  const preview = find("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; };
  find("result").hidden = false;
}

/** The API's own summary, in the page's language. */
function summaryText({ credentials, mark, metadata, receipt }) {
  const source = metadata.digital_source_type;
  if (credentials.state === "absent" && !mark.found && !source && !receipt) return t("nothing found, which proves nothing");
  if (credentials.state === "invalid") return t("the credentials do not fit this picture: it was changed after it was signed, or they are another's");
  const said = [
    credentials.says_model_made && t("signed credentials"),
    mark.found && t("the invisible mark"),
    source?.includes("rainedAlgorithmicMedia") && t("the metadata"),
  ].filter(Boolean);
  if (!said.length) return t("it tells something of its origin, but not that a model has made it");
  return t("made by a model, according to {sources}", { sources: lists.format(said) });
}

function facts(found) {
  const { credentials, mark, receipt } = found;
  const source = found.metadata.digital_source_type;
  const shown = [[t("Credentials"), STATES[credentials.state](credentials)]];
  if (credentials.tool) shown.push([t("Made with"), credentials.tool]);
  if (credentials.signed_at) shown.push([t("Signed at"), credentials.signed_at]);
  shown.push([t("Invisible mark"), markText(mark)]);
  shown.push([t("Metadata"), source ? t("Says {source}", { source }) : t("Says nothing of its origin")]);
  shown.push([t("Receipt"), receipt ? receiptText(receipt) : t("None")]);
  for (const drawn of found.drawn_here) shown.push([t("Drawn here"), t("{time}, with {model}", { time: new Date(drawn.created_at).toLocaleString(locale), model: drawn.model })]);
  return [...shown, ...found.notes.map((note) => [t("Note"), capital(note), "en"])];
}

function markText(mark) {
  if (mark.found === null) return t("Not looked for");
  if (!mark.found) return t("None");
  const number = mark.id ? t("number {id}", { id: mark.id }) : t("its number cannot be read");
  const orientation = ORIENTATIONS[mark.orientation] ?? mark.orientation;
  const values = { certainty: mark.certainty.toLocaleString(locale), number, orientation, percent: Math.round(mark.scale * 100) };
  return t("Found (certainty {certainty}, of which 7 is enough), {number}, {orientation}, at {percent}% of its size", values);
}

function receiptText({ fields, agrees_with_mark: agrees }) {
  const relation = agrees === null ? t("there is no mark to compare it with") : agrees ? t("it agrees with the mark") : t("it is of another picture than the mark");
  return t("{model}, seed {seed}; {relation}", { model: fields.model?.name ?? t("Some model"), seed: fields.seed, relation });
}

function showProblem(text) {
  find("file-problem").textContent = text;
  input.setAttribute("aria-invalid", String(Boolean(text)));
}

function element(name, text, language) {
  const made = document.createElement(name);
  made.textContent = text;
  if (language) made.lang = language;
  return made;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

input.addEventListener("change", check);
find("thorough").addEventListener("change", check);

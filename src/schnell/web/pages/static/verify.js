// Checks a picture that was dropped or chosen, and shows what it carries.

const find = (id) => document.getElementById(id);
const input = find("file");
const STATES = {
  trusted: (found) => `Valid, signed by ${found.signer}, whom this server trusts`,
  valid: (found) => `Valid, signed by ${found.signer ?? "a nameless signer"}, who is unknown here`,
  invalid: (found) => `Broken: ${found.problems.join(", ")}`,
  absent: () => "None",
};

async function check() {
  const [file] = input.files;
  if (!file) return;
  const tooLarge = file.size > Number(input.dataset.most);
  showProblem(tooLarge ? `This file has ${(file.size / 1048576).toFixed(1)} MB.` : "");
  find("file-name").textContent = file.name;
  find("result").hidden = true;
  if (tooLarge) return;
  find("file-size").textContent = "Checking …";
  try {
    const answer = await fetch(`/api/verify?thorough=${find("thorough").checked}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.message ?? "It did not work.");
    show(found, file);
  } catch (error) {
    showProblem(error.message);
  }
  find("file-size").textContent = "or drop another one here";
}

function show(found, file) {
  find("summary").textContent = capital(found.summary);
  find("facts").replaceChildren(...facts(found).flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  const preview = find("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; };
  find("result").hidden = false;
}

function facts(found) {
  const { credentials, mark, receipt } = found;
  const shown = [["Credentials", STATES[credentials.state](credentials)]];
  if (credentials.tool) shown.push(["Made with", credentials.tool]);
  if (credentials.signed_at) shown.push(["Signed at", credentials.signed_at]);
  shown.push(["Invisible mark", markText(mark)]);
  shown.push(["Metadata", found.metadata.digital_source_type ? `Says ${found.metadata.digital_source_type}` : "Says nothing of its origin"]);
  shown.push(["Receipt", receipt ? receiptText(receipt) : "None"]);
  for (const drawn of found.drawn_here) shown.push(["Drawn here", `${new Date(drawn.created_at).toLocaleString()}, with ${drawn.model}`]);
  return [...shown, ...found.notes.map((note) => ["Note", capital(note)])];
}

function markText(mark) {
  if (mark.found === null) return "Not looked for";
  if (!mark.found) return "None";
  const number = mark.id ? `number ${mark.id}` : "its number cannot be read";
  return `Found (certainty ${mark.certainty}, of which 7 is enough), ${number}, ${mark.orientation}, at ${Math.round(mark.scale * 100)}% of its size`;
}

function receiptText({ fields, agrees_with_mark: agrees }) {
  const relation = agrees === null ? "there is no mark to compare it with" : agrees ? "it agrees with the mark" : "it is of another picture than the mark";
  return `${fields.model?.name ?? "Some model"}, seed ${fields.seed}; ${relation}`;
}

function showProblem(text) {
  find("file-problem").textContent = text;
  input.setAttribute("aria-invalid", String(Boolean(text)));
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

input.addEventListener("change", check);
find("thorough").addEventListener("change", check);

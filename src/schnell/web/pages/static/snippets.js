// The page's request as code for other clients. Every value is escaped for the language.

import { t } from "./texts.js";

export const CLIENTS = [
  { id: "curl", name: "cURL", note: t("Answers with the record; its temporaryUrl opens the picture for seven days.") },
  { id: "python", name: "Python", note: "pip install requests" },
  { id: "javascript", name: "JavaScript", note: t("Node 18 or newer, as an .mjs file; in a browser, leave out writeFile.") },
  { id: "openai", name: "openai-python", needs: "openai", note: "pip install openai" },
  { id: "replicate", name: "replicate-python", needs: "replicate", note: "pip install replicate" },
];

const WRITERS = { curl, python, javascript, openai, replicate };

/** `request`: {endpoint, publicUrl, key, model, promptObject, size: [width, height], defaults}. */
export function writeSnippet(client, request) {
  return WRITERS[client](request);
}

/** A key as it may stand on a screen that others see: its prefix and its last four characters. */
export function maskKey(key) {
  return key.length > 16 ? `${key.slice(0, 8)}…${key.slice(-4)}` : key && "…";
}

function body({ model, promptObject }) {
  return { type: "IMAGE_GENERATOR", model, promptObject };
}

function curl(request) {
  const json = JSON.stringify(body(request), null, 1).replace(/^ +/gm, "");
  return [
    `curl -X POST ${doubleQuoted(request.endpoint)} \\`,
    `-H ${doubleQuoted(`API-KEY: ${request.key}`)} \\`,
    '-H "Content-Type: application/json" \\',
    `-d '${json.replaceAll("'", "'\\''")}'`,
  ].join("\n");
}

// inside double quotes a shell still reads $ ` " and \
function doubleQuoted(text) {
  return `"${text.replace(/[$`"\\]/g, "\\$&")}"`;
}

function python(request) {
  const several = (request.promptObject.num_outputs ?? 1) > 1;
  const extension = request.promptObject.output_format ?? "webp";
  const save = several
    ? `for number, url in enumerate(record["aiRecordDetail"]["responseObject"]["temporaryUrls"]):
    with open(f"picture-{number}.${extension}", "wb") as file:
        file.write(requests.get(url, timeout=60).content)`
    : `with open("picture.${extension}", "wb") as file:
    file.write(requests.get(record["temporaryUrl"], timeout=60).content)`;
  return `import requests

response = requests.post(
    ${JSON.stringify(request.endpoint)},
    headers={"API-KEY": ${JSON.stringify(request.key)}},
    json=${pythonLiteral(body(request), 1)},
    timeout=600,
)
response.raise_for_status()
record = response.json()["aiRecord"]
${save}
`;
}

function javascript(request) {
  const several = (request.promptObject.num_outputs ?? 1) > 1;
  const extension = request.promptObject.output_format ?? "webp";
  const json = JSON.stringify(body(request), null, 2).replaceAll("\n", "\n  ");
  const save = several
    ? `for (const [number, url] of aiRecord.aiRecordDetail.responseObject.temporaryUrls.entries()) {
  const picture = await fetch(url);
  await writeFile(\`picture-\${number}.${extension}\`, Buffer.from(await picture.arrayBuffer()));
}`
    : `const picture = await fetch(aiRecord.temporaryUrl);
await writeFile("picture.${extension}", Buffer.from(await picture.arrayBuffer()));`;
  return `import { writeFile } from "node:fs/promises";

const response = await fetch(${JSON.stringify(request.endpoint)}, {
  method: "POST",
  headers: { "API-KEY": ${JSON.stringify(request.key)}, "Content-Type": "application/json" },
  body: JSON.stringify(${json}),
});
if (!response.ok) throw new Error(await response.text());
const { aiRecord } = await response.json();
${save}
`;
}

function openai(request) {
  const { prompt, num_outputs, output_format, output_quality, aspect_ratio, megapixels, width, height, ...extra } =
    request.promptObject;
  const format = output_format === "jpg" ? "jpeg" : (output_format ?? "webp");
  const given = {
    model: request.model,
    prompt,
    size: request.size.join("x"),
    n: num_outputs ?? 1,
    response_format: "b64_json",
    output_format: format,
    output_compression: output_quality ?? request.defaults.output_quality,
  };
  if (Object.keys(extra).length) given.extra_body = extra;
  return `import base64

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${request.publicUrl}/v1`)}, api_key=${JSON.stringify(request.key)})
answer = client.images.generate(
${pythonArguments(given)}
)
for number, picture in enumerate(answer.data):
    with open(f"picture-{number}.${format}", "wb") as file:
        file.write(base64.b64decode(picture.b64_json))
`;
}

function replicate(request) {
  const extension = request.promptObject.output_format ?? "webp";
  return `import replicate

client = replicate.Client(api_token=${JSON.stringify(request.key)}, base_url=${JSON.stringify(request.publicUrl)})
output = client.run(
    ${JSON.stringify(request.model)},
    input=${pythonLiteral(request.promptObject, 1)},
    use_file_output=True,
)
for number, picture in enumerate(output):
    with open(f"picture-{number}.${extension}", "wb") as file:
        file.write(picture.read())
`;
}

function pythonArguments(values) {
  return Object.entries(values)
    .map(([name, value]) => `    ${name}=${pythonLiteral(value, 1)},`)
    .join("\n");
}

// JSON's escapes of a string are also Python's
function pythonLiteral(value, depth) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const inner = "    ".repeat(depth + 1);
  const lines = Object.entries(value).map(
    ([name, each]) => `${inner}${JSON.stringify(name)}: ${pythonLiteral(each, depth + 1)},`,
  );
  return `{\n${lines.join("\n")}\n${"    ".repeat(depth)}}`;
}

const TOKEN =
  /(?<string>"(?:[^"\\\n]|\\.)*")(?<key>\s*:)?|(?<word>\b(?:import|from|const|await|async|for|in|with|as|of|if|throw|new|open|True|False|true|false|curl)\b)|(?<number>\b\d+(?:\.\d+)?\b)/g;

/** Code as coloured text nodes: never as HTML. */
export function paintCode(element, code) {
  const parts = [];
  let at = 0;
  for (const match of code.matchAll(TOKEN)) {
    parts.push(code.slice(at, match.index));
    const kind = match.groups.string ? (match.groups.key ? "key" : "string") : match.groups.word ? "word" : "number";
    parts.push(span(kind, match.groups.string ?? match[0]));
    if (match.groups.key) parts.push(match.groups.key);
    at = match.index + match[0].length;
  }
  parts.push(code.slice(at));
  element.replaceChildren(...parts);
}

function span(kind, text) {
  const made = document.createElement("span");
  made.className = `tok-${kind}`;
  made.textContent = text;
  return made;
}

// Adds a LoRA to the library: fetched by the server, or uploaded. `labels` are the API's fields that were filled in.
// Both call `report(part, text)` as they go on.

import { readEvents } from "./events.js";
import { fetchingText, megabytes } from "./fetching.js";
import { t } from "./texts.js";

/** Returns the added LoRA. Throws an Error with the API's `answer`. */
export async function addFromPlace(source, labels, report) {
  const response = await fetch("/loras", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ source, ...labels }),
  });
  if (!response.ok) throw refusal(await response.json());
  for await (const event of readEvents(response.body)) {
    if (event.name === "progress") report(...progressOf(event.data));
    else if (event.name === "done") return event.data.lora;
    else if (event.name === "error") throw refusal(event.data);
  }
  throw new Error(t("The connection ended early. Asking again resumes the download."));
}

/** Returns the added LoRA. Throws an Error with the API's `answer`. */
export function uploadFile(file, labels, report) {
  const body = new FormData();
  for (const [name, value] of Object.entries(labels)) body.append(name, Array.isArray(value) ? value.join(", ") : String(value));
  body.append("file", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/loras");
    request.upload.addEventListener("progress", ({ loaded, total }) => report(loaded / total, t("Uploading: {loaded} of {total} MB", { loaded: megabytes(loaded), total: megabytes(total) })));
    request.upload.addEventListener("load", () => report(null, t("Checking the file …")));
    request.addEventListener("error", () => reject(new Error(t("The server could not be reached."))));
    request.addEventListener("load", () => {
      const answer = parse(request.responseText);
      if (request.status < 300) resolve(answer.lora);
      else reject(refusal(answer));
    });
    request.send(body);
  });
}

function progressOf({ received, total }) {
  if (total && received >= total) return [null, t("Checking the file …")];
  return [total ? received / total : null, fetchingText({ received, total })];
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return { message: t("The server refused the file.") };
  }
}

function refusal(answer) {
  return Object.assign(new Error(answer.message), { answer });
}

// Adds a LoRA to the library: fetched by the server, or uploaded. Both call `report(part, text)` as they go on.

import { readEvents } from "./events.js";
import { fetchingText, megabytes } from "./fetching.js";

/** Returns the added LoRA. Throws an Error with the API's `answer`. */
export async function addFromPlace(source, name, report) {
  const response = await fetch("/loras", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(name ? { source, name } : { source }),
  });
  if (!response.ok) throw refusal(await response.json());
  for await (const event of readEvents(response.body)) {
    if (event.name === "progress") report(...progressOf(event.data));
    else if (event.name === "done") return event.data.lora;
    else if (event.name === "error") throw refusal(event.data);
  }
  throw new Error("The connection ended early. Asking again resumes the download.");
}

/** Returns the added LoRA. Throws an Error with the API's `answer`. */
export function uploadFile(file, name, report) {
  const body = new FormData();
  if (name) body.append("name", name);
  body.append("file", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/loras");
    request.upload.addEventListener("progress", ({ loaded, total }) => report(loaded / total, `Uploading: ${megabytes(loaded)} of ${megabytes(total)} MB`));
    request.upload.addEventListener("load", () => report(null, "Checking the file …"));
    request.addEventListener("error", () => reject(new Error("The server could not be reached.")));
    request.addEventListener("load", () => {
      const answer = parse(request.responseText);
      if (request.status < 300) resolve(answer.lora);
      else reject(refusal(answer));
    });
    request.send(body);
  });
}

function progressOf({ received, total }) {
  if (total && received >= total) return [null, "Checking the file …"];
  return [total ? received / total : null, fetchingText({ received, total })];
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return { message: "The server refused the file." };
  }
}

function refusal(answer) {
  return Object.assign(new Error(answer.message), { answer });
}

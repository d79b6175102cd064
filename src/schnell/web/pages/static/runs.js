// Runs of the playground: one is drawn at a time, the others wait in the page.

import { readEvents } from "./events.js";
import { fetchingText } from "./fetching.js";
import { t } from "./texts.js";

let count = 0;

/** A run that waits. `body` is the request as it was when it was asked for; `batch` tells runs of one press apart. */
export function newRun(body, batch) {
  return {
    id: `run-${++count}`,
    batch,
    body,
    isDrawn: false,
    previews: [],
    progress: { stage: "", step: 0, total: body.promptObject.num_inference_steps ?? 4, position: 0, fetched: "" },
    label: body.promptObject.prompt,
  };
}

/** Draws a run, which changes as it goes on. Returns the finished record; throws an Error with the API's `answer`. */
export async function draw(run, signal) {
  const response = await fetch("/api/features?isStreaming=true", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(run.body),
    signal,
  });
  if (!response.ok) throw refusal(await response.json());
  for await (const event of readEvents(response.body)) {
    if (event.name === "download") Object.assign(run.progress, { stage: "download", fetched: fetchingText(event.data) });
    else if (event.name === "queued") Object.assign(run.progress, { stage: "queued", position: event.data.position });
    else if (event.name === "step") advance(run, event.data);
    else if (event.name === "done") return event.data.aiRecord;
    else if (event.name === "error") throw refusal(event.data);
  }
  throw new TypeError("the stream ended early");
}

/** The answer that stands for an error: the API's own, or one for a lost connection or a cancelled run. */
export function answerOf(error) {
  if (error.name === "AbortError") return { errorCode: "CANCELLED", message: t("The generation was cancelled.") };
  return error.answer ?? { errorCode: "NETWORK", message: t("The server could not be reached. Is it still running?") };
}

function advance(run, { stage, step, total, previews }) {
  Object.assign(run.progress, { stage, step, total });
  if (previews) run.previews = previews;
}

function refusal(answer) {
  return Object.assign(new Error(answer.message), { answer });
}

// The result of a run as the playground shows it.

import { localUrl } from "./app.js";

/** A finished record's pictures, facts and warnings. Waits until the pictures have loaded. */
export async function readResult(record) {
  const { promptObject, responseObject: found } = record.aiRecordDetail;
  const urls = found.temporaryUrls.map(localUrl);
  await Promise.all(urls.map(preload));
  const several = urls.length > 1;
  const pictures = urls.map((url, index) => ({
    url,
    alt: several ? `${promptObject.prompt} (${index + 1} of ${urls.length})` : promptObject.prompt,
    file: new URL(url, location.href).pathname.split("/").pop(),
    label: several ? `Download ${index + 1}` : "Download",
  }));
  return {
    id: record.uuid,
    promptObject,
    pictures,
    thumb: urls[0],
    label: `${promptObject.prompt}, seed ${found.seed}`,
    seed: found.seed,
    width: found.width,
    height: found.height,
    warnings: warningsOf(found),
    text: [`seed ${found.seed}`, `${found.width} × ${found.height}`, readable(secondsOf(found)), ...proofOf(found)].join(" · "),
  };
}

export function readable(seconds) {
  return seconds >= 10 ? `${Math.round(seconds)} s` : `${seconds.toFixed(1)} s`;
}

/** Saves a picture under its own name, wherever it is stored. */
export async function download({ url, file }) {
  const blob = await (await fetch(url)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function warningsOf(found) {
  const flagged = found.flagged?.length ?? 0;
  const held = flagged === 1 ? "One picture was held back by the safety checker and cost nothing." : `${flagged} pictures were held back by the safety checker and cost nothing.`;
  return [...(found.warnings ?? []), ...(flagged ? [held] : [])];
}

/** What the pictures carry, such as "marked and signed". */
function proofOf(found) {
  const [first] = found.proof ?? [];
  const carried = [first?.mark && "marked", first?.credentials && "signed"].filter(Boolean);
  return carried.length ? [carried.join(" and ")] : [];
}

function secondsOf(found) {
  return Object.values(found.timings ?? {}).reduce((sum, each) => sum + each, 0);
}

async function preload(url) {
  const image = new Image();
  image.src = url;
  await image.decode().catch(() => null);
}

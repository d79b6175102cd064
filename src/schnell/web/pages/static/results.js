// The result of a run as the playground shows it.

import { localUrl } from "./app.js";
import { locale, n, t } from "./texts.js";

/** A finished record's pictures, facts and warnings. Waits until the pictures have loaded. */
export async function readResult(record) {
  const { promptObject, responseObject: found } = record.aiRecordDetail;
  const urls = found.temporaryUrls.map(localUrl);
  await Promise.all(urls.map(preload));
  const several = urls.length > 1;
  const pictures = urls.map((url, index) => ({
    url,
    alt: several ? t("{prompt} ({number} of {total})", { prompt: promptObject.prompt, number: index + 1, total: urls.length }) : promptObject.prompt,
    file: new URL(url, location.href).pathname.split("/").pop(),
    label: several ? t("Download {number}", { number: index + 1 }) : t("Download"),
  }));
  return {
    id: record.uuid,
    promptObject,
    pictures,
    thumb: urls[0],
    label: t("{prompt}, seed {seed}", { prompt: promptObject.prompt, seed: found.seed }),
    seed: found.seed,
    width: found.width,
    height: found.height,
    warnings: warningsOf(found),
    text: [t("seed {seed}", { seed: found.seed }), `${found.width} × ${found.height}`, readable(secondsOf(found)), ...proofOf(found)].join(" · "),
  };
}

export function readable(seconds) {
  const digits = seconds >= 10 ? 0 : 1;
  return `${seconds.toLocaleString(locale, { minimumFractionDigits: digits, maximumFractionDigits: digits })} s`;
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
  const held = n("One picture was held back by the safety checker and cost nothing.", "{count} pictures were held back by the safety checker and cost nothing.", flagged);
  return [...(found.warnings ?? []), ...(flagged ? [held] : [])];
}

/** What the pictures carry, such as "marked and signed". */
function proofOf(found) {
  const [first] = found.proof ?? [];
  if (first?.mark && first?.credentials) return [t("marked and signed")];
  return first?.mark ? [t("marked")] : first?.credentials ? [t("signed")] : [];
}

function secondsOf(found) {
  return Object.values(found.timings ?? {}).reduce((sum, each) => sum + each, 0);
}

async function preload(url) {
  const image = new Image();
  image.src = url;
  await image.decode().catch(() => null);
}

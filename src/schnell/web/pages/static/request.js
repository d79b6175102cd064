// Makes the body of a request of the form: only fields that were changed, in the reference document's order.

export const FIELDS = [
  "prompt", "aspect_ratio", "width", "height", "num_inference_steps", "seed", "go_fast", "lora_weights", "lora_scale",
  "extra_lora", "extra_lora_scale", "megapixels", "num_outputs", "output_format", "output_quality",
  "disable_safety_checker",
];
const NUMBERS = new Set(["width", "height", "num_inference_steps", "seed", "lora_scale", "extra_lora_scale", "num_outputs", "output_quality"]);
const SWITCHES = new Set(["go_fast", "disable_safety_checker"]);

export function emptyForm(defaults) {
  const empty = { prompt: "", width: "", height: "", seed: "", lora_weights: "", extra_lora: "" };
  return { ...empty, ...defaults };
}

/** The value of one field in the request. Text in a number's field is sent as it is, so that the API can refuse it. */
export function apiValue(name, value) {
  if (!NUMBERS.has(name) || typeof value === "number") return value;
  const text = String(value).trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

export function buildPromptObject(form, touched, usedSeed) {
  const values = {};
  for (const name of FIELDS) {
    if (name === "seed" && usedSeed !== null) values.seed = usedSeed;
    else if (isSent(name, form, touched)) values[name] = apiValue(name, form[name]);
  }
  return values;
}

function isSent(name, form, touched) {
  if (name === "prompt") return true;
  if (name === "width" || name === "height") return form.aspect_ratio === "custom" && form[name] !== "";
  if (name === "megapixels" && form.aspect_ratio === "custom") return false;
  if (name === "seed" || name === "lora_weights" || name === "extra_lora") return String(form[name]).trim() !== "";
  if (name === "lora_scale") return touched.has(name) && form.lora_weights.trim() !== "";
  if (name === "extra_lora_scale") return touched.has(name) && form.extra_lora.trim() !== "";
  return touched.has(name);
}

/** The fields that a link sets. */
export function readLink(search) {
  const given = new URLSearchParams(search);
  const values = {};
  for (const name of FIELDS) {
    if (!given.has(name)) continue;
    const text = given.get(name);
    values[name] = SWITCHES.has(name) ? text === "true" : name === "seed" ? text : apiValue(name, text);
  }
  return values;
}

export function writeLink(promptObject) {
  return new URLSearchParams(Object.entries(promptObject).map(([name, value]) => [name, String(value)])).toString();
}

export function pixels(form, config) {
  if (form.aspect_ratio === "custom") return [Number(form.width) || 1024, Number(form.height) || 1024];
  const [width, height] = config.ratios[form.aspect_ratio] ?? [1024, 1024];
  return form.megapixels === "0.25" ? [width / 2, height / 2] : [width, height];
}

/** The fields that stand for a size: an aspect ratio and megapixels where they give it, else custom. */
export function sizeFields(width, height, ratios) {
  for (const [ratio, size] of Object.entries(ratios)) {
    for (const [megapixels, divisor] of [["1", 1], ["0.25", 2]]) {
      if (size[0] / divisor === width && size[1] / divisor === height) return { aspect_ratio: ratio, megapixels };
    }
  }
  return { aspect_ratio: "custom", width, height };
}

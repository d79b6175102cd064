// Finds the receipt that schnell writes into its pictures, in the browser: the picture is not uploaded.

const MARK = [...new TextEncoder().encode("schnell\0")];

/** The JSON receipt in a PNG, WebP or JPEG file, or null. */
export async function readReceipt(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  for (let at = bytes.indexOf(MARK[0]); at !== -1; at = bytes.indexOf(MARK[0], at + 1)) {
    if (!MARK.every((byte, offset) => bytes[at + offset] === byte)) continue;
    const receipt = parseObject(bytes, at + MARK.length);
    if (receipt?.schnell) return receipt;
  }
  return null;
}

function parseObject(bytes, start) {
  let depth = 0;
  let quoted = false;
  for (let at = start; at < bytes.length && at < start + 100_000; at++) {
    const character = String.fromCharCode(bytes[at]);
    if (at === start && character !== "{") return null;
    if (quoted && character === "\\") at++;
    else if (character === '"') quoted = !quoted;
    else if (!quoted && character === "{") depth++;
    else if (!quoted && character === "}" && --depth === 0) return parse(bytes.subarray(start, at + 1));
  }
  return null;
}

function parse(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
}

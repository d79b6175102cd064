// Several prompts out of one text: alternatives in braces, as in "{red|green} apple", and lines.

const ALTERNATIVES = /\{([^{}]*\|[^{}]*)\}/;

/** How many pictures one press of a button may ask for. */
export const MOST_PROMPTS = 64;

/** Every prompt that `text` stands for, at most one more than `MOST_PROMPTS`, in the order in which it names them. */
export function expandPrompt(text, byLine) {
  const starts = byLine ? text.split("\n").map((line) => line.trim()).filter(Boolean) : [text];
  const found = new Set();
  for (const start of starts) {
    for (const prompt of alternatives(start)) {
      found.add(prompt);
      if (found.size > MOST_PROMPTS) return [...found];
    }
  }
  return found.size ? [...found] : [text];
}

function* alternatives(text) {
  const match = ALTERNATIVES.exec(text);
  if (!match) {
    yield text;
    return;
  }
  const after = text.slice(match.index + match[0].length);
  for (const each of match[1].split("|")) yield* alternatives(text.slice(0, match.index) + each.trim() + after);
}

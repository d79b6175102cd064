// What the playground remembers in this browser, for the person who is signed in: settings, pictures, prompts.

const NAME = "schnell-playground";
const PICTURES = 24;
const PROMPTS = 50;
// links to pictures open for a week
const PICTURE_MILLISECONDS = 6 * 24 * 3600 * 1000;

/** What `user` has left here; nothing of anybody else's. */
export function recall(user) {
  try {
    const kept = JSON.parse(localStorage.getItem(NAME) ?? "null");
    if (kept?.user === user && user) {
      const since = Date.now() - PICTURE_MILLISECONDS;
      return { ...empty(user), ...kept, results: (kept.results ?? []).filter((each) => each.at > since) };
    }
  } catch {
    // not JSON: as if there were nothing
  }
  return empty(user);
}

export function keep(memory) {
  if (!memory.user) return;
  const results = memory.results.slice(0, PICTURES);
  try {
    localStorage.setItem(NAME, JSON.stringify({ ...memory, results }));
  } catch {
    // no room: the pictures are in the gallery, too
    localStorage.removeItem(NAME);
  }
}

/** On a page without a session nothing of the person before is left. */
export function forgetAll() {
  localStorage.removeItem(NAME);
}

/** `prompts` with one more at the front, each once. */
export function withPrompt(prompts, prompt) {
  const text = prompt.trim();
  return text ? [text, ...prompts.filter((each) => each !== text)].slice(0, PROMPTS) : prompts;
}

function empty(user) {
  return { user, form: null, touched: [], byLine: false, results: [], prompts: [] };
}

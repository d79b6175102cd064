// Texts of the interface in the visitor's language. English stands in the code and is each text's key.

const element = document.getElementById("texts");
const texts = element ? JSON.parse(element.textContent) : {};

/** `english` in the page's language, with `{name}` replaced by `values.name`. */
export function t(english, values = {}) {
  return (texts[english] || english).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

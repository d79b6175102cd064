// Texts of the interface in the visitor's language. English stands in the code and is each text's key.

const { lang } = document.documentElement;
const element = document.getElementById("texts");
const texts = element ? JSON.parse(element.textContent) : {};
const categories = new Intl.PluralRules(lang);

/** How numbers and times are written: as in the visitor's own country, if that speaks the page's language. */
export const locale = navigator.languages.find((each) => each.split("-")[0] === lang) ?? lang;

/** `english` in the page's language, with `{name}` replaced by `values.name`. */
export function t(english, values = {}) {
  return fill(texts[english] ?? english, values);
}

/** `one` or `other` in the page's language, as the number `count` wants it; `{count}` stands for the number. */
export function n(one, other, count, values = {}) {
  const forms = texts[one] ?? { one, other };
  return fill(forms[categories.select(count)] ?? forms.other, { count: count.toLocaleString(locale), ...values });
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

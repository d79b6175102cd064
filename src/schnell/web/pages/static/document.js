import { paintCode } from "./snippets.js";

for (const frame of document.querySelectorAll('[data-language]:not([data-language=""])')) {
  const code = frame.querySelector("code");
  paintCode(code, code.textContent);
}

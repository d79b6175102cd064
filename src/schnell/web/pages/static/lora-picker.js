// The field for one LoRA of the request: chosen from the library, or any reference as text.

import { t } from "./texts.js";

/** Alpine data, inside the playground's. `field` and `scale` are the names of the two fields of the form. */
export function loraPicker(field, scale) {
  return {
    open: false,
    searching: false,

    get text() {
      return String(this.form[field] ?? "").trim();
    },
    get chosen() {
      const name = this.text.toLowerCase();
      return this.library.find((lora) => [lora.name, ...lora.also].some((each) => each.toLowerCase() === name)) ?? null;
    },
    get chosenPreview() {
      return this.chosen?.preview ?? "";
    },
    get comboClass() {
      return this.chosenPreview ? "with-preview" : "";
    },
    get matches() {
      // until something is typed, the text is the chosen LoRA and no search: offer all
      if (!this.searching) return this.library;
      const words = this.text.toLowerCase().split(/\s+/);
      return this.library.filter((lora) => words.every((word) => `${lora.name} ${lora.summary}`.toLowerCase().includes(word)));
    },
    get showsList() {
      return this.open && this.matches.length > 0;
    },
    get missingWords() {
      const prompt = this.form.prompt.toLowerCase();
      return (this.chosen?.words ?? []).filter((word) => !prompt.includes(word.toLowerCase()));
    },
    get triggerText() {
      const words = this.missingWords;
      return words.length ? t("Trigger: {words}", { words: words.join(", ") }) : "";
    },

    isChosen(lora) {
      return lora === this.chosen;
    },
    addTrigger() {
      this.form.prompt = [this.form.prompt.trim(), ...this.missingWords].filter(Boolean).join(", ");
    },
    show() {
      this.searching = false;
      this.unfold();
    },
    typed() {
      this.searching = this.text !== "";
      this.unfold();
    },
    /** The list opens below the field, where the bar with the button would hide it. */
    unfold() {
      if (!this.open) this.$nextTick(() => document.getElementById(`${field}-list`).scrollIntoView({ block: "nearest" }));
      this.open = true;
    },
    close() {
      this.open = false;
    },
    clear() {
      this.form[field] = "";
      this.open = false;
      this.commit();
      document.getElementById(field).focus();
    },
    choose(lora) {
      this.form[field] = lora.name;
      this.open = false;
      this.searching = false;
      this.commit();
      document.getElementById(field).focus();
    },
    focusFirst() {
      const focus = () => document.querySelector(`#${field}-list li`)?.focus();
      if (this.showsList) return focus();
      this.show();
      this.$nextTick(focus);
    },
    /** Enter chooses the first match; without one it submits the form with the text as it is. */
    enter(event) {
      if (!this.showsList || !this.searching) return;
      event.preventDefault();
      this.choose(this.matches[0]);
    },
    focusNext(event) {
      event.currentTarget.nextElementSibling?.focus();
    },
    focusBefore(event) {
      const before = event.currentTarget.previousElementSibling;
      if (before?.matches("li")) before.focus();
      else document.getElementById(field).focus();
    },
  };
}

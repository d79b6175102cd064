import Alpine from "./vendor/alpine-csp.js";
import { call, copy, rememberedKey, say } from "./app.js";
import { readEvents } from "./events.js";
import { fetchingText } from "./fetching.js";
import { loraPicker } from "./lora-picker.js";
import { readReceipt } from "./receipt.js";
import { buildPromptObject, emptyForm, FIELDS, pixels, readLink, sizeFields, writeLink } from "./request.js";
import { download, readable, readResult } from "./results.js";
import { CLIENTS, paintCode, writeSnippet } from "./snippets.js";

const config = JSON.parse(document.getElementById("config").textContent);
const signedIn = document.querySelector("[data-signed-in]").dataset.signedIn === "yes";
const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
const HISTORY = 12;
const IN_MORE = ["num_outputs", "output_format", "output_quality", "go_fast", "disable_safety_checker"];
const WAITING = new Set(["download", "queued"]);
const TITLES = {
  INSUFFICIENT_CREDITS: "Not enough credits",
  RATE_LIMITED: "Too fast",
  QUEUE_FULL: "The queue is full",
  TEAM_QUEUE_FULL: "Your team's queue is full",
  MODEL_BUSY: "No room for this picture just now",
  PICTURE_TOO_LARGE: "Too large for this server",
  NSFW_CONTENT: "Held back by the safety checker",
  HTTP_EXCEPTION: "Not signed in",
  CANCELLED: "Cancelled",
  FORBIDDEN: "Not allowed",
  INVALID_LORA: "This LoRA cannot be used",
};
const RETRY = new Set(["RATE_LIMITED", "QUEUE_FULL", "TEAM_QUEUE_FULL", "MODEL_BUSY", "GENERATION_FAILED", "NETWORK", "STORAGE_FAILED", "SERVER_STOPPED", "CANCELLED"]);

function startForm() {
  const link = readLink(location.search);
  const given = Object.keys(link).length ? link : config.example;
  return { form: { ...emptyForm(config.defaults), ...given }, touched: new Set(Object.keys(given)) };
}

function playground() {
  const start = startForm();
  return {
    form: start.form,
    problems: Object.fromEntries(FIELDS.map((name) => [name, ""])),
    phase: "idle",
    progress: { stage: "", step: 0, total: 4, position: 0, fetched: "" },
    failure: { title: "", message: "", note: "", retry: false, signIn: false },
    previews: [],
    pictures: [],
    warnings: [],
    history: [],
    shownId: "",
    resultText: "\u00a0",
    usedSeed: null,
    lastSeed: null,
    secondOpen: false,
    locked: false,
    client: localStorage.getItem("schnell-client") ?? "curl",
    snippet: "",
    quoteText: signedIn ? "\u00a0" : "",
    shown: { width: 1024, height: 1024 },
    library: config.library,
    dragging: false,
    blank: BLANK,
    endpoint: config.endpoint,

    init() {
      this.touched = start.touched;
      if (!this.tabs.some((tab) => tab.id === this.client)) this.client = "curl";
      for (const name of FIELDS) this.$watch(`form.${name}`, () => this.edited(name));
      this.locked = this.form.seed !== "";
      this.$refs.more.open = this.changedInMore.some((name) => name !== "go_fast");
      this.refresh();
      // only links on this server's pages may start a run: one on another site could spend the visitor's credits
      if (location.hash === "#run" && signedIn && document.referrer.startsWith(`${location.origin}/`)) this.run();
    },

    get running() {
      return this.phase === "running";
    },
    get isCustom() {
      return this.form.aspect_ratio === "custom";
    },
    get pixelsText() {
      return pixels(this.form, config).join(" × ");
    },
    get changedInMore() {
      return IN_MORE.filter((name) => this.form[name] !== config.defaults[name]);
    },
    get moreText() {
      const count = this.changedInMore.length;
      return count ? `${count} changed` : "";
    },
    get offersSecond() {
      return this.form.lora_weights.trim() !== "" && !this.showsSecond;
    },
    get showsSecond() {
      return this.secondOpen || this.form.extra_lora.trim() !== "";
    },
    get hasHistory() {
      return this.history.length > 1;
    },
    get shortcut() {
      return MAC ? "⌘ ↵" : "Ctrl ↵";
    },
    get signInUrl() {
      return `/sign-in?next=${encodeURIComponent(`/?${writeLink(this.promptObject())}`)}`;
    },
    get tabs() {
      const served = CLIENTS.filter((each) => !each.needs || config.clients.includes(each.needs));
      return served.map((each) => ({ ...each, element: `tab-${each.id}` }));
    },
    get codeNote() {
      const note = CLIENTS.find((each) => each.id === this.client).note;
      const seed = this.usedSeed === null ? "" : "Holds the seed of this picture. ";
      const key = signedIn && !rememberedKey() ? "The browser keeps no keys: put yours in place of <your-api-key>. " : "";
      return key + seed + note;
    },
    get previewsClass() {
      return this.previews.length > 1 ? "several" : "";
    },
    get stageClass() {
      return this.dragging ? "dropping" : "";
    },
    get picturesClass() {
      return this.pictures.length > 1 ? "several" : "";
    },
    get frameStyle() {
      const size = this.phase === "done" ? [this.shown.width, this.shown.height] : pixels(this.form, config);
      return { "--ratio": String(Math.min(4, Math.max(0.25, size[0] / size[1]))) };
    },
    get shownWidth() {
      return this.shown.width;
    },
    get shownHeight() {
      return this.shown.height;
    },
    get hasWarnings() {
      return this.phase === "done" && this.warnings.length > 0;
    },
    get stepMarks() {
      const { step, total } = this.progress;
      return Array.from({ length: total }, (_, index) => ({
        number: index,
        state: index < step ? "full" : index === step && !WAITING.has(this.progress.stage) ? "now" : "",
      }));
    },
    get progressText() {
      const { stage, step, total, position, fetched } = this.progress;
      if (stage === "download") return fetched;
      if (stage === "queued") return position > 0 ? `In the queue, ${position} ahead` : "Starting";
      return stage === "denoise" ? `Step ${step} of ${total}` : "Sending";
    },

    ratioPixels(ratio) {
      if (ratio === "custom" && !this.isCustom) return "w × h";
      return pixels({ ...this.form, aspect_ratio: ratio }, config).join(" × ");
    },
    fill(name, top) {
      return { "--fill": `${(Math.min(top, Math.max(0, Number(this.form[name]) || 0)) / top) * 100}%` };
    },

    promptObject() {
      return buildPromptObject(this.form, this.touched, this.usedSeed);
    },

    edited(name) {
      this.touched.add(name);
      this.problems[name] = "";
      if (name === "aspect_ratio") Object.assign(this.problems, { width: "", height: "" });
      this.usedSeed = null;
      if (name === "seed") this.locked = String(this.form.seed).trim() !== "";
      this.refresh();
    },

    refresh() {
      const promptObject = this.promptObject();
      this.snippet = writeSnippet(this.client, {
        endpoint: config.endpoint,
        publicUrl: config.publicUrl,
        key: rememberedKey() || "<your-api-key>",
        model: config.model,
        promptObject,
        size: pixels(this.form, config),
        defaults: config.defaults,
      });
      clearTimeout(this.linking);
      this.linking = setTimeout(() => history.replaceState(null, "", `/?${writeLink(promptObject)}`), 300);
      clearTimeout(this.quoting);
      if (signedIn && !this.running) this.quoting = setTimeout(() => this.quote(), 350);
    },

    body() {
      return { type: "IMAGE_GENERATOR", model: config.model, promptObject: buildPromptObject(this.form, this.touched, null) };
    },

    async quote() {
      const asked = (this.quoted = (this.quoted ?? 0) + 1);
      try {
        const { dryRun } = await call("POST", "/api/features", { ...this.body(), dryRun: true });
        if (asked !== this.quoted) return;
        const wait = dryRun.expectedSeconds >= 0.05 ? `about ${readable(dryRun.expectedSeconds)}` : "at once";
        const ahead = dryRun.queuePosition ? ` · ${dryRun.queuePosition} ahead` : "";
        this.quoteText = `${dryRun.cost.toLocaleString("en")} credits · ${wait}${ahead}`;
      } catch (error) {
        if (asked !== this.quoted || !error.answer) return;
        this.quoteText = this.showFieldProblems(error.answer) ? "Something above needs a change" : error.message;
      }
    },

    async run() {
      if (this.running || !signedIn) return;
      clearTimeout(this.quoting);
      this.quoted = (this.quoted ?? 0) + 1;
      for (const name of FIELDS) this.problems[name] = "";
      this.usedSeed = null;
      this.shownId = "";
      this.progress = { stage: "", step: 0, total: Number(this.form.num_inference_steps) || 4, position: 0, fetched: "" };
      this.previews = [];
      this.phase = "running";
      this.resultText = "\u00a0";
      this.controller = new AbortController();
      if (matchMedia("(max-width: 900px)").matches) document.querySelector(".stage").scrollIntoView({ behavior: "smooth" });
      try {
        await this.follow();
        if (this.running) throw new TypeError("the stream ended early");
      } catch (error) {
        if (error.name === "AbortError") this.fail({ errorCode: "CANCELLED", message: "The generation was cancelled." });
        else if (error.answer) this.fail(error.answer);
        else this.fail({ errorCode: "NETWORK", message: "The server could not be reached. Is it still running?" });
      }
      if (signedIn) this.quote();
    },

    async follow() {
      const response = await fetch("/api/features?isStreaming=true", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(this.body()),
        signal: this.controller.signal,
      });
      if (!response.ok) throw Object.assign(new Error("refused"), { answer: await response.json() });
      for await (const event of readEvents(response.body)) {
        if (event.name === "download") Object.assign(this.progress, { stage: "download", fetched: fetchingText(event.data) });
        else if (event.name === "queued") Object.assign(this.progress, { stage: "queued", position: event.data.position });
        else if (event.name === "step") this.advance(event.data);
        else if (event.name === "done") await this.finish(event.data.aiRecord);
        else if (event.name === "error") this.fail(event.data);
      }
    },

    advance({ stage, step, total, previews }) {
      Object.assign(this.progress, { stage, step, total });
      if (previews) this.previews = previews;
    },

    async finish(record) {
      const result = await readResult(record);
      this.history = [result, ...this.history].slice(0, HISTORY);
      this.showResult(result);
      this.refresh();
    },

    showResult(result) {
      this.pictures = result.pictures;
      this.shown = { width: result.width, height: result.height };
      this.warnings = result.warnings;
      this.resultText = result.text;
      this.usedSeed = this.lastSeed = result.seed;
      this.shownId = result.id;
      this.phase = "done";
    },

    /** Shows an earlier result of this tab, and fills in the settings that made it. */
    showAgain(result) {
      if (this.running) return;
      const { seed, ...given } = result.promptObject;
      this.fillIn(seed === undefined ? given : { ...given, seed: String(seed) });
      this.$nextTick(() => {
        this.showResult(result);
        this.refresh();
      });
    },

    /** Resets the form to its defaults and these values. */
    fillIn(values) {
      const known = Object.fromEntries(Object.entries(values).filter(([name]) => FIELDS.includes(name)));
      Object.assign(this.form, emptyForm(config.defaults), known);
      this.secondOpen = false;
      this.$nextTick(() => {
        this.touched = new Set(Object.keys(known));
        this.refresh();
      });
    },

    fail(answer) {
      const inFields = this.showFieldProblems(answer);
      const code = answer.errorCode;
      this.failure = {
        title: inFields ? "Something needs a change" : (TITLES[code] ?? "It did not work"),
        message: inFields ? "The fields say what." : answer.message,
        note: code === "CANCELLED" || code === "NETWORK" ? "" : `${code} · nothing was charged`,
        retry: RETRY.has(code),
        signIn: code === "HTTP_EXCEPTION",
      };
      this.phase = "failed";
      if (inFields) this.$nextTick(() => document.querySelector('#settings [aria-invalid="true"]')?.focus());
    },

    /** Puts each problem beside its field; false when one has no field here. */
    showFieldProblems(answer) {
      let details = [];
      try {
        details = JSON.parse(answer.details ?? "[]");
      } catch {
        return false;
      }
      const known = details.filter((each) => each.field?.replace(/^promptObject\./, "") in this.problems);
      for (const each of known) this.problems[each.field.replace(/^promptObject\./, "")] = each.message;
      if (known.some((each) => IN_MORE.includes(each.field))) this.$refs.more.open = true;
      return known.length > 0 && known.length === details.length;
    },

    cancel() {
      this.controller?.abort();
    },

    suggest(event) {
      this.form.prompt = event.currentTarget.textContent;
      document.getElementById("prompt").focus();
    },
    openSecond() {
      this.secondOpen = true;
      this.$nextTick(() => document.getElementById("extra_lora").focus());
    },

    rollSeed() {
      this.form.seed = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    },
    toggleLock() {
      if (this.locked) this.form.seed = "";
      else if (this.lastSeed !== null) this.form.seed = String(this.lastSeed);
      else this.rollSeed();
    },
    vary() {
      this.form.seed = String((this.lastSeed + Math.max(1, this.pictures.length)) % (config.maxSeed + 1));
      this.form.num_outputs = 4;
      this.$nextTick(() => this.run());
    },

    download(picture) {
      download(picture);
    },
    share() {
      copy(`${location.origin}/?${writeLink(this.promptObject())}`);
    },

    choose(client) {
      this.client = client;
      localStorage.setItem("schnell-client", client);
      this.refresh();
    },
    nextTab() {
      this.moveTab(1);
    },
    lastTab() {
      this.moveTab(-1);
    },
    moveTab(by) {
      const ids = this.tabs.map((tab) => tab.id);
      this.choose(ids[(ids.indexOf(this.client) + by + ids.length) % ids.length]);
      this.$nextTick(() => document.getElementById(`tab-${this.client}`).focus());
    },
    copySnippet() {
      copy(this.snippet);
    },

    dragOver(event) {
      this.dragging = event.dataTransfer.types.includes("Files");
    },
    dragLeave(event) {
      if (!event.relatedTarget) this.dragging = false;
    },
    drop(event) {
      this.dragging = false;
      if (event.dataTransfer.files.length) this.readSettings(event.dataTransfer.files[0]);
    },
    pickPicture() {
      document.getElementById("receipt-file").click();
    },
    readPicked(event) {
      if (event.target.files.length) this.readSettings(event.target.files[0]);
      event.target.value = "";
    },
    async readSettings(file) {
      const receipt = await readReceipt(file);
      if (!receipt) return say("This picture carries no settings of schnell");
      this.restore(receipt);
      say("Settings restored");
    },
    restore(receipt) {
      const values = {
        prompt: receipt.prompt,
        ...sizeFields(receipt.width, receipt.height, config.ratios),
        num_inference_steps: receipt.num_inference_steps,
        seed: String(receipt.seed),
        go_fast: receipt.go_fast,
        output_format: receipt.output_format === "jpeg" ? "jpg" : receipt.output_format,
        output_quality: receipt.output_quality,
      };
      receipt.loras.slice(0, 2).forEach((lora, index) => {
        values[index ? "extra_lora" : "lora_weights"] = lora.name;
        values[index ? "extra_lora_scale" : "lora_scale"] = lora.scale;
      });
      this.fillIn(values);
    },
  };
}

Alpine.directive("snippet", (element, { expression }, { evaluateLater, effect }) => {
  const read = evaluateLater(expression);
  effect(() => read((code) => paintCode(element, code)));
});
Alpine.data("playground", playground);
Alpine.data("loraPicker", loraPicker);
Alpine.start();

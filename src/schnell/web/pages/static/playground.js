import Alpine from "./vendor/alpine-csp.js";
import { call, copy, rememberedKey, say } from "./app.js";
import { readEvents } from "./events.js";
import { readReceipt } from "./receipt.js";
import { buildPromptObject, emptyForm, FIELDS, pixels, readLink, sizeFields, writeLink } from "./request.js";
import { CLIENTS, paintCode, writeSnippet } from "./snippets.js";

const config = JSON.parse(document.getElementById("config").textContent);
const signedIn = document.querySelector("[data-signed-in]").dataset.signedIn === "yes";
const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
const IN_MORE = ["extra_lora", "num_outputs", "output_format", "output_quality", "go_fast", "disable_safety_checker"];
const TITLES = {
  INSUFFICIENT_CREDITS: "Not enough credits",
  RATE_LIMITED: "Too fast",
  QUEUE_FULL: "The queue is full",
  TEAM_QUEUE_FULL: "Your team's queue is full",
  NSFW_CONTENT: "Held back by the safety checker",
  HTTP_EXCEPTION: "Not signed in",
  CANCELLED: "Cancelled",
  FORBIDDEN: "Not allowed",
  INVALID_LORA: "This LoRA cannot be used",
};
const RETRY = new Set(["RATE_LIMITED", "QUEUE_FULL", "TEAM_QUEUE_FULL", "GENERATION_FAILED", "NETWORK", "STORAGE_FAILED", "SERVER_STOPPED", "CANCELLED"]);

function startForm() {
  const link = readLink(location.search);
  const given = Object.keys(link).length ? link : config.example;
  return { form: { ...emptyForm(config.defaults), ...given }, touched: new Set(Object.keys(given)) };
}

/** A link of this site for a stored picture, so that it also opens where the server is reached by another name. */
function localUrl(url) {
  return url.startsWith(`${config.publicUrl}/`) ? url.slice(config.publicUrl.length) : url;
}

function fileName(url) {
  return new URL(url, location.href).pathname.split("/").pop();
}

function playground() {
  const start = startForm();
  return {
    form: start.form,
    problems: Object.fromEntries(FIELDS.map((name) => [name, ""])),
    phase: "idle",
    progress: { stage: "", step: 0, total: 4, position: 0 },
    failure: { title: "", message: "", note: "", retry: false, signIn: false },
    previews: [],
    pictures: [],
    warnings: [],
    resultText: "\u00a0",
    usedSeed: null,
    lastSeed: null,
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
      this.$refs.more.open = IN_MORE.some((name) => this.touched.has(name) && name !== "go_fast");
      this.refresh();
      if (location.hash === "#run" && signedIn) this.run();
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
      const seed = this.usedSeed === null ? "" : `Holds the seed of this picture. `;
      return seed + note;
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
        state: index < step ? "full" : index === step && this.progress.stage !== "queued" ? "now" : "",
      }));
    },
    get progressText() {
      const { stage, step, total, position } = this.progress;
      if (stage === "queued") return position > 0 ? `In the queue, ${position} ahead` : "Starting";
      if (stage === "denoise") return step < total ? `Step ${step} of ${total}` : "Decoding";
      if (stage === "decode") return "Finishing";
      return stage === "text" ? "Reading the prompt" : "Sending";
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
      this.progress = { stage: "", step: 0, total: Number(this.form.num_inference_steps) || 4, position: 0 };
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
        if (event.name === "queued") Object.assign(this.progress, { stage: "queued", position: event.data.position });
        else if (event.name === "step") this.advance(event.data);
        else if (event.name === "done") await this.finish(event.data.aiRecord);
        else if (event.name === "error") this.fail(event.data);
      }
    },

    advance({ stage, step, total, previews }) {
      this.progress.stage = stage;
      if (previews) this.previews = previews;
      if (stage === "denoise") Object.assign(this.progress, { step, total });
    },

    async finish(record) {
      const found = record.aiRecordDetail.responseObject;
      const urls = found.temporaryUrls.map(localUrl);
      await Promise.all(urls.map(preload));
      const prompt = record.aiRecordDetail.promptObject.prompt;
      const several = urls.length > 1;
      this.pictures = urls.map((url, index) => ({
        url,
        alt: several ? `${prompt} (${index + 1} of ${urls.length})` : prompt,
        file: fileName(url),
        label: several ? `Download ${index + 1}` : "Download",
      }));
      this.shown = { width: found.width, height: found.height };
      this.warnings = [...(found.warnings ?? [])];
      if (found.flagged?.length) this.warnings.push(`${found.flagged.length} of the pictures were held back by the safety checker and cost nothing.`);
      const seconds = Object.values(found.timings ?? {}).reduce((sum, each) => sum + each, 0);
      this.resultText = [`seed ${found.seed}`, `${found.width} × ${found.height}`, readable(seconds)].join(" · ");
      this.usedSeed = found.seed;
      this.lastSeed = found.seed;
      this.phase = "done";
      this.refresh();
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

    async download(picture) {
      const blob = await (await fetch(picture.url)).blob();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = picture.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
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

    dragOver() {
      this.dragging = true;
    },
    dragLeave() {
      this.dragging = false;
    },
    async drop(event) {
      this.dragging = false;
      const file = event.dataTransfer.files[0];
      const receipt = file && (await readReceipt(file));
      if (!receipt) return say("This picture carries no settings of schnell");
      this.restore(receipt);
      say("Settings restored");
    },
    restore(receipt) {
      const values = {
        ...emptyForm(config.defaults),
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
      Object.assign(this.form, values);
    },
  };
}

function loraPicker() {
  return {
    open: false,
    get chosen() {
      const name = this.form.lora_weights.trim();
      return this.library.find((lora) => lora.name === name) ?? null;
    },
    get chosenPreview() {
      return this.chosen?.preview ?? "";
    },
    get matches() {
      const text = this.form.lora_weights.trim().toLowerCase();
      const exact = this.library.some((lora) => lora.name.toLowerCase() === text);
      return exact || !text ? this.library : this.library.filter((lora) => lora.name.toLowerCase().includes(text));
    },
    get showsList() {
      return this.open && this.matches.length > 0;
    },
    get triggerText() {
      const missing = (this.chosen?.words ?? []).filter((word) => !this.form.prompt.includes(word));
      return missing.length ? `Trigger: ${missing.join(", ")}` : "";
    },
    addTrigger() {
      const missing = this.chosen.words.filter((word) => !this.form.prompt.includes(word));
      this.form.prompt = [this.form.prompt, ...missing].filter(Boolean).join(", ");
    },
    show() {
      this.open = true;
    },
    close() {
      this.open = false;
    },
    clear() {
      this.form.lora_weights = "";
      this.open = false;
    },
    choose(lora) {
      this.form.lora_weights = lora.name;
      this.open = false;
    },
    focusFirst() {
      this.open = true;
      this.$nextTick(() => document.querySelector("#lora-list li")?.focus());
    },
    focusNext(event) {
      event.currentTarget.nextElementSibling?.focus();
    },
    focusBefore(event) {
      const before = event.currentTarget.previousElementSibling;
      if (before?.matches("li")) before.focus();
      else document.getElementById("lora_weights").focus();
    },
  };
}

function readable(seconds) {
  return seconds >= 10 ? `${Math.round(seconds)} s` : `${seconds.toFixed(1)} s`;
}

async function preload(url) {
  const image = new Image();
  image.src = url;
  await image.decode().catch(() => null);
}

Alpine.directive("snippet", (element, { expression }, { evaluateLater, effect }) => {
  const read = evaluateLater(expression);
  effect(() => read((code) => paintCode(element, code)));
});
Alpine.data("playground", playground);
Alpine.data("loraPicker", loraPicker);
Alpine.start();

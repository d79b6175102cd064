import Alpine from "./vendor/alpine-csp.js";
import { call, copy, rememberedKey, say } from "./app.js";
import { openGrid } from "./grid.js";
import { installDialog, isLoraFile, openDialog, takeFiles } from "./lora-dialog.js";
import { loraPicker } from "./lora-picker.js";
import { keep, recall, withPrompt } from "./memory.js";
import { expandPrompt, MOST_PROMPTS } from "./prompts.js";
import { readReceipt } from "./receipt.js";
import { buildPromptObject, emptyForm, FIELDS, pixels, readLink, sizeFields, writeLink } from "./request.js";
import { download, readable, readResult } from "./results.js";
import { answerOf, draw, newRun } from "./runs.js";
import { installShortcuts } from "./shortcuts.js";
import { CLIENTS, maskKey, paintCode, writeSnippet } from "./snippets.js";
import { locale, n, t } from "./texts.js";

const config = JSON.parse(document.getElementById("config").textContent);
const { signedIn: signed, mayDraw: may } = document.querySelector("[data-signed-in]").dataset;
const [signedIn, mayDraw] = [signed === "yes", may === "yes"];
const memory = recall(document.body.dataset.user);
const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const BLANK = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";
const IN_MORE = ["num_outputs", "output_format", "output_quality", "go_fast", "disable_safety_checker"];
const WAITING = new Set(["download", "queued"]);
const TITLES = {
  INSUFFICIENT_CREDITS: t("Not enough credits"),
  RATE_LIMITED: t("Too fast"),
  QUEUE_FULL: t("The queue is full"),
  TEAM_QUEUE_FULL: t("Your team's queue is full"),
  MODEL_BUSY: t("No room for this picture just now"),
  PICTURE_TOO_LARGE: t("Too large for this server"),
  NSFW_CONTENT: t("Held back by the safety checker"),
  HTTP_EXCEPTION: t("Not signed in"),
  CANCELLED: t("Cancelled"),
  FORBIDDEN: t("Not allowed"),
  INVALID_LORA: t("This LoRA cannot be used"),
};
const RETRY = new Set(["RATE_LIMITED", "QUEUE_FULL", "TEAM_QUEUE_FULL", "MODEL_BUSY", "GENERATION_FAILED", "NETWORK", "STORAGE_FAILED", "SERVER_STOPPED", "CANCELLED"]);

function startForm() {
  const link = readLink(location.search);
  if (!Object.keys(link).length && memory.form) {
    return { form: { ...emptyForm(config.defaults), ...memory.form }, touched: new Set(memory.touched) };
  }
  const given = Object.keys(link).length ? link : config.example;
  return { form: { ...emptyForm(config.defaults), ...given }, touched: new Set(Object.keys(given)) };
}

function playground() {
  const start = startForm();
  return {
    form: start.form,
    problems: Object.fromEntries(FIELDS.map((name) => [name, ""])),
    phase: "idle",
    runs: [],
    watchedId: "",
    paused: false,
    follows: true,
    byLine: memory.byLine,
    prompts: memory.prompts,
    promptsOpen: false,
    failure: { title: "", message: "", note: "", retry: false, signIn: false },
    pictures: [],
    warnings: [],
    history: memory.results,
    shownId: "",
    resultText: "\u00a0",
    usedSeed: null,
    lastSeed: null,
    secondOpen: false,
    halfTyped: false,
    locked: false,
    client: localStorage.getItem("schnell-client") ?? "curl",
    snippet: "",
    quoteText: mayDraw ? "\u00a0" : "",
    shown: { width: 1024, height: 1024 },
    library: config.library,
    dragging: false,
    blank: BLANK,
    endpoint: config.endpoint,

    init() {
      this.touched = start.touched;
      if (!this.tabs.some((tab) => tab.id === this.client)) this.client = "curl";
      for (const name of FIELDS) this.$watch(`form.${name}`, () => this.edited(name));
      this.$watch("byLine", () => this.edited("prompt"));
      this.locked = this.form.seed !== "";
      this.$refs.more.open = this.changedInMore.some((name) => name !== "go_fast");
      this.refresh();
      this.bindKeys();
      installDialog((lora) => this.useAdded(lora));
      // the bar's link was written before anything was typed
      const signIn = document.querySelector('.bar a[href^="/sign-in"]');
      signIn?.addEventListener("click", () => (signIn.href = this.signInUrl));
      const [visit] = performance.getEntriesByType("navigation");
      if (this.history.length && (!location.search || visit?.type === "reload")) this.showResult(this.history[0]);
      // only links on this server's pages may start a run: one on another site could spend the visitor's credits
      if (location.hash === "#vary" && mayDraw && document.referrer.startsWith(`${location.origin}/`)) this.varyRecalled();
    },

    get running() {
      return this.phase === "running";
    },
    get busy() {
      return this.runs.length > 0;
    },
    get watched() {
      return this.runs.find((run) => run.id === this.watchedId) ?? null;
    },
    get previews() {
      return this.watched?.previews ?? [];
    },
    get progress() {
      return this.watched?.progress ?? { stage: "", step: 0, total: 4, position: 0, fetched: "" };
    },
    /** What waits or is drawn, the last that was asked for first, as the strip shows it. */
    get pending() {
      return [...this.runs].reverse().map((run) => ({
        id: run.id,
        isDrawn: run.isDrawn,
        preview: run.previews[0] ?? BLANK,
        label: run.isDrawn ? t("Being drawn: {prompt}", { prompt: run.label }) : t("Take out of the queue: {prompt}", { prompt: run.label }),
        name: run.isDrawn ? "strip-item pending drawn" : "strip-item pending",
      }));
    },
    get drawText() {
      return this.busy && !this.paused ? t("Draw next") : t("Draw");
    },
    get queueText() {
      const waiting = this.runs.filter((run) => !run.isDrawn).length;
      if (!waiting) return "";
      return n("One run waits", "{count} runs wait", waiting);
    },
    get expanded() {
      return expandPrompt(this.form.prompt, this.byLine && this.hasLines);
    },
    get hasLines() {
      return this.form.prompt.trim().includes("\n");
    },
    get batchText() {
      const count = this.expanded.length;
      if (count > MOST_PROMPTS) return t("More than {most} prompts: shorten the lists in braces.", { most: MOST_PROMPTS });
      return count > 1 ? n("{count} prompt.", "{count} prompts, drawn one after the other.", count) : "";
    },
    get hasPrompts() {
      return this.prompts.length > 0;
    },
    get isRepeat() {
      return this.phase === "done" && this.shownSent !== "" && this.shownSent === JSON.stringify(this.body().promptObject);
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
      return count ? t("{count} changed", { count }) : "";
    },
    get offersSecond() {
      return this.form.lora_weights.trim() !== "" && !this.showsSecond;
    },
    get showsSecond() {
      return this.secondOpen || this.form.extra_lora.trim() !== "";
    },
    get hasHistory() {
      return this.history.length > 0 || this.runs.length > 0;
    },
    get shortcut() {
      return MAC ? "⌘ ↵" : t("Ctrl ↵");
    },
    get signInUrl() {
      return `/sign-in?next=${encodeURIComponent(`/?${writeLink(this.promptObject())}`)}`;
    },
    get tabs() {
      const served = CLIENTS.filter((each) => !each.needs || config.clients.includes(each.needs));
      return served.map((each) => ({ ...each, element: `tab-${each.id}` }));
    },
    get codeNote() {
      const { note } = CLIENTS.find((each) => each.id === this.client);
      const seed = this.usedSeed === null ? "" : t("Holds the seed of this picture.");
      const key = !signedIn ? "" : rememberedKey() ? t("Copied with the whole key.") : t("The browser keeps no keys: put yours in place of <your-api-key>.");
      const batch = this.expanded.length > 1 ? n("The only prompt.", "The first of {count} prompts.", this.expanded.length) : "";
      return [batch, key, seed, note].filter(Boolean).join(" ");
    },
    get previewsClass() {
      return gridClass(this.previews.length, this.runSize);
    },
    get stageClass() {
      return this.dragging ? "dropping" : "";
    },
    get picturesClass() {
      return gridClass(this.pictures.length, [this.shown.width, this.shown.height]);
    },
    /** The size of the pictures that are being watched: the form may have another one by now. */
    get runSize() {
      const given = this.watched?.body.promptObject;
      return given ? pixels({ ...emptyForm(config.defaults), ...given }, config) : pixels(this.form, config);
    },
    get frameStyle() {
      const done = this.phase === "done";
      const [width, height] = done ? [this.shown.width, this.shown.height] : this.runSize;
      const count = done ? this.pictures.length : this.running ? (this.watched?.body.promptObject.num_outputs ?? 1) : 1;
      // two pictures stand beside each other, or above each other if they are wide
      const both = count === 2 ? (width > height * 1.3 ? 0.5 : 2) : 1;
      return { "--ratio": String(Math.min(4, Math.max(0.25, (width / height) * both))) };
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
      if (stage === "queued") return position > 0 ? t("In the queue, {position} ahead", { position }) : t("Starting");
      if (stage === "denoise") return t("Step {step} of {total}", { step, total });
      return this.watched?.isDrawn ? t("Sending") : t("Waiting for the run before");
    },

    ratioPixels(ratio) {
      if (ratio === "custom" && !this.isCustom) return t("w × h");
      return pixels({ ...this.form, aspect_ratio: ratio }, config).join(" × ");
    },
    fill(name, top) {
      return { "--fill": `${(Math.min(top, Math.max(0, Number(this.form[name]) || 0)) / top) * 100}%` };
    },

    promptObject() {
      return buildPromptObject(this.form, this.touched, this.usedSeed);
    },
    remember() {
      const results = this.history.filter((each) => each.at);
      keep({ user: memory.user, form: this.form, touched: [...this.touched], byLine: this.byLine, results, prompts: this.prompts });
    },

    edited(name) {
      this.touched.add(name);
      this.problems[name] = "";
      if (name === "aspect_ratio") Object.assign(this.problems, { width: "", height: "" });
      this.usedSeed = null;
      if (name === "seed") this.locked = String(this.form.seed).trim() !== "";
      this.refresh();
      clearTimeout(this.keeping);
      this.keeping = setTimeout(() => this.remember(), 200);
    },

    code(key) {
      return writeSnippet(this.client, {
        endpoint: config.endpoint,
        publicUrl: config.publicUrl,
        key,
        model: config.model,
        promptObject: { ...this.promptObject(), prompt: this.expanded[0] },
        size: pixels(this.form, config),
        defaults: config.defaults,
      });
    },
    refresh() {
      this.snippet = this.code(maskKey(rememberedKey()) || "<your-api-key>");
      const link = `/?${writeLink(this.promptObject())}`;
      clearTimeout(this.linking);
      this.linking = setTimeout(() => history.replaceState(null, "", link), 300);
      clearTimeout(this.quoting);
      if (mayDraw) this.quoting = setTimeout(() => this.quote(), 350);
    },

    /** Half of a LoRA's name, or "10" on the way to 1024, is no value yet: the server would refuse it. */
    typing({ target }) {
      this.halfTyped = target.matches("[type=text], [type=number]") || !target.value.trim();
    },
    /** A field is left (focusout) or its value confirmed (change). A list of LoRAs is a part of its field. */
    leave(event) {
      const list = event.target.closest(".combo")?.querySelector("ul");
      if (list && (event.type === "change" || list.contains(event.relatedTarget))) return;
      if (this.halfTyped) this.commit();
    },
    commit() {
      this.halfTyped = false;
      this.refresh();
    },

    body() {
      return { type: "IMAGE_GENERATOR", model: config.model, promptObject: buildPromptObject(this.form, this.touched, null) };
    },

    async quote() {
      if (this.halfTyped) return;
      const asked = (this.quoted = (this.quoted ?? 0) + 1);
      const prompts = this.expanded;
      const body = this.body();
      body.promptObject.prompt = prompts[0];
      try {
        const { dryRun } = await call("POST", "/api/features", { ...body, dryRun: true });
        if (asked !== this.quoted) return;
        const wait = dryRun.expectedSeconds >= 0.05 ? t("about {time}", { time: readable(dryRun.expectedSeconds) }) : t("at once");
        const ahead = dryRun.queuePosition ? ` · ${t("{count} ahead", { count: dryRun.queuePosition })}` : "";
        const credits = n("{count} credit", "{count} credits", dryRun.cost * prompts.length);
        this.quoteText = this.isRepeat ? t("The same seed and settings give the picture that you see.") : `${credits} · ${wait}${ahead}`;
      } catch (error) {
        if (asked !== this.quoted || !error.answer) return;
        this.quoteText = this.showFieldProblems(error.answer) ? t("Something above needs a change") : error.message;
      }
    },

    /** Asks for what the form says: at once, or when what was asked for before is drawn. */
    run() {
      if (!mayDraw) return;
      const prompts = this.expanded;
      if (prompts.length > MOST_PROMPTS) return document.getElementById("prompt").focus();
      for (const name of FIELDS) this.problems[name] = "";
      this.halfTyped = false;
      clearTimeout(this.quoting);
      this.usedSeed = null;
      this.prompts = withPrompt(this.prompts, this.form.prompt);
      const body = this.body();
      this.ask(prompts.map((prompt) => ({ ...body, promptObject: { ...body.promptObject, prompt } })));
      this.remember();
    },
    /** Puts requests at the end of the queue, and watches the first unless another is watched. */
    ask(bodies) {
      const batch = (this.batches = (this.batches ?? 0) + 1);
      const added = bodies.map((body) => newRun(body, batch));
      this.paused = false;
      this.runs = [...this.runs, ...added];
      this.follows = true;
      // a picture that is shown stays until the next is there: the strip tells how far that is
      if (this.runs.length === added.length) this.watch(added[0].id);
      if (matchMedia("(max-width: 900px)").matches) document.querySelector(".stage").scrollIntoView({ behavior: "smooth" });
      this.goOn();
    },
    watch(id) {
      this.watchedId = id;
      this.follows = true;
      this.shownId = "";
      this.promptsOpen = false;
      this.phase = "running";
      this.resultText = "\u00a0";
    },

    /** Draws what waits, one run after the other, until all are drawn or one fails. */
    async goOn() {
      if (this.working) return;
      this.working = true;
      while (this.runs.length && !this.paused) await this.drawNext();
      this.working = false;
      // what was just refused would be again
      if (mayDraw && this.phase !== "failed") this.quote();
    },
    async drawNext() {
      const run = this.runs[0];
      this.controller = new AbortController();
      run.isDrawn = true;
      try {
        const record = await draw(run, this.controller.signal);
        await this.finish(run, record);
      } catch (error) {
        this.giveUp(run, answerOf(error));
      }
    },

    async finish(run, record) {
      const result = { ...(await readResult(record)), at: Date.now(), sent: JSON.stringify(run.body.promptObject) };
      this.runs = this.runs.filter((each) => each.id !== run.id);
      this.history = [result, ...this.history].slice(0, 24);
      if (this.follows) this.showResult(result);
      this.refresh();
      this.remember();
    },
    giveUp(run, answer) {
      const cancelled = answer.errorCode === "CANCELLED";
      this.failedBody = run.body;
      // what cannot work for one prompt of a batch cannot work for the others; what can, waits
      const others = cancelled || RETRY.has(answer.errorCode) ? [] : this.runs.filter((each) => each.batch === run.batch);
      this.runs = this.runs.filter((each) => each.id !== run.id && !others.includes(each));
      if (!cancelled) this.paused = true;
      if (this.follows) {
        if (cancelled && this.runs.length) this.watch(this.runs[0].id);
        else this.fail(answer);
      } else if (!cancelled) {
        say(answer.message);
      }
    },
    retry() {
      if (!this.failedBody) return this.run();
      this.paused = false;
      this.runs = [newRun(this.failedBody, 0), ...this.runs];
      this.watch(this.runs[0].id);
      this.goOn();
    },

    showResult(result) {
      this.pictures = result.pictures;
      this.shown = { width: result.width, height: result.height };
      this.warnings = result.warnings;
      this.resultText = result.text;
      this.lastSeed = result.seed;
      this.shownResult = result;
      this.shownSent = "";
      // the code beside it is this picture's as long as the form asks for the same
      const { prompt } = result.promptObject;
      if (this.expanded[0] === prompt && result.sent === JSON.stringify({ ...this.body().promptObject, prompt })) {
        this.usedSeed = result.seed;
        if (result.promptObject.seed !== undefined) this.shownSent = result.sent;
      }
      this.shownId = result.id;
      this.phase = "done";
    },

    /** Watches a run that is drawn; takes one that waits out of the queue. */
    pickPending(pending) {
      if (pending.isDrawn) return this.watch(pending.id);
      this.runs = this.runs.filter((run) => run.id !== pending.id);
      if (this.running && !this.watched) this.phase = "idle";
    },
    /** A picture that is no longer kept leaves the strip. */
    forgetResult(result) {
      this.history = this.history.filter((each) => each.id !== result.id);
      this.remember();
    },
    turn(by) {
      const place = this.history.findIndex((each) => each.id === this.shownId);
      const next = this.history[place + by] ?? this.history[place] ?? this.history[0];
      if (next) this.showAgain(next);
    },

    /** Shows an earlier result, and fills in the settings that made it. */
    showAgain(result) {
      this.follows = false;
      const { seed, ...given } = result.promptObject;
      this.fillIn(seed === undefined ? given : { ...given, seed: String(seed) });
      this.$nextTick(() => {
        this.showResult(result);
        this.usedSeed = result.seed;
        this.refresh();
      });
    },

    /** Resets the form to its defaults and these values. */
    fillIn(values) {
      const known = Object.fromEntries(Object.entries(values).filter(([name]) => FIELDS.includes(name)));
      Object.assign(this.form, emptyForm(config.defaults), known);
      this.halfTyped = false;
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
        title: inFields ? t("Something needs a change") : (TITLES[code] ?? t("It did not work")),
        message: inFields ? t("The fields say what.") : answer.message,
        note: code === "CANCELLED" || code === "NETWORK" ? "" : `${code} · ${t("nothing was charged")}`,
        retry: RETRY.has(code),
        signIn: code === "HTTP_EXCEPTION",
      };
      this.phase = "failed";
      if (!inFields) return;
      this.quoteText = t("Something above needs a change");
      this.$nextTick(() => this.goToProblem());
    },
    /** On a phone the page is on its way down to the picture then: this leads back. */
    goToProblem() {
      const field = document.querySelector('#settings [aria-invalid="true"]');
      field?.focus({ preventScroll: true });
      field?.scrollIntoView({ block: "center" });
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

    /** Stops what is drawn; what waits goes on. With nothing drawn, the queue is emptied. */
    cancel() {
      document.getElementById("run")?.focus();
      if (this.paused) {
        this.runs = [];
        this.paused = false;
        if (this.running) this.phase = "idle";
      } else this.controller?.abort();
    },
    cancelAll() {
      document.getElementById("run")?.focus();
      this.runs = this.runs.filter((run) => run.isDrawn);
      if (this.watched === null && this.running) this.phase = "idle";
      this.cancel();
    },

    suggest(event) {
      this.form.prompt = event.currentTarget.textContent;
      document.getElementById("prompt").focus();
    },
    /** An example's picture is one click away from its settings: nothing is drawn before the button is pressed. */
    useExample(index) {
      const { prompt, seed, lora_weights: lora, lora_scale: scale } = config.examples[index];
      this.fillIn({ prompt, seed: String(seed), ...(lora ? { lora_weights: lora, lora_scale: scale } : {}) });
      document.getElementById("run")?.focus();
      say(t("Settings filled in"));
    },
    startOver() {
      this.fillIn({});
      this.phase = this.runs.length ? this.phase : "idle";
      this.shownId = "";
      this.resultText = "\u00a0";
      document.getElementById("prompt").focus();
      this.$nextTick(() => this.remember());
    },
    togglePrompts() {
      this.promptsOpen = !this.promptsOpen;
    },
    usePrompt(prompt) {
      this.form.prompt = prompt;
      this.promptsOpen = false;
      document.getElementById("prompt").focus();
    },
    forgetPrompts() {
      this.prompts = [];
      this.promptsOpen = false;
      document.getElementById("prompt").focus();
      this.remember();
    },
    openAdd() {
      openDialog();
    },
    /** A LoRA that was added here is the one to draw with. */
    async useAdded({ name }) {
      const { loras } = await call("GET", "/api/loras");
      const added = loras.find((lora) => lora.name === name);
      if (!added) return;
      const summary = `${added.triggerWords.join(", ") || added.madeFor} · ${t("rank {rank}", { rank: added.rank })}`;
      this.library = [...this.library.filter((lora) => lora.name !== name), { name, also: [], words: added.triggerWords, summary, preview: "" }];
      this.form.lora_weights = name;
      document.getElementById("lora_weights").focus();
    },
    openGrid() {
      openGrid({ config, library: this.library, promptObject: this.promptObject(), use: (values) => this.fillIn(values) });
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
    /** Four more pictures with the seeds after those shown; the form stays as it is. */
    vary() {
      if (!this.shownResult || !mayDraw) return;
      const { seed, num_outputs, ...given } = this.shownResult.promptObject;
      this.askVariations(given, this.shownResult.seed, this.shownResult.pictures.length);
    },
    askVariations(given, seed, count) {
      const next = (Number(seed) + Math.max(1, count)) % (config.maxSeed + 1);
      this.ask([{ type: "IMAGE_GENERATOR", model: config.model, promptObject: { ...given, seed: next, num_outputs: 4 } }]);
    },
    /** The gallery's link: its picture's settings without the seed in the form, and variations of it. */
    varyRecalled() {
      const { seed, num_outputs, ...given } = this.body().promptObject;
      this.form.seed = "";
      this.$nextTick(() => this.askVariations(given, seed, 1));
    },

    download(picture) {
      download(picture);
    },
    share() {
      const given = this.shownResult ? { ...this.shownResult.promptObject, seed: this.shownResult.seed } : this.promptObject();
      copy(`${location.origin}/?${writeLink(given)}`);
    },
    bindKeys() {
      const focus = (id) => () => document.getElementById(id)?.focus();
      const done = (action) => () => this.phase === "done" && action();
      installShortcuts([
        { keys: "Enter", shown: MAC ? "⌘ ↵" : t("Ctrl ↵"), label: t("Draw what the form says") },
        { keys: "Escape", label: t("Cancel what is drawn"), run: () => this.busy && this.cancel() },
        { keys: "/ p", label: t("Go to the prompt"), run: focus("prompt") },
        { keys: "h", label: t("Earlier prompts"), run: () => this.togglePrompts() },
        { keys: "r", label: t("Roll a seed"), run: () => this.rollSeed() },
        { keys: "l", label: t("Keep this seed"), run: () => this.toggleLock() },
        { keys: "v", label: t("Draw four variations"), run: done(() => this.vary()) },
        { keys: "c", label: t("Copy a link to this picture's settings"), run: done(() => this.share()) },
        { keys: "d", label: t("Download"), run: done(() => this.pictures.forEach((each) => this.download(each))) },
        { keys: "ArrowLeft", label: t("Newer picture"), run: () => this.turn(-1) },
        { keys: "ArrowRight", label: t("Older picture"), run: () => this.turn(1) },
        { keys: "g", label: t("Compare LoRAs and scales"), run: () => mayDraw && config.loras && this.openGrid() },
        { keys: "n", label: t("Start over"), run: () => this.startOver() },
      ]);
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
      copy(this.code(rememberedKey() || "<your-api-key>"));
    },

    dragOver(event) {
      this.dragging = event.dataTransfer.types.includes("Files");
    },
    dragLeave(event) {
      if (!event.relatedTarget) this.dragging = false;
    },
    drop(event) {
      this.dragging = false;
      const { files } = event.dataTransfer;
      if (files.length && isLoraFile(files[0])) takeFiles(files);
      else if (files.length) this.readSettings(files[0]);
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
      if (!receipt) return say(t("This picture carries no settings of schnell"));
      this.restore(receipt);
      say(t("Settings restored"));
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

/** The class of the frame for so many pictures of a size. */
function gridClass(count, [width, height]) {
  if (count < 2) return "";
  if (count > 2) return "several";
  return width > height * 1.3 ? "several stacked" : "several beside";
}

Alpine.directive("snippet", (element, { expression }, { evaluateLater, effect }) => {
  const read = evaluateLater(expression);
  effect(() => read((code) => paintCode(element, code)));
});
Alpine.data("playground", playground);
Alpine.data("loraPicker", loraPicker);
Alpine.start();

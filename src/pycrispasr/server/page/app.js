// @ts-check
/**
 * The page of `pycrispasr serve`: recordings and speech in, text with times out.
 *
 * This file is the page's script and the AudioWorklet's module as well: its last lines tell which. What comes from the
 * server is not trusted: it becomes text nodes only. Times are in seconds unless a name says otherwise.
 */

/** @typedef {{word: string, start: number, end: number}} Word */
/** @typedef {{start: number, end: number, text: string}} Segment */
/** @typedef {{text: string, segments: Segment[], words: Word[], duration?: number, warnings?: string[]}} Transcript */
/** @typedef {{start: number, end: number, from: number, to: number}} Unit  What is lit at once: `text.slice(from, to)` */
/** @typedef {{start: number, end: number, text: string, units: Unit[], timed: boolean}} Paragraph  timed: by words */
/** @typedef {{start: number, end: number, text: string}} Cue */

const RATE = 16000; // Hz, of what is sent while somebody talks
const FRAME = RATE / 10; // samples in a message
const PAUSE = 1000; // ms without speech, behind which a new paragraph begins
const PARALLEL = 2; // recordings that are sent at once

// ------------------------------------------------------------------------------------------------ times and formats

/**
 * A time for people: 2:05, or 1:02:05.
 * @param {number} seconds
 */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/**
 * A time for a screen reader: "1 minute 5 seconds".
 * @param {number} seconds
 */
export function spokenTime(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  /** @type {[number, string][]} */
  const parts = [[Math.floor(whole / 3600), "hour"], [Math.floor(whole / 60) % 60, "minute"], [whole % 60, "second"]];
  const said = parts.filter(([n, unit]) => n || (unit === "second" && whole === 0));
  return said.map(([n, unit]) => count(n, unit)).join(" ");
}

/**
 * "1 word", "2 words", "10,000 words".
 * @param {number} n
 * @param {string} noun
 */
function count(n, noun) {
  return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
}

/**
 * A time as subtitles have it: 00:00:01,250 with `point` ",".
 * @param {number} seconds
 * @param {string} point
 */
function timecode(seconds, point) {
  const ms = Math.max(0, Math.round(seconds * 1000));
  const pad = (/** @type {number} */ n, size = 2) => String(n).padStart(size, "0");
  const whole = Math.floor(ms / 1000);
  return `${pad(Math.floor(whole / 3600))}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}${point}${pad(ms % 1000, 3)}`;
}

/**
 * Where each word stands in its segment's text, which has the spaces and the punctuation between them. The words joined
 * are the text where the two do not fit together.
 * @param {string} text
 * @param {Word[]} words
 * @returns {{text: string, units: Unit[]}}
 */
function locate(text, words) {
  /** @type {Unit[]} */
  const units = [];
  let end = 0;
  for (const { word, start, end: until } of words) {
    const from = text.indexOf(word.trim(), end);
    if (from < 0) return locate(words.map((one) => one.word.trim()).join(" "), words);
    end = from + word.trim().length;
    units.push({ start, end: until, from, to: end });
  }
  return { text, units };
}

/**
 * A transcript as paragraphs, one for each segment, with the words that were said in it. A segment without words is lit
 * as a whole.
 * @param {Transcript} transcript
 * @returns {Paragraph[]}
 */
export function paragraphs({ text, segments, words }) {
  // Words alone are one paragraph.
  const all = segments.length || !words.length ? segments : [{ start: words[0].start, end: Infinity, text }];
  let next = 0;
  return all.filter((segment) => segment.text.trim()).map(({ start, end, text: said }, index, { length }) => {
    const first = next;
    const last = index === length - 1;
    while (next < words.length && (last || (words[next].start + words[next].end) / 2 < end)) next++;
    const own = words.slice(first, next);
    const trimmed = said.trim();
    if (!own.length) return { start, end, text: trimmed, units: [{ start, end, from: 0, to: trimmed.length }], timed: false };
    return { start, end: Number.isFinite(end) ? end : own[own.length - 1].end, ...locate(trimmed, own), timed: true };
  });
}

/**
 * The words of a paragraph that has none with times: its time is shared out by their lengths.
 * @param {Paragraph} paragraph
 * @returns {Unit[]}
 */
function sharedOut({ start, end, text }) {
  return Array.from(text.matchAll(/\S+/g), (match) => {
    const [from, to] = [match.index, match.index + match[0].length];
    const at = (/** @type {number} */ offset) => start + ((end - start) * offset) / text.length;
    return { start: at(from), end: at(to), from, to };
  });
}

/**
 * A transcript as subtitles: at most two lines of 42 characters and 7 seconds, cut at pauses and behind sentences.
 * @param {Transcript} transcript
 * @returns {Cue[]}
 */
export function cues(transcript) {
  /** @type {Cue[]} */
  const all = [];
  for (const paragraph of paragraphs(transcript)) {
    const units = paragraph.timed ? paragraph.units : sharedOut(paragraph);
    let first = 0;
    units.forEach((unit, index) => {
      const next = units[index + 1];
      if (next && !cueEnds(paragraph.text, units[first], unit, next)) return;
      const text = inLines(paragraph.text.slice(first ? units[first].from : 0, next ? next.from : undefined));
      all.push({ start: units[first].start, end: Math.max(unit.end, units[first].start + 0.001), text });
      first = index + 1;
    });
  }
  return all;
}

/**
 * Whether a cue from `first` to `last` ends before `next`.
 * @param {string} text
 * @param {Unit} first
 * @param {Unit} last
 * @param {Unit} next
 */
function cueEnds(text, first, last, next) {
  const full = next.to - first.from > 84 || next.end - first.start > 7 || next.start - last.end > 0.6;
  const sentence = last.to - first.from >= 42 && /[.!?…。！？]/.test(text.slice(last.to - 1, next.from));
  return full || sentence;
}

/**
 * Text in one line, or in two of about the same length.
 * @param {string} text
 */
function inLines(text) {
  const line = text.replace(/\s+/g, " ").trim();
  if (line.length <= 42) return line;
  const middle = line.length / 2;
  const spaces = Array.from(line.matchAll(/ /g), (match) => match.index);
  if (!spaces.length) return line;
  const cut = spaces.reduce((best, at) => (Math.abs(at - middle) < Math.abs(best - middle) ? at : best));
  return `${line.slice(0, cut)}\n${line.slice(cut + 1)}`;
}

/**
 * SubRip.
 * @param {Transcript} transcript
 */
export function toSrt(transcript) {
  return cues(transcript)
    .map(({ start, end, text }, index) => `${index + 1}\n${timecode(start, ",")} --> ${timecode(end, ",")}\n${text.replaceAll("-->", "->")}\n`)
    .join("\n");
}

/**
 * WebVTT.
 * @param {Transcript} transcript
 */
export function toVtt(transcript) {
  const escaped = (/** @type {string} */ text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const blocks = cues(transcript).map(({ start, end, text }) => `${timecode(start, ".")} --> ${timecode(end, ".")}\n${escaped(text)}\n`);
  return ["WEBVTT\n", ...blocks].join("\n");
}

/**
 * The index of the last start that is not behind `time`, or -1.
 * @param {ArrayLike<number>} starts  ascending
 * @param {number} time
 */
export function lastBefore(starts, time) {
  let [low, high] = [0, starts.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (starts[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * 16-bit mono samples as a WAV file.
 * @param {Int16Array<ArrayBuffer>[]} blocks
 * @param {number} rate  Hz
 */
function toWav(blocks, rate) {
  const bytes = blocks.reduce((sum, block) => sum + block.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const tag = (/** @type {number} */ at, /** @type {string} */ name) => [...name].forEach((c, i) => header.setUint8(at + i, c.charCodeAt(0)));
  tag(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  tag(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, rate * 2, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  tag(36, "data");
  header.setUint32(40, bytes, true);
  return new Blob([header, ...blocks], { type: "audio/wav" });
}

// -------------------------------------------------------------------------------------------------------- the server

/** What went wrong, as a sentence. `status` is HTTP's, or 0 where there was no answer. */
class ServerError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, retryAfter?: number, param?: string | null}} [details]
   */
  constructor(message, { status = 0, retryAfter = 5, param = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.param = param;
  }
}

const UNREACHABLE = "The server cannot be reached. Is it still running?";

/** What the server says to programs, as it is said to people. @type {Record<number, string>} */
const SENTENCES = {
  401: "The server asks for an API key.",
  404: "The server does not have this model.",
  429: "The server is busy.",
};

/**
 * An address of the server, which may lie below a path behind a proxy.
 * @param {string} path
 */
function address(path) {
  return new URL(path, document.baseURI).href;
}

/**
 * The error of an answer.
 * @param {number} status
 * @param {string} body
 * @param {string | null} retryAfter
 */
function answerError(status, body, retryAfter) {
  const { message, code, param } = errorOf(body);
  const details = { status, retryAfter: Number(retryAfter) || 5, param };
  if (code === "loading") return new ServerError("The server is loading its model.", details);
  if (status === 413) return new ServerError(toSentence(`the recording is too large: ${message || "the server does not take it"}`), details);
  return new ServerError(SENTENCES[status] ?? toSentence(message || `the server failed (HTTP ${status})`), details);
}

/**
 * @param {string} body
 * @returns {{message?: string, code?: string, param?: string}}
 */
function errorOf(body) {
  try {
    return JSON.parse(body).error ?? {};
  } catch {
    return {}; // a proxy's page, say
  }
}

/**
 * "the file is empty" as "The file is empty."
 * @param {string} message
 */
function toSentence(message) {
  return message.charAt(0).toUpperCase() + message.slice(1) + (/[.!?]$/.test(message) ? "" : ".");
}

/** The API key, for this tab only. */
const key = {
  get value() {
    return sessionStorage.getItem("key") ?? "";
  },
  set value(value) {
    sessionStorage.setItem("key", value);
  },
};

/** @returns {Record<string, string>} */
function authorization() {
  return key.value ? { Authorization: `Bearer ${key.value}` } : {};
}

/**
 * What the server answers, as JSON.
 * @param {string} path
 */
async function get(path) {
  const answer = await fetch(address(path), { headers: authorization() }).catch(() => {
    throw new ServerError(UNREACHABLE);
  });
  if (!answer.ok) throw answerError(answer.status, await answer.text(), answer.headers.get("Retry-After"));
  return answer.json();
}

/** Server-sent events out of text that comes in parts. */
export class EventReader {
  #rest = "";

  /**
   * @param {string} text
   * @returns {any[]}  what became complete
   */
  push(text) {
    const blocks = (this.#rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = blocks.pop() ?? "";
    return blocks.map(dataOf).filter((data) => data && data !== "[DONE]").map((data) => JSON.parse(data));
  }
}

/** @param {string} block */
function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trim()).join("\n");
}

/**
 * Sends a recording and reads the transcript as it comes.
 * @param {File | Blob} file
 * @param {object} options
 * @param {string} options.name
 * @param {string} options.model
 * @param {boolean} options.words  ask for their times
 * @param {AbortSignal} options.signal
 * @param {(part: number) => void} options.onUpload  0 to 1
 * @param {(event: any) => void} options.onEvent
 * @returns {Promise<Transcript>}
 */
function transcribe(file, { name, model, words, signal, onUpload, onEvent }) {
  // XMLHttpRequest and not fetch: only it tells how much of a file is sent.
  const request = new XMLHttpRequest();
  const events = new EventReader();
  let read = 0;
  /** @type {any} */
  let done = null;
  /** @type {ServerError | null} */
  let failure = null;
  const take = () => {
    const text = request.responseText.slice(read);
    read += text.length;
    for (const event of events.push(text)) {
      if (event.type === "error") failure = new ServerError(toSentence(event.error.message));
      else if (event.type === "transcript.text.done") done = event;
      else onEvent(event);
    }
  };
  const streams = () => request.status === 200 && request.getResponseHeader("Content-Type")?.startsWith("text/event-stream");
  return new Promise((resolve, reject) => {
    request.open("POST", address("v1/audio/transcriptions"));
    for (const [header, value] of Object.entries(authorization())) request.setRequestHeader(header, value);
    request.upload.onprogress = ({ loaded, total }) => onUpload(loaded / total);
    request.upload.onload = () => onUpload(1);
    request.onprogress = () => streams() && take();
    request.onload = () => {
      if (request.status !== 200) return reject(answerError(request.status, request.responseText, request.getResponseHeader("Retry-After")));
      if (streams()) take();
      if (failure) return reject(failure);
      if (!done) return reject(new ServerError("The server ended before the text was complete."));
      const { type: _, ...transcript } = done;
      return resolve({ ...transcript, segments: done.segments ?? [], words: done.words ?? [] });
    };
    request.onerror = () => reject(new ServerError(UNREACHABLE));
    signal.addEventListener("abort", () => {
      request.abort();
      reject(signal.reason);
    });
    signal.throwIfAborted();
    request.send(transcriptionForm(file, name, model, words));
  });
}

/**
 * @param {File | Blob} file
 * @param {string} name
 * @param {string} model
 * @param {boolean} words
 */
function transcriptionForm(file, name, model, words) {
  const form = new FormData();
  form.append("model", model);
  form.append("response_format", "verbose_json");
  if (words) form.append("timestamp_granularities[]", "word");
  form.append("timestamp_granularities[]", "segment");
  form.append("stream", "true");
  form.append("file", file, name); // the last, so that the server knows all else when it comes
  return form;
}

/**
 * Why a recording got no answer: the browser only says that there was none.
 * @param {unknown} error
 * @param {File | Blob} file
 */
async function explained(error, file) {
  if (!(error instanceof ServerError) || error.message !== UNREACHABLE) return error;
  const readable = await file.slice(0, 1).arrayBuffer().catch(() => null);
  if (!readable) return new ServerError("The file cannot be read: it is a folder, or was moved or changed.");
  const there = await get("v1/models").catch(() => null);
  return there ? new ServerError("The server ended the transfer: perhaps the recording is larger than it takes.") : error;
}

// --------------------------------------------------------------------------------------------------- parts of a page

/**
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
function byId(id, kind) {
  return ofKind(document.getElementById(id), kind, `#${id}`);
}

/**
 * @template {Element} T
 * @param {Element | null} element
 * @param {new () => T} kind
 * @param {string} name
 * @returns {T}
 */
function ofKind(element, kind, name) {
  if (element instanceof kind) return element;
  throw new TypeError(`index.html has no ${kind.name} ${name}`);
}

/**
 * @param {string} tag
 * @param {string} name  its class
 * @param {string} [text]
 */
function make(tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

/**
 * An empty paragraph, with its time beside it.
 * @param {number} start  NaN while it is not known
 */
function makeRow(start) {
  const [row, stamp, body] = [make("p", ""), make("span", "stamp"), make("span", "body")];
  if (Number.isFinite(start)) stamp.textContent = clock(start);
  row.append(stamp, body);
  return { row, stamp, body };
}

/**
 * Changes the icon and the name of a button.
 * @param {HTMLButtonElement} button
 * @param {string} icon
 * @param {string} name
 */
function setFace(button, icon, name) {
  button.querySelector("use")?.setAttribute("href", `#icon-${icon}`);
  ofKind(button.querySelector(".unseen"), HTMLElement, "name of a button").textContent = name;
}

/**
 * Tells a screen reader. Beginnings and ends only: it must not talk over who talks.
 * @param {string} text
 */
function announce(text) {
  byId("announcer", HTMLElement).textContent = text;
}

/**
 * Shows a sentence above the transcripts, with a button.
 * @param {string} message
 * @param {string} name  of the button
 * @param {() => void} action
 */
function showNotice(message, name, action) {
  const notice = byId("notice", HTMLElement);
  const button = ofKind(notice.querySelector("button"), HTMLButtonElement, "in the notice");
  ofKind(notice.querySelector("p"), HTMLElement, "in the notice").textContent = message;
  button.textContent = name;
  button.onclick = () => {
    notice.hidden = true;
    action();
  };
  notice.hidden = false;
  announce(message);
}

/** @type {Promise<boolean> | null} */
let asking = null;

/**
 * Asks for the API key, once however many requests need it.
 * @returns {Promise<boolean>}  whether there is a new one
 */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const box = byId("key-dialog", HTMLDialogElement);
    const input = byId("key", HTMLInputElement);
    let given = false;
    byId("key-why", HTMLElement).textContent = keyQuestion();
    input.value = "";
    byId("key-form", HTMLFormElement).onsubmit = (event) => {
      event.preventDefault();
      given = input.value.trim() !== "";
      if (given) key.value = input.value.trim();
      box.close();
    };
    byId("key-cancel", HTMLButtonElement).onclick = () => box.close();
    box.onclose = () => {
      asking = null;
      byId("change-key", HTMLButtonElement).hidden = !key.value;
      resolve(given);
    };
    box.showModal();
  });
  return asking;
}

function keyQuestion() {
  return key.value ? "The server does not take this key." : SENTENCES[401];
}

/** @param {string[]} names */
function showModels(names) {
  const select = byId("model", HTMLSelectElement);
  const name = byId("model-name", HTMLElement);
  select.replaceChildren(...names.map((one) => new Option(one)));
  byId("model-choice", HTMLElement).hidden = names.length < 2;
  name.hidden = names.length !== 1;
  name.textContent = names[0] ?? "";
}

/**
 * The name of the model to use.
 * @returns {Promise<string>}
 */
async function chosenModel() {
  const select = byId("model", HTMLSelectElement);
  if (!select.options.length) showModels((await get("v1/models")).data.map((/** @type {{id: string}} */ model) => model.id));
  if (!select.value) throw new ServerError("This server has no model to transcribe with.");
  return select.value;
}

/**
 * Saves text or bytes as a file.
 * @param {Blob} blob
 * @param {string} name
 */
function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a browser may ask first where to put it
}

/** Words that are lit as they are said, and lead to where they are said. */
class TextView {
  #root;
  /** @type {HTMLElement[]} */
  #units = [];
  /** @type {Map<EventTarget, number>} */
  #indices = new Map();
  #starts = new Float64Array();
  #ends = new Float64Array();
  #heads = new Float64Array(); // the first unit of each paragraph
  #lit = -1;
  #stop = -1; // the unit that Tab leads to
  #growing = document.createTextNode("");
  /** @type {Segment[]} */
  #finals = []; // whose text has not come yet

  /** @type {(time: number) => void} */
  onSeek = () => {};

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
    root.onclick = (event) => this.#clicked(event);
    root.onkeydown = (event) => this.#pressed(event);
  }

  clear() {
    this.#root.replaceChildren();
    this.#root.classList.remove("timed", "plain");
    this.#growing = document.createTextNode("");
    [this.#units, this.#finals, this.#lit, this.#stop] = [[], [], -1, -1];
  }

  /**
   * Adds to the text while it is made.
   * @param {string} text
   */
  append(text) {
    if (!this.#growing.isConnected) {
      const { row, body } = makeRow(NaN);
      body.append(this.#growing);
      this.#root.append(row);
    }
    this.#growing.appendData(this.#growing.length ? text : text.trimStart());
    this.#settle();
  }

  /**
   * Makes a paragraph of what is final, with its time.
   * @param {Segment} segment
   */
  settle(segment) {
    if (segment.text.trim()) this.#finals.push(segment);
    this.#settle();
  }

  #settle() {
    while (this.#finals.length && this.#growing.data.startsWith(this.#finals[0].text.trim())) {
      const { start, text } = /** @type {Segment} */ (this.#finals.shift());
      const { row, body } = makeRow(start);
      body.textContent = text.trim();
      this.#growing.parentElement?.parentElement?.before(row);
      this.#growing.data = this.#growing.data.slice(text.trim().length).trimStart();
    }
  }

  /**
   * Shows the whole text.
   * @param {Paragraph[]} all
   */
  show(all) {
    this.clear();
    const units = all.flatMap((paragraph) => paragraph.units);
    const timed = units.length > 0 && units.every((unit) => Number.isFinite(unit.start));
    this.#root.append(...all.map((paragraph) => this.#row(paragraph)));
    this.#root.classList.toggle("timed", timed);
    this.#root.classList.toggle("plain", !timed);
    if (!timed) return;
    this.#starts = Float64Array.from(units, (unit) => unit.start);
    this.#ends = Float64Array.from(units, (unit) => unit.end);
    this.#indices = new Map(this.#units.map((element, index) => [element, index]));
    let head = 0;
    this.#heads = Float64Array.from(all, (paragraph) => (head += paragraph.units.length) - paragraph.units.length);
    this.#leadTabTo(0);
  }

  /** @param {Paragraph} paragraph */
  #row({ start, text, units }) {
    const { row, body } = makeRow(start);
    let at = 0;
    for (const { from, to } of units) {
      const unit = make("span", "unit", text.slice(from, to));
      body.append(text.slice(at, from), unit);
      this.#units.push(unit);
      at = to;
    }
    body.append(text.slice(at));
    return row;
  }

  /**
   * Lights the word that is said at `time`, and scrolls with it where the one before was in sight.
   * @param {number} time
   * @param {boolean} follow
   */
  light(time, follow) {
    if (!this.#root.classList.contains("timed")) return;
    const last = lastBefore(this.#starts, time);
    const lit = last >= 0 && time <= this.#ends[last] + 0.25 ? last : -1;
    if (lit === this.#lit) return;
    const [before, now] = [this.#units[this.#lit], this.#units[lit]];
    before?.classList.remove("now");
    now?.classList.add("now");
    this.#lit = lit;
    if (now && !this.#root.contains(document.activeElement)) this.#leadTabTo(lit);
    if (now && before && follow && inSight(before) && !inSight(now)) now.scrollIntoView({ block: "center", behavior: "smooth" });
  }

  /** @param {number} index */
  #leadTabTo(index) {
    const [before, now] = [this.#units[this.#stop], this.#units[index]];
    for (const name of ["tabindex", "role"]) before?.removeAttribute(name);
    // One button, not thousands: a screen reader reads the rest as text.
    now?.setAttribute("tabindex", "0");
    now?.setAttribute("role", "button");
    this.#stop = index;
  }

  /** @param {MouseEvent} event */
  #clicked(event) {
    const index = this.#indexAt(event.target);
    if (index === undefined || !getSelection()?.isCollapsed) return; // who selects text does not want to go there
    this.#leadTabTo(index);
    this.onSeek(this.#starts[index]);
  }

  /** @param {EventTarget | null} target */
  #indexAt(target) {
    return target && this.#root.classList.contains("timed") ? this.#indices.get(target) : undefined;
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    const index = this.#indexAt(event.target);
    if (index === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") this.onSeek(this.#starts[index]);
    else {
      const next = this.#neighbour(index, event.key);
      if (next === undefined) return;
      this.#leadTabTo(next);
      this.#units[next].focus();
    }
    event.preventDefault();
  }

  /**
   * @param {number} index
   * @param {string} name  of a key
   */
  #neighbour(index, name) {
    const [last, paragraph] = [this.#units.length - 1, lastBefore(this.#heads, index)];
    switch (name) {
      case "ArrowRight": return Math.min(index + 1, last);
      case "ArrowLeft": return Math.max(index - 1, 0);
      case "ArrowDown": return this.#heads[paragraph + 1] ?? last;
      case "ArrowUp": return index > this.#heads[paragraph] ? this.#heads[paragraph] : this.#heads[paragraph - 1] ?? 0;
      case "Home": return 0;
      case "End": return last;
      default: return undefined;
    }
  }
}

/** @param {Element} element */
function inSight(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

/** A recording that can be heard. */
class Player {
  /** @type {Player | null} */
  static #playing = null; // one at a time

  #part;
  #audio;
  #position;
  #play;
  #shown = -1; // the second that the clock shows

  /** @type {(time: number, playing: boolean) => void} */
  onTime = () => {};
  /** @type {() => void} */
  onDuration = () => {};

  /** @param {Entry["part"]} part */
  constructor(part) {
    this.#part = part;
    this.#audio = part("audio", HTMLAudioElement);
    this.#position = part("position", HTMLInputElement);
    this.#play = part("play", HTMLButtonElement);
    const speed = part("speed", HTMLSelectElement);
    this.#play.onclick = () => (this.#audio.paused ? this.#start() : this.#audio.pause());
    this.#position.oninput = () => this.seek(Number(this.#position.value));
    speed.onchange = () => (this.#audio.playbackRate = Number(speed.value));
    this.#audio.ondurationchange = () => this.#measured();
    this.#audio.onplay = () => this.#started();
    this.#audio.onpause = () => setFace(this.#play, "play", "Play");
    this.#audio.onseeked = () => this.#tell();
    this.#audio.onerror = () => (part("player", HTMLElement).hidden = true); // a format that this browser cannot play
  }

  /** @param {Blob} blob */
  load(blob) {
    this.unload();
    this.#audio.src = URL.createObjectURL(blob);
  }

  unload() {
    this.#audio.pause();
    if (this.#audio.src) URL.revokeObjectURL(this.#audio.src);
    this.#audio.removeAttribute("src");
  }

  /** Seconds; NaN where the browser does not know it. */
  get duration() {
    return Number.isFinite(this.#audio.duration) ? this.#audio.duration : NaN;
  }

  get time() {
    return this.#audio.currentTime;
  }

  /** @param {number} time */
  seek(time) {
    this.#audio.currentTime = time;
    this.#show(time);
  }

  /** @param {number} time */
  playFrom(time) {
    this.seek(time);
    this.#start();
  }

  #start() {
    this.#audio.play().catch(() => {}); // what cannot be played has hidden the player
  }

  #started() {
    const other = Player.#playing;
    if (other && other !== this) other.#audio.pause();
    Player.#playing = this;
    setFace(this.#play, "pause", "Pause");
    const step = () => {
      this.#tell();
      if (!this.#audio.paused) requestAnimationFrame(step);
    };
    step();
  }

  #measured() {
    this.#position.max = String(this.duration || 0);
    this.#part("player", HTMLElement).hidden = false;
    this.#shown = -1;
    this.#show(this.#audio.currentTime);
    this.onDuration();
  }

  #tell() {
    this.#show(this.#audio.currentTime);
    this.onTime(this.#audio.currentTime, !this.#audio.paused);
  }

  /** @param {number} time */
  #show(time) {
    this.#position.value = String(time);
    this.#position.style.setProperty("--done", `${(100 * time) / (this.duration || Infinity)}%`);
    if (Math.floor(time) === this.#shown) return; // a screen reader hears of whole seconds
    this.#shown = Math.floor(time);
    this.#part("clock", HTMLElement).textContent = `${clock(time)} / ${clock(this.duration || 0)}`;
    this.#position.setAttribute("aria-valuetext", `${spokenTime(time)} of ${spokenTime(this.duration || 0)}`);
  }
}

let entries = 0;

/** One recording on the page: its progress, its sound, its text. */
class Entry {
  #root;
  /** @type {Transcript | null} */
  #transcript = null;
  /** @type {File | null} */
  #recording = null;
  #title;

  /**
   * @param {string} title
   * @param {Element | null} before  the entry that this one stands above
   */
  constructor(title, before) {
    const template = byId("entry", HTMLTemplateElement).content.cloneNode(true);
    this.#root = ofKind(/** @type {DocumentFragment} */ (template).querySelector("article"), HTMLElement, "article");
    this.#title = title;
    this.text = new TextView(this.part("text", HTMLElement));
    this.player = new Player((name, kind) => this.part(name, kind));
    /** What goes on: aborted by Cancel and Remove. */
    this.controller = new AbortController();
    this.#name(title);
    this.#connect();
    byId("transcripts", HTMLElement).insertBefore(this.#root, before);
  }

  /**
   * @template {Element} T
   * @param {string} name
   * @param {new () => T} kind
   */
  part(name, kind) {
    return ofKind(this.#root.querySelector(`[data-part="${name}"]`), kind, name);
  }

  /** @param {string} title */
  #name(title) {
    const heading = this.part("title", HTMLElement);
    const keys = this.part("keys", HTMLElement);
    const text = this.part("text", HTMLElement);
    [heading.id, keys.id] = [`title-${++entries}`, `keys-${entries}`];
    heading.textContent = title;
    this.#root.setAttribute("aria-labelledby", heading.id);
    text.setAttribute("aria-label", `Text of ${title}`);
    text.setAttribute("aria-describedby", keys.id);
    setFace(this.part("remove", HTMLButtonElement), "remove", `Remove ${title}`);
    this.part("progress", HTMLProgressElement).setAttribute("aria-label", `Progress of ${title}`);
  }

  #connect() {
    this.part("cancel", HTMLButtonElement).onclick = () => this.controller.abort();
    this.part("remove", HTMLButtonElement).onclick = () => this.#remove();
    this.part("copy", HTMLButtonElement).onclick = () => this.#copy();
    this.part("copy", HTMLButtonElement).hidden = !navigator.clipboard; // it needs HTTPS or localhost
    for (const button of this.#formatButtons()) button.onclick = () => this.#download(button.dataset.format ?? "");
    this.text.onSeek = (time) => this.player.playFrom(time);
    this.player.onTime = (time, playing) => this.text.light(time, playing);
    this.player.onDuration = () => this.#showFacts();
  }

  /** @returns {HTMLButtonElement[]} */
  #formatButtons() {
    return [...this.#root.querySelectorAll("button")].filter((button) => button.dataset.format);
  }

  #remove() {
    this.controller.abort();
    this.player.unload();
    const next = (this.#root.nextElementSibling ?? this.#root.previousElementSibling)?.querySelector('[data-part="remove"]');
    this.#root.remove();
    (next instanceof HTMLElement ? next : byId("choose", HTMLElement)).focus();
  }

  /**
   * Takes what the microphone heard, to be played, saved, and transcribed once more.
   * @param {File} recording
   */
  keep(recording) {
    this.#recording = recording;
    this.player.load(recording);
    const retime = this.part("retime", HTMLButtonElement);
    retime.hidden = false;
    retime.onclick = () => {
      retime.hidden = true;
      void transcribeInto(this, recording);
    };
    for (const button of this.#formatButtons()) if (button.dataset.format === "wav") button.hidden = false;
  }

  /** Begins, or begins again. */
  begin() {
    this.controller = new AbortController();
    this.#transcript = null;
    this.text.clear();
    this.part("problem", HTMLElement).hidden = true;
    this.part("actions", HTMLElement).hidden = true;
    this.part("keys", HTMLElement).hidden = true;
    this.part("silent", HTMLElement).hidden = true;
    this.part("warnings", HTMLElement).replaceChildren();
  }

  /**
   * Shows what is being done, and how much of it.
   * @param {string} status
   * @param {number | null} progress  0 to 1, or null where nobody knows
   */
  working(status, progress) {
    const bar = this.part("progress", HTMLProgressElement);
    this.part("work", HTMLElement).hidden = false;
    this.part("status", HTMLElement).textContent = status;
    if (progress === null) bar.removeAttribute("value");
    else bar.value = progress;
  }

  /**
   * Ends without a transcript. What text there is stays.
   * @param {string} message
   * @param {() => void} retry
   */
  failed(message, retry) {
    const button = this.part("retry", HTMLButtonElement);
    const focused = this.part("work", HTMLElement).contains(document.activeElement);
    this.part("work", HTMLElement).hidden = true;
    this.part("message", HTMLElement).textContent = message;
    this.part("problem", HTMLElement).hidden = false;
    button.onclick = () => {
      retry();
      this.part("cancel", HTMLButtonElement).focus();
    };
    if (focused) button.focus();
    if (this.#root.isConnected) announce(`${this.#title}: ${message}`);
  }

  /** @param {Transcript} transcript */
  done(transcript) {
    this.#transcript = transcript;
    const all = paragraphs(transcript);
    const focused = this.part("work", HTMLElement).contains(document.activeElement);
    this.part("work", HTMLElement).hidden = true;
    this.text.show(all);
    if (this.player.time) this.text.light(this.player.time, false);
    this.part("actions", HTMLElement).hidden = false;
    this.part("keys", HTMLElement).hidden = !all.length;
    this.part("silent", HTMLElement).hidden = all.length > 0;
    this.#showFacts();
    this.part("warnings", HTMLElement).replaceChildren(...(transcript.warnings ?? []).map((text) => make("li", "", toSentence(text))));
    if (focused) this.part("remove", HTMLButtonElement).focus();
    announce(`${this.#title}: done, ${count(wordCount(transcript), "word")}.`);
  }

  #showFacts() {
    const seconds = this.#transcript?.duration ?? this.player.duration;
    const facts = [];
    if (seconds) facts.push(clock(seconds));
    if (this.#transcript) facts.push(count(wordCount(this.#transcript), "word"));
    this.part("facts", HTMLElement).textContent = facts.join(" · ");
    this.part("facts", HTMLElement).hidden = !facts.length;
  }

  async #copy() {
    const button = this.part("copy", HTMLButtonElement);
    await navigator.clipboard.writeText(this.#transcript?.text ?? "");
    button.textContent = "Copied";
    announce("Copied.");
    setTimeout(() => (button.textContent = "Copy text"), 2000);
  }

  /** @param {string} format */
  #download(format) {
    const name = `${this.#title.replace(/\.[^.]*$/, "")}.${format}`;
    if (format === "wav") return this.#recording && save(this.#recording, name);
    if (!this.#transcript) return;
    const [type, text] = rendered(this.#transcript, format);
    save(new Blob([text], { type }), name);
  }
}

/** @param {Transcript} transcript */
function wordCount({ text, words }) {
  return words.length || text.split(/\s+/).filter(Boolean).length;
}

/**
 * A transcript in one of the formats that the page offers, behind its media type.
 * @param {Transcript} transcript
 * @param {string} format
 * @returns {[string, string]}
 */
function rendered(transcript, format) {
  switch (format) {
    case "srt": return ["application/x-subrip", toSrt(transcript)];
    case "vtt": return ["text/vtt", toVtt(transcript)];
    case "json": return ["application/json", `${JSON.stringify(transcript, null, 2)}\n`];
    default: return ["text/plain", `${transcript.text}\n`];
  }
}

// ------------------------------------------------------------------------------------------------------------- files

/** So many at once; the others wait. */
class Slots {
  #free;
  /** @type {(() => void)[]} */
  #waiting = [];

  /** @param {number} free */
  constructor(free) {
    this.#free = free;
  }

  /**
   * Runs work when it is its turn.
   * @template T
   * @param {AbortSignal} signal
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  async run(signal, work) {
    if (this.#free > 0) this.#free--;
    else await new Promise((resolve) => this.#waiting.push(() => resolve(null)));
    try {
      signal.throwIfAborted();
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free++;
    }
  }
}

const slots = new Slots(PARALLEL);

/**
 * Transcribes a recording and shows what becomes of it.
 * @param {Entry} entry
 * @param {File} file
 */
async function transcribeInto(entry, file) {
  entry.begin();
  entry.working("Waiting", 0);
  const { signal } = entry.controller;
  const again = () => void transcribeInto(entry, file);
  signal.addEventListener("abort", () => entry.failed("Cancelled.", again));
  try {
    const transcript = await slots.run(signal, () => patiently(entry, () => transcribeOnce(entry, file)));
    entry.done(transcript);
  } catch (error) {
    if (!signal.aborted) entry.failed(sentence(await explained(error, file)), again);
  }
}

/**
 * @param {Entry} entry
 * @param {File} file
 * @returns {Promise<Transcript>}
 */
async function transcribeOnce(entry, file, words = true) {
  if (!file.size) throw new ServerError("The file is empty.");
  entry.text.clear();
  const sending = (/** @type {number} */ part) => entry.working(`Sending, ${Math.floor(part * 100)} %`, part);
  try {
    return await transcribe(file, {
      name: file.name,
      model: await chosenModel(),
      words,
      signal: entry.controller.signal,
      onUpload: (part) => (part < 1 ? sending(part) : entry.working("Transcribing", null)),
      onEvent: (event) => showPart(entry, event),
    });
  } catch (error) {
    if (!words || !refusesWords(error)) throw error;
    return transcribeOnce(entry, file, false);
  }
}

/**
 * Whether a model without times of words may have said so: the file is named where it is the fault.
 * @param {unknown} error
 */
function refusesWords(error) {
  return error instanceof ServerError && error.status === 400 && error.param !== "file";
}

/**
 * @param {Entry} entry
 * @param {any} event
 */
function showPart(entry, event) {
  if (event.type === "transcript.text.delta") entry.text.append(event.delta);
  if (event.type !== "transcript.text.segment") return;
  entry.text.settle(event);
  const { duration } = entry.player;
  if (duration) entry.working(`Transcribing, ${clock(event.end)} of ${clock(duration)}`, Math.min(1, event.end / duration));
  else entry.working(`Transcribing, ${clock(event.end)} so far`, null);
}

/**
 * Tries until the server takes it: it may want a key, or time.
 * @template T
 * @param {Entry} entry
 * @param {() => Promise<T>} attempt
 * @returns {Promise<T>}
 */
async function patiently(entry, attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      entry.controller.signal.throwIfAborted();
      if (!(error instanceof ServerError)) throw error;
      if (error.status === 429 || error.status === 503) await waited(entry, error);
      else if (error.status !== 401 || !(await askForKey())) throw error;
    }
  }
}

/**
 * Waits as long as the server asked for, and shows it.
 * @param {Entry} entry
 * @param {ServerError} error
 */
async function waited(entry, { message, retryAfter }) {
  for (let left = Math.ceil(retryAfter); left > 0; left--) {
    entry.working(`${message} Trying again in ${left} s.`, null);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    entry.controller.signal.throwIfAborted();
  }
}

/** @param {unknown} error */
function sentence(error) {
  return error instanceof Error ? error.message : String(error);
}

/** @param {Iterable<File>} files */
function take(files) {
  const first = byId("transcripts", HTMLElement).firstElementChild;
  const started = Array.from(files, (file) => ({ file, entry: new Entry(file.name, first) }));
  if (!started.length) return;
  announce(started.length === 1 ? `Transcribing ${started[0].file.name}.` : `Transcribing ${started.length} recordings.`);
  for (const { file, entry } of started) {
    entry.player.load(file);
    void transcribeInto(entry, file);
  }
}

// ---------------------------------------------------------------------------------------------------------- talking

/** A microphone: frames of 16-bit samples at `RATE`. */
class Microphone {
  #stream;
  #context;
  #node;
  /** @type {() => void} */
  #flushed = () => {};

  /** @type {(frame: Int16Array<ArrayBuffer>) => void} */
  onFrame = () => {};
  /** @type {() => void} */
  onLost = () => {};

  static async open() {
    if (!navigator.mediaDevices) throw new Error(noMicrophone());
    // What cleans up speech for ears takes from it what a model needs.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio });
    const context = new AudioContext();
    try {
      await Promise.all([context.resume(), context.audioWorklet.addModule(import.meta.url)]);
      return new Microphone(stream, context);
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      throw error;
    }
  }

  /**
   * @param {MediaStream} stream
   * @param {AudioContext} context
   */
  constructor(stream, context) {
    this.#stream = stream;
    this.#context = context;
    this.#node = new AudioWorkletNode(context, "frames", { numberOfOutputs: 0 });
    this.#node.port.onmessage = ({ data }) => (data ? this.onFrame(data) : this.#flushed());
    context.createMediaStreamSource(stream).connect(this.#node);
    stream.getAudioTracks()[0].onended = () => this.onLost();
  }

  /** Ends, behind the last frame. */
  async close() {
    const flushed = new Promise((resolve) => (this.#flushed = () => resolve(null)));
    this.#node.port.postMessage("end");
    if (this.#context.state === "running") await flushed;
    for (const track of this.#stream.getTracks()) track.stop();
    await this.#context.close();
  }
}

function noMicrophone() {
  if (!isSecureContext) return "Browsers lend the microphone only to pages on https:// or on localhost, and this is neither.";
  return "This browser has no way to a microphone.";
}

/** @type {Record<string, string>} */
const MICROPHONE_ERRORS = {
  NotAllowedError: "The browser refused the microphone. Allow it for this page in its settings, then try again.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is in use by another program.",
};

/** Audio to the server and events from it, over a WebSocket. */
class Realtime {
  #socket;
  #model;
  #ready = false;
  /** @type {Int16Array<ArrayBuffer>[]} */
  #waiting = [];
  #finishing = false;
  /** @type {() => void} */
  #resolve = () => {};
  /** @type {(error: unknown) => void} */
  #reject = () => {};

  /** @type {(event: any) => void} */
  onEvent = () => {};

  /** @param {string} model */
  constructor(model) {
    const url = address("v1/realtime?intent=transcription").replace(/^http/, "ws");
    this.#model = model;
    this.#socket = new WebSocket(url, key.value ? ["realtime", `openai-insecure-api-key.${key.value}`] : ["realtime"]);
    this.#socket.onmessage = ({ data }) => this.#received(JSON.parse(data));
    this.#socket.onclose = (event) => this.#closed(event);
    /** Until all is transcribed; rejects with what went wrong. @type {Promise<void>} */
    this.ended = new Promise((resolve, reject) => ([this.#resolve, this.#reject] = [resolve, reject]));
  }

  /** Seconds of audio that the network has not taken yet. */
  get behind() {
    return this.#socket.bufferedAmount / 2 / RATE;
  }

  /** @param {Int16Array<ArrayBuffer>} frame */
  send(frame) {
    if (!this.#ready) this.#waiting.push(frame);
    else if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(frame);
  }

  /** Ends the audio: `ended` follows. */
  finish() {
    this.#finishing = true;
    if (this.#ready) this.#tell({ type: "input_audio_buffer.commit" });
  }

  close() {
    this.#socket.onclose = null;
    this.#socket.close();
  }

  /** @param {object} event */
  #tell(event) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(event));
  }

  /** @param {any} event */
  #received(event) {
    switch (event.type) {
      case "session.created": return this.#tell(sessionUpdate(this.#model));
      case "session.updated": return this.#begin();
      case "pycrispasr.done": return this.#end();
      case "error": return this.#refused(event.error);
      default: return this.onEvent(event);
    }
  }

  /** @param {{code: string, message: string}} error */
  #refused({ code, message }) {
    // Where nothing follows the last pause there is nothing to commit.
    if (this.#finishing && code === "input_audio_buffer_commit_empty") this.#end();
    else this.#fail(new ServerError(toSentence(message)));
  }

  #begin() {
    if (this.#ready) return;
    this.#ready = true;
    for (const frame of this.#waiting) this.send(frame);
    this.#waiting = [];
    if (this.#finishing) this.finish();
  }

  #end() {
    this.close();
    this.#resolve();
  }

  /** @param {Error} error */
  #fail(error) {
    this.close();
    this.#reject(error);
  }

  /** @param {CloseEvent} event */
  async #closed({ reason }) {
    const lost = "The connection was lost. What was heard until then is kept.";
    if (this.#ready || reason) return this.#reject(new ServerError(reason ? toSentence(reason) : lost));
    // A browser does not tell why it was refused, but the server does when it is asked for something else.
    const why = await get("v1/models").then(() => get("health")).then(() => null, (error) => error);
    this.#reject(why ?? new ServerError("The server refused live audio: perhaps too many talk to it at once."));
  }
}

/** @param {string} model */
function sessionUpdate(model) {
  const format = { type: "audio/pcm", rate: RATE };
  const input = { format, transcription: { model }, turn_detection: { type: "server_vad", silence_duration_ms: PAUSE } };
  return { type: "session.update", session: { type: "transcription", audio: { input } } };
}

/** What is said while it is said: a paragraph for each item, what stands in it and what may change. */
class LiveText {
  /** @typedef {{stamp: HTMLElement, stands: HTMLElement, gap: Text, tentative: HTMLElement, start: number, end: number}} Item */
  /** @type {Map<string, Item>} */
  #items = new Map();
  /** @type {string[]} */
  #warnings = [];
  #root;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
  }

  /** @param {any} event */
  take(event) {
    const follow = this.#root.getBoundingClientRect().bottom < innerHeight + 8;
    switch (event.type) {
      case "input_audio_buffer.speech_started": this.#start(event.item_id, event.audio_start_ms / 1000); return;
      case "input_audio_buffer.speech_stopped": this.#item(event.item_id).end = event.audio_end_ms / 1000; return;
      case "conversation.item.input_audio_transcription.delta": this.#item(event.item_id).stands.append(event.delta); break;
      case "pycrispasr.tentative": this.#follow(event.item_id, event.text); break;
      case "conversation.item.input_audio_transcription.completed": this.#complete(event.item_id, event.transcript); break;
      case "conversation.item.input_audio_transcription.failed": this.#warnings.push(event.error.message); return;
      case "pycrispasr.warning": this.#warnings.push(event.message); return;
      default: return;
    }
    if (follow) this.#root.lastElementChild?.scrollIntoView({ block: "nearest" });
  }

  /** @param {string} id */
  #item(id) {
    const known = this.#items.get(id);
    if (known) return known;
    const { row, stamp, body } = makeRow(NaN);
    const [stands, gap, tentative] = [make("span", ""), document.createTextNode(""), make("span", "tentative")];
    const item = { stamp, stands, gap, tentative, start: NaN, end: NaN };
    body.append(stands, gap, tentative);
    this.#root.append(row);
    this.#items.set(id, item);
    return item;
  }

  /**
   * @param {string} id
   * @param {number} time
   */
  #start(id, time) {
    const item = this.#item(id);
    item.start = time;
    item.stamp.textContent = clock(time);
  }

  /**
   * @param {string} id
   * @param {string} text  what follows, and may change; with the space before it
   */
  #follow(id, text) {
    const { gap, tentative } = this.#item(id);
    tentative.textContent = text.trimStart();
    gap.data = text.slice(0, text.length - text.trimStart().length);
  }

  /**
   * @param {string} id
   * @param {string} text
   */
  #complete(id, text) {
    this.#item(id).stands.textContent = text;
    this.#follow(id, "");
  }

  /**
   * The text so far.
   * @param {number} duration  of the audio
   * @returns {Transcript}
   */
  transcript(duration) {
    /** @type {Segment[]} */
    const segments = [];
    for (const { stands, start, end } of this.#items.values()) {
      const text = (stands.textContent ?? "").trim();
      const before = segments.at(-1);
      if (!text) continue;
      if (!before || Number.isFinite(start)) segments.push({ start: start || 0, end, text });
      else Object.assign(before, { end, text: `${before.text} ${text}` }); // an utterance too long for one item goes on
    }
    segments.forEach((segment, index) => {
      if (!Number.isFinite(segment.end)) segment.end = segments[index + 1]?.start ?? duration;
    });
    const text = segments.map((segment) => segment.text).join("\n");
    return { text, segments, words: [], duration, warnings: this.#warnings };
  }
}

/** How loud it was lately, as bars. */
class Level {
  #canvas = byId("level", HTMLCanvasElement);
  /** @type {number[]} */
  #levels = [];

  /** @param {Int16Array} frame */
  take(frame) {
    const power = frame.reduce((sum, sample) => sum + sample * sample, 0) / frame.length;
    const decibels = 10 * Math.log10(power / 32768 ** 2 + 1e-10);
    this.#levels.push(Math.min(1, Math.max(0.06, (decibels + 60) / 50)));
    this.#levels = this.#levels.slice(-Math.floor(this.#canvas.width / 10));
    this.#draw();
  }

  #draw() {
    const { width, height } = this.#canvas;
    const context = this.#canvas.getContext("2d");
    if (!context) return;
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(this.#canvas).color;
    const shown = matchMedia("(prefers-reduced-motion: reduce)").matches ? this.#levels.slice(-1) : this.#levels;
    shown.forEach((level, index) => {
      const left = width - (shown.length - index) * 10;
      context.fillRect(left, (height * (1 - level)) / 2, 5, height * level);
    });
  }
}

/** Somebody talks: from the press on Talk to the last word. */
class Talk {
  /** @type {Int16Array<ArrayBuffer>[]} */
  #frames = [];
  #level = new Level();
  #microphone;
  #realtime;
  #entry;
  #live;
  #stopped = false;

  /**
   * @param {Microphone} microphone
   * @param {Realtime} realtime
   */
  constructor(microphone, realtime) {
    const now = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    this.#microphone = microphone;
    this.#realtime = realtime;
    this.#entry = new Entry(`Recording ${now}`, byId("transcripts", HTMLElement).firstElementChild);
    this.#entry.begin();
    this.#live = new LiveText(this.#entry.part("text", HTMLElement));
    realtime.onEvent = (event) => this.#live.take(event);
    microphone.onFrame = (frame) => this.#heard(frame);
    microphone.onLost = () => void this.stop();
  }

  /** Until the last word is there. */
  async run() {
    const { signal } = this.#entry.controller;
    const cancelled = new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("Cancelled."))));
    try {
      await Promise.race([this.#realtime.ended, cancelled]);
      this.#keep();
      this.#entry.done(this.#live.transcript(this.#seconds));
    } catch (error) {
      this.#realtime.close();
      await this.stop();
      this.#keep();
      this.#entry.failed(sentence(error), () => void transcribeInto(this.#entry, this.#file()));
    }
  }

  /** Ends the audio; the rest of the text follows. */
  async stop() {
    if (this.#stopped) return;
    this.#stopped = true;
    showTalk("finishing", "Finishing");
    await this.#microphone.close();
    this.#entry.working("Finishing", null);
    this.#realtime.finish();
  }

  get #seconds() {
    return this.#frames.reduce((sum, frame) => sum + frame.length, 0) / RATE;
  }

  /** @param {Int16Array<ArrayBuffer>} frame */
  #heard(frame) {
    this.#frames.push(frame);
    this.#realtime.send(frame);
    if (this.#stopped) return;
    this.#level.take(frame);
    const behind = this.#realtime.behind;
    const slow = behind > 2 ? `, the connection is ${Math.round(behind)} s behind` : "";
    byId("talk-hint", HTMLElement).textContent = `Listening, ${clock((this.#frames.length * FRAME) / RATE)}${slow}`;
  }

  #file() {
    const name = this.#entry.part("title", HTMLElement).textContent?.replace(/\W+/g, "-") ?? "recording";
    return new File([toWav(this.#frames, RATE)], `${name}.wav`, { type: "audio/wav" });
  }

  #keep() {
    if (this.#frames.length) this.#entry.keep(this.#file());
  }
}

/**
 * @param {"idle" | "connecting" | "on" | "finishing"} state
 * @param {string} hint
 */
function showTalk(state, hint) {
  const button = byId("talk", HTMLButtonElement);
  const on = state === "on";
  setFace(button, on ? "stop" : "microphone", on ? "Stop" : "Talk");
  button.classList.toggle("on", on);
  button.setAttribute("aria-disabled", String(state === "connecting" || state === "finishing"));
  document.body.classList.toggle("talking", on || state === "finishing");
  byId("level", HTMLElement).hidden = !on;
  byId("talk-hint", HTMLElement).textContent = hint;
}

/** @type {Talk | "opening" | null} */
let talk = null;

async function toggleTalk() {
  if (talk instanceof Talk) return talk.stop();
  if (talk) return undefined;
  talk = "opening";
  showTalk("connecting", "Connecting");
  try {
    talk = await beginTalk();
    showTalk("on", "Listening, 0:00");
    announce("Listening.");
    await talk.run();
  } catch (error) {
    showNotice(talkError(error), "Try again", () => void toggleTalk());
  } finally {
    talk = null;
    showTalk("idle", "Talk");
  }
  return undefined;
}

async function beginTalk() {
  byId("notice", HTMLElement).hidden = true;
  const model = await modelOrKey();
  const microphone = await Microphone.open();
  try {
    return new Talk(microphone, new Realtime(model));
  } catch (error) {
    await microphone.close();
    throw error;
  }
}

/** @param {unknown} error */
function talkError(error) {
  if (!(error instanceof DOMException)) return sentence(error);
  if (error.name === "SyntaxError") return "This API key has characters that a browser cannot send with live audio.";
  return MICROPHONE_ERRORS[error.name] ?? `The microphone cannot be used: ${error.message}`;
}

// ---------------------------------------------------------------------------------------------------------- the page

/** The model's name, asking for the key as often as the server wants another one. */
async function modelOrKey() {
  for (;;) {
    try {
      return await chosenModel();
    } catch (error) {
      if (!(error instanceof ServerError) || error.status !== 401 || !(await askForKey())) throw error;
    }
  }
}

async function connect() {
  try {
    await chosenModel();
  } catch (error) {
    const locked = error instanceof ServerError && error.status === 401;
    if (locked) showNotice(keyQuestion(), "Enter key", async () => ((await askForKey()), connect()));
    else showNotice(sentence(error), "Try again", () => void connect());
  }
}

function connectDrop() {
  let depth = 0; // how many elements below the page the files are over
  const dragging = (/** @type {DragEvent} */ event, /** @type {number} */ change) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", (event) => dragging(event, 1));
  addEventListener("dragover", (event) => dragging(event, 0));
  addEventListener("dragleave", (event) => dragging(event, -1));
  addEventListener("drop", (event) => {
    dragging(event, -depth);
    take(event.dataTransfer?.files ?? []);
  });
}

function main() {
  const input = byId("files", HTMLInputElement);
  byId("choose", HTMLElement).onclick = () => input.click();
  input.onchange = () => {
    take(input.files ?? []);
    input.value = ""; // so that the same file can be chosen again
  };
  connectDrop();
  byId("talk", HTMLElement).onclick = () => void toggleTalk();
  byId("change-key", HTMLElement).hidden = !key.value;
  byId("change-key", HTMLElement).onclick = async () => ((await askForKey()), connect());
  addEventListener("beforeunload", (event) => talk && event.preventDefault());
  void connect();
}

// --------------------------------------------------------------------------------------------------- in the worklet

/** Another sample rate for a signal that comes in parts: a low-pass of windowed sinc, sampled where it is needed. */
export class Resampler {
  static #ZEROS = 24; // of the sinc, on each side

  #up;
  #down;
  #half;
  /** @type {Float32Array[]} */
  #phases;
  #input;
  #filled;
  #phase = 0;

  /**
   * @param {number} from  Hz, a whole number
   * @param {number} to  Hz, a whole number
   */
  constructor(from, to) {
    const divisor = greatestDivisor(from, to);
    this.#up = to / divisor;
    this.#down = from / divisor;
    const cutoff = 0.94 * Math.min(1, to / from);
    this.#half = Math.ceil(Resampler.#ZEROS / cutoff);
    this.#phases = Array.from({ length: this.#up }, (_, phase) => this.#taps(phase / this.#up, cutoff));
    this.#input = new Float32Array(8192);
    this.#filled = this.#half - 1; // zeros, so that the first output is centred on the first sample
  }

  /**
   * @param {number} shift  of the output behind an input sample, 0 to 1
   * @param {number} cutoff  as a part of the input's Nyquist frequency
   */
  #taps(shift, cutoff) {
    const half = this.#half;
    const taps = Float32Array.from({ length: 2 * half }, (_, index) => {
      const x = index - (half - 1) - shift;
      const sinc = x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x);
      return sinc * Math.cos((Math.PI * x) / (2 * half + 2)) ** 2;
    });
    const sum = taps.reduce((a, b) => a + b);
    return taps.map((tap) => tap / sum);
  }

  /**
   * @param {Float32Array} samples
   * @returns {number[]}  what can be told by now
   */
  push(samples) {
    this.#append(samples);
    const output = [];
    let at = 0;
    while (at + 2 * this.#half <= this.#filled) {
      const taps = this.#phases[this.#phase];
      let sum = 0;
      for (let index = 0; index < taps.length; index++) sum += taps[index] * this.#input[at + index];
      output.push(sum);
      this.#phase += this.#down;
      at += Math.floor(this.#phase / this.#up);
      this.#phase %= this.#up;
    }
    this.#input.copyWithin(0, at, this.#filled);
    this.#filled -= at;
    return output;
  }

  /** @returns {number[]}  what was still to come */
  end() {
    return this.push(new Float32Array(this.#half));
  }

  /** @param {Float32Array} samples */
  #append(samples) {
    if (this.#filled + samples.length > this.#input.length) {
      const larger = new Float32Array(2 * (this.#filled + samples.length));
      larger.set(this.#input.subarray(0, this.#filled));
      this.#input = larger;
    }
    this.#input.set(samples, this.#filled);
    this.#filled += samples.length;
  }
}

/**
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
function greatestDivisor(a, b) {
  return b ? greatestDivisor(b, a % b) : a;
}

/**
 * Registers the processor "frames", which posts frames of 16-bit samples at `RATE`, and null behind the last one.
 * @param {any} scope  AudioWorkletGlobalScope
 */
function registerFrames(scope) {
  class Frames extends scope.AudioWorkletProcessor {
    #resampler = new Resampler(scope.sampleRate, RATE);
    #frame = new Int16Array(FRAME);
    #filled = 0;
    #ended = false;

    constructor() {
      super();
      this.port.onmessage = () => this.#end();
    }

    /** @param {Float32Array[][]} inputs */
    process([channels]) {
      if (channels.length && !this.#ended) this.#take(this.#resampler.push(mono(channels)));
      return !this.#ended;
    }

    /** @param {number[]} samples */
    #take(samples) {
      for (const sample of samples) {
        this.#frame[this.#filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
        if (this.#filled === FRAME) this.#post();
      }
    }

    #post() {
      this.port.postMessage(this.#frame.slice(0, this.#filled));
      this.#filled = 0;
    }

    #end() {
      this.#take(this.#resampler.end());
      if (this.#filled) this.#post();
      this.#ended = true;
      this.port.postMessage(null);
    }
  }
  scope.registerProcessor("frames", Frames);
}

/** @param {Float32Array[]} channels */
function mono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, index) => channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length);
}

if ("AudioWorkletGlobalScope" in globalThis) registerFrames(globalThis);
else main();

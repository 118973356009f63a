// Texts in the chosen language, and how numbers, spans and times are written. Open it to add a language or a format.
//
// A text is called by its key: `t("queue.none")`. The keys stand in strings.LANGUAGE.json, the same in each.

import { el } from "./dom.js";

export const LANGUAGES = { en: "English", vi: "Tiếng Việt" };
const CHOICE = "convo-language";

let texts = {};
let numbers = {};
export let language = "en";

/** Load the texts of a language: the one given, or that chosen before, or that which the server found best. */
export async function loadTexts(chosen) {
  const wanted = chosen ?? remembered() ?? document.documentElement.lang;
  language = wanted in LANGUAGES ? wanted : "en";
  if (chosen) remember(language);
  const answer = await fetch(new URL(`strings.${language}.json`, import.meta.url));
  texts = await answer.json();
  numbers = {};
  document.documentElement.lang = language;
}

function remembered() {
  try {
    return localStorage.getItem(CHOICE);
  } catch {
    return null; // storage is refused: the choice lasts as long as the page
  }
}

function remember(value) {
  try {
    localStorage.setItem(CHOICE, value);
  } catch {
    // as above
  }
}

/** Return the text of a key; `{name}` in it is replaced by `values.name`. */
export function t(key, values = {}) {
  const text = texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Return the word for a value of a kind ("state", "dead"): `state.dead`; a value without one is shown as it is. */
export function word(kind, value) {
  return texts[`${kind}.${value}`] ?? String(value);
}

// --- numbers

function format(name, options) {
  numbers[name] ??= new Intl.NumberFormat(language, options);
  return numbers[name];
}

export const NONE = "–";

export function count(value) {
  return value === null || value === undefined ? NONE : format("count", { maximumFractionDigits: 0 }).format(value);
}

/** A rate: two digits that matter below 10, whole numbers above 100. */
export function rate(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return format(`rate${digits}`, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function signed(value) {
  return format("signed", { signDisplay: "exceptZero" }).format(value ?? 0);
}

/** A number with a short unit, which the languages' own tables do not have: "mili giây" fits no tile. */
function unit(name, value, digits) {
  return `${format(`unit${digits}`, { maximumFractionDigits: digits }).format(value)}\u202f${t(name)}`;
}

/** Milliseconds, as short as they can be read. */
export function ms(value) {
  if (value === null || value === undefined) return NONE;
  return value >= 1000 ? span(value / 1000) : unit("unit.ms", value, value >= 100 ? 0 : value >= 10 ? 1 : 2);
}

/** A span of time in its two largest units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 1) return seconds <= 0 ? unit("unit.second", 0, 0) : ms(seconds * 1000);
  if (seconds < 60) return unit("unit.second", seconds, seconds < 10 ? 1 : 0);
  const steps = [["unit.day", 86_400], ["unit.hour", 3600], ["unit.minute", 60], ["unit.second", 1]];
  const first = steps.findIndex(([, size]) => seconds >= size);
  const [name, size] = steps[first];
  const whole = Math.floor(seconds / size);
  const rest = first + 1 < steps.length ? Math.floor((seconds - whole * size) / steps[first + 1][1]) : 0;
  return rest ? `${unit(name, whole, 0)} ${unit(steps[first + 1][0], rest, 0)}` : unit(name, whole, 0);
}

// --- names and times

/** A process' name is made of long random parts; their beginnings tell processes apart. */
export function processName(name) {
  return name.split(".").map((part) => part.slice(0, 8)).join(".");
}

const two = (value) => String(value).padStart(2, "0");

/** A time in the reader's zone, in an order that no country reads otherwise. */
export function clock(at) {
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export function time(written) {
  if (!written) return NONE;
  return el("time", { datetime: written, title: written, text: clock(new Date(written)) });
}

export function ago(written) {
  return span(Math.max(0, (Date.now() - Date.parse(written)) / 1000));
}

// The runs of a conversation's job along time: what it did, what it waited for, and the pauses in between. Open it to
// change how waits are drawn. The widths are set by script, which the page's policy allows; colours have names beside.

import { badge, el } from "./dom.js";
import { clock, processName, span, t, word } from "./text.js";

const TONES = { settle: "good", fail: "bad", bury: "bad", park: "warn", release: "quiet", rescue: "warn", crash: "bad" };
const COLOURS = 6;
const LANE_REM = 0.8;
const OWN = "own";

/** Show the runs, the newest last; `runs` come as they are answered. */
export function runsView(view, runs) {
  if (!runs.length) return el("p", { class: "empty", text: t("runs.none") });
  const ordered = [...runs].sort((one, other) => Date.parse(one.began_at) - Date.parse(other.began_at));
  const items = [];
  let before = Date.parse(view.received_at);
  ordered.forEach((run, at) => {
    const began = Date.parse(run.began_at);
    const pause = (began - before) / 1000;
    if (pause > 0.0005) items.push(el("li", { class: "pause", text: t(at ? "runs.pause" : "runs.queued", { span: span(pause) }) }));
    items.push(runItem(run));
    before = Date.parse(run.ended_at);
  });
  return el("div", {}, el("ol", { class: "runs", "aria-label": t("runs.title") }, items),
    runs.some((one) => one.timeline) ? null : el("p", { class: "quiet small", text: t("runs.sums") }));
}

function runItem(run) {
  const seconds = Math.max(0, (Date.parse(run.ended_at) - Date.parse(run.began_at)) / 1000);
  const waits = spans(run, seconds);
  return el("li", { class: "run" },
    el("div", { class: "run-head" }, badge(word("ending", run.ending), TONES[run.ending] ?? "quiet"),
      el("span", { text: clock(new Date(run.began_at)) }), el("b", { text: span(seconds) }), el("span", { class: "quiet", title: run.by, text: processName(run.by) })),
    run.reason ? el("p", { class: "error", text: run.reason }) : null, track(waits, seconds), legend(waits));
}

/**
 * Return what a run spent its time on. Where the answer says when each wait began and ended they keep their places;
 * else only their sums are known, and they stand side by side, the longest first.
 */
function spans(run, seconds) {
  const began = Date.parse(run.began_at) / 1000;
  if (Array.isArray(run.timeline) && run.timeline.length) {
    const placed = run.timeline.map((one) => {
      const from = Date.parse(one.began_at) / 1000 - began;
      return { name: one.name, from, seconds: Math.max(0, (Date.parse(one.ended_at) - Date.parse(one.began_at)) / 1000) };
    });
    // One may lie within another, which is drawn first then.
    return inLanes(placed.sort((one, other) => one.from - other.from || other.seconds - one.seconds));
  }
  const sums = Object.entries(run.waits ?? {}).sort(([, one], [, other]) => other - one);
  let from = 0;
  return sums.map(([name, length]) => {
    const placed = { name, from, seconds: length };
    from += length;
    return placed;
  }).concat(from < seconds && sums.length ? [{ name: OWN, from, seconds: seconds - from }] : []);
}

/** Give each wait a lane in which it is alone: parts are asked for side by side, and one wait may lie within another. */
function inLanes(waits) {
  const ends = [];
  for (const one of waits) {
    const free = ends.findIndex((end) => end <= one.from + 0.0005);
    one.lane = free < 0 ? ends.length : free;
    ends[one.lane] = one.from + one.seconds;
  }
  return waits;
}

function track(waits, seconds) {
  // Waits at the same time (parts are asked side by side) may sum up to more than the run itself took.
  const whole = Math.max(seconds, ...waits.map((one) => one.from + one.seconds), 1e-6);
  const lanes = 1 + Math.max(0, ...waits.map((one) => one.lane ?? 0));
  const line = el("div", { class: "track", "aria-hidden": "true" });
  line.style.height = `${LANE_REM * lanes}rem`;
  waits.forEach((one) => {
    const bar = el("i", { class: `bar ${tone(one, waits)}`, title: `${named(one)} ${span(one.seconds)}` });
    bar.style.left = `${(100 * one.from) / whole}%`;
    bar.style.width = `${Math.max(0.4, (100 * one.seconds) / whole)}%`;
    bar.style.top = `${(100 * (one.lane ?? 0)) / lanes}%`;
    bar.style.height = `${100 / lanes}%`;
    line.append(bar);
  });
  return line;
}

/** A name has one colour, however often it was waited for. */
const tone = (one, all) => (one.name === OWN ? "w-own" : `w${[...new Set(all.map(({ name }) => name))].indexOf(one.name) % COLOURS}`);
const named = (one) => (one.name === OWN ? t("runs.own") : one.name);

function legend(waits) {
  return el("ul", { class: "waits" }, waits.map((one) => el("li", {},
    el("i", { class: `swatch ${tone(one, waits)}`, "aria-hidden": "true" }), `${named(one)} `, el("b", { text: span(one.seconds) }),
    one.lane === undefined ? null : el("span", { class: "quiet", text: ` ${t("runs.after", { span: span(one.from) })}` }))));
}

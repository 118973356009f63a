// Draws samples over time with uPlot. Open it to change how a chart looks.
//
// A chart is a picture to a screen reader: its figures stand above it as text, those under the pointer or the last.

/* global uPlot */

import { el, setText } from "./dom.js";
import { clock, t } from "./text.js";

const MINUTES = 10;
const NARROW_PX = 420;
// The steps of an axis whose values are whole numbers.
const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

/**
 * Make a chart of `series`: `{key, label, write, tone}`, where `write` makes the text of a value and `tone` is a colour
 * of the style sheet. `points` of `update` are `{at, KEY: number…}`, oldest first.
 */
export function chart(title, series, { height = 150, span = MINUTES * 60, stepped = false, signal }) {
  const values = series.map(() => el("b", { text: t("none") }));
  const keys = series.map((one, at) =>
    el("span", { class: `key ${one.tone}` }, el("i", { class: at ? "line dashed" : "line", "aria-hidden": "true" }), `${one.label} `, values[at]));
  const canvas = el("div", { class: "canvas", role: "img", "aria-label": t("chart.empty", { title }) });
  canvas.style.height = `${height}px`;
  const when = el("span", { class: "when" });
  const whole = el("figure", { class: "chart" },
    el("figcaption", {}, el("span", { class: "chart-title", text: title }), when, el("span", { class: "keys" }, keys)), canvas);
  let plot = null;
  let data = null;

  function draw() {
    const width = canvas.clientWidth;
    if (!width || !data) return;
    plot?.destroy();
    plot = new uPlot(options(canvas, series, { width, height, span, stepped, point }), data, canvas);
  }

  /** Show the values of one point: the one under the pointer, or the last. */
  function point(at) {
    const index = at ?? (data?.[0].length ?? 0) - 1;
    series.forEach((one, number) => setText(values[number], one.write(data?.[number + 1]?.[index])));
    setText(when, at === null || at === undefined ? "" : clock(new Date(data[0][at] * 1000)));
  }

  whole.update = (points) => {
    data = rows(points, series, span);
    if (plot) plot.setData(data);
    else draw();
    point(plot?.cursor.idx);
    canvas.setAttribute("aria-label", described(title, series, data));
    return whole;
  };

  const seen = new ResizeObserver(() => {
    const width = canvas.clientWidth;
    if (width && plot) plot.setSize({ width, height });
    else if (width) draw();
  });
  seen.observe(canvas);
  // The colours are read when it is drawn.
  document.addEventListener("theme", draw, { signal });
  signal.addEventListener("abort", () => {
    seen.disconnect();
    plot?.destroy();
  });
  return whole;
}

function rows(points, series, span) {
  const times = [];
  const lines = series.map(() => []);
  points.forEach((one, at) => {
    const now = typeof one.at === "number" ? one.at : Date.parse(one.at) / 1000;
    // Where nobody looked for a while there are no samples: no line is drawn across.
    if (span && at && now - times.at(-1) > 20) {
      times.push(now - 1);
      for (const line of lines) line.push(null);
    }
    times.push(now);
    series.forEach((given, number) => lines[number].push(one[given.key] ?? null));
  });
  return [times, ...lines];
}

function options(place, series, { width, height, span, stepped, point }) {
  const style = getComputedStyle(place);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const now = () => Date.now() / 1000;
  return {
    width, height,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    hooks: { setCursor: [(plot) => point(plot.cursor.idx)] },
    scales: {
      x: span ? { time: true, range: (_, from, to) => [(to ?? now()) - span, to ?? now()] } : { time: true },
      y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.1 : 1] },
    },
    axes: [
      { ...axis, size: 24, space: width < NARROW_PX ? 70 : 90, values: (plot, ticks) => labels(plot, ticks) },
      { ...axis, size: 58, space: 32, incrs: series[0].whole ? WHOLE : undefined, values: (_, ticks) => ticks.map((one) => series[0].write(one)) },
    ],
    series: [{}, ...series.map((one, at) => ({
      stroke: colour(one.tone), width: 1.5, dash: at ? [5, 3] : undefined,
      fill: at ? undefined : `${colour(one.tone)}22`, points: { show: !span, size: 5 },
      paths: stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
    }))],
  };
}

/** Times as the range needs them: seconds, minutes, days or months. */
function labels(plot, ticks) {
  const seconds = plot.scales.x.max - plot.scales.x.min;
  const [from, to] = seconds < 300 ? [11, 19] : seconds < 2 * 86_400 ? [11, 16] : seconds < 300 * 86_400 ? [5, 10] : [0, 7];
  return ticks.map((one) => clock(new Date(one * 1000)).slice(from, to));
}

function described(title, series, data) {
  if (!data[0].length) return t("chart.empty", { title });
  const last = series.map((one, number) => `${one.label} ${one.write(data[number + 1].at(-1))}`);
  return t("chart.described", { title, values: last.join(", ") });
}

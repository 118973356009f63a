// The overview: what comes in, what waits, what it depends on, and who does the work. Open it to show another figure.

import { places } from "./api.js";
import { alertCard, bySeverity } from "./alerts.js";
import { chart } from "./charts.js";
import { badge, el, link, panel, setText, table } from "./dom.js";
import { live } from "./live.js";
import { NONE, count, ms, processName, rate, span, t, word } from "./text.js";

const ALERTS = 4;

/** Each big figure: its name, how it is read out of the last sample and the answer, and whether it is a concern. */
export const TILES = [
  { key: "accepts", read: (now) => rate(now.accepts_per_s), under: () => t("unit.per_second") },
  { key: "latency", read: (now) => ms(now.accept_p99_ms), under: (now) => t("tile.p50", { value: ms(now.accept_p50_ms) }) },
  { key: "refused", read: (now) => rate(now.refused_per_s), under: () => t("unit.per_second"), tone: (now) => now.refused_per_s > 0 && "bad" },
  { key: "done", read: (now) => rate(now.done_per_s), under: () => t("unit.per_second") },
  { key: "queue", read: (now, all) => count(waiting(all) ?? now.queue), under: (_, all) => forecast(all) },
  { key: "oldest", read: (now, all) => span(all.oldest_seconds ?? now.oldest_s), under: () => t("tile.oldest_under"),
    tone: (now, all) => (all.oldest_seconds ?? 0) > 300 && "warn" },
  { key: "dead", read: (_, all) => count(all.queue?.dead), under: () => t("tile.dead_under"), tone: (_, all) => all.queue?.dead > 0 && "warn" },
  { key: "loop", read: (now) => ms(now.loop_lag_ms), under: () => t("tile.loop_under"), tone: (now) => now.loop_lag_ms > 100 && "warn" },
  { key: "calls", read: (now) => count(now.in_flight_calls), under: () => t("tile.calls_under") },
];

/** How many conversations wait: what is leased is at work, and what is dead waits for nobody. */
export function waiting(all) {
  const queue = all.queue;
  return queue ? queue.ready + queue.delayed + queue.parked : undefined;
}

function forecast(all) {
  if (!waiting(all)) return t("queue.none");
  const seconds = all.forecast?.drained_in_seconds;
  return seconds === null || seconds === undefined ? t("queue.no_forecast") : t("queue.forecast", { span: span(seconds) });
}

export function tiles(chosen = TILES) {
  const cells = chosen.map((one) => {
    const big = el("dd", { class: "big", text: NONE });
    const small = el("dd", { class: "small" });
    const cell = el("div", { class: "tile" }, el("dt", { text: t(`tile.${one.key}`) }), big, small);
    return { one, cell, big, small };
  });
  const whole = el("dl", { class: "tiles" }, cells.map(({ cell }) => cell));
  whole.update = (all, samples) => {
    const now = samples.at(-1) ?? {};
    for (const { one, cell, big, small } of cells) {
      setText(big, one.read(now, all));
      setText(small, one.under(now, all));
      cell.className = `tile ${(one.tone?.(now, all)) || ""}`.trim();
    }
  };
  return whole;
}

export const CHARTS = [
  ["chart.rates", [
    { key: "accepts_per_s", label: "series.accepts", write: rate, tone: "c1" },
    { key: "done_per_s", label: "series.done", write: rate, tone: "c2" },
    { key: "refused_per_s", label: "series.refused", write: rate, tone: "c3" },
  ]],
  ["chart.latency", [
    { key: "accept_p99_ms", label: "series.p99", write: ms, tone: "c1" },
    { key: "accept_p50_ms", label: "series.p50", write: ms, tone: "c2" },
  ]],
  ["chart.queue", [
    { key: "queue", label: "series.queue", write: count, tone: "c1", whole: true },
  ]],
  ["chart.oldest", [{ key: "oldest_s", label: "series.oldest", write: span, tone: "c1" }]],
  ["chart.loop", [{ key: "loop_lag_ms", label: "series.loop", write: ms, tone: "c1" }]],
  ["chart.calls", [{ key: "in_flight_calls", label: "series.calls", write: count, tone: "c1", whole: true }]],
];

export function charts(chosen, options) {
  return chosen.map(([title, series]) =>
    chart(t(title), series.map((one) => ({ ...one, label: t(one.label) })), options));
}

const QUEUE = ["ready", "delayed", "parked", "leased", "dead"];
const LISTED = { ready: "ready", parked: "parked", leased: "leased", dead: "dead" };

function queueTable() {
  return table(t("overview.queue"), [
    { first: true, head: t("head.state"), cell: ([name]) => (LISTED[name]
      ? link(word("state", name), places.conversations({ state: LISTED[name] })) : word("state", name)) },
    { head: t("head.conversations"), number: true, cell: ([, value]) => count(value) },
    { head: t("head.means"), wrap: true, cell: ([name]) => word("queue_means", name) },
  ]);
}

const BREAKER_TONES = { closed: "good", open: "bad", "half-open": "warn" };

export function dependencyTable() {
  return table(t("overview.dependencies"), [
    { first: true, head: t("head.dependency"), cell: (row) => row.name },
    { head: t("head.breaker"), cell: (row) => badge(word("breaker", row.state), BREAKER_TONES[row.state] ?? "quiet") },
    { head: t("head.in_flight"), number: true, cell: (row) => (row.concurrency ? `${count(row.in_flight)} / ${count(row.concurrency)}` : count(row.in_flight)) },
    { head: t("head.waiting"), number: true, cell: (row) => count(row.waiting) },
    { head: t("head.reason"), wrap: true, cell: (row) => row.reason ?? "" },
  ], t("overview.no_dependencies"));
}

function waitTable() {
  return table(t("overview.waits"), [
    { first: true, head: t("head.wait"), cell: (row) => row.name },
    { head: t("head.count"), number: true, cell: (row) => count(row.count) },
    { head: "p50", number: true, cell: (row) => ms(row.p50_ms) },
    { head: "p99", number: true, cell: (row) => ms(row.p99_ms) },
  ], t("overview.no_waits"), { tall: true });
}

function processTable() {
  return table(t("overview.processes"), [
    { first: true, head: t("head.process"), cell: (row) => el("span", { title: row.name, text: processName(row.name) }) },
    { head: t("head.host"), cell: (row) => row.host ?? "" },
    { head: t("head.version"), cell: (row) => row.version ?? "" },
    { head: t("head.seen"), number: true, cell: (row) => t("ago", { span: span(row.seen_seconds) }) },
    { head: t("head.leads"), cell: (row) => (row.leads ? badge(t("overview.leads"), "good") : "") },
    { head: t("head.working"), number: true, cell: (row) => (row.workers === null || row.workers === undefined ? count(row.working) : `${count(row.working)} / ${count(row.workers)}`) },
  ], t("overview.no_processes"));
}


/** Show the overview until `signal` ends it. */
export function showOverview(main, { signal }) {
  const status = el("p", { class: "quiet status" });
  const alerts = el("div", { class: "alert-list" });
  const big = tiles();
  const drawn = charts(CHARTS, { signal });
  const queue = queueTable();
  const dependencies = dependencyTable();
  const waits = waitTable();
  const processes = processTable();
  const whole = el("div", { class: "view" }, alerts, big, el("div", { class: "charts" }, drawn),
    el("div", { class: "panels" }, panel(t("overview.queue"), queue), panel(t("overview.dependencies"), dependencies),
      panel(t("overview.processes"), processes), panel(t("overview.waits"), waits)));
  main.append(el("div", { class: "page-head" }, el("h1", { text: t("overview.title"), tabindex: "-1" }), status), whole);
  let shownAlerts = "";
  live.watch(({ latest, samples, state, problem }) => {
    setText(status, state === "late" || state === "off" ? t("live.late", { why: problem?.message ?? "" }) : samples.length < 2 ? t("overview.collecting") : "");
    whole.hidden = state === "off";
    if (!latest) return;
    // A key of one tenant or of some bots is not shown what all share.
    whole.hidden = !latest.whole;
    if (!latest.whole) setText(status, t("overview.forbidden"));
    big.update(latest, samples);
    for (const one of drawn) one.update(samples);
    queue.fill(QUEUE.filter((name) => latest.queue?.[name] !== undefined).map((name) => [name, latest.queue[name]]));
    dependencies.fill(latest.dependencies);
    waits.fill([...latest.waits].sort((one, other) => other.count - one.count));
    processes.fill(latest.processes);
    const active = bySeverity(latest.alerts);
    const signature = JSON.stringify(active);
    if (signature === shownAlerts) return;
    shownAlerts = signature;
    alerts.replaceChildren(...active.slice(0, ALERTS).map((one) => alertCard(one, { compact: true })),
      ...(active.length > ALERTS ? [el("p", {}, link(t("overview.more_alerts", { count: count(active.length - ALERTS) }), places.alerts()))] : []));
  }, signal);
}

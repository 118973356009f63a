// Alerts: what holds, since when, what to do, and where the handbook says more. Open it to change how one is shown.

import { get, places, post } from "./api.js";
import { announce, badge, button, el, empty, facts, link, notice, panel } from "./dom.js";
import { live, seldom } from "./live.js";
import { can } from "./session.js";
import { ago, count, t, time, word } from "./text.js";

const LOOK_SECONDS = 5;
// Where the figures say which alerts hold, the others change seldom.
const SELDOM_SECONDS = 30;
export const LEVEL_TONES = { CRITICAL: "bad", HIGH: "bad", MEDIUM: "warn", LOW: "quiet" };
const LEVELS = Object.keys(LEVEL_TONES);

/** Alerts as they are to be looked at: the most severe first, the oldest of a level first. */
export function bySeverity(alerts) {
  return [...alerts].sort((one, other) => LEVELS.indexOf(one.level) - LEVELS.indexOf(other.level));
}

/** One alert. `compact`: without its figures, for the overview. */
export function alertCard(alert, { compact = false } = {}) {
  const tone = alert.ended_at ? "quiet" : (LEVEL_TONES[alert.level] ?? "warn");
  const page = `/docs/alerts#${encodeURIComponent(alert.type.toLowerCase())}`;
  const figures = Object.entries(alert.evidence?.figures ?? {}).map(([name, value]) => [name, String(value)]);
  const ids = alert.evidence?.ids ?? [];
  const whole = el("article", { class: `alert ${tone}` },
    el("div", { class: "alert-head" }, badge(word("level", alert.level), tone),
      el("b", { text: alert.type }), el("span", { class: "quiet", text: alert.component }),
      alert.count > 1 && el("span", { class: "quiet", text: t("alert.times", { count: count(alert.count) }) }),
      el("span", { class: "since quiet" }, alert.ended_at
        ? [t("alert.ended"), " ", time(alert.ended_at)] : t("alert.since", { span: ago(alert.raised_at) }))),
    el("p", { class: "alert-trigger", text: alert.trigger }),
    el("p", {}, el("b", { text: `${t("alert.do")} ` }), alert.do, " ", link(t("alert.handbook"), page, { "aria-label": t("alert.handbook_of", { type: alert.type }) })),
    !compact && figures.length ? facts(figures) : null,
    ids.length ? el("p", { class: "ids" }, el("span", { class: "quiet", text: `${t("alert.conversations")} ` }),
      ids.map((id) => [link(id, places.conversation(id)), " "]).flat()) : null);
  const note = acknowledgement(alert);
  if (note) whole.append(note);
  else if (!alert.ended_at && can("admin")) whole.append(acknowledgeButton(alert, whole));
  return whole;
}

function acknowledgement(alert) {
  const by = alert.acknowledged_by;
  if (!by && !alert.acknowledged_at) return null;
  return el("p", { class: "quiet" }, by ? t("alert.acknowledged", { who: by }) : t("alert.acknowledged_now"), " ", alert.acknowledged_at ? time(alert.acknowledged_at) : "");
}

function acknowledgeButton(alert, whole) {
  const row = el("div", { class: "row" });
  row.append(button(t("alert.acknowledge"), async (event) => {
    event.target.disabled = true;
    try {
      await post("/v1/alerts/acknowledge", { body: { type: alert.type, component: alert.component } });
      row.replaceChildren(el("span", { class: "quiet", text: t("alert.acknowledged_now") }));
      announce(t("alert.acknowledged_now"));
    } catch (error) {
      event.target.disabled = false;
      // It has ended meanwhile, or this server cannot be told: the button would do nothing the next time, too.
      if (error.status === 404) row.remove();
      notice(whole, error.message);
    }
  }, { "aria-label": t("alert.acknowledge_of", { type: alert.type, component: alert.component }) }));
  return row;
}

/** Show the page of alerts until `signal` ends it. */
export function showAlerts(main, { signal }) {
  const active = el("div", { class: "alert-list" });
  const recent = el("div", { class: "alert-list" });
  const sinks = el("p", { class: "quiet" });
  const actions = el("div", { class: "row" });
  main.append(el("div", { class: "page-head" }, el("h1", { text: t("alerts.title"), tabindex: "-1" }), actions), sinks,
    panel(t("alerts.active"), active, { wide: true }), panel(t("alerts.recent"), recent, { wide: true }));
  if (can("admin")) actions.append(testButton(main));
  let shown = "";

  async function read() {
    try {
      const answer = await get("/v1/alerts", { signal });
      notice(main, null);
      const signature = JSON.stringify(answer);
      // Not drawn again where nothing has changed: a button keeps the focus.
      if (signature === shown) return;
      shown = signature;
      active.replaceChildren(...(answer.active.length ? bySeverity(answer.active).map((one) => alertCard(one)) : [empty(t("alerts.none"))]));
      recent.replaceChildren(...(answer.recent.length ? answer.recent.map((one) => alertCard(one)) : [empty(t("alerts.none_recent"))]));
      sinks.textContent = `${t("alerts.sinks", { sinks: answer.sinks.join(", ") })} ${answer.leads ? "" : t("alerts.not_leading")}`;
    } catch (error) {
      if (!signal.aborted) notice(main, error.status === 403 ? t("alerts.forbidden") : error.message);
    }
  }

  read();
  let held = JSON.stringify(live.latest?.alerts);
  let readAt = Date.now();
  const again = seldom(() => {
    readAt = Date.now();
    read();
  }, 1000 * LOOK_SECONDS, signal);
  live.watch(({ latest }) => {
    const now = JSON.stringify(latest?.alerts);
    if (now === held) return;
    held = now;
    again();
  }, signal);
  const timer = setInterval(() => {
    if (!document.hidden && (live.state !== "live" || Date.now() > readAt + 1000 * SELDOM_SECONDS)) again();
  }, 1000 * LOOK_SECONDS);
  signal.addEventListener("abort", () => clearInterval(timer));
  document.addEventListener("visibilitychange", () => document.hidden || read(), { signal });
}

function testButton(main) {
  return button(t("alerts.test"), async (event) => {
    event.target.disabled = true;
    try {
      const answer = await post("/v1/alerts/test");
      const said = answer.sinks.map((one) => `${one.sink}: ${one.ok ? t("alerts.test_ok") : one.detail}`);
      notice(main, said.join(" · "), answer.sinks.every((one) => one.ok) ? "good" : "bad");
    } catch (error) {
      notice(main, error.message);
    }
    event.target.disabled = false;
  });
}

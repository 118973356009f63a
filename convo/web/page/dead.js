// Dead letters by their reason, and making many of them ready again. Open it to change how they are grouped or retried.

import { get, places, post } from "./api.js";
import { field, filled } from "./conversations.js";
import { announce, button, el, link, notice, panel, table } from "./dom.js";
import { confirmed } from "./dialog.js";
import { live, seldom } from "./live.js";
import { can } from "./session.js";
import { count, t, time } from "./text.js";

const REFRESH_MS = 5000;

/** Show the dead letters until `signal` ends it. */
export function showDead(main, { signal }) {
  const form = el("form", { class: "filters", role: "search", submit: (event) => {
    event.preventDefault();
    read();
  } },
  field("reason", t("filter.reason"), "", { type: "search", class: "long" }),
  field("user_id", t("filter.user_id"), "", { type: "search" }), field("bot_id", t("filter.bot_id"), "", { type: "search" }),
  field("since", t("filter.since"), "", { type: "datetime-local" }),
  el("button", { type: "submit", class: "primary", text: t("filter.search") }));
  const total = el("p", { class: "quiet" });
  const bulk = el("div", { class: "row" });
  const reasons = table(t("dead.reasons"), [
    { first: true, head: t("head.reason"), wrap: true, cell: (row) => row.reason },
    { head: t("head.count"), number: true, cell: (row) => count(row.count) },
    { head: t("head.oldest"), cell: (row) => time(row.oldest_at) },
    { head: t("head.newest"), cell: (row) => time(row.newest_at) },
    ...(can("write") ? [{ head: t("head.action"), cell: (row) => button(t("act.retry"), () => retryMany({ ...which(), reason: row.reason }, row.reason), { "aria-label": t("dead.retry_reason", { reason: row.reason }) }) }] : []),
  ], t("dead.none"));
  main.append(el("div", { class: "page-head" }, el("h1", { text: t("dead.title"), tabindex: "-1" }), bulk), form, total,
    panel(t("dead.reasons"), reasons, { wide: true }),
    el("p", {}, link(t("dead.list"), places.conversations({ state: "dead" }))));
  let shown = "";

  function which() {
    const given = filled(form);
    if (given.since) given.since = new Date(given.since).toISOString();
    return given;
  }

  async function read(asOf) {
    try {
      const answer = await get("/v1/dead-letters", { query: { ...which(), as_of: asOf }, signal });
      notice(main, null);
      const signature = JSON.stringify(answer);
      if (signature === shown) return;
      shown = signature;
      reasons.fill(answer.reasons);
      total.textContent = answer.total ? t(answer.complete ? "dead.total" : "dead.total_more", { count: count(answer.total) }) : "";
      bulk.replaceChildren(...(can("write") && answer.total
        ? [button(t("dead.retry_all"), () => retryMany(which(), null))] : []));
    } catch (error) {
      if (!signal.aborted) notice(main, error.message);
    }
  }

  async function retryMany(query, reason) {
    let found;
    notice(main, t("ask.counting"), "quiet");
    try {
      found = await everyBatch({ ...query, dry_run: "true" });
    } catch (error) {
      if (!signal.aborted) notice(main, error.message);
      return;
    }
    notice(main, null);
    const done = await confirmed({
      title: t("ask.retry_many", { count: count(found) }), names: reason ?? t("dead.every_reason"), text: t("ask.retry_many_text"),
      yes: t("act.retry_many", { count: count(found) }),
      act: (progress) => everyBatch(query, (so_far) => progress(t("dead.progress", { done: count(so_far), all: count(found) }))),
    });
    if (done === undefined) return;
    notice(main, t("dead.retried", { count: count(done) }), "good");
    announce(t("dead.retried", { count: count(done) }));
    shown = "";
    setTimeout(read, 500);
  }

  /** Send batch after batch until each dead letter was looked at; return how many were meant. */
  async function everyBatch(query, progress) {
    let sum = 0;
    let cursor;
    do {
      const answer = await post("/v1/dead-letters/retry", { query: { ...query, limit: 200, cursor }, signal });
      sum += answer.retried;
      cursor = answer.next_cursor;
      progress?.(sum);
    } while (cursor);
    return sum;
  }

  read();
  live.follow(seldom(read, REFRESH_MS, signal), signal);
}

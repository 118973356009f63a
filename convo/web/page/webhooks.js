// Webhooks: the endpoints, how the attempts to deliver went, and sending an event again. Open it to show another field.

import { get, places, post, webhookPath } from "./api.js";
import { announce, badge, button, clipped, el, facts, link, notice, panel, table } from "./dom.js";
import { confirmed } from "./dialog.js";
import { count, span, t, time, word } from "./text.js";

const TONES = { active: "good", new: "busy", off: "bad" };
const REFRESH_SECONDS = 5;
// A ping is no event: it cannot be sent again, but another one can.
const PING = "ping_";

const stateOf = (hook) => badge(word("webhook", hook.state), hook.failing_since ? "warn" : TONES[hook.state]);

/** Show the list of endpoints until `signal` ends it. */
export function showWebhooks(main, { signal }) {
  const list = table(t("webhooks.title"), [
    { first: true, head: t("head.endpoint"), wrap: true, cell: (row) => link(row.url, places.webhook(row.id)) },
    { head: t("head.state"), cell: stateOf },
    { head: t("head.types"), wrap: true, cell: (row) => row.types.join(", ") || t("webhooks.all_types") },
    { head: t("head.failing_since"), cell: (row) => time(row.failing_since) },
    { head: t("head.reason"), wrap: true, cell: (row) => row.reason ?? "" },
  ], t("webhooks.none"));
  main.append(el("div", { class: "page-head" }, el("h1", { text: t("webhooks.title"), tabindex: "-1" })), list);
  repeated(async () => list.fill((await get("/v1/webhooks", { signal })).webhooks), main, signal);
}

/** Show one endpoint and its attempts until `signal` ends it. */
export function showWebhook(main, { signal, values: [id] }) {
  const state = el("span");
  const about = el("div");
  const below = el("div", { class: "row" });
  const attempts = table(t("webhooks.attempts"), [
    { first: true, head: t("head.at"), cell: (row) => time(row.at) },
    { head: t("head.result"), cell: (row) => badge(row.status === null ? t("webhooks.no_answer") : String(row.status), row.error ? "bad" : "good") },
    { head: t("head.took"), number: true, cell: (row) => span(row.seconds) },
    { head: t("head.event"), cell: (row) => clipped(row.event_id) },
    { head: t("head.error"), wrap: true, cell: (row) => row.error ?? "" },
    { head: t("head.answer"), wrap: true, cell: (row) => row.answer },
    { head: t("head.action"), cell: (row) => (row.event_id.startsWith(PING) ? "" : button(t("webhooks.resend"), () => resend(row), { "aria-label": t("webhooks.resend_of", { event: row.event_id }) })) },
  ], t("webhooks.no_attempts"));
  main.append(el("div", { class: "page-head" }, el("h1", { tabindex: "-1" }, el("span", { class: "quiet kind", text: t("webhooks.one") }), " ", el("code", { text: id })), state),
    el("div", { class: "row actions" }, button(t("webhooks.ping"), ping), link(t("webhooks.back"), places.webhooks())), about,
    panel(t("webhooks.attempts"), el("div", {}, attempts, below), { wide: true }));
  const rows = [];
  let more = false;

  async function read() {
    const [hook, page] = await Promise.all([get(webhookPath(id), { signal }), get(`${webhookPath(id)}/attempts`, { signal })]);
    state.replaceChildren(stateOf(hook));
    about.replaceChildren(facts([
      [t("head.endpoint"), hook.url],
      [t("head.types"), hook.types.join(", ") || t("webhooks.all_types")],
      [t("head.bots"), hook.bots.join(", ") || t("webhooks.all_bots")],
      [t("head.confirmed"), count(hook.confirmed)],
      [t("head.failing_since"), hook.failing_since ? time(hook.failing_since) : null],
      [t("head.reason"), hook.reason],
    ]));
    // Once further pages are shown, the list stays as it was read.
    if (more) return;
    rows.splice(0, rows.length, ...page.attempts);
    fill(page.next_cursor);
  }

  function fill(cursor) {
    // A button in each row: drawn again only where a row has changed, so that the focus stays.
    const signature = JSON.stringify(rows);
    if (signature !== fill.shown) attempts.fill(rows);
    fill.shown = signature;
    below.replaceChildren(...(cursor ? [button(t("more"), async () => {
      try {
        const page = await get(`${webhookPath(id)}/attempts`, { query: { cursor }, signal });
        more = true;
        rows.push(...page.attempts);
        fill(page.next_cursor);
      } catch (error) {
        if (!signal.aborted) notice(main, error.message);
      }
    })] : []));
  }

  async function resend(row) {
    const done = await confirmed({
      title: t("ask.resend"), names: row.event_id, text: t("ask.resend_text"), yes: t("webhooks.resend"),
      act: () => post(`${webhookPath(id)}/replay`, { query: { event: row.event_id } }),
    });
    if (done === undefined) return;
    notice(main, t("webhooks.resent", { count: count(done.events) }), "good");
    announce(t("webhooks.resent", { count: count(done.events) }));
  }

  async function ping(event) {
    event.target.disabled = true;
    try {
      const answer = await post(`${webhookPath(id)}/ping`);
      notice(main, answer.good ? t("webhooks.ping_good", { span: span(answer.seconds) }) : t("webhooks.ping_bad", { why: answer.error ?? answer.status }), answer.good ? "good" : "bad");
    } catch (error) {
      notice(main, error.message);
    }
    event.target.disabled = false;
  }

  repeated(read, main, signal);
}

/** Call `read` now and every few seconds while the page is seen; show why it failed. */
function repeated(read, main, signal) {
  async function turn() {
    if (document.hidden) return;
    try {
      await read();
      main.querySelector(":scope > .notice.bad")?.remove();
    } catch (error) {
      if (!signal.aborted) notice(main, error.message);
    }
  }
  turn();
  const timer = setInterval(turn, 1000 * REFRESH_SECONDS);
  signal.addEventListener("abort", () => clearInterval(timer));
  document.addEventListener("visibilitychange", turn, { signal });
}

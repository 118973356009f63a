// The list of conversations, with its filters. Open it to add a filter or a column.

import { get, places } from "./api.js";
import { badge, button, clipped, el, link, notice, table } from "./dom.js";
import { live, seldom } from "./live.js";
import { count, span, t, time, word } from "./text.js";

const STATES = ["ready", "parked", "leased", "done", "dead"];
export const STATE_TONES = { ready: "busy", parked: "warn", leased: "busy", done: "good", dead: "bad", superseded: "quiet" };
const ROWS = 50;
const REFRESH_MS = 2000;

export function stateBadge(state) {
  return badge(word("state", state), STATE_TONES[state]);
}

/** A link whose text is an id: on one line, whatever its length. */
export function idLink(id, to) {
  return link(id, to, { class: "clip", title: id });
}

export function columns() {
  return [
    { first: true, head: t("head.conversation"), cell: (row) => idLink(row.conversation_id, places.conversation(row.conversation_id)) },
    { head: t("head.state"), cell: (row) => stateBadge(row.state) },
    { head: t("head.score"), number: true, cell: (row) => count(row.score) },
    { head: t("head.user"), cell: (row) => idLink(row.user_id, places.user(row.user_id)) },
    { head: t("head.bot"), cell: (row) => clipped(row.bot_id) },
    { head: t("head.received"), cell: (row) => time(row.received_at) },
    { head: t("head.turns"), number: true, cell: (row) => count(row.turns) },
    { head: t("head.attempts"), number: true, cell: (row) => count(row.attempts) },
    { head: t("head.lasted"), number: true, cell: (row) => span((Date.parse(row.ended_at) - Date.parse(row.started_at)) / 1000) },
    { head: t("head.error"), cell: (row) => (row.last_error ? clipped(row.last_error) : "") },
  ];
}

/** A field with its label, for a form of filters. */
export function field(name, label, value, given = {}) {
  return el("label", {}, el("span", { text: label }),
    el("input", { name, value: value ?? "", autocomplete: "off", spellcheck: "false", ...given }));
}

export function choice(name, label, values, chosen) {
  return el("label", {}, el("span", { text: label }), el("select", { name },
    values.map(([value, text]) => el("option", { value, selected: value === (chosen ?? ""), text }))));
}

/** Return what a form of filters says, without what is empty. */
export function filled(form) {
  const given = [...new FormData(form)].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value);
  return Object.fromEntries(given);
}

/** Show the list until `signal` ends it; `query` holds the filters. */
export function showConversations(main, { signal, query }) {
  const form = el("form", { class: "filters", role: "search", submit: (event) => {
    event.preventDefault();
    const { conversation_id: id, ...filters } = filled(form);
    // There is one of an id, or none.
    const target = id ? places.conversation(id) : places.conversations(filters);
    // The same filters again: read again.
    if (location.hash === target) fresh();
    else location.hash = target;
  } },
  field("conversation_id", t("filter.conversation_id"), "", { type: "search", class: "long" }),
  field("user_prefix", t("filter.user_prefix"), query.user_prefix, { type: "search" }),
  field("bot_id", t("filter.bot_id"), query.bot_id, { type: "search" }),
  choice("state", t("filter.state"), [["", t("filter.any")], ...STATES.map((one) => [one, word("state", one)])], query.state),
  el("button", { type: "submit", class: "primary", text: t("filter.search") }),
  Object.keys(query).length ? link(t("filter.clear"), places.conversations()) : null);
  const filters = Object.keys(query).length;
  const list = table(t("conversations.title"), columns(), filters ? t("conversations.none_found") : t("conversations.none"));
  const more = el("div", { class: "row" });
  main.append(el("div", { class: "page-head" }, el("h1", { text: t("conversations.title"), tabindex: "-1" })), form, list, more);
  let rows = [];
  let pages = 1;

  async function page(cursor, asOf) {
    return get("/v1/conversations", { query: { ...query, limit: ROWS, cursor, as_of: asOf }, signal });
  }

  async function fresh(asOf) {
    try {
      const answer = await page(undefined, asOf);
      notice(main, null);
      // Further pages stay as they were read: what is new comes at the top.
      const known = new Set(answer.conversations.map((one) => one.conversation_id));
      const last = answer.conversations.at(-1)?.received_at;
      const older = pages > 1 ? rows.filter((one) => !known.has(one.conversation_id) && one.received_at <= last) : [];
      rows = [...answer.conversations, ...older];
      list.fill(rows);
      if (pages === 1) showMore(answer.next_cursor);
    } catch (error) {
      if (!signal.aborted) notice(main, error.message);
    }
  }

  function showMore(cursor) {
    more.replaceChildren(...(cursor ? [button(t("more"), async (event) => {
      event.target.disabled = true;
      try {
        const answer = await page(cursor);
        pages += 1;
        rows = [...rows, ...answer.conversations];
        list.fill(rows);
        showMore(answer.next_cursor);
      } catch (error) {
        if (!signal.aborted) notice(main, error.message);
        event.target.disabled = false;
      }
    })] : []));
  }

  fresh();
  live.follow(seldom(fresh, REFRESH_MS, signal), signal);
}

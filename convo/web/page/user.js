// One user: the relationship over time and by bot, what is remembered, and the newest conversations. Open it to show more.

import { get, places, userPath } from "./api.js";
import { eraseUserButton } from "./acting.js";
import { chart } from "./charts.js";
import { columns, idLink } from "./conversations.js";
import { badge, button, clipped, el, empty, facts, notice, panel, table } from "./dom.js";
import { count, t, time, word } from "./text.js";

const TONES = { stranger: "quiet", acquaintance: "busy", friend: "good" };
const HISTORY_PAGES = 5;

/** Show a user until `signal` ends it. */
export function showUser(main, { signal, values: [id] }) {
  const level = el("span");
  const about = el("div");
  const over = el("div");
  const which = el("select", { "aria-label": t("user.of_bot"), change: () => showHistory(which.value) }, el("option", { value: "", text: t("user.every_bot") }));
  const bots = table(t("user.bots"), [
    { first: true, head: t("head.bot"), cell: (row) => clipped(row.bot_id) },
    { head: t("head.level"), cell: (row) => badge(word("level_of", row.level), TONES[row.level]) },
    { head: t("head.score"), number: true, cell: (row) => count(row.score) },
    { head: t("head.conversations"), number: true, cell: (row) => count(row.conversations) },
    { head: t("head.emotion"), cell: (row) => word("emotion", row.last_emotion) },
  ], t("user.no_bots"));
  const memories = table(t("user.memories"), [
    { first: true, head: t("head.memory"), wrap: true, cell: (row) => row.text },
    { head: t("head.kind"), cell: (row) => row.kind },
    { head: t("head.first_seen"), cell: (row) => time(row.first_seen_at) },
    { head: t("head.conversation"), cell: (row) => (row.conversation_id ? idLink(row.conversation_id, places.conversation(row.conversation_id)) : t("none")) },
  ], t("user.no_memories"), { tall: true });
  const talks = table(t("user.conversations"), columns().filter((one) => one.head !== t("head.user")), t("conversations.none_found"));
  main.append(el("div", { class: "page-head" }, el("h1", { tabindex: "-1" }, el("span", { class: "quiet kind", text: t("user.title") }), " ", el("code", { text: id })), level),
    el("div", { class: "row actions" }, [eraseUserButton(id)].filter(Boolean)), about,
    panel(t("user.over_time"), over, { wide: true, actions: which }),
    el("div", { class: "panels" }, panel(t("user.bots"), bots), panel(t("user.memories"), pages(memories, (cursor) => get(`${userPath(id)}/memories`, { query: { cursor }, signal }), "memories", signal))),
    panel(t("user.conversations"), pages(talks, (cursor) => get("/v1/conversations", { query: { user_id: id, cursor }, signal }), "conversations", signal), { wide: true }));
  let drawing = null;
  showRelationship();
  showHistory();

  async function showRelationship() {
    try {
      const found = await get(`${userPath(id)}/relationship`, { signal });
      level.replaceChildren(badge(word("level_of", found.level), TONES[found.level]));
      about.replaceChildren(facts([
        [t("head.score"), count(found.score)],
        [t("head.conversations"), count(found.conversations)],
        [t("head.emotion"), found.last_emotion ? word("emotion", found.last_emotion) : null],
      ]));
      bots.fill(found.bots);
      which.append(...found.bots.map((one) => el("option", { value: one.bot_id, text: one.bot_id })));
    } catch (error) {
      if (!signal.aborted) notice(main, error.status === 404 ? t("user.unknown") : error.message);
    }
  }

  /** Draw the score over time, of all bots together or of one. A chart that is drawn no more ends with the next one. */
  async function showHistory(bot) {
    drawing?.abort();
    const own = drawing = new AbortController();
    const ended = AbortSignal.any([signal, own.signal]);
    try {
      const points = await history(id, bot, ended);
      if (points.length < 2) {
        over.replaceChildren(empty(t("user.no_history")));
        return;
      }
      const drawn = chart(t("user.score_over_time"), [{ key: "score", label: t("head.score"), write: count, tone: "c1", whole: true }],
        { signal: ended, span: 0, stepped: true, height: 180 });
      over.replaceChildren(drawn);
      drawn.update(points);
    } catch (error) {
      if (!ended.aborted) over.replaceChildren(empty(error.status === 404 ? t("user.no_history") : error.message));
    }
  }
}

/** Read the score over time, oldest first; at most so many pages of the newest. */
async function history(id, bot, signal) {
  const found = [];
  let cursor;
  for (let page = 0; page < HISTORY_PAGES; page += 1) {
    const answer = await get(`${userPath(id)}/relationship/history`, { query: { bot_id: bot, limit: 200, cursor }, signal });
    found.push(...answer.points);
    cursor = answer.next_cursor;
    if (!cursor) break;
  }
  return found.reverse();
}

/** A table that is filled page by page. */
function pages(list, read, name, signal) {
  const below = el("div", { class: "row" });
  const whole = el("div", {}, list, below);
  const rows = [];

  async function next(cursor) {
    try {
      const answer = await read(cursor);
      rows.push(...answer[name]);
      list.fill(rows);
      below.replaceChildren(...(answer.next_cursor ? [button(t("more"), () => next(answer.next_cursor))] : []));
    } catch (error) {
      if (signal.aborted || error.status === 404) list.fill(rows);
      else notice(whole, error.message);
    }
  }
  next();
  return whole;
}

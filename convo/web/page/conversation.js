// One conversation: its state and what can be done, its parts as they come, the score, why it waits, and its turns.
// Open it to show another field. The runs stand in runs.js, parts and score in parts.js, the buttons in acting.js.

import { conversationPath, get, places } from "./api.js";
import { actions } from "./acting.js";
import { button, el, empty, facts, link, notice, panel, setText } from "./dom.js";
import { stateBadge } from "./conversations.js";
import { live, seldom } from "./live.js";
import { partCards, scoreTable } from "./parts.js";
import { runsView } from "./runs.js";
import { count, span, t, time, word } from "./text.js";

const TURNS = 100;
const REFRESH_MS = 1000;
// While it is not ended; less often where that takes long.
const AGAIN_SECONDS = 2;
const LATER_SECONDS = 5;
const SOON_READINGS = 15;
// Of one that is ended hardly anything changes.
const LOOK_SECONDS = 10;
const ENDED = new Set(["done", "dead", "superseded"]);

/** Show a conversation until `signal` ends it. */
export function showConversation(main, { signal, values: [id] }) {
  const state = el("span", {});
  const head = el("div", { class: "page-head" }, el("h1", { tabindex: "-1" }, el("span", { class: "quiet kind", text: t("conversation.title") }), " ", el("code", { text: id })), state);
  const bar = el("div", { class: "row actions" });
  const about = el("div");
  const error = el("p", { class: "notice bad", hidden: true });
  const parts = el("div", { class: "parts" });
  const score = el("div");
  const why = el("div");
  const turns = turnsView(id, signal);
  main.append(head, bar, error, about, panel(t("conversation.parts"), parts, { wide: true }),
    el("div", { class: "panels" }, panel(t("conversation.score"), score), panel(t("conversation.explain"), why)),
    panel(t("conversation.turns"), turns, { wide: true }));
  let shown = "";
  let barFor = "";

  async function read() {
    try {
      const [view, explained] = await Promise.all([
        get(conversationPath(id), { query: { cost: 1 }, signal }),
        get(`${conversationPath(id)}/explain`, { signal }),
      ]);
      notice(main, null);
      show(view, explained);
      return ENDED.has(view.state);
    } catch (problem) {
      if (signal.aborted) return true;
      notice(main, problem.status === 404 ? t("conversation.unknown") : problem.status === 410 ? t("conversation.gone") : problem.message);
      if (![404, 410].includes(problem.status)) return false;
      // It is not there, or no longer: nothing of it stays on the page.
      for (const one of [...main.children]) if (one !== head && !one.classList.contains("notice")) one.remove();
      state.replaceChildren();
      return true;
    }
  }

  function show(view, explained) {
    const signature = JSON.stringify([view, explained]);
    if (signature === shown) return;
    shown = signature;
    state.replaceChildren(stateBadge(view.waits_for ? "parked" : view.state));
    // Drawn again only where other buttons are due: the focus stays where it is.
    if (barFor !== view.state) {
      barFor = view.state;
      bar.replaceChildren(...actions(view, again));
    }
    error.hidden = !view.last_error;
    setText(error, view.last_error ?? "");
    about.replaceChildren(facts([
      [t("head.user"), link(view.user_id, places.user(view.user_id))],
      [t("head.bot"), [view.bot_name, view.bot_id].filter(Boolean).join(" · ")],
      [t("head.received"), time(view.received_at)],
      [t("head.began"), time(view.started_at)],
      [t("head.lasted"), span((Date.parse(view.ended_at) - Date.parse(view.started_at)) / 1000)],
      [t("head.turns"), count(view.turns)],
      [t("head.attempts"), count(view.attempts)],
      [t("head.waits_for"), view.waits_for],
      [t("head.parked_since"), view.parked_since ? time(view.parked_since) : null],
      [t("head.revision"), view.revision > 1 ? count(view.revision) : null],
      [t("head.language"), view.language],
      [t("head.log"), word("log", view.log_state)],
      [t("head.metadata"), view.metadata ? el("code", { text: JSON.stringify(view.metadata) }) : null],
    ]));
    parts.replaceChildren(...partCards(view));
    score.replaceChildren(scoreTable(view.score));
    why.replaceChildren(el("p", { class: "cause", text: explained.cause.sentence }), facts([
      [t("explain.here"), explained.here],
      [t("explain.ahead"), explained.ahead === null ? null : count(explained.ahead)],
      [t("explain.left"), explained.seconds_left === null ? null : span(explained.seconds_left)],
      [t("explain.crashes"), explained.crashes ? count(explained.crashes) : null],
    ]), runsView(view, explained.runs));
  }

  /** Read now, and go on while it is not ended; after something was done, too. */
  let timer = null;
  let readings = 0;
  let ended = false;
  async function again() {
    clearTimeout(timer);
    const own = ++readings;
    ended = await read();
    // Of two readings at the same time the later one goes on: else each would, for ever.
    if (ended || signal.aborted || own !== readings) return;
    timer = setTimeout(() => document.hidden || again(), 1000 * (readings > SOON_READINGS ? LATER_SECONDS : AGAIN_SECONDS));
  }

  again();
  signal.addEventListener("abort", () => clearTimeout(timer));
  const soon = seldom(again, REFRESH_MS, signal);
  const later = seldom(again, 1000 * LOOK_SECONDS, signal);
  live.follow((number) => {
    if (ended) later();
    else if (number === undefined) soon();
  }, signal);
}

/** The turns, a page at a time. They are read once: each reading of a log stands in the audit log. */
function turnsView(id, signal) {
  const list = el("ol", { class: "turns" });
  const below = el("div", { class: "row" });
  const whole = el("div", {}, list, below);
  below.append(button(t("conversation.show_turns"), () => more()));

  async function more(cursor) {
    try {
      const answer = await get(`${conversationPath(id)}/log`, { query: { limit: TURNS, cursor }, signal });
      notice(whole, null);
      list.append(...answer.turns.map((one) => el("li", { class: `turn ${one.speaker}` },
        el("span", { class: "speaker", text: word("speaker", one.speaker) }),
        el("span", { class: "said", text: one.text }), el("span", { class: "quiet at" }, time(one.at)))));
      if (!list.children.length) list.append(empty(t("conversation.no_turns")));
      below.replaceChildren(...(answer.next_cursor ? [button(t("more"), () => more(answer.next_cursor))] : []));
    } catch (error) {
      if (!signal.aborted) notice(whole, error.status === 410 ? t("conversation.log_gone") : error.message);
    }
  }
  return whole;
}

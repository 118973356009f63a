// The parts of an analysis and what they gave to the score. Open it to show another field of a part.

import { badge, el, empty, facts } from "./dom.js";
import { count, signed, t, time, word } from "./text.js";

const TONES = { waiting: "busy", done: "good", failed: "bad", refused: "warn", skipped: "quiet" };

/** A card for each part, whether it is found yet or not. */
export function partCards(view) {
  return Object.entries(view.parts).map(([name, part]) => el("article", { class: `part ${part.state}` },
    el("h3", {}, word("part_name", name), " ", badge(word("part_state", part.state), TONES[part.state])),
    el("div", { class: "found" }, found(part)),
    part.error ? el("p", { class: "error", text: part.error }) : null,
    facts([
      [t("part.by"), part.by],
      [t("part.version"), part.version],
      [t("part.at"), part.updated_at ? time(part.updated_at) : null],
      [t("part.cost"), cost(view.cost, name)],
    ])));
}

function found(part) {
  if (part.questions) return listed(part.questions, t("part.no_questions"));
  if (part.emotion) return el("p", {}, el("b", { text: word("emotion", part.emotion) }), part.judged ? null : el("span", { class: "quiet", text: ` ${t("part.not_judged")}` }));
  if (part.memories) {
    return [listed(part.memories.map((one) => `${one.text} (${[one.kind, one.operation].filter(Boolean).join(", ")})`), t("part.no_memories")),
      el("p", { class: "quiet", text: t("part.new", { count: count(part.new) }) }),
      part.uncertain ? el("p", { class: "quiet", text: t("part.uncertain") }) : null];
  }
  if (part.answer) return el("pre", { class: "answer", tabindex: "0", text: JSON.stringify(part.answer, null, 2) });
  return part.state === "waiting" ? el("p", { class: "quiet", text: t("part.waiting") }) : null;
}

function listed(texts, none) {
  return texts.length ? el("ul", {}, texts.map((text) => el("li", { text }))) : el("p", { class: "quiet", text: none });
}

/** What models were asked for a part: tokens and price, where there is any. */
function cost(costs, name) {
  const calls = (costs?.parts ?? []).filter((one) => one.part === name);
  const tokens = calls.reduce((sum, one) => sum + (one.tokens_in ?? 0) + (one.tokens_out ?? 0), 0);
  const price = calls.reduce((sum, one) => sum + one.price, 0);
  if (!tokens) return null;
  return price ? t("part.priced", { count: count(tokens), price: price.toPrecision(2) }) : t("part.tokens", { count: count(tokens) });
}

/** How a score came about: a row for each thing that gave points, and the sum. */
export function scoreTable(score) {
  const rows = Object.entries(score.breakdown)
    .filter(([name, one]) => one && name !== "parts")
    .map(([name, one]) => row(word("part_name", name), one));
  const declared = Object.entries(score.breakdown.parts ?? {}).map(([name, one]) => row(name, one));
  if (!rows.length) return empty(t("score.none"));
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("conversation.score") }, el("table", { class: "score" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col", text: t("score.of") }), el("th", { scope: "col", text: t("score.how") }), el("th", { scope: "col", class: "number", text: t("score.points") }))),
    el("tbody", {}, rows, declared),
    el("tfoot", {}, el("tr", {}, el("th", { scope: "row", text: score.final ? t("score.final") : t("score.provisional") }),
      el("td", { class: "quiet", text: score.weights_version }), el("td", { class: "number" }, el("b", { text: count(score.value) }))))));
}

function row(name, one) {
  return el("tr", {}, el("th", { scope: "row", text: name }), el("td", { class: "quiet", text: how(one) }),
    el("td", { class: "number", text: signed(one.points) }));
}

function how(one) {
  if ("weight" in one) return one.count === null ? t("score.unknown") : `${count(one.count)} × ${count(one.weight)}`;
  if ("max" in one) return t("score.cap", { max: count(one.max) });
  if ("name" in one) return one.name === null ? t("score.unknown") : word("emotion", one.name);
  return Object.entries(one).filter(([key]) => key !== "points").map(([key, value]) => `${key} ${value ?? t("none")}`).join(", ");
}

// What can be done to a conversation or a user, each after a question that names the id. Open it to add an action.

import { conversationPath, del, places, post, userPath } from "./api.js";
import { announce, button, el } from "./dom.js";
import { confirmed } from "./dialog.js";
import { can } from "./session.js";
import { count, t, word } from "./text.js";

/** The buttons for a conversation in its state, by what the key may do; `after` is called when something was done. */
export function actions(view, after) {
  const id = view.conversation_id;
  const path = conversationPath(id);
  const dead = view.state === "dead";
  return [
    dead && can("write") && button(t("act.retry"), () => act("retry", id, after, () => post(`${path}/retry`)), { class: "primary" }),
    dead && can("write") && button(t("act.acknowledge"), () => act("acknowledge", id, after, () => post(`${path}/acknowledge`))),
    view.state === "done" && view.log_state === "stored" && can("write") && button(t("act.reanalyse"), () => reanalyse(view, after)),
    can("erase") && button(t("act.erase"), () => eraseConversation(id), { class: "danger" }),
  ].filter(Boolean);
}

async function act(name, id, after, send) {
  const done = await confirmed({ title: t(`ask.${name}`), names: id, text: t(`ask.${name}_text`), yes: t(`act.${name}`), act: send });
  if (done === undefined) return;
  announce(t(`did.${name}`));
  after();
}

async function reanalyse(view, after) {
  const part = el("select", { id: "part" }, el("option", { value: "", text: t("ask.every_part") }),
    Object.keys(view.parts).map((name) => el("option", { value: name, text: word("part_name", name) })));
  const done = await confirmed({
    title: t("ask.reanalyse"), names: view.conversation_id, yes: t("act.reanalyse"),
    text: el("div", {}, el("p", { text: t("ask.reanalyse_text") }), el("label", { class: "inline" }, el("span", { text: t("ask.part") }), part)),
    act: () => post(`${conversationPath(view.conversation_id)}/reanalyse`, { body: part.value ? { part: part.value } : {} }),
  });
  if (done === undefined) return;
  announce(t("did.reanalyse"));
  after();
}

async function eraseConversation(id) {
  const done = await confirmed({
    title: t("ask.erase"), names: id, text: t("ask.erase_text"), yes: t("act.erase_yes"), danger: true,
    act: () => del(conversationPath(id)),
  });
  if (done === undefined) return;
  location.hash = places.conversations();
  announce(t("did.erase"));
}

/** The button that erases a user: how much that is, is counted first. */
export function eraseUserButton(id) {
  if (!can("erase")) return null;
  return button(t("act.erase_user"), async () => {
    const counted = el("p", { class: "quiet", text: t("ask.counting") });
    del(userPath(id), { query: { dry_run: "true" } }).then(
      (found) => { counted.textContent = t("ask.counted", { rows: rows(found.removed) }); },
      (error) => { counted.textContent = error.message; },
    );
    const done = await confirmed({
      title: t("ask.erase_user"), names: id, text: el("div", {}, el("p", { text: t("ask.erase_user_text") }), counted),
      yes: t("act.erase_yes"), danger: true,
      act: async (progress) => {
        for (;;) {
          const answer = await del(userPath(id));
          // Not all of it in the time of one request: the same request goes on.
          if (answer.ended_at) return answer;
          progress(t("ask.erasing"));
        }
      },
    });
    if (done === undefined) return;
    location.hash = places.conversations();
    announce(t("did.erase"));
  }, { class: "danger" });
}

function rows(removed) {
  return Object.entries(removed ?? {}).map(([name, number]) => `${name} ${count(number)}`).join(", ") || count(0);
}

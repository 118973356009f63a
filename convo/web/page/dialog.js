// Asks before something is changed, and shows what came of it. Open it to change how the page asks.

import { button, el, notice } from "./dom.js";
import { t } from "./text.js";

/**
 * Ask in a dialog whether to go on. `act` is called on yes; the dialog stays open, and says so, while it works and where
 * it fails. Returns what `act` returned, or undefined where the answer was no.
 *
 * `names` is what it is done to: the id, shown as it is.
 */
export function confirmed({ title, names, text, yes, danger = false, act }) {
  const before = document.activeElement;
  return new Promise((resolve) => {
    let result;
    const go = button(yes, work, { class: danger ? "danger" : "primary" });
    const no = button(t("dialog.no"), () => dialog.close());
    const says = el("div", { class: "dialog-text" }, text ?? null);
    const dialog = el("dialog", { "aria-labelledby": "dialog-title", close: closed, cancel: (event) => busy && event.preventDefault() },
      el("h2", { id: "dialog-title", text: title }),
      names === undefined ? null : el("p", {}, el("code", { class: "named", text: names })),
      says, el("div", { class: "row end" }, no, go));
    let busy = false;
    document.body.append(dialog);
    dialog.showModal();
    // On what changes nothing, so that Enter alone erases nothing.
    no.focus();

    async function work() {
      busy = go.disabled = no.disabled = true;
      try {
        result = await act((progress) => notice(says, progress, "quiet"));
        dialog.close();
      } catch (error) {
        notice(says, error.message);
        go.disabled = no.disabled = false;
        no.focus();
      }
      busy = false;
    }

    function closed() {
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(result);
    }
  });
}

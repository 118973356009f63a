// Who uses the page: the login form, the session, and what its key may do. Open it to change either.
//
// The key that is typed in is sent once and forgotten: the field is emptied before the answer comes.

import { del, get, post, setToken } from "./api.js";
import { button, el, notice } from "./dom.js";
import { t } from "./text.js";

/** `keys` false: this convo asks for no key, and everything is allowed. */
export let session = null;

/** Learn which session holds now; null where there is none. Throws: Problem. */
export async function readSession() {
  try {
    take(await get("/v1/session"));
  } catch (error) {
    if (error.status !== 401) throw error;
    take(null);
  }
  return session;
}

function take(answer) {
  session = answer;
  setToken(answer?.csrf);
}

/** Tell whether the caller may do what needs a scope. The server decides; this only hides what it would refuse. */
export function can(scope) {
  return session !== null && (!session.keys || session.scopes.includes(scope));
}

export async function signOut() {
  await del("/v1/session");
  take(null);
}

export function forgetSession() {
  take(null);
}

/** Show the login form; call `then` after a login. */
export function showLogin(place, then, why) {
  // Not of the type `password`: a browser would offer to keep it.
  const field = el("input", {
    id: "key", name: "key", type: "text", class: "secret", required: true, autocomplete: "off", autocapitalize: "off",
    spellcheck: "false", maxlength: "200", "aria-describedby": "key-help",
  });
  const submit = el("button", { type: "submit", class: "primary", text: t("login.button") });
  const form = el("form", { class: "login", submit: send },
    el("h1", { text: t("login.title"), tabindex: "-1" }),
    el("label", { for: "key", text: t("login.key") }), field,
    el("p", { id: "key-help", class: "quiet", text: t("login.help") }), submit);
  if (why) notice(form, why, "warn");
  place.replaceChildren(form);
  field.focus();

  async function send(event) {
    event.preventDefault();
    const key = field.value.trim();
    field.value = "";
    submit.disabled = true;
    try {
      take(await post("/v1/session", { body: { key } }));
      then();
    } catch (error) {
      submit.disabled = false;
      notice(form, error.status === 401 ? t("login.wrong") : error.message);
      field.focus();
    }
  }
}

/** The name of the session's key, and the button that ends it; nothing where no key is asked for. */
export function whoIsHere(after) {
  if (!session?.keys) return null;
  const reach = [session.tenant, ...(session.bots ?? [])].filter(Boolean).join(" · ");
  const named = t("session.out_of", { name: session.name });
  return el("span", { class: "who" }, el("span", { class: "who-name", title: reach, text: session.name }),
    button(t("session.out"), async () => {
      try {
        await signOut();
      } catch (error) {
        if (error.status !== 401) {
          notice(document.getElementById("main"), t("session.still", { why: error.message }));
          return;
        }
      }
      after();
    }, { title: named }));
}

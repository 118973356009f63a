// Begins the page: the header, the session, and which view a place (what stands behind `#`) leads to. Open it to add a
// view: name it in VIEWS, and in NAVIGATION where it is to be found.

import { places } from "./api.js";
import { showAlerts } from "./alerts.js";
import { showConversation } from "./conversation.js";
import { showConversations } from "./conversations.js";
import { showDead } from "./dead.js";
import { announce, button, el, empty, link, notice, setText } from "./dom.js";
import { live } from "./live.js";
import { showOverview } from "./overview.js";
import { can, forgetSession, readSession, session, showLogin, whoIsHere } from "./session.js";
import { LANGUAGES, count, language, loadTexts, t, word } from "./text.js";
import { showUser } from "./user.js";
import { showWall } from "./wall.js";
import { showWebhook, showWebhooks } from "./webhooks.js";

const VIEWS = {
  "": { show: showOverview, title: () => t("overview.title") },
  conversations: { show: showConversations, title: () => t("conversations.title") },
  conversation: { show: showConversation, title: ([id]) => id, takesId: true, nav: "conversations" },
  user: { show: showUser, title: ([id]) => id, takesId: true, nav: "conversations" },
  dead: { show: showDead, title: () => t("dead.title") },
  webhooks: { show: showWebhooks, title: () => t("webhooks.title") },
  webhook: { show: showWebhook, title: ([id]) => id, takesId: true, nav: "webhooks" },
  alerts: { show: showAlerts, title: () => t("alerts.title") },
};
const NAVIGATION = [
  ["", "overview.title", places.overview, "read"], ["conversations", "conversations.title", places.conversations, "read"],
  ["dead", "dead.title", places.dead, "read"], ["webhooks", "webhooks.title", places.webhooks, "webhooks"],
  ["alerts", "alerts.title", places.alerts, "read"],
];

const header = document.getElementById("header");
const main = document.getElementById("main");
const onTheWall = document.documentElement.dataset.view === "live";
let leaving = new AbortController();

/** Read which view a place means, with its values and its query. A value that is no percent-encoding is none. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...values] = path.split("/");
  try {
    return { name, values: values.map(decodeURIComponent), query: Object.fromEntries(new URLSearchParams(query)) };
  } catch {
    return { name: "?", values: [], query: {} };
  }
}

function show({ focus = true } = {}) {
  leaving.abort();
  leaving = new AbortController();
  main.replaceChildren();
  closeDialogs();
  if (onTheWall) {
    header.replaceChildren();
    document.title = `convo: ${t("wall.title")}`;
    showWall(main, { signal: leaving.signal });
    return;
  }
  const { name, values, query } = place();
  const view = VIEWS[name];
  drawHeader(view?.nav ?? name);
  if (!view || values.length !== (view.takesId ? 1 : 0)) {
    document.title = "convo";
    main.append(el("h1", { text: t("unknown.title"), tabindex: "-1" }), empty(t("unknown.text")));
  } else {
    document.title = `convo: ${view.title(values)}`;
    view.show(main, { signal: leaving.signal, values, query });
  }
  if (!focus) return;
  // A screen reader goes on at the new heading, and the keyboard from there.
  main.querySelector("h1")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** A question about what is no longer shown is not to be answered by mistake. */
function closeDialogs() {
  for (const one of document.querySelectorAll("dialog")) one.close();
}

// --- the header

function drawHeader(current) {
  const alerts = el("span", { class: "count", hidden: true });
  const state = el("span", { class: "live" });
  const links = NAVIGATION.filter(([, , , scope]) => can(scope)).map(([name, title, to]) =>
    el("a", { href: to(), "aria-current": name === current ? "page" : null }, t(title), name === "alerts" ? [" ", alerts] : null));
  header.replaceChildren(
    el("a", { class: "brand", href: places.overview(), text: "convo" }),
    session ? el("nav", { "aria-label": t("nav.label") }, links, link(t("wall.title"), "/live"), link(t("nav.docs"), "/docs")) : el("span", { class: "grow" }),
    el("div", { class: "tools" }, session ? state : null, languages(), themes(), whoIsHere(signedOut)));
  if (!session) return;
  live.watch(({ latest, state: now }) => {
    setText(state, now === "late" ? t("live.late_short") : word("live", now));
    state.className = `live ${now}`;
    const active = latest?.alerts.length ?? 0;
    alerts.hidden = !active;
    setText(alerts, count(active));
    if (active > drawHeader.alerts) announce(t("alerts.new", { count: count(active) }));
    drawHeader.alerts = active;
  }, leaving.signal);
}
drawHeader.alerts = 0;

function languages() {
  return el("label", { class: "tool" }, el("span", { class: "unseen", text: t("nav.language") }),
    el("select", { change: async (event) => {
      await loadTexts(event.target.value);
      if (session) show({ focus: false });
      else login();
      header.querySelector("select").focus();
    } }, Object.entries(LANGUAGES).map(([code, name]) => el("option", { value: code, lang: code, selected: code === language, text: name }))));
}

function themes() {
  return button("◐", () => window.convoTheme.next(), { class: "tool", "aria-label": t("nav.theme"), title: t("nav.theme") });
}

// --- the session

function login(why) {
  leaving.abort();
  leaving = new AbortController();
  live.stop();
  closeDialogs();
  document.title = "convo";
  drawHeader(null);
  showLogin(main, begin, why);
}

function signedOut() {
  forgetSession();
  login();
}

function begin() {
  live.start();
  show();
}

document.addEventListener("session-over", () => {
  // Of a page that shows the form already, and of the first question, the answer is no news.
  if (session === null) return;
  forgetSession();
  login(t("login.over"));
});
addEventListener("hashchange", () => session && show());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

async function start() {
  await loadTexts();
  try {
    await readSession();
  } catch (error) {
    main.replaceChildren();
    notice(main, error.message);
    // 404: there are keys, but no sessions (auth.session_seconds): that stays so.
    if (error.status !== 404) setTimeout(start, 3000);
    return;
  }
  if (session) begin();
  else login();
}

start();

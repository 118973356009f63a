// Asks convo's own routes. Open it to change how a request is sent, or what becomes of one that is refused.
//
// The session's cookie is out of reach of any script. The token that each change needs is kept here, in memory only.

import { t } from "./text.js";

const PATIENCE_MS = 12_000;
let csrf = null;

/** Why a request failed: `status` is 0 where no answer came. */
export class Problem extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

/** Take the token of the session that holds now; null where there is none. */
export function setToken(token) {
  csrf = token ?? null;
}

/** Send a request and return what it answers, read from JSON. Throws: Problem; AbortError where `signal` ended it. */
export async function ask(method, path, { query, body, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (csrf && method !== "GET") headers["X-CSRF-Token"] = csrf;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await send(path + search(query), {
    method, headers, body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.any([AbortSignal.timeout(PATIENCE_MS), ...(signal ? [signal] : [])]),
    cache: method === "GET" ? "no-cache" : "no-store", credentials: "same-origin", redirect: "error",
  }, signal);
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await refusal(answer);
  if (problem.status === 401) document.dispatchEvent(new CustomEvent("session-over", { detail: path }));
  throw problem;
}

export const get = (path, options) => ask("GET", path, options);
export const post = (path, options) => ask("POST", path, options);
export const del = (path, options) => ask("DELETE", path, options);

async function send(url, options, signal) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, "unreachable", t("problem.unreachable"));
  }
}

async function refusal(answer) {
  try {
    const { code, detail } = await answer.json();
    return new Problem(answer.status, code, detail);
  } catch {
    return new Problem(answer.status, "", t("problem.status", { status: answer.status }));
  }
}

function search(query) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** The path of a conversation or a user: an id is any text, so it is percent-encoded as one segment. */
export const conversationPath = (id) => `/v1/conversations/${encodeURIComponent(id)}`;
export const userPath = (id) => `/v1/users/${encodeURIComponent(id)}`;
export const webhookPath = (id) => `/v1/webhooks/${encodeURIComponent(id)}`;

/** Where the page shows something: after the `#`, so that no id stands in a server's log or in a Referer. */
export const places = {
  overview: () => "#/",
  conversations: (query) => `#/conversations${search(query)}`,
  conversation: (id) => `#/conversation/${encodeURIComponent(id)}`,
  user: (id) => `#/user/${encodeURIComponent(id)}`,
  dead: () => "#/dead",
  webhooks: () => "#/webhooks",
  webhook: (id) => `#/webhook/${encodeURIComponent(id)}`,
  alerts: () => "#/alerts",
};

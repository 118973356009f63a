// What changes by itself: the sampled figures, asked for each period, and the stream of events. Open it to change how
// the page keeps up.
//
// Both rest while the page is hidden, and go on when it is seen again. A browser opens few connections to one server:
// hidden pages must not hold them.

import { get } from "./api.js";

const KEPT_SECONDS = 600;
const SLOWEST_SECONDS = 10;
const SEVERAL_ANSWERS = 30;

/** The figures of the installation as they were answered last, and the samples of the last ten minutes. */
class Figures {
  latest = null;
  samples = [];
  /**
   * `waiting` before the first answer, `live`, `late` while answers fail, `paused` while the page is hidden; `off` where
   * there are none: they are not taken here, or the key does not read.
   */
  state = "waiting";
  problem = null;
  #watchers = new Set();
  #timer = null;
  #several = 0;
  #failures = 0;
  #asking = false;
  #running = false;
  #session = 0;

  constructor() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#rest() : this.#wake()));
  }

  /** Call `then` now and after each answer, until `signal` ends it. */
  watch(then, signal) {
    this.#watchers.add(then);
    signal?.addEventListener("abort", () => this.#watchers.delete(then));
    then(this);
  }

  start() {
    this.#running = true;
    this.#wake();
  }

  /** Ask no more, and forget what was answered: it was for a session that is over. */
  stop() {
    this.#running = false;
    this.#session += 1;
    clearTimeout(this.#timer);
    this.latest = null;
    this.samples = [];
    this.state = "waiting";
  }

  #rest() {
    clearTimeout(this.#timer);
    if (this.#running) this.#set("paused");
  }

  #wake() {
    clearTimeout(this.#timer);
    if (this.#running && !document.hidden) this.#ask();
  }

  async #ask() {
    if (this.#asking) return;
    this.#asking = true;
    const session = this.#session;
    try {
      // Behind one address may be several processes, each with numbers of its own: then each answers with all it has.
      const since = this.#several ? undefined : this.samples.at(-1)?.seq;
      const answer = await get("/v1/figures", { query: { since } });
      this.#failures = 0;
      // What was asked for in a session that is over meanwhile is not for the next one.
      if (session === this.#session) this.#take(answer);
      if (this.#running) this.#set(document.hidden ? "paused" : "live");
    } catch (error) {
      this.#failures += 1;
      this.problem = error;
      if (this.#running) this.#set([403, 404].includes(error.status) ? "off" : "late");
    } finally {
      this.#asking = false;
    }
    if (!this.#running || document.hidden || this.state === "off") return;
    const period = this.latest?.seconds ?? 2;
    this.#timer = setTimeout(() => this.#ask(), 1000 * Math.min(SLOWEST_SECONDS, period * (1 + this.#failures)));
  }

  #take(answer) {
    const { samples, ...latest } = answer;
    const other = this.latest !== null && latest.process !== this.latest.process;
    this.#several = other ? SEVERAL_ANSWERS : Math.max(0, this.#several - 1);
    const last = this.samples.at(-1)?.seq ?? 0;
    // A process that was started anew counts from its beginning.
    const anew = other || this.#several || (samples.length && samples.at(-1).seq <= last);
    const all = [...(anew ? [] : this.samples), ...samples];
    // By the server's clock: the browser's may be wrong.
    this.samples = all.filter((one) => one.at > all.at(-1).at - KEPT_SECONDS);
    this.latest = latest;
    this.problem = null;
  }

  #set(state) {
    this.state = state;
    for (const then of this.#watchers) then(this);
  }
}

export const figures = new Figures();

/** The types of events that are appended here, as the server wrote them into the page; none where there is no stream. */
const types = () => (document.documentElement.dataset.events ?? "").split(" ").filter(Boolean);

/**
 * Call `then(event)` when something happens to a conversation; where there is no stream, call it without an event
 * every `seconds`. Until `signal` ends it. Nothing is called while the page is hidden, but once when it is seen again.
 */
export function watchEvents(then, signal, seconds = 5) {
  let source = null;
  let timer = null;

  function open() {
    if (document.hidden || signal.aborted) return;
    if (types().length) {
      source = new EventSource("/v1/events");
      for (const type of types()) source.addEventListener(type, (event) => then(read(event)));
      source.addEventListener("error", () => {
        // The browser opens it again by itself, but not after an answer that is no stream: then it is asked for.
        if (source?.readyState === EventSource.CLOSED && !timer) timer = setInterval(then, 1000 * seconds);
      });
    } else timer = setInterval(then, 1000 * seconds);
  }

  function close() {
    source?.close();
    clearInterval(timer);
    source = timer = null;
  }

  function turn() {
    close();
    if (document.hidden) return;
    open();
    then();
  }

  document.addEventListener("visibilitychange", turn, { signal });
  signal.addEventListener("abort", close);
  open();
}

function read(event) {
  try {
    return JSON.parse(event.data);
  } catch {
    return undefined;
  }
}

/** Return a function that calls `act` at most once in so many milliseconds, and once more for calls in between. */
export function seldom(act, milliseconds, signal) {
  let timer = null;
  let again = false;
  const call = () => {
    if (signal.aborted) return;
    if (timer) {
      again = true;
      return;
    }
    act();
    timer = setTimeout(() => {
      timer = null;
      if (again) {
        again = false;
        call();
      }
    }, milliseconds);
  };
  return call;
}

// What changes by itself: the live stream, with the sampled figures and with word that lists are old. Open it to change
// how the page keeps up.
//
// There is one stream, whatever is shown. It rests while the page is hidden, and is opened again when it is seen. Where
// there is none, the figures are asked for, and lists are read, every few seconds.

import { get } from "./api.js";

const KEPT_SECONDS = 600;
const ASKED_SECONDS = 5;
const STREAM_AGAIN_SECONDS = 30;
const SILENT_SECONDS = 20;
const SPREAD_MS = 500;

class Live {
  /** The figures as they were sent last, without the samples, and the samples of the last ten minutes. */
  latest = null;
  samples = [];
  /**
   * `waiting` before the first figures, `live`, `late` while none come, `paused` while the page is hidden; `off` where
   * there are none: they are not taken here, or the key does not read.
   */
  state = "waiting";
  problem = null;
  #watchers = new Set();
  #followers = new Set();
  #source = null;
  #takes = null;
  #timer = null;
  #silence = null;
  #again = 0;
  #several = false;
  #asking = false;
  #running = false;
  #session = 0;

  constructor() {
    document.addEventListener("visibilitychange", () => this.#turn());
    // Of a network that has gone a stream learns late. Where convo is on this machine, it is reached all the same.
    for (const change of ["offline", "online"]) addEventListener(change, () => this.#turn());
  }

  /** Call `then` now and after each sample, until `signal` ends it. */
  watch(then, signal) {
    this.#watchers.add(then);
    signal?.addEventListener("abort", () => this.#watchers.delete(then));
    then(this);
  }

  /**
   * Call `then(number)` when something may have happened to conversations, until `signal` ends it. An answer up to that
   * event is good enough (`as_of`); without a number it has to be a new one. Nothing is called while the page is hidden.
   */
  follow(then, signal) {
    this.#followers.add(then);
    signal.addEventListener("abort", () => this.#followers.delete(then));
  }

  start() {
    this.#running = true;
    this.#turn();
  }

  /** End, and forget what came: it was for a session that is over. */
  stop() {
    this.#running = false;
    this.#session += 1;
    this.#close();
    this.latest = null;
    this.samples = [];
    this.state = "waiting";
  }

  #turn() {
    this.#close();
    if (!this.#running) return;
    if (document.hidden) this.#set("paused");
    else this.#open();
  }

  #close() {
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    this.#source?.close();
    this.#source = null;
  }

  #open() {
    const source = this.#source = new EventSource("/v1/live");
    const listen = (type, then) => source.addEventListener(type, (event) => {
      if (source !== this.#source) return;
      this.#listened();
      then(event.data ? JSON.parse(event.data) : null);
    });
    listen("live", (takes) => {
      this.#takes = takes;
      this.#several = false;
      if (!takes.figures) this.#set("off");
      // Something may have happened before the stream was there, or while it was not.
      this.#tell();
      if (!takes.changes) this.#tellByTime();
    });
    listen("figures", (figures) => {
      this.#take(figures);
      this.#set("live");
    });
    listen("changes", ({ sequence }) => {
      // Not all who look come in the same moment.
      setTimeout(() => this.#tell(sequence), SPREAD_MS * Math.random());
    });
    source.addEventListener("error", () => {
      if (source !== this.#source) return;
      if (this.state !== "off") this.#set("late");
      // The browser opens it again by itself, but not after an answer that is no stream: why, only a question tells.
      if (source.readyState === EventSource.CLOSED) this.#askInstead();
    });
    this.#listened();
  }

  /** A connection that is gone without a word (a laptop that slept) is opened anew. */
  #listened() {
    clearTimeout(this.#silence);
    // Without figures nothing comes for hours.
    if (this.#takes?.figures !== false) this.#silence = setTimeout(() => this.#turn(), 1000 * SILENT_SECONDS);
  }

  #tell(number) {
    if (document.hidden || !this.#running) return;
    for (const then of this.#followers) then(number);
  }

  #tellByTime() {
    this.#timer = setTimeout(() => {
      this.#tell();
      this.#tellByTime();
    }, 1000 * ASKED_SECONDS);
  }

  #askInstead() {
    this.#close();
    this.#again = Date.now() + 1000 * STREAM_AGAIN_SECONDS;
    this.#ask();
  }

  async #ask() {
    if (this.#asking) return;
    this.#asking = true;
    const session = this.#session;
    try {
      // Behind one address may be several processes, each with numbers of its own: then each answers with all it has.
      const since = this.#several ? undefined : this.samples.at(-1)?.seq;
      const answer = await get("/v1/figures", { query: { since } });
      // What was asked for in a session that is over meanwhile is not for the next one.
      if (session === this.#session) this.#take(answer);
      if (this.#running) this.#set(document.hidden ? "paused" : "live");
    } catch (error) {
      this.problem = error;
      if (this.#running) this.#set([403, 404].includes(error.status) ? "off" : "late");
    } finally {
      this.#asking = false;
    }
    if (!this.#running || document.hidden || this.#source) return;
    this.#tell();
    this.#timer = setTimeout(() => (Date.now() < this.#again ? this.#ask() : this.#turn()), 1000 * ASKED_SECONDS);
  }

  #take(answer) {
    const { samples, ...latest } = answer;
    const other = this.latest !== null && latest.process !== this.latest.process;
    if (other) this.#several = true;
    const last = this.samples.at(-1)?.seq ?? 0;
    // A process that was started anew counts from its beginning; a stream begins with all samples.
    const anew = other || this.#several || (samples.length && samples[0].seq <= last);
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

export const live = new Live();

/** Return a function that calls `act` at most once in so many milliseconds, and once more for calls in between. */
export function seldom(act, milliseconds, signal) {
  let timer = null;
  let again = null;
  const call = (...given) => {
    if (signal.aborted) return;
    if (timer) {
      again = given;
      return;
    }
    act(...given);
    timer = setTimeout(() => {
      timer = null;
      if (again) {
        const last = again;
        again = null;
        call(...last);
      }
    }, milliseconds);
  };
  return call;
}

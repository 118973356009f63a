// The wall view, /live: a few big figures for a screen that nobody touches. Open it to change what hangs on the wall.

import { LEVEL_TONES, bySeverity } from "./alerts.js";
import { badge, el, setText } from "./dom.js";
import { live } from "./live.js";
import { CHARTS, TILES, charts, tiles } from "./overview.js";
import { clock, t, word } from "./text.js";

const ON_THE_WALL = ["accepts", "latency", "refused", "queue", "oldest", "done"];

/** Show the wall view until `signal` ends it. */
export function showWall(main, { signal }) {
  const now = el("p", { class: "wall-clock" });
  const state = el("p", { class: "wall-state" });
  const big = tiles(TILES.filter((one) => ON_THE_WALL.includes(one.key)));
  const drawn = charts(CHARTS.slice(0, 2), { signal, height: 190 });
  const alerts = el("ul", { class: "wall-list" });
  const dependencies = el("ul", { class: "wall-list" });
  main.append(el("div", { class: "wall" },
    el("div", { class: "wall-head" }, el("h1", { text: "convo" }), state, now), big, el("div", { class: "charts" }, drawn),
    el("div", { class: "wall-lists" },
      el("section", { "aria-labelledby": "wall-alerts" }, el("h2", { id: "wall-alerts", text: t("alerts.title") }), alerts),
      el("section", { "aria-labelledby": "wall-dependencies" }, el("h2", { id: "wall-dependencies", text: t("overview.dependencies") }), dependencies))));
  const ticking = setInterval(() => setText(now, clock(new Date())), 1000);
  signal.addEventListener("abort", () => clearInterval(ticking));
  setText(now, clock(new Date()));
  live.watch(({ latest, samples, state: standing, problem }) => {
    setText(state, standing === "late" ? t("live.late", { why: problem?.message ?? "" }) : word("live", standing));
    state.className = `wall-state ${standing === "late" ? "bad" : ""}`;
    if (!latest) return;
    big.update(latest, samples);
    for (const one of drawn) one.update(samples);
    const active = bySeverity(latest.alerts);
    alerts.replaceChildren(...(active.length
      ? active.map((one) => el("li", {}, badge(word("level", one.level), LEVEL_TONES[one.level]), ` ${one.type} · ${one.component}`))
      : [el("li", { class: "quiet", text: t("alerts.none") })]));
    const shown = latest.dependencies.map((one) =>
      el("li", {}, badge(word("breaker", one.state), one.state === "closed" ? "good" : "bad"), ` ${one.name}`));
    dependencies.replaceChildren(...(shown.length ? shown : [el("li", { class: "quiet", text: t("overview.no_dependencies") })]));
  }, signal);
}

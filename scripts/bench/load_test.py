#!/usr/bin/env python3
"""Raise the rate until one convo ends, hold it below that, go beyond, and let it recover: with a report as a page.

After each step ``GET /v1/capacity`` is asked where the end will be. What it answered after the low steps, up to half
of the rate that was found, stands beside that at the end of the run. The load is an open loop: a request is sent when
it is due, whatever became of the others.

    .venv/bin/python scripts/bench/load_test.py --mode accepts      # jobs.workers = 0: receipts alone
    .venv/bin/python scripts/bench/load_test.py --mode embedded     # with the embedded analyst
    .venv/bin/python scripts/bench/load_test.py --mode model        # with a model that takes 0.4 s (slow_model.py)

It takes about three minutes; ``--step-seconds 3 --hold-seconds 5`` is a quick look. Client, convo and PostgreSQL share
the machine, and so does the forecast: its ``machine`` counts them all. What the client takes is said at the end, and
what others took before the first step: where that is much, the end moves with it, and a run says little. Exit code 1
where the forecast is off by more than 20 %.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import httpx
import msgspec
from msgspec import Struct
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.capacity.ceilings import Ceiling
from convo.capacity.forecast import CapacityReport
from convo.capacity.machine_cpu import MachineCpu
from scripts.bench import databases, load, machine, overload, plots, servers
from scripts.bench.plots import Phase, Plot

console = Console()
BODY_BYTES = 4_000
CONNECTIONS = 128
WITHIN = 0.2
# A step in which less than this of what was offered was done is past the end.
KEPT_UP = 0.95
# So much of what comes may be under way.
BACKLOG_SECONDS = 1.5
# The first analyses of a step are those of what came before it.
_SETTLING_SECONDS = 1.5
QUIET_SECONDS = 6.0
# So many cores are taken by others on a machine that is not quiet.
OTHERS_CORES = 0.3
STEPS_MAX = 14
DRAIN_SECONDS = 25.0
RECOVER_SECONDS = 30.0
HALVINGS = 2
_LOW = 0.5
_BEYOND = 1.4
_HELD = 0.8
_CALM = 0.2


class Mode(Struct, frozen=True, kw_only=True):
    """What is measured: the first rate, the factor between two steps, and the settings of convo."""

    analyses: bool
    first: float
    factor: float
    settings: dict[str, str]


MODES = {
    "accepts": Mode(analyses=False, first=100.0, factor=1.7, settings={"jobs.workers": "0"}),
    "embedded": Mode(analyses=True, first=8.0, factor=1.5, settings={"jobs.workers": "8"}),
    "model": Mode(
        analyses=True,
        first=5.0,
        factor=1.6,
        settings={"jobs.workers": "64", "llm.model": "slow", "llm.concurrency": "16"},
    ),
}
MODEL_SECONDS = 0.4


class Step(Struct, frozen=True, kw_only=True):
    """One stretch at one rate, in conversations a second and milliseconds; ``done`` is what counts as its end."""

    phase: str
    begins: float
    ends: float
    offered: float
    answered: float
    analysed: float
    failed: int
    p50: float
    p99: float
    queue: float
    analyses: bool
    client_cores: float

    @property
    def done(self) -> float:
        """The rate of what the mode measures; of analyses, those of what came in this step alone."""
        return min(self.analysed, self.answered) if self.analyses else self.answered

    @property
    def kept_up(self) -> bool:
        """Whether nearly all that was offered was answered, and what waits is no more than comes in a moment."""
        return self.answered >= KEPT_UP * self.offered and self.queue <= BACKLOG_SECONDS * self.offered + 3


class Second(Struct, frozen=True, kw_only=True):
    """What was seen in one second of the run: of the server, and of the machine in cores."""

    at: float
    analysed: float
    queue: float
    process_cores: float
    machine_cores: float


class Timed(overload.Seen):
    """As the flood sees it, with the moment of each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[float, float]] = []

    def note(self, answer: bytes, seconds: float) -> None:
        """Take in an answer."""
        before = len(self.let_in)
        super().note(answer, seconds)
        if len(self.let_in) > before:
            self.answers.append((time.monotonic(), seconds))


class Watch:
    """Looks at the server once a second, in a thread of its own, until it is closed."""

    def __init__(self, convo: servers.Server, *, analyses: bool) -> None:
        self._convo = convo
        self._analyses = analyses
        self._machine = MachineCpu()
        self.began = time.monotonic()
        self.seconds: list[Second] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def now(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.began

    def figures(self) -> tuple[float, float]:
        """Return how many conversations were analysed so far, and how many wait to be."""
        lines = httpx.get(f"{self._convo.url}/metrics", timeout=20).text.splitlines()
        settled = overload.figure_of(lines, 'convo_jobs_ended_total{ending="settle"}')
        accepted = overload.figure_of(lines, "convo_intake_batch_rows_sum")
        # Where nothing is analysed, nothing waits for it.
        return settled, accepted - settled if self._analyses else 0.0

    def _run(self) -> None:
        before = self._read()
        while not self._closed.wait(max(0.0, before[0] + 1.0 - time.monotonic())):
            now = self._read()
            passed = now[0] - before[0]
            analysed, process, all_cores = ((now[at] - before[at]) / passed for at in (1, 3, 4))
            self.seconds.append(
                Second(
                    at=now[0] - self.began,
                    analysed=analysed,
                    queue=now[2],
                    process_cores=process,
                    machine_cores=all_cores,
                )
            )
            before = now

    def _read(self) -> tuple[float, float, float, float, float]:
        analysed, queue = self.figures() if self._analyses else (0.0, 0.0)
        cpu = machine.cpu_seconds(self._convo.pid)
        return time.monotonic(), analysed, queue, cpu, self._machine.read()


class Run:
    """One load test of a running convo."""

    def __init__(self, convo: servers.Server, mode: Mode, asked: argparse.Namespace, watch: Watch) -> None:
        self._convo, self._mode, self._asked, self._watch = convo, mode, asked, watch
        self._tails = load.real_tails(BODY_BYTES)
        self.steps: list[Step] = []
        self.answers: list[tuple[float, float]] = []
        self._forecasts: list[tuple[float, CapacityReport]] = []
        self.others_cores = 0.0
        self.recovered_seconds: float | None = None

    def whole(self) -> None:
        """Ramp, hold, go beyond, recover."""
        time.sleep(QUIET_SECONDS)
        # The first second is that in which convo begins.
        self.others_cores = statistics.median([one.machine_cores for one in self._watch.seconds][1:] or [0.0])
        self._ramp()
        knee = self.knee()
        self._step("hold", _HELD * knee, self._asked.hold_seconds)
        self._step("beyond", _BEYOND * knee, self._asked.step_seconds)
        self._recover(knee)

    def knee(self) -> float:
        """Return the highest rate that was done in any step so far, but for those that only work off what was left."""
        return max(step.done for step in self.steps if step.phase != "recover")

    @property
    def forecast(self) -> CapacityReport:
        """The forecast that was made after the last low step: of those up to half of the rate that was found."""
        low = [report for rate, report in self._forecasts if rate <= _LOW * self.knee()]
        return low[-1] if low else self._forecasts[0][1]

    def predicted(self) -> Ceiling | None:
        """Return what was forecast in the low steps for what is measured."""
        return self._ceiling(self.forecast)

    def ramp_forecasts(self) -> list[tuple[float, Ceiling | None, float | None]]:
        """Return what was forecast after each step of the ramp, and the load ratio then."""
        return [(rate, self._ceiling(report), report.load_ratio) for rate, report in self._forecasts]

    def leap(self) -> float:
        """Return by how many times the forecast changed from one step of the ramp to the next, at most."""
        return largest_leap([one.per_second for _, one, _ in self.ramp_forecasts() if one is not None])

    def client(self) -> tuple[float, float]:
        """Return what the client took in the fastest step: cores, and seconds of a conversation."""
        fastest = max(self.steps, key=lambda step: step.answered)
        return fastest.client_cores, fastest.client_cores / max(fastest.answered, 1.0)

    def _ceiling(self, report: CapacityReport) -> Ceiling | None:
        return report.analyses if self._mode.analyses else report.accepts

    def _ramp(self) -> None:
        rate, good = self._mode.first, 0.0
        for _ in range(STEPS_MAX):
            kept_up = self._step("ramp", rate, self._asked.step_seconds).kept_up
            self._ask_forecast(rate)
            if not kept_up:
                # One stall of the machine is no end.
                self._drain()
                kept_up = self._step("ramp", rate, self._asked.step_seconds).kept_up
            if not kept_up:
                break
            good, rate = rate, rate * self._mode.factor
        # The end is somewhere between the last rate that was kept up with and the first that was not.
        bad = rate
        for _ in range(HALVINGS if good else 0):
            self._drain()
            middle = (good + bad) / 2
            if self._step("ramp", middle, self._asked.step_seconds).kept_up:
                good = middle
            else:
                bad = middle
        self._drain()

    def _ask_forecast(self, rate: float) -> None:
        answer = httpx.get(f"{self._convo.url}/v1/capacity", timeout=20)
        report = msgspec.json.decode(answer.raise_for_status().content, type=CapacityReport)
        self._forecasts.append((rate, report))
        ceiling = self._ceiling(report)
        if ceiling is not None:
            console.print(f"  forecast: {described(ceiling)}; load ratio {report.load_ratio or 0:.2f}", style="dim")

    def _step(self, phase: str, rate: float, seconds: float) -> Step:
        seen = Timed()
        flood = overload.Flood(
            f"{self._convo.url}/v1/conversations/end",
            self._tails,
            self._convo.pid,
            connections=CONNECTIONS,
            settling_seconds=0.3,
            seen=seen,
        )
        analysed, _ = self._watch.figures()
        began, client = self._watch.now(), time.process_time()
        flood.run(rate, seconds)
        client_cores = (time.process_time() - client) / (self._watch.now() - began)
        ends, (analysed_now, queue) = self._watch.now(), self._watch.figures()
        seen_of_step = [one.analysed for one in self._watch.seconds if began + _SETTLING_SECONDS + 1 <= one.at <= ends]
        last = self._watch.began + began + 0.3 + seconds
        in_time = [one for one in seen.answers if one[0] <= last]
        self.answers += [(at - self._watch.began, latency) for at, latency in seen.answers]
        ordered = sorted(latency for _, latency in seen.answers) or [0.0]
        step = Step(
            phase=phase,
            begins=began,
            ends=ends,
            offered=rate,
            answered=len(in_time) / seconds,
            analysed=statistics.mean(seen_of_step or [(analysed_now - analysed) / (ends - began)]),
            failed=len(seen.refused) + seen.broken,
            p50=statistics.median(ordered) * 1e3,
            p99=ordered[len(ordered) * 99 // 100] * 1e3,
            queue=queue,
            analyses=self._mode.analyses,
            client_cores=client_cores,
        )
        self.steps.append(step)
        console.print(
            f"{phase}: {rate:,.0f}/s offered, {step.answered:,.0f}/s answered, {step.analysed:,.1f}/s analysed,"
            f" p50 {step.p50:.1f} ms, p99 {step.p99:.1f} ms, {step.failed} failed, {queue:,.0f} wait"
        )
        return step

    def _drain(self) -> None:
        until = time.monotonic() + DRAIN_SECONDS
        while self._mode.analyses and time.monotonic() < until and self._watch.figures()[1] > 1:
            time.sleep(0.5)

    def _recover(self, knee: float) -> None:
        """Offer little, and see how long it takes until nothing waits and answers are as fast as they were."""
        calm = next(step for step in self.steps if step.phase == "hold")
        began = time.monotonic()
        while time.monotonic() < began + RECOVER_SECONDS:
            step = self._step("recover", _CALM * knee, 2.0)
            # Within two seconds of work: what has just come is no backlog.
            if step.queue <= 2 * _CALM * knee and step.p99 <= max(2 * calm.p99, 50.0):
                self.recovered_seconds = time.monotonic() - began
                return


def main() -> int:
    """Measure, print and write the page; return 0 where the forecast was right within 20 %."""
    asked = _arguments()
    mode = MODES[asked.mode]
    with (
        tempfile.TemporaryDirectory(prefix="convo-load-") as folder,
        databases.database(asked.database_url, "load") as database,
        _model(Path(folder), mode) as model,
    ):
        settings = {
            **mode.settings,
            **model,
            "capacity.sample_seconds": "1",
            "capacity.window_seconds": "600",
            # The load ratio is to be that of the step, and not of those before it.
            "capacity.smoothing_seconds": "2",
            "llm.api_key": "none" if model else "",
        }
        with (
            servers.convo(Path(folder), database, {name: one for name, one in settings.items() if one}) as convo,
            Watch(convo, analyses=mode.analyses) as watch,
        ):
            about = machine.about(databases.described(asked.database_url))
            for name, text in about.items():
                console.print(f"{name}: {text}", style="dim")
            run = Run(convo, mode, asked, watch)
            run.whole()
    return _report(asked, run, watch, about)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=tuple(MODES), default="accepts")
    parser.add_argument("--step-seconds", type=float, default=6.0, help="how long each rate of the ramp lasts")
    parser.add_argument("--hold-seconds", type=float, default=25.0, help="how long 0.8 of the end is held")
    parser.add_argument("--database-url", default=databases.GIVEN)
    parser.add_argument("--out", type=Path, default=Path("load-test.html"), help="the page (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="the steps and the forecast as JSON")
    return parser.parse_args()


@contextlib.contextmanager
def _model(folder: Path, mode: Mode) -> Iterator[dict[str, str]]:
    """Run the slow model where the mode has one; yield the settings that lead to it."""
    if "llm.model" not in mode.settings:
        yield {}
        return
    port = servers.free_port()
    command = [sys.executable, str(servers.HERE / "slow_model.py"), str(port), str(MODEL_SECONDS)]
    with servers.serving(command, f"http://127.0.0.1:{port}", folder / "model.log") as model:
        yield {"llm.base_url": model.url}


def off_by(predicted: float, measured: float) -> float:
    """Return by how much a forecast is off, as a share of what was measured; above 0 it was too hopeful."""
    return predicted / measured - 1.0


def described(ceiling: Ceiling) -> str:
    """Return a forecast as a few words, with its range."""
    return f"{ceiling.per_second:,.1f}/s, {ceiling.low:,.1f} to {ceiling.high:,.1f} ({ceiling.bottleneck})"


def _conditions(run: Run) -> list[str]:
    """Return what a reader must know of the machine, besides its name."""
    cores, each = run.client()
    taken = f"{cores:.2f} cores in the fastest step, {each * 1e3:.3f} ms a conversation"
    said = [
        f"The client took {taken}: in the forecast it is part of machine, and not of interpreter.",
        f"From one step of the ramp to the next the forecast changed by {run.leap():.2f} times at most.",
    ]
    if any(step.phase == "beyond" and step.kept_up for step in run.steps):
        said.append("NOT THE END: convo kept up with what was to be beyond it. Others may have held it up before.")
    if run.others_cores > OTHERS_CORES:
        said.append(f"NOT A QUIET MACHINE: others used {run.others_cores:.1f} cores before the first step.")
    return said


def largest_leap(figures: Sequence[float]) -> float:
    """Return by how many times a figure differs from the one before it, up or down, at most."""
    return max((max(one / other, other / one) for one, other in itertools.pairwise(figures)), default=1.0)


def _report(asked: argparse.Namespace, run: Run, watch: Watch, about: dict[str, str]) -> int:
    knee, predicted = run.knee(), run.predicted()
    off = off_by(predicted.per_second, knee) if predicted is not None else None
    verdict = "no forecast was made in the low steps"
    if predicted is not None and off is not None:
        verdict = (
            f"forecast {described(predicted)}, measured {knee:,.1f}/s:"
            f" off by {off:+.0%}, {'within' if abs(off) <= WITHIN else 'MORE THAN'} 20 %"
        )
    recovered = "not within 30 s" if run.recovered_seconds is None else f"in {run.recovered_seconds:.0f} s"
    console.print(verdict, style="bold")
    said = [f"Recovered {recovered}.", *_conditions(run)]
    for one in said:
        console.print(one)
    asked.out.write_text(page(asked.mode, run, watch.seconds, about, [verdict, *said]), "utf-8")
    console.print(f"report: {asked.out}")
    if asked.json:
        whole = {
            "mode": asked.mode,
            "knee": knee,
            "steps": run.steps,
            "forecast": run.forecast,
            "off": off,
            "ramp": run.ramp_forecasts(),
            "leap": run.leap(),
            "others_cores": run.others_cores,
        }
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode({**whole, "about": about})))
    return 0 if off is not None and abs(off) <= WITHIN else 1


# --- the page


def page(mode: str, run: Run, seconds: Sequence[Second], about: dict[str, str], verdicts: Sequence[str]) -> str:
    """Write the report as a page of its own."""
    phases = list(_phases_of(run.steps))
    predicted = run.predicted()
    marks = {} if predicted is None else {"forecast": predicted.per_second}
    analysed = {"analysed": [(one.at, one.analysed) for one in seconds]} if any(one.analysed for one in seconds) else {}
    by_second = _by_second(run.answers)
    latencies = {
        "p50": [(at, statistics.median(found) * 1e3) for at, found in by_second],
        "p99": [(at, sorted(found)[len(found) * 99 // 100] * 1e3) for at, found in by_second],
    }
    offered = [point for step in run.steps for point in ((step.begins, step.offered), (step.ends, step.offered))]
    rates = {"offered": offered, "answered": [(at, float(len(found))) for at, found in by_second], **analysed}
    drawn = [
        Plot(title="Conversations a second", curves=rates, marks=marks),
        Plot(title="Latency of an accept, ms", curves=latencies),
        Plot(
            title="Conversations that wait to be analysed", curves={"queue": [(one.at, one.queue) for one in seconds]}
        ),
        Plot(
            title="Processor, in cores",
            curves={
                "convo": [(one.at, one.process_cores) for one in seconds],
                "whole machine": [(one.at, one.machine_cores) for one in seconds],
            },
        ),
    ]
    head = ("phase", "offered/s", "answered/s", "analysed/s", "p50 ms", "p99 ms", "failed", "queue")
    rows = [
        (one.phase, one.offered, one.answered, one.analysed, one.p50, one.p99, one.failed, one.queue)
        for one in run.steps
    ]
    return plots.write_page(
        f"convo load test: {mode}",
        [
            *map(plots.paragraph, verdicts),
            *(plots.draw(plot, phases) for plot in drawn),
            "<h2>Forecast, made in the low steps</h2>",
            plots.paragraph(run.forecast.measured.note),
            plots.table(
                ("resource", "limits", "conversations/s", "formula"),
                [(one.name, one.limits, one.per_second, one.formula) for one in run.forecast.resources],
            ),
            "<h2>Forecast after each step of the ramp</h2>",
            plots.table(
                ("offered/s", "forecast", "load ratio"),
                [
                    (rate, "" if one is None else described(one), "" if ratio is None else f"{ratio:.2f}")
                    for rate, one, ratio in run.ramp_forecasts()
                ],
            ),
            "<h2>Steps</h2>",
            plots.table(head, rows),
            "<h2>Conditions</h2>",
            plots.table(("what", "as found"), list(about.items())),
        ],
    )


def _phases_of(steps: Sequence[Step]) -> Iterator[Phase]:
    """Join the steps of one phase that follow each other."""
    begun: Step | None = None
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        begun = step if begun is None else begun
        if following is None or following.phase != step.phase:
            yield Phase(name=step.phase, begins=begun.begins, ends=step.ends)
            begun = None


def _by_second(answers: Sequence[tuple[float, float]]) -> list[tuple[float, list[float]]]:
    found: dict[int, list[float]] = {}
    for at, latency in answers:
        found.setdefault(int(at), []).append(latency)
    return [(at + 1.0, found[at]) for at in sorted(found)]


if __name__ == "__main__":
    sys.exit(main())

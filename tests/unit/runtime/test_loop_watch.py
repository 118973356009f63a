from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from convo.observe import log_records, metrics
from convo.runtime.bridge import open_bridge
from convo.runtime.loop_watch import LoopBlock, LoopWatch, watching

ROOT = Path(__file__).parents[3]
LIMIT = 0.05


def watched(main: Callable[[], Awaitable[None]], limit: float = LIMIT) -> list[LoopBlock]:
    """Run a function of Trio; return what was told of it."""
    told: list[LoopBlock] = []
    with LoopWatch(limit, told.append) as watch:
        trio.run(main, instruments=[watch])
    return told


def planted(act: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    """Make a program in which one task of several does something that takes its time."""

    async def culprit() -> None:
        with log_records.bound(conversation_id="held-1"):
            await trio.sleep(3 * LIMIT)
            act()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 6 * LIMIT, name="innocent")
            nursery.start_soon(culprit, name="culprit")

    return main


def block(limits: float = 4) -> None:
    time.sleep(limits * LIMIT)


def line_of(act: Callable[[], object], text: str) -> str:
    """Name the place in this file of a line of a function."""
    code = act.__code__
    lines = Path(__file__).read_text("utf-8").splitlines()
    line = next(n for n in range(code.co_firstlineno, len(lines)) if text in lines[n - 1])
    return f"tests/unit/runtime/test_loop_watch.py:{line} {code.co_name}"


def long_text() -> str:
    return json.dumps([0.1234567] * 1_500_000)


# --- what is told of it


def test_a_sleep_that_holds_the_loop_is_reported_once_with_its_line_its_task_and_its_conversation() -> None:
    (held,) = watched(planted(block))
    assert (held.cause, held.task, held.conversation_id, held.over) == ("code", "culprit", "held-1", True)
    assert held.stack[0] == line_of(block, "time.sleep(")
    assert held.stack[-1].endswith(" culprit")
    assert held.seconds >= 4 * LIMIT
    assert held.cpu_seconds < held.seconds / 2


def test_a_c_function_that_keeps_the_interpreters_lock_is_named_by_who_called_it() -> None:
    text = long_text()

    def decode() -> None:
        for _ in range(times):
            json.loads(text)

    stack: tuple[str, ...] = ()
    for times in range(1, 21):  # noqa: B007  (decode reads it)
        (held,) = watched(planted(decode))
        stack = tuple(held.stack)
        assert held.cause == "code"
        assert (held.task, held.conversation_id) == ("culprit", "held-1")
        assert held.cpu_seconds > LIMIT
        # The watchdog looks when the lock is let go: on a busy machine it may be given a processor a moment too late.
        # Each further try holds the lock for longer.
        if line_of(decode, "json.loads(text)") in stack:
            return
    pytest.fail(f"never named: {stack}")


def test_a_loop_that_is_not_held_is_not_reported() -> None:
    async def main() -> None:
        for _ in range(50):
            await trio.sleep(LIMIT / 20)

    assert [held for held in watched(main) if held.cause == "code"] == []


def test_inside_asyncio_the_stack_names_the_culprit() -> None:
    async def culprit() -> None:
        block()

    async def main() -> None:
        async with open_bridge() as bridge:
            await trio.sleep(3 * LIMIT)
            await bridge.cross(culprit)

    (held,) = (held for held in watched(main) if held.cause == "code")
    assert held.stack[:2] == (line_of(block, "time.sleep("), line_of(culprit, "block()"))


async def _stuck() -> None:
    await trio.sleep(LIMIT)
    block(1 / LIMIT)


def test_what_seems_to_hold_the_loop_for_ever_is_reported_meanwhile_and_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("convo.runtime.loop_watch._STUCK_SECONDS", 0.2)
    held, ended = watched(_stuck)
    assert (held.over, held.stack[1].endswith(" _stuck")) == (False, True)
    assert 0.2 <= held.seconds < 1
    assert (ended.over, ended.stack) == (True, held.stack)
    assert ended.seconds >= 1


# --- what is nobody's fault


def test_a_pause_of_the_collector_is_not_called_the_codes() -> None:
    junk: list[Any] = []
    seconds = 0.0
    # As much as this machine takes long enough for.
    while seconds < 3 * LIMIT:
        junk.extend([junk] for _ in range(300_000))
        began = time.perf_counter()
        gc.collect()
        seconds = time.perf_counter() - began

    # A busy machine may hold another pass, too, but not for as long.
    held = max(watched(planted(gc.collect)), key=lambda one: one.seconds)
    assert (held.cause, held.stack) == ("collector", ())
    assert held.collector_seconds > held.seconds / 2


_STOPPED = """
import sys, time, trio
from convo.runtime.loop_watch import LoopWatch

def work(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))

async def main():
    await trio.sleep(0.3)
    print("now", flush=True)
    if sys.argv[1] == "at work":
        work(1.0)
    else:
        await trio.sleep(1.0)
        time.sleep(0.5)
    await trio.sleep(0)

with LoopWatch(0.2, lambda held: print(held.cause, round(held.suspended_seconds), held.stack[:1], flush=True)) as watch:
    trio.run(main, instruments=[watch])
"""


def told_by_a_process_stopped_for_two_seconds(when: str) -> str:
    command = [sys.executable, "-c", _STOPPED, when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(process.pid, signal.SIGCONT)
        return process.stdout.read()


def test_a_process_that_was_stopped_is_called_that() -> None:
    assert told_by_a_process_stopped_for_two_seconds("at work") == "suspended 2 ()\n"


def test_a_stop_between_two_passes_excuses_neither_of_them() -> None:
    assert told_by_a_process_stopped_for_two_seconds("at rest") == "code 0 ('<string>:17 main',)\n"


# --- counting and telling


def test_every_pass_is_counted_and_every_held_one_by_its_cause() -> None:
    before = metrics.loop_blocked_total.labels("code").value
    passes = sum(metrics.loop_pass_seconds.counts)
    watched(planted(block))
    assert metrics.loop_blocked_total.labels("code").value == before + 1
    assert sum(metrics.loop_pass_seconds.counts) > passes + 3


async def test_the_services_own_watch_logs_a_record_and_leaves_no_instrument_behind() -> None:
    with capture_logs() as lines:
        with watching(LIMIT):
            await trio.lowlevel.checkpoint()
            block()
            await trio.lowlevel.checkpoint()
            assert [line["event"] for line in lines if line.get("cause") == "code"] == ["loop_blocked"]
        lines.clear()
        await trio.lowlevel.checkpoint()
        block()
        await trio.lowlevel.checkpoint()
        assert lines == []


async def test_a_limit_of_nothing_watches_nothing() -> None:
    with capture_logs() as lines, watching(0):
        block()
        await trio.lowlevel.checkpoint()
    assert lines == []


# --- the suite's own


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (pytester.path / "conftest.py").write_text("from tests.conftest import pytest_collection_modifyitems")
    pytester.makeini("[pytest]\ntrio_mode = true\nmarkers = blocks_loop(reason): may\n")
    # Alone with pytest-trio: the other plugins take long to start.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def test_a_test_that_holds_its_loop_fails_unless_it_says_why_it_may(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest, time, trio

        async def test_holds():
            await trio.sleep(0.3)
            time.sleep(1.5)

        @pytest.mark.blocks_loop(reason="it is what this one is about")
        async def test_may():
            await trio.sleep(0.3)
            time.sleep(1.5)

        async def test_waits(autojump_clock):
            await trio.sleep(10_000)
    """)
    result = suite.runpytest_subprocess("-p", "pytest_trio.plugin", f"--rootdir={suite.path}")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*the loop was held for 1.[3-9]* s (of 1.[5-9]* s*", "*test_*.py:5 test_holds"])

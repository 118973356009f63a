from __future__ import annotations

import json
import logging
import os
import pty
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio

from convo.observe import log, log_records, metrics
from convo.settings import ObserveSettings

JSON = ObserveSettings(log_format="json")
PIPE_BYTES = 65_536


class Pipe:
    """A pipe whose reading end is in the test's hands."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = {self.reading, self.writing}
        self._chunks: list[bytes] = []
        self._reader: threading.Thread | None = None

    def shut(self, end: int) -> None:
        if end in self._open:
            self._open.remove(end)
            os.close(end)

    def close(self) -> None:
        for end in tuple(self._open):
            self.shut(end)
        # A writer that was given up at its close counts what it could not write only now.
        for thread in threading.enumerate():
            if thread.name == "log writer":
                thread.join()

    def start_reading(self) -> None:
        """Read from now on, whether or not the test goes on."""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while chunk := os.read(self.reading, PIPE_BYTES):
            self._chunks.append(chunk)

    def text(self) -> str:
        """Everything that was written; nothing more can be."""
        self.shut(self.writing)
        if self._reader is None:
            self.start_reading()
        assert self._reader is not None
        self._reader.join()
        return b"".join(self._chunks).decode()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe()) as opened:
        yield opened


def dropped() -> float:
    return metrics.registry.get_sample_value("convo_log_dropped_total") or 0.0


def test_an_event_is_one_json_line_that_begins_with_time_level_and_name(pipe: Pipe) -> None:
    with log.open_log(JSON, pipe.writing):
        log_records.conflict(conversation_id="c-1")
    (line,) = pipe.lines()
    assert list(line) == ["timestamp", "level", "event", "conversation_id"]
    assert (line["level"], line["event"], line["conversation_id"]) == ("info", "conflict", "c-1")


def test_times_are_rfc_3339_in_utc(pipe: Pipe) -> None:
    with log.open_log(JSON, pipe.writing):
        log_records.service_stopping(reason="SIGTERM")
    written = pipe.lines()[0]["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", written)
    assert datetime.fromisoformat(written).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("level", "told"),
    [("debug", ["accepted", "conflict", "lease_rescued"]), ("info", ["conflict", "lease_rescued"]), ("error", [])],
)
def test_records_below_the_level_are_not_logged(pipe: Pipe, level: Any, told: list[str]) -> None:
    with log.open_log(ObserveSettings(log_format="json", log_level=level), pipe.writing):
        log_records.accepted(conversation_id="c-1", turns=2)
        log_records.conflict(conversation_id="c-1")
        log_records.lease_rescued(count=3)
    assert [line["event"] for line in pipe.lines()] == told


def test_a_bound_conversation_id_is_on_every_line_inside_and_on_none_after(pipe: Pipe) -> None:
    with log.open_log(JSON, pipe.writing):
        with log_records.bound(conversation_id="c-1"):
            log_records.slow_query(name="db.settle", seconds=2.0)
        log_records.slow_query(name="db.lease", seconds=2.0)
    inside, after = pipe.lines()
    assert inside["conversation_id"] == "c-1"
    assert "conversation_id" not in after


async def test_what_is_bound_in_one_trio_task_is_bound_in_those_it_starts_and_not_in_its_siblings(pipe: Pipe) -> None:
    async def tell(name: str) -> None:
        await trio.lowlevel.checkpoint()
        log_records.slow_query(name=name, seconds=1.0)

    async def work(conversation_id: str) -> None:
        with log_records.bound(conversation_id=conversation_id):
            async with trio.open_nursery() as nursery:
                for turn in (1, 2):
                    nursery.start_soon(tell, f"{conversation_id}{turn}")

    with log.open_log(JSON, pipe.writing):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, "a")
            nursery.start_soon(work, "b")
    told = sorted((line["conversation_id"], line["name"]) for line in pipe.lines())
    assert told == [("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")]


def test_a_missing_conversation_id_does_not_hide_a_bound_one(pipe: Pipe) -> None:
    with log.open_log(JSON, pipe.writing), log_records.bound(conversation_id="c-1"):
        log_records.request_failed(route="/x", method="GET", error=ValueError("x"), conversation_id=None)
    assert pipe.lines()[0]["conversation_id"] == "c-1"


def test_what_does_not_fit_in_the_queue_is_counted_and_reported_once_there_is_room(pipe: Pipe) -> None:
    before = dropped()
    with log.open_log(ObserveSettings(log_format="json", log_queue_lines=10), pipe.writing):
        for turn in range(5_000):
            log_records.part_failed(conversation_id=f"c-{turn}", part="emotion", attempt=1, reason="x" * 100)
        lost = dropped() - before
        pipe.start_reading()
    lines = pipe.lines()
    told = [line["lines"] for line in lines if line["event"] == "log_dropped"]
    assert lost > 4_000
    assert sum(told) == lost
    assert len(lines) - len(told) + lost == 5_000


@pytest.mark.blocks_loop(reason="the log is closed outside of any loop, and waits a second for its reader")
async def test_a_pipe_that_nobody_reads_holds_neither_the_loop_nor_the_exit(pipe: Pipe) -> None:
    before, turns = dropped(), 0
    with log.open_log(ObserveSettings(log_format="json", log_queue_lines=100), pipe.writing):
        while dropped() == before:
            log_records.conflict(conversation_id="c" * 200)
            await trio.lowlevel.checkpoint()
            turns += 1
    assert turns > PIPE_BYTES / 400


def test_a_reader_that_went_away_costs_lines_and_not_the_process(pipe: Pipe) -> None:
    before = dropped()
    pipe.shut(pipe.reading)
    with log.open_log(JSON, pipe.writing):
        for _ in range(3):
            log_records.conflict(conversation_id="c-1")
    assert dropped() == before + 3


def test_a_non_blocking_descriptor_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    with log.open_log(JSON, pipe.writing):
        for _ in range(2_000):
            log_records.conflict(conversation_id="c" * 255)
        pipe.start_reading()
    assert len(pipe.lines()) == 2_000


ODD = {
    "surrogate": "\ud800",
    "nul": "a\x00b",
    "newlines": "a\r\nb\u2028c\x85d",
    "escape": "\x1b[2J",
    "bytes": b"\xff",
    "not a number": float("nan"),
    "a number past 64 bits": 2**70,
    "keys that are no text": {(1, 2): "\udfff"},
    "an object": object(),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("form", ["json", "pretty"])
def test_odd_content_leaves_one_readable_line(pipe: Pipe, odd: Any, form: Any) -> None:
    with log.open_log(ObserveSettings(log_format=form), pipe.writing):
        log_records.embedded_started(folder="c-1", size_bytes=1, odd=odd)
    text = pipe.text()
    assert text.count("\n") == 1
    assert text.isprintable() or re.sub(r"[\n\u2028\x85]", "", text).isprintable()
    assert "c-1" in text
    if form == "json":
        assert json.loads(text)["event"] == "embedded_started"


def test_a_long_text_is_cut_and_says_how_long_it_was(pipe: Pipe) -> None:
    with log.open_log(JSON, pipe.writing):
        log_records.disk_full(error="x" * 1_000_000)
    assert pipe.lines()[0]["error"] == "x" * log.FIELD_CHARACTERS_MAX + "… (1000000 characters)"


def fail_with_a_secret() -> None:
    password = "hunter2"  # noqa: F841  (a traceback that shows local variables would show it)
    raise ValueError("bad \x1b[2J value")


@pytest.mark.parametrize("form", ["json", "pretty"])
def test_a_traceback_is_logged_without_the_values_of_local_variables(pipe: Pipe, form: Any) -> None:
    with pytest.raises(ValueError, match="bad") as caught:
        fail_with_a_secret()
    with log.open_log(ObserveSettings(log_format=form), pipe.writing):
        log_records.unexpected(where="publisher", error=caught.value)
    text = pipe.text()
    assert "Traceback (most recent call last)" in text
    assert "fail_with_a_secret" in text
    assert "hunter2" not in text
    assert "\x1b" not in text


def test_a_terminal_gets_pretty_lines_and_a_pipe_gets_json() -> None:
    controller, terminal = pty.openpty()
    try:
        with log.open_log(ObserveSettings(), terminal):
            log_records.conflict(conversation_id="c-1")
        shown = os.read(controller, 4096).decode()
    finally:
        os.close(controller)
        os.close(terminal)
    assert "\x1b[" in shown
    assert not shown.startswith("{")


def test_libraries_are_logged_from_warning_up(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own would raise at the broken one.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with log.open_log(JSON, pipe.writing):
        logging.getLogger("hypercorn.error").info("listening")
        logging.getLogger("hypercorn.error").warning("odd client %s", "a")
        logging.getLogger("asyncio").error("broken %d", "no number")
    odd, broken = pipe.lines()
    assert (odd["event"], odd["level"], odd["logger"], odd["text"]) == (
        "library",
        "warning",
        "hypercorn.error",
        "odd client a",
    )
    assert (broken["level"], broken["logger"]) == ("error", "asyncio")
    assert "broken %d" in broken["text"]


def test_python_warnings_are_lines_too(pipe: Pipe) -> None:
    with log.open_log(JSON, pipe.writing), warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings put back the function that showed warnings before the log was opened.
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    assert "old ways" in pipe.lines()[0]["text"]


def test_a_closed_log_leaves_the_standard_library_as_it_was(pipe: Pipe) -> None:
    before, shown_by = list(logging.getLogger().handlers), warnings.showwarning
    with log.open_log(JSON, pipe.writing):
        pass
    assert logging.getLogger().handlers == before
    assert warnings.showwarning is shown_by

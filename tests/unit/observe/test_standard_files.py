from __future__ import annotations

import gc
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from convo.observe import metrics, standard_files


def lost() -> float:
    return metrics.registry.get_sample_value("convo_log_dropped_total") or 0.0


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        with suppress(OSError):
            os.close(end)


def instead(monkeypatch: pytest.MonkeyPatch, name: str, descriptor: int) -> None:
    """Let a standard file be another one."""
    monkeypatch.setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115


def test_what_is_said_comes_whole_and_in_order(monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int]) -> None:
    reading, writing = ends
    instead(monkeypatch, "stdout", writing)
    with standard_files.open_output() as write:
        write("one, ")
        write("twö \ud800\n")
    assert os.read(reading, 100) == "one, twö \\ud800\n".encode()


def test_what_nobody_can_read_is_counted(monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int]) -> None:
    reading, writing = ends
    os.close(reading)
    instead(monkeypatch, "stdout", writing)
    before = lost()
    with standard_files.open_output() as write:
        write("one\n")
    assert lost() == before + 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")  # noqa: PTH110
def test_a_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full, before = os.open("/dev/full", os.O_WRONLY), lost()
    try:
        instead(monkeypatch, "stderr", full)
        standard_files.write_last("an error\n")
    finally:
        os.close(full)
    assert lost() == before + 1


def test_nobody_waits_for_a_pipe_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int]) -> None:
    reading, writing = ends
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    instead(monkeypatch, "stderr", writing)
    standard_files.write_last("an error\n")
    os.read(reading, 1 << 20)  # the writing thread ends


def test_a_standard_file_that_was_replaced_in_this_process_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = io.StringIO()
    monkeypatch.setattr(sys, "stderr", taken)
    error = ZeroDivisionError("of ours")
    standard_files.report_crash(type(error), error, None)
    assert taken.getvalue() == "ZeroDivisionError: of ours\n"


def test_what_python_could_raise_to_nobody_is_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    class Sorry:
        def __del__(self) -> None:
            raise ZeroDivisionError("in a finalizer")

    def fail() -> None:
        raise ZeroDivisionError("in a thread")

    hooks = sys.unraisablehook, threading.excepthook
    with capture_logs() as lines, standard_files.open_output():
        Sorry()
        gc.collect()
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert [(line["event"], str(line["exc_info"])) for line in lines] == [
        ("exception_lost", "in a finalizer"),
        ("exception_lost", "in a thread"),
    ]
    assert (sys.unraisablehook, threading.excepthook) == hooks
    assert capfd.readouterr().err == ""


def test_closed_standard_files_are_held_by_one_that_takes_nothing() -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            os.closerange(0, 3)
            standard_files.hold_standard_files()
            others = os.open(os.devnull, os.O_RDONLY)
            for number in (1, 2):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.write(number, b"x")
            code = 0 if others > 2 and all(os.get_inheritable(number) for number in range(3)) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_open_standard_files_are_left_alone() -> None:
    before = [os.fstat(number).st_ino for number in range(3)]
    standard_files.hold_standard_files()
    assert [os.fstat(number).st_ino for number in range(3)] == before

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import trio

from convo.runtime import stacks

HERE = "tests/unit/runtime/test_stacks.py"


def here() -> FrameType:
    return sys._getframe()


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(Path(__file__).read_text("utf-8").splitlines(), 1) if line.strip() == text)


def test_a_frame_is_named_as_it_is_imported() -> None:
    assert stacks.place(here()) == f"{HERE}:{line_of('return sys._getframe()')} here"


def nested(depth: int) -> FrameType:
    return nested(depth - 1) if depth else sys._getframe()


async def test_the_frames_of_a_task_end_at_its_own_and_lead_to_it() -> None:
    found: list[tuple[list[FrameType], trio.lowlevel.Task | None]] = []

    async def look() -> None:
        await trio.lowlevel.checkpoint()
        frames = stacks.frames_of(nested(2))
        found.append((frames, stacks.task_of(trio.lowlevel.current_root_task(), frames)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 0.01, name="innocent")
        nursery.start_soon(look, name="looking")
    ((frames, task),) = found
    assert [frame.f_code.co_name for frame in frames[:4]] == ["nested", "nested", "nested", "look"]
    assert task is not None
    assert task.name == "looking"


def test_a_summary_keeps_the_innermost_frames_and_the_outermost() -> None:
    frames = stacks.frames_of(nested(50))
    shown = stacks.summary(frames)
    assert len(shown) < len(frames)
    assert shown[0].endswith(" nested")
    assert shown[-1] == stacks.place(frames[-1])


def test_a_stack_of_no_task_has_none() -> None:
    assert stacks.task_of(None, stacks.frames_of(here())) is None

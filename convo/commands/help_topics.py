"""``convo help``: list the topics of the handbook, or print the page of one."""

from __future__ import annotations

import difflib
import os
import sys

from convo import handbook

UNKNOWN_TOPIC = 2
"""The exit code of a topic that does not exist, as for any other wrong argument."""


def list_topics() -> int:
    """Print every topic with the first line of its page."""
    topics = handbook.topics()
    width = max(map(len, topics), default=0)
    lines = [f"{topic:{width}}  {handbook.title(topic)}" for topic in topics]
    _print("\n".join((*lines, "", "convo help TOPIC prints one of them.")))
    return 0


def show_topic(topic: str) -> int:
    """Print the page of one topic; name the nearest topic where there is none of this name."""
    topics = handbook.topics()
    if topic not in topics:
        near = difflib.get_close_matches(topic, topics, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(topics)}"
        print(f"convo: there is no topic {topic!r}; {hint}", file=sys.stderr)
        return UNKNOWN_TOPIC
    _print(handbook.page(topic).rstrip("\n"))
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. Python flushes once more at its end, which must not fail, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""Reads Markdown for tests: its sentences, its links, its tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

SENTENCE_WORDS_MAX = 35
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)\s]+)\)")
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s")


def sentences(markdown: str) -> Iterator[str]:
    """Find the sentences outside code; a cell of a table and an item of a list begin one of their own."""
    for block in _blocks(_FENCE.sub("", markdown)):
        yield from re.split(r"(?<=[.!?:])[*`)]*\s+(?=[A-Z`*(])", block)


def _blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if block and (not line.strip() or line[0] in "|#" or _ITEM.match(line)):
            yield " ".join(block)
            block = []
        if line.startswith("|"):
            yield from line.strip("| ").split(" | ")
        elif line.strip():
            block.append(_ITEM.sub("", line).strip())


def too_long(markdown: str) -> list[str]:
    """Find the sentences of more than ``SENTENCE_WORDS_MAX`` words."""
    return [one for one in sentences(markdown) if len(one.split()) > SENTENCE_WORDS_MAX]


def broken_links(file: Path) -> list[str]:
    """Find the relative links of a file that lead to no file, or to no heading in it."""
    targets = [found["target"] for found in _LINK.finditer(file.read_text("utf-8"))]
    return [target for target in targets if "://" not in target and not _leads_somewhere(file, target)]


def _leads_somewhere(file: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    found = file.parent / name if name else file
    return found.is_file() and (not anchor or anchor in _anchors(found.read_text("utf-8")))


def _anchors(markdown: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(markdown: str) -> list[tuple[str, ...]]:
    """Find the rows of all tables, without their heads."""
    found: list[tuple[str, ...]] = []
    for line in markdown.splitlines():
        if line.startswith("| ---"):
            found.pop()
        elif line.startswith("| "):
            found.append(tuple(cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")))
    return found

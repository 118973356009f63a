"""Counts the steps of a backtracking matcher: how a pattern's work grows with its text, without a clock.

It walks the tree that Python's own parser makes of a pattern, branch by branch as Python's matcher does, but without
its shortcuts: it never takes fewer steps. Capturing groups are walked through; references to them are not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from re import _constants as sre
from re import _parser
from typing import Any

STEPS_MAX = 300_000
"""No count goes on beyond this: a pattern can take exponentially many steps."""

Program = list[tuple[Any, ...]]
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    sre.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}
_SAMPLES = "ai1 _-.,;:\"'?!~/=A\n\\é"


class Steps:
    """A compiled pattern whose steps can be counted."""

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
        flags = pattern.flags & ~re.UNICODE if isinstance(pattern.pattern, bytes) else pattern.flags
        self._ignores_case = bool(flags & re.IGNORECASE)
        self.tree = _parser.parse(source, flags)
        self._program: Program = []
        self._add(list(self.tree), self._program)
        self._program.append(("match",))
        self.count = 0

    def everywhere(self, text: str) -> int:
        """Count the steps of looking for the pattern in all of a text, as ``finditer`` and ``sub`` do."""
        self.count = at = 0
        while at <= len(text) and self.count < STEPS_MAX:
            end = self._run(self._program, text, at, whole=False)
            at = at + 1 if end is None or end == at else end
        return self.count

    def at_the_start(self, text: str, *, whole: bool) -> int:
        """Count the steps of ``match``, or of ``fullmatch`` with ``whole``."""
        self.count = 0
        self._run(self._program, text, 0, whole=whole)
        return self.count

    def _run(  # noqa: C901, PLR0912  (one case for each instruction)
        self, program: Program, text: str, start: int, *, whole: bool
    ) -> int | None:
        stack = [(0, start)]
        while stack and self.count < STEPS_MAX:
            pc, at = stack.pop()
            while self.count < STEPS_MAX:
                self.count += 1
                kind, *rest = program[pc]
                if kind == "match":
                    if whole and at < len(text):
                        break
                    return at
                if kind == "split":
                    stack.append((rest[1], at))
                    pc = rest[0]
                elif kind == "jump":
                    pc = rest[0]
                elif kind == "atomic":
                    end = self._run(rest[0], text, at, whole=False)
                    if end is None:
                        break
                    at, pc = end, pc + 1
                elif kind == "look":
                    below, negative, back = rest
                    found = at >= back and self._run(below, text, at - back, whole=False) is not None
                    if found == negative:
                        break
                    pc += 1
                elif kind == "at":
                    if not _holds(rest[0], text, at):
                        break
                    pc += 1
                else:
                    if at >= len(text) or not rest[0](text[at]):
                        break
                    at, pc = at + 1, pc + 1
        return None

    def _add(self, tree: list[Any], program: Program) -> None:
        for node in tree:
            self._add_node(node[0], node[1], program)

    def _add_node(self, kind: Any, value: Any, program: Program) -> None:
        if kind is sre.SUBPATTERN:
            self._add(list(value[3]), program)
        elif kind is sre.BRANCH:
            self._add_branches([list(branch) for branch in value[1]], program)
        elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            self._add_repeat(value, program, greedy=kind is sre.MAX_REPEAT)
        elif kind in (sre.POSSESSIVE_REPEAT, sre.ATOMIC_GROUP):
            below: Program = []
            if kind is sre.ATOMIC_GROUP:
                self._add(list(value), below)
            else:
                self._add_repeat(value, below, greedy=True)
            program.append(("atomic", [*below, ("match",)]))
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            below = []
            self._add(list(value[1]), below)
            back = value[1].getwidth()[1] if value[0] < 0 else 0
            program.append(("look", [*below, ("match",)], kind is sre.ASSERT_NOT, back))
        elif kind is sre.AT:
            program.append(("at", value))
        else:
            program.append(("char", self.accepts(kind, value)))

    def _add_branches(self, branches: list[list[Any]], program: Program) -> None:
        ends = []
        for branch in branches[:-1]:
            split = len(program)
            program.append(())
            self._add(branch, program)
            ends.append(len(program))
            program.append(())
            program[split] = ("split", split + 1, len(program))
        self._add(branches[-1], program)
        for end in ends:
            program[end] = ("jump", len(program))

    def _add_repeat(self, value: tuple[int, int, Any], program: Program, *, greedy: bool) -> None:
        least, most, body = value
        for _ in range(least):
            self._add(list(body), program)
        if most is sre.MAXREPEAT:
            assert body.getwidth()[0] > 0, "a repeated group that may be empty"
            split = len(program)
            program.append(())
            self._add(list(body), program)
            program.append(("jump", split))
            program[split] = self._split(split + 1, len(program), greedy=greedy)
            return
        splits = []
        for _ in range(most - least):
            splits.append(len(program))
            program.append(())
            self._add(list(body), program)
        for split in splits:
            program[split] = self._split(split + 1, len(program), greedy=greedy)

    def _split(self, inside: int, after: int, *, greedy: bool) -> tuple[Any, ...]:
        return ("split", inside, after) if greedy else ("split", after, inside)

    def accepts(self, kind: Any, value: Any) -> Callable[[str], bool]:
        """Return what tells whether a node of one character takes a character."""
        if kind is sre.ANY:
            return lambda c: c != "\n"
        if kind is sre.IN:
            negative = value[0][0] is sre.NEGATE
            parts = [self.accepts(*part) for part in value[negative:]]
            return lambda c: any(part(c) for part in parts) != negative
        if kind is sre.CATEGORY:
            return _CATEGORIES[value]
        if kind is sre.RANGE:
            return lambda c: value[0] <= ord(c) <= value[1]
        assert kind in (sre.LITERAL, sre.NOT_LITERAL), kind
        wanted, positive = chr(value), kind is sre.LITERAL
        if self._ignores_case:
            return lambda c: (c.lower() == wanted.lower()) == positive
        return lambda c: (c == wanted) == positive

    def pumps(self) -> Iterator[tuple[str, str]]:
        """Yield, for each repeat in the pattern, a text that leads to it and texts that it takes again and again."""
        yield from self._pumps(list(self.tree), "")

    def _pumps(self, tree: list[Any], before: str) -> Iterator[tuple[str, str]]:
        for kind, value in tree:
            for below in _below(kind, value):
                yield from self._pumps(below, before)
            if kind in _REPEATS and value[1] > 1:
                for unit in self._texts(list(value[2])):
                    yield before, unit
            before += self._texts([(kind, value)])[0]

    def _texts(self, tree: list[Any]) -> list[str]:
        """Return some texts that a part of the pattern takes, one for each of its branches."""
        texts = [""]
        for kind, value in tree:
            if kind in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
                continue
            if kind is sre.BRANCH:
                more = [text for branch in value[1] for text in self._texts(list(branch))[:2]]
            elif kind in _REPEATS:
                more = [text * max(1, min(value[0], 3)) for text in self._texts(list(value[2]))]
            elif below := _below(kind, value):
                more = self._texts(below[0])
            else:
                takes = self.accepts(kind, value)
                known = [chr(value)] if kind is sre.LITERAL else [chr(part[1]) for part in _literals(kind, value)]
                more = [c for c in (*known, *_SAMPLES) if takes(c)][:3] or ["\u20ac"]
            texts = [text + end for end in more for text in texts[:3]][:24]
        return texts


def _literals(kind: Any, value: Any) -> list[Any]:
    return [part for part in value if part[0] is sre.LITERAL][:2] if kind is sre.IN else []


def _below(kind: Any, value: Any) -> list[list[Any]]:
    if kind is sre.SUBPATTERN:
        return [list(value[3])]
    if kind is sre.BRANCH:
        return [list(branch) for branch in value[1]]
    if kind in _REPEATS:
        return [list(value[2])]
    if kind is sre.ATOMIC_GROUP:
        return [list(value)]
    return [list(value[1])] if kind in (sre.ASSERT, sre.ASSERT_NOT) else []


def _holds(kind: Any, text: str, at: int) -> bool:
    if kind in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
        return at == 0
    if kind is sre.AT_END_STRING:
        return at == len(text)
    if kind is sre.AT_END:
        return at == len(text) or (at == len(text) - 1 and text[at] == "\n")
    word = _CATEGORIES[sre.CATEGORY_WORD]
    edge = (at > 0 and word(text[at - 1])) != (at < len(text) and word(text[at]))
    return edge == (kind is sre.AT_BOUNDARY)

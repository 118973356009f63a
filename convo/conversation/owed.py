"""What a conversation is owed: the parts that its analysis is to find, each with its version; pure data and its rules.

Open it to change what a declaration of a part holds once its settings are read. It is fixed when a conversation is
accepted and stored with its job, so that every process finds the same, whatever stands in its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec import Struct

from convo.conversation.model import PartName

Who = Literal["llm", "memory", "local", "http"]
DEFAULT_PARTS: tuple[PartName, ...] = ("questions", "emotion", "memories")
"""The parts that are declared by default, and their scores with them; their weights stand in ``[score]``."""


class Points(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What an answer is worth: ``each`` for a number, boolean or item, or a number for each of some ``values``.

    ``field`` names the field whose number or value counts, ``count`` the field whose items do.
    """

    field: str = ""
    count: str = ""
    each: int = 0
    values: Mapping[str, int] = {}


class DeclaredPart(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part as it is declared: who finds it, what is asked, what an answer must be, and what it is worth.

    ``version`` is empty for the three default parts, whose version is told by who made them. ``skipped`` is why this
    conversation is not owed it; empty where it is. ``analyst`` is the model, or the address of a service.
    """

    name: PartName
    who: Who
    version: str = ""
    analyst: str = ""
    prompt: str = ""
    schema: Mapping[str, Any] = {}
    points: Points | None = None
    required: bool = False
    skipped: str = ""

    @property
    def needs(self) -> str:
        """What a process must have to find it: the name of a dependency, empty for none.

        A service is named with the version, for another declaration of the same part may mean another service.
        """
        if self.who == "http":
            return f"part.{self.name}@{self.version}"
        return "" if self.who == "local" else self.who


class Owed(Struct, frozen=True, kw_only=True, dict=True):
    """The parts that one conversation is owed, and those that it is not because of a condition of theirs.

    ``number`` is that of the set in the database; 0 for the default one, which is not stored.
    """

    number: int = 0
    parts: tuple[DeclaredPart, ...]

    @cached_property
    def asked(self) -> Mapping[PartName, DeclaredPart]:
        """The parts that are to be found, by their names."""
        return {part.name: part for part in self.parts if not part.skipped}

    @cached_property
    def required(self) -> frozenset[PartName]:
        """The parts without which no score is final."""
        return frozenset(name for name, part in self.asked.items() if part.required)

    @cached_property
    def needs(self) -> str:
        """The service that a process must have to find a required part; empty where every process has what it needs.

        The language model and the memory service are no matter here: all processes that take jobs have the same.
        """
        return next((self.asked[name].needs for name in self.required if self.asked[name].who == "http"), "")

    def version(self, name: PartName) -> str | None:
        """Return the version of a part that is stored with its result; None for a default part."""
        part = self.asked.get(name)
        return (part.version or None) if part is not None else None


DEFAULT_OWED = Owed(parts=tuple(DeclaredPart(name=name, who="local", required=True) for name in DEFAULT_PARTS))
"""What is owed where nothing is declared. Who finds its parts is decided by the settings, the same in all processes."""


def owed_of(parts: Iterable[DeclaredPart]) -> Owed:
    """Return these parts as a set with the number that is made of them."""
    every = tuple(parts)
    hashed = hashlib.sha256(encode_parts(every).encode()).digest()
    # Positive, so that it is a bigint, and never the 0 of the default set.
    return Owed(number=(int.from_bytes(hashed[:8], "big") >> 1) or 1, parts=every)


def encode_parts(parts: tuple[DeclaredPart, ...]) -> str:
    """Write the parts of a set as they are stored."""
    return msgspec.json.encode(parts).decode()


def decode_parts(number: int, text: str) -> Owed:
    """Read a stored set back."""
    return Owed(number=number, parts=msgspec.json.decode(text, type=tuple[DeclaredPart, ...]))


def version_of(*declared: object) -> str:
    """Name a declaration by its content: ``"p1:"`` and 12 hexadecimal digits."""
    return "p1:" + hashlib.sha256(msgspec.json.encode(declared, order="sorted")).hexdigest()[:12]


def result_version(name: PartName, made_by: str, stored: str | None) -> str:
    """Return the version of a stored result: the stored one, or of a default part what its maker's name tells.

    That name holds the model and the number of the prompt (``gpt-5/prompt-3``), or that of the rules (``local/2``).
    """
    return stored or version_of(name, made_by)

"""What can be odd about a body of ``fuzz_bodies.py``: each function changes a draft, and notes what it puts in doubt.

Whoever meets another oddity adds a function, and its name to ``ODDITIES``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from scripts import fuzz_shapes
from scripts.fuzz_shapes import SHAPES, SILENT, SPEAKER_FIELDS

Item = dict[str, Any]

LOG = "conversation_log"
OTHER_NAMES = ("messages", "transcript", "turns", "history", "items")
MARK = "@@literal-"
_WORDS = (
    *("why", "does", "the", "cat", "sleep", "delivery", "Friday", "thanks", "open", "Sunday", "cactus", "Mira", "late"),
    *("xin", "chào", "bạn", "tại", "sao", "trời", "mưa", "không", "được", "Große", "Straße", "où", "¿dónde", "أين"),
    *(
        "طلبي",
        "何時",
        "ですか",
        "👩‍👩‍👧",
        "🦜",
        "e\u0301",
        "\u202eabc",
        "ﬁ",
        "𝔘𝔫𝔦",
        "a\u200bb",
        '"quoted"',
        "back\\slash",
    ),
    *("</conversation>", "<think>", "{braces}", "tab\there", "line\nbreak", "\u2028", "\x7f"),
)


class Draft:
    """A body in the making, as its oddities find it."""

    def __init__(self, chance: random.Random, shape: str, given: str, user: str) -> None:
        self.chance = chance
        self.shape = shape
        self.given = given
        self.ids: Item = {"conversation_id": given, "user_id": user, "bot_id": "bot-fuzz"}
        self.words: list[str] = []
        begins = chance.randrange(2)
        self.spoken: list[Item] = [
            fuzz_shapes.item(shape, (index + begins) % 2, _said(chance, self.words), index)
            for index in range(chance.randint(1, 8))
        ]
        self.items: list[Any] = list(self.spoken)
        self.unsure: set[int] = set()
        self.fields: Item = {}
        self.name: str = LOG
        self.audio = False
        self.may_refuse: list[str] = []
        self.odd: list[str] = []
        self.before = b""
        self.after = b""
        self.raw: list[tuple[str, str]] = []
        self.gzip = False

    def some(self, *, sure: bool = True) -> Item:
        """Return one of the items that somebody speaks in; where not ``sure``, it need not be understood after that."""
        found = self.chance.choice(self.spoken)
        if not sure:
            self.unsure.add(id(found))
        return found

    def literal(self, text: str) -> str:
        """Return a mark in the place of which this text stands in the JSON."""
        mark = f"{MARK}{len(self.raw)}@@"
        self.raw.append((json.dumps(mark), text))
        return mark


def _unknown_field(draft: Draft) -> None:
    text = _said(draft.chance, draft.words)
    value: Any = draft.chance.choice([text, [text], {"deep": {"er": [text]}}, 7, None, True, 1e300, -0.0, []])
    draft.some()[draft.chance.choice(["zzz", "confidence", "words", "x-vendor", "", "ключ", "usage"])] = value


def _side_fields(draft: Draft) -> None:
    draft.some().update(name="Mira", language="en", confidence=0.5, id=f"side-{draft.chance.random()}")


def _silent_items(draft: Draft) -> None:
    for _ in range(draft.chance.randint(1, 3)):
        draft.items.insert(draft.chance.randint(0, len(draft.items)), deepcopy(draft.chance.choice(SILENT)))


def _odd_item(draft: Draft) -> None:
    text = _said(draft.chance, draft.words)
    odd: Any = draft.chance.choice(
        [None, 5, text, [], [text], {}, {"a": text}, {"role": "user"}, True, {"wrods": text}]
    )
    draft.items.insert(draft.chance.randint(0, len(draft.items)), odd)


def _wrong_type(draft: Draft) -> None:
    item = draft.some(sure=False)
    key = draft.chance.choice(list(item))
    item[key] = draft.chance.choice([7, None, True, [], {}, [[["x"]]], {"a": 1}, -1.5, "", [None], 10**30])


def _missing_field(draft: Draft) -> None:
    item = draft.some(sure=False)
    del item[draft.chance.choice(list(item))]


def _renamed_field(draft: Draft) -> None:
    every = draft.chance.random() < 0.5
    old = draft.chance.choice(list(SHAPES[draft.shape]))
    for item in draft.spoken if every else [draft.some()]:
        if old in item:
            draft.unsure.add(id(item))
            item[draft.chance.choice(["wrods", "sagte", old.upper(), f"my_{old}"])] = item.pop(old)


def _unknown_speaker(draft: Draft) -> None:
    for item in draft.spoken:
        for key in SPEAKER_FIELDS:
            if key in item:
                draft.unsure.add(id(item))
                item[key] = draft.chance.choice(["spkr_0", "Mira", "", "??", 3])


def _deep(draft: Draft) -> None:
    levels = draft.chance.choice([5, 30, 60, 150, 900, 5000])
    opening, closing = draft.chance.choice([("[", "]"), ('{"a":', "}")])
    draft.some()["nested"] = draft.literal(opening * levels + "1" + closing * levels)
    if levels > 60:
        draft.may_refuse.append("deep nesting")


def _nested_words(draft: Draft) -> None:
    text: Any = _said(draft.chance, draft.words)
    for _ in range(draft.chance.randint(1, 12)):
        text = draft.chance.choice([[text], {"content": text}, {"parts": [text]}])
    draft.some(sure=False)["content"] = text


def _huge_number(draft: Draft) -> None:
    text = draft.chance.choice(
        ["1e400", "-1e400", "9" * 400, "1" + "0" * 5000, "0." + "1" * 900, "1E-999", "-0", "1e5"]
    )
    draft.some()[draft.chance.choice(["n", "weight", "time", "timestamp", "created_at"])] = draft.literal(text)
    draft.may_refuse.append("huge number")


def _odd_unicode(draft: Draft) -> None:
    text = draft.chance.choice([r'"\ud800"', r'"a\udc00b"', r'"\u0000"', r'"x\u0000y"', r'"\ud83d\ude00"', r'"\u200f"'])
    draft.some()["note"] = draft.literal(text)
    if "ud800" in text or "udc00" in text:
        draft.may_refuse.append("lone surrogate")


def _audio(draft: Draft) -> None:
    size = draft.chance.choice([30, 3000, 3072, 3300, 9000, 60_000])
    data = base64.b64encode(draft.chance.randbytes(size)).decode()
    match draft.chance.randrange(3):
        case 0:
            draft.some()["input_audio"] = {"data": data, "format": "wav"}
        case 1:
            # Another place of words than that of the item, perhaps.
            words = _said(draft.chance, draft.words)
            draft.some(sure=False)["audio"] = {"id": "a", "data": data, "transcript": words}
        case _:
            draft.some()["attachments"] = [{"type": "audio", "data": data}]
    draft.audio = True


def _odd_time(draft: Draft) -> None:
    times: tuple[Any, ...] = (
        *(0, 1, 3.5, -5, 99_999_999, 100_000_000, 1764300000, 1764300000.25, 99_999_999_999, 1764300000000, 10**18),
        *("2026-11-28T09:00:00", "2026-11-28 09:00", "2026-11-28T09:00:00+14:00", "yesterday", "", None, True, [], {}),
        *("0.1", "1764300000", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "2026-02-30T00:00:00Z", "١٢"),
    )
    draft.some()[draft.chance.choice(["timestamp", "time", "created_at", "createdAt", "start_time"])] = (
        draft.chance.choice(times)
    )


def _times(draft: Draft) -> None:
    good = ("2026-11-28T09:00:00Z", "2026-11-28T09:00:00", 1764300000, 1764300000.5, 1764300000000, None)
    draft.fields["start_time"] = draft.chance.choice(good)
    draft.fields["end_time"] = draft.chance.choice([draft.fields["start_time"], "2026-11-29T09:00:00+02:00", None])


def _bad_times(draft: Draft) -> None:
    draft.fields[draft.chance.choice(["start_time", "end_time"])] = draft.chance.choice(["soon", [], 1e300, 5, -1, {}])
    draft.may_refuse.append("time of the conversation")


def _user_ids(draft: Draft) -> None:
    draft.ids[draft.chance.choice(["user_id", "bot_id"])] = draft.chance.choice(
        [42, 7, 0, "7", "b", "a/b", "projects/p/sessions/s", "x" * 255, "50% ? #", "🦜", "a b", "%2F", "..a"]
    )


def _own_id(draft: Draft) -> None:
    given = draft.given
    draft.ids["conversation_id"] = draft.chance.choice(
        [
            given.replace("-", "/"),
            f"{given} %2F 🦜?#",
            int.from_bytes(hashlib.sha256(given.encode()).digest()[:6]),
            given,
        ]
    )


def _bad_id(draft: Draft) -> None:
    draft.ids[draft.chance.choice(list(draft.ids))] = draft.chance.choice(
        ["", ".", "..", "a\x00b", "x" * 256, None, 1.5, True, [], {}, "tab\t"]
    )
    draft.may_refuse.append("id")


def _known_fields(draft: Draft) -> None:
    draft.fields.update(
        draft.chance.choice(
            [{"language": "vi"}, {"language": "zh-Hant-TW"}, {"timezone": "Asia/Ho_Chi_Minh"}, {"bot_name": "Pika"}]
        )
    )
    draft.fields["metadata"] = {"order": "o-1", "deep": {"a": [1, None, "ü"]}}


def _bad_fields(draft: Draft) -> None:
    draft.fields.update(
        draft.chance.choice(
            [{"language": "no language"}, {"timezone": "Mars/Base"}, {"bot_name": 7}, {"metadata": [1]},
             {"metadata": {"a": "x" * 17_000}}, {"agent_tag": "x" * 300}, {"bot_type": "a\x00"}]
        )
    )  # fmt: skip
    draft.may_refuse.append("field")


def _unknown_fields(draft: Draft) -> None:
    for number in range(draft.chance.randint(1, 15)):
        draft.fields[f"vendor_{number}"] = draft.chance.choice([number, "x", None, [number], {"a": number}])


def _other_name(draft: Draft) -> None:
    draft.name = draft.chance.choice(OTHER_NAMES)


def _unknown_name(draft: Draft) -> None:
    draft.name = draft.chance.choice(["what_was_said", "gespräch", "payload"])
    draft.may_refuse.append("a log under an unknown name")


def _byte_order_mark(draft: Draft) -> None:
    draft.before = b"\xef\xbb\xbf"


def _white_space(draft: Draft) -> None:
    draft.before, draft.after = b" \n\t", b"\r\n "


def _compressed(draft: Draft) -> None:
    draft.gzip = True


def _no_json(draft: Draft) -> None:
    draft.after = draft.chance.choice([b"}", b"x", b"\x00", b"\xff", b"{}", b","])
    draft.may_refuse.append("no JSON")


def _duplicate_key(draft: Draft) -> None:
    draft.some()["twice"] = draft.literal('1,"twice":2')


def many_items(draft: Draft) -> None:
    """Repeat the items, up to 320 of them; this comes before what changes single items."""
    draft.spoken += [deepcopy(item) for item in draft.spoken * draft.chance.choice([3, 40])]
    draft.items = list(draft.spoken)


def large(draft: Draft) -> None:
    """Put a large text into an item, perhaps more than a body may hold."""
    draft.some()["note"] = "x" * draft.chance.choice([200_000, 2_200_000])
    draft.may_refuse.append("large")


ODDITIES: tuple[Callable[[Draft], None], ...] = (
    *(_unknown_field, _unknown_field, _side_fields, _silent_items, _odd_item, _wrong_type, _missing_field),
    *(_renamed_field, _unknown_speaker, _deep, _nested_words, _huge_number, _odd_unicode, _audio, _odd_time, _odd_time),
    *(_times, _bad_times, _user_ids, _own_id, _bad_id, _known_fields, _bad_fields, _unknown_fields, _other_name),
    *(_unknown_name, _byte_order_mark, _white_space, _compressed, _no_json, _duplicate_key),
)


def _said(chance: random.Random, words: list[str]) -> str:
    """Make a text that stands nowhere else, and note it."""
    text = " ".join([*chance.choices(_WORDS, k=chance.randint(1, 9)), f"w{chance.getrandbits(40):x}"])
    words.append(text)
    return text

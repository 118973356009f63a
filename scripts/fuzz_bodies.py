"""Random bodies for ``fuzz.py``: logs in the shapes of ``fuzz_shapes.py`` with the oddities of ``fuzz_oddities.py``.

``make(seed, run, number)`` makes the same body each time. A body knows which words it holds and who speaks them, the
very bytes of its log, and whether anything in it may be refused. Nothing here knows how convo reads a log.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

from msgspec import Struct, structs

from scripts.fuzz_oddities import MARK, ODDITIES, Draft, Item, large, many_items
from scripts.fuzz_shapes import SHAPES

AUDIO_TEXT_MIN = 4097


class Body(Struct, frozen=True, kw_only=True):
    """A body to post.

    ``log`` are the very bytes of its log, under ``name``. ``words`` are texts in it, spoken or not; ``spoken`` counts
    the items in which somebody speaks beyond doubt. ``may_refuse`` names what in the body may be refused: where it is
    empty, it must be accepted. ``changed`` is the same body with one text of an item changed, if it has one.
    """

    shape: str
    conversation_id: str
    name: str
    content: bytes
    headers: tuple[tuple[str, str], ...]
    log: bytes
    audio: bool
    words: tuple[str, ...]
    spoken: int
    may_refuse: tuple[str, ...]
    odd: tuple[str, ...]
    changed: bytes = b""


def make(seed: int, run: str, number: int) -> Body:
    """Make the body of this number; ``run`` stands in its id, so that no two runs meet."""
    chance = random.Random(f"{seed}-{number}")
    draft = Draft(chance, chance.choice(list(SHAPES)), f"fuzz-{run}-{number}", f"user-{number % 997}")
    odd = chance.sample(ODDITIES, chance.choice([0, 0, 1, 1, 1, 2, 3, 5]))
    # The first comes first: it makes the items that the others change.
    for rare, share in ((large, 0.002), (many_items, 0.01)):
        if chance.random() < share:
            odd.insert(0, rare)
    for change in odd:
        draft.odd.append(change.__name__.strip("_"))
        change(draft)
    return _written(draft)


def _written(draft: Draft) -> Body:
    chance = draft.chance
    style: Item = {
        "ensure_ascii": chance.random() < 0.5,
        "separators": chance.choice([(",", ":"), (", ", ": "), (" ,\n", ":\t")]),
    }
    log = _json(draft.items, draft, style)
    sure = sum(id(item) not in draft.unsure for item in draft.spoken)
    if not sure:
        draft.may_refuse.append("perhaps no item can be read")
    texts = set(_texts(draft.items))
    body = Body(
        shape=draft.shape,
        conversation_id=str(draft.ids["conversation_id"]),
        name=draft.name,
        content=_whole(draft, log, style),
        headers=(("content-encoding", "gzip"),) if draft.gzip else (),
        log=log,
        audio=draft.audio,
        words=tuple(words for words in draft.words if words in texts),
        spoken=sure,
        may_refuse=tuple(draft.may_refuse),
        odd=tuple(draft.odd),
    )
    if not _change(draft.items, chance):
        return body
    return structs.replace(body, changed=_whole(draft, _json(draft.items, draft, style), style))


def _whole(draft: Draft, log: bytes, style: Item) -> bytes:
    pieces = [_json({**draft.ids, **draft.fields}, draft, style)[1:-1], json.dumps(draft.name).encode() + b":" + log]
    if len(draft.odd) % 2:
        pieces.reverse()
    content = draft.before + b"{" + b",".join(pieces) + b"}" + draft.after
    return gzip.compress(content, 1, mtime=0) if draft.gzip else content


def _json(value: object, draft: Draft, style: Item) -> bytes:
    text = json.dumps(value, **style)
    for mark, literal in draft.raw:
        text = text.replace(mark, literal)
    return text.encode("utf-8", "surrogatepass")


def _change(items: list[Any], chance: random.Random) -> bool:
    """Change one text of an item; return whether there was one."""
    places = [place for place in _places(items) if not place[0][place[1]].startswith(MARK)]
    if not places:
        return False
    holder, key = chance.choice(places)
    holder[key] += "!"
    return True


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, below in pairs:
        if isinstance(below, str):
            yield value, key
        yield from _places(below)


def _texts(value: Any) -> Iterator[str]:
    return (holder[key] for holder, key in _places(value))


def kept(sent: bytes, stored: bytes) -> bool:
    """Return whether a log was stored as it was sent, but for recordings: their length and hash stand for them."""
    # Numbers are compared as they are written: Python reads none of 5,000 digits, and 1e400 as infinity.
    one, other = (json.loads(log, parse_int=str, parse_float=str) for log in (sent, stored))
    return _same(one, other)


def _same(sent: Any, stored: Any) -> bool:
    if isinstance(sent, str) and isinstance(stored, dict) and len(sent) >= AUDIO_TEXT_MIN:
        return stored in [_omission(sent.encode()), _omission(base64.b64decode(sent))]
    if isinstance(sent, dict) and isinstance(stored, dict):
        return sent.keys() == stored.keys() and all(_same(below, stored[key]) for key, below in sent.items())
    if isinstance(sent, list) and isinstance(stored, list):
        return len(sent) == len(stored) and all(map(_same, sent, stored))
    return bool(sent == stored)


def _omission(data: bytes) -> Item:
    return {"omitted_bytes": str(len(data)), "sha256": hashlib.sha256(data).hexdigest()}

"""How two results of one part agree: by which fields they differ.

Open it to change what counts as the same. The order of questions counts, the words of a memory do not where its key is
the same, and of a declared part each field of the answer is compared by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from convo.conversation.model import Answered, Finding, Memories, Questions


def differing_fields(one: Finding, other: Finding) -> tuple[str, ...]:
    """Name the fields by which two results of one part differ; none where they agree."""
    mine, theirs = _compared(one), _compared(other)
    return tuple(name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name))


def shown_result(finding: Finding) -> Mapping[str, Any]:
    """Return a result as it is shown beside another one."""
    if isinstance(finding, Answered) and not finding.refused:
        return finding.answer
    found: Mapping[str, Any] = msgspec.to_builtins(finding)
    return found


def _compared(finding: Finding) -> Mapping[str, Any]:
    match finding:
        case Answered():
            return {**finding.answer, **({"refused": True} if finding.refused else {})}
        case Questions():
            asked = [" ".join(text.casefold().split()) for text in finding.questions]
            return {"questions": asked, **({"refused": True} if finding.refused else {})}
        case Memories():
            return {"memories": {(fact.key, fact.operation) for fact in finding.facts if fact.operation != "NONE"}}
        case _:
            return {"emotion": finding.emotion, "judged": finding.judged, "refused": bool(finding.refused)}

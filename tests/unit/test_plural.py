from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from convo.plural import plural
from tests.support.source_tree import modules

# Where counts are shown to people.
_SHOWN = (
    "convo.commands",
    "convo.capacity",
    "convo.store.jobs.cause",
    "convo.store.contents",
    "convo.telling",
    "convo.objects",
)
_NOUNS = re.compile(
    r" (?:dead )?(answer|attempt|call|connection|conversation|day|deletion|endpoint|event|file|job|letter|line|log"
    r"|memorie|message|model|object|part|point|processe|reading|recipient|row|rung|score|session|time|token|turn|user"
    r"|worker)s\b"
)
# The number cannot be 1, or the noun does not go with it.
_EXCEPT = {
    ("convo.commands.check", "len(rungs)"): "of all rungs, thirteen and more",
    ("convo.commands.rerun_drawing", "cost.tokens_out"): "a sum of two counts stands before it",
    ("convo.capacity.planning", "wanted"): "connections of several processes, or of one that opens many",
    ("convo.capacity.resources", "calls"): "a mean",
}


def bare() -> Iterator[tuple[str, str]]:
    """Yield each number that a plural stands behind in a text, whatever the number is."""
    for module, tree in modules().items():
        if not module.startswith(_SHOWN):
            continue
        for node in ast.walk(tree):
            texts = node.values if isinstance(node, ast.JoinedStr) else []
            for number, behind in pairwise(texts):
                if isinstance(number, ast.FormattedValue) and isinstance(behind, ast.Constant):
                    shown = ast.unparse(number.value)
                    if _NOUNS.match(str(behind.value)) and not shown.isupper() and not _is_mean(number):
                        yield module, shown


def _is_mean(number: ast.FormattedValue) -> bool:
    """Return whether it is shown with digits behind the point."""
    return number.format_spec is not None and ".1f" in ast.unparse(number.format_spec)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "points"), (1, "point"), (-1, "point"), (2, "points"), (1_000_000, "points")]
)
def test_one_has_no_s(count: int, shown: str) -> None:
    assert plural(count, "point") == shown


def test_no_text_for_a_person_has_a_plural_behind_a_number_that_may_be_one() -> None:
    assert set(bare()) == set(_EXCEPT)

"""Every public name of ``convo/`` means one thing, and no name uses a word that the design bans."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from tests.support.source_tree import modules, names, public_names

# Public names that several modules may define, each with the reason.
SHARED = {
    "T": "a TypeVar has a meaning only inside the signatures of its own module",
    "main": "the entry of a program: the command line's, and the launcher's, which runs as a file of its own",
}

# Words that say nothing about what a thing does, with those for talking: "report", "notify", "log", "read" say how.
BANNED = {
    *("manager", "helper", "helpers", "util", "utils", "handler", "handlers", "misc", "common", "timeout", "timeouts"),
    *("tell", "tells", "told", "hear", "hears", "heard", "say", "says", "said"),
}
ALLOWED = {
    "RequestTimeout": "the name of HTTP's status 408",
    "RemoteTimeout": "what a remote server's 408 or 504 means, beside RequestTimeout",
    "told": "a field of an alert's JSON, which clients read",
    "request_timeout": "the request header Request-Timeout",
    "REQUEST_TIMEOUT": "the request header Request-Timeout",
    "tcp_user_timeout_seconds": "the socket option TCP_USER_TIMEOUT",
}


def test_no_two_modules_define_the_same_public_name() -> None:
    # The client imports nothing of the server: what both have by the same name is the same thing.
    owners: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
    for module in modules():
        for name in public_names(module):
            owners[module.startswith("convo.client"), name].append(module)
    shared = {name: found for (_, name), found in owners.items() if len(found) > 1}
    assert {name: found for name, found in shared.items() if name not in SHARED} == {}
    assert SHARED.keys() - shared.keys() == set(), "these are no longer shared"


def test_no_public_name_uses_a_banned_word() -> None:
    found = {(module, name) for module, name in _names() if not BANNED.isdisjoint(_words(name))}
    assert {(module, name) for module, name in found if name not in ALLOWED} == set()
    assert ALLOWED.keys() - {name for _, name in found} == set(), "these are no longer used"


def _names() -> Iterator[tuple[str, str]]:
    """Yield every public name, those inside classes too: methods, fields and constants."""
    for module, tree in modules().items():
        bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
        yield from ((module, name) for body in bodies for name in names(body) if not name.startswith("_"))


def _words(name: str) -> set[str]:
    """Split a name in either spelling into its words, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def test_a_name_is_split_into_its_words() -> None:
    assert _words("HTTPRequestTimeout") == {"http", "request", "timeout"}
    assert _words("tcp_user_timeout_seconds") == {"tcp", "user", "timeout", "seconds"}
    assert _words("REQUEST_TIMEOUT") == {"request", "timeout"}

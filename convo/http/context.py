"""What all client connections of a process share, and the targets that they call without the app.

The table of targets comes from outside, so that this package serves paths without knowing any.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct, field

from convo.http.asgi import App
from convo.http.connections import Connections
from convo.http.forwarded import Proxies
from convo.http.turns import Turns
from convo.settings import Settings
from convo.web.description.messages import Answer, Bound, Head, NextPiece, Read


class DirectTarget(Struct, frozen=True, kw_only=True):
    """A target that a connection calls without the app: its method and path, and the function that answers.

    ``takes_turns``: its requests begin one after the other, as those to the app do.
    """

    method: str
    path: str
    takes_turns: bool
    answer: Callable[[Head, Read, NextPiece, Bound], Awaitable[Answer]]


class ServerContext(Struct, frozen=True, kw_only=True):
    """What all connections of a process share; ``direct`` is by the path of a request's target."""

    settings: Settings
    direct: Mapping[bytes, DirectTarget]
    app: App
    connections: Connections
    proxies: Proxies
    turns: Turns = field(default_factory=Turns)

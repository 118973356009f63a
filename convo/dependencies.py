"""The remote services that convo calls besides its database, one row each: to add one, add a row here and its client.

Settings, the ladder, alerts, ``convo check``, the names of waits, the job table and the documentation read these rows.
What each row needs besides: its section in ``settings.Settings`` and its client in ``analysis.clients``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct


class DependencySpec(Struct, frozen=True, kw_only=True):
    """One remote service, as data.

    ``name`` is also its section of the settings, its label in metrics and the value of ``waits_for``. ``title`` is what
    people call it. It is used where the setting ``switch`` of its section is not empty; the setting ``address`` says
    where it is. ``calls`` are its own waits.
    ``alert_prefix`` begins the names of its alerts, ``slow_level`` is the level of those about time and rate limits,
    and ``restore`` says what to do while it is down.
    """

    name: str
    title: str
    switch: str
    address: str
    calls: Mapping[str, str]
    alert_prefix: str
    slow_level: Literal["HIGH", "MEDIUM"]
    restore: str

    @property
    def waits(self) -> dict[str, str]:
        """What is waited for when it is called: the names of the deadlines, and what each bounds."""
        every = {
            "hold": f"the pause that {self.title} asked for",
            "bulkhead": f"a free place among the concurrent calls of {self.title}",
            "ping": f"checking whether {self.title} answers",
            "check": f"the call that `convo check` makes to {self.title}",
        }
        return {f"{self.name}.{word}": text for word, text in {**self.calls, **every}.items()}


_ROWS = (
    DependencySpec(
        name="llm",
        title="the language model",
        switch="model",
        address="base_url",
        calls={
            "parts": "one attempt to find the parts that one model is asked for",
        },
        alert_prefix="LLM",
        slow_level="HIGH",
        restore="See the provider's status page and the key",
    ),
    DependencySpec(
        name="memory",
        title="the memory service",
        switch="url",
        address="url",
        calls={
            "extract": "one attempt to find a conversation's memories",
            "list": "one attempt to list what the service remembers of a user",
            "event": "one attempt to ask what became of a conversation that the service took",
            "forget": "one attempt to delete at the service what was erased here",
        },
        alert_prefix="MEMORY",
        slow_level="MEDIUM",
        restore="Bring the memory service back",
    ),
)

DEPENDENCIES: dict[str, DependencySpec] = {row.name: row for row in _ROWS}
"""Every row by its name."""

PART_PREFIX = "part."
"""What begins the name of the service of a part that is declared with ``who = "http"``."""


def part_dependency(name: str) -> str:
    """Name the service of a declared part."""
    return f"{PART_PREFIX}{name}"


def address_setting(name: str) -> str:
    """Name the setting that says where a service is."""
    part = name.removeprefix(PART_PREFIX)
    return f"{name}.{DEPENDENCIES[name].address}" if part == name else f"parts.{part}.url"


OLD_LOGS = "s3"
"""What a job waits for whose log lies in object storage; reads are called so, too."""

ALERT_PREFIXES: dict[str, str] = {
    **{row.name: row.alert_prefix for row in _ROWS},
    # No analysis calls it, so it has no row. It has one connection for each purpose.
    "rabbitmq": "RABBITMQ",
    "rabbitmq_intake": "RABBITMQ",
    # No analyst is asked there. Reads and what packs have a breaker each, so that neither delays the other.
    OLD_LOGS: "LOGS",
    "s3_pack": "LOGS",
    # The collector. Traces and log records have a breaker each: it may take one and refuse the other.
    "otel": "OTEL",
    "otel_logs": "OTEL",
}
"""What begins the names of the alerts of each service that convo calls, by its name."""


FALLBACK_PREFIX = "llm."
"""What begins the name of a fallback of the language model."""


def row_name(name: str) -> str:
    """Return the name of the row that a server belongs to: a fallback is the language model, too."""
    return "llm" if name.startswith(FALLBACK_PREFIX) else name


def alert_prefix(name: str) -> str:
    """Return what begins the names of the alerts of a service, also of one that finds a declared part.

    Those of a fallback (``llm.NAME``) are the model's.
    """
    return "PART" if name.startswith(PART_PREFIX) else ALERT_PREFIXES[row_name(name)]

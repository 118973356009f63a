"""The client of each dependency, and opening those that the settings switch on: add the client of a new one here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from convo.analysis.declared import declared_services
from convo.analysis.http_part import PartService
from convo.analysis.llm import Model
from convo.analysis.memory import MemoryService
from convo.analysis.remote import RemoteAnalyst
from convo.settings import Settings, used_dependencies

CLIENTS: dict[str, Callable[[Any], RemoteAnalyst]] = {"llm": Model, "memory": MemoryService}
"""By the dependency's name: what makes its client of its section of the settings."""


def make_remote(name: str, settings: Settings) -> RemoteAnalyst:
    """Make the client of one dependency; it is to be entered before it is used."""
    return CLIENTS[name](getattr(settings, name))


def make_services(settings: Settings) -> list[PartService]:
    """Make the client of each part that a service of its own finds."""
    return [PartService(part, settings.parts[part.name]) for part in declared_services(settings)]


@asynccontextmanager
async def open_remotes(settings: Settings) -> AsyncIterator[tuple[RemoteAnalyst, ...]]:
    """Open the client of each dependency that is switched on."""
    async with AsyncExitStack() as stack:
        remotes: list[RemoteAnalyst] = [make_remote(name, settings) for name in used_dependencies(settings)]
        if settings.parts:
            remotes += make_services(settings)
        yield tuple([await stack.enter_async_context(remote) for remote in remotes])

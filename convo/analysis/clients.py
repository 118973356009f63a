"""The client of each dependency, and opening those that the settings switch on: add the client of a new one here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from convo.analysis.llm import Model
from convo.analysis.llm_chain import Models
from convo.analysis.memory import MemoryService
from convo.analysis.remote import RemoteAnalyst
from convo.settings import Settings, llm_servers, used_dependencies

CLIENTS: dict[str, Callable[[Any], RemoteAnalyst]] = {"llm": Model, "memory": MemoryService}
"""By the dependency's name: what makes its client of its section of the settings."""


def remote_names(settings: Settings) -> list[str]:
    """Name every server that is called: each dependency that is switched on, then the fallbacks of the model."""
    used = used_dependencies(settings)
    fallbacks = [name for name in llm_servers(settings.llm) if name != "llm"] if "llm" in used else []
    return [*used, *fallbacks]


def make_remote(name: str, settings: Settings) -> RemoteAnalyst:
    """Make the client of one server, by its name; it is to be entered before it is used."""
    if name in CLIENTS:
        return CLIENTS[name](getattr(settings, name))
    return Model(llm_servers(settings.llm)[name], name=name)


@asynccontextmanager
async def open_remotes(settings: Settings) -> AsyncIterator[tuple[RemoteAnalyst, ...]]:
    """Open the client of each server."""
    async with AsyncExitStack() as stack:
        remotes = [make_remote(name, settings) for name in remote_names(settings)]
        yield tuple([await stack.enter_async_context(remote) for remote in remotes])


def asked_by_jobs(remotes: Sequence[RemoteAnalyst]) -> list[RemoteAnalyst | Models]:
    """Return what jobs ask: a model with its fallbacks is one."""
    models = [remote for remote in remotes if isinstance(remote, Model)]
    one = Models(models) if len(models) > 1 else None
    return [one if one and remote is models[0] else remote for remote in remotes if not remote.fallback]

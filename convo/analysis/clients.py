"""The client of each dependency, and opening those that the settings switch on: add the client of a new one here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from convo.analysis.declared import declared_services
from convo.analysis.http_part import PartService
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


def make_services(settings: Settings) -> list[PartService]:
    """Make the client of each part that a service of its own finds."""
    return [PartService(part, settings.parts[part.name]) for part in declared_services(settings)]


@asynccontextmanager
async def open_remotes(settings: Settings) -> AsyncIterator[tuple[RemoteAnalyst, ...]]:
    """Open the client of each server."""
    async with AsyncExitStack() as stack:
        remotes: list[RemoteAnalyst] = [make_remote(name, settings) for name in remote_names(settings)]
        if settings.parts:
            remotes += make_services(settings)
        yield tuple([await stack.enter_async_context(remote) for remote in remotes])


def model_of(remotes: Sequence[RemoteAnalyst]) -> Model | Models | None:
    """Return the model that parts are asked of, with its fallbacks as one; None where there is none."""
    models = [remote for remote in remotes if isinstance(remote, Model)]
    return Models(models) if len(models) > 1 else next(iter(models), None)

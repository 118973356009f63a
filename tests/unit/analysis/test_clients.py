from __future__ import annotations

import ssl
from typing import Any, cast

import pytest

from convo.analysis.clients import make_remote, open_remotes
from convo.errors import ConfigError
from convo.settings import LlmSettings, MemorySettings, Settings

MODEL, MEMORY = LlmSettings(model="m-1"), MemorySettings(url="http://127.0.0.1:1")


class Transport:
    """An open connection."""

    closed = False

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (Settings(), []),
        (Settings(llm=MODEL), ["llm"]),
        (Settings(memory=MEMORY), ["memory"]),
        (Settings(llm=MODEL, memory=MEMORY), ["llm", "memory"]),
    ],
)
async def test_the_clients_of_what_is_switched_on_are_open_inside_the_block(
    settings: Settings, names: list[str]
) -> None:
    async with open_remotes(settings) as remotes:
        assert [remote.name for remote in remotes] == names
        opened = [Transport() for _ in remotes]
        for remote, transport in zip(remotes, opened, strict=True):
            remote._client._proxied.append(cast("Any", transport))
        assert not any(transport.closed for transport in opened)
    assert all(transport.closed for transport in opened)


def test_each_client_finds_its_parts_under_its_own_name() -> None:
    settings = Settings(llm=MODEL, memory=MEMORY)
    remotes = {name: make_remote(name, settings) for name in ("llm", "memory")}
    assert {name: sorted(remote.finders) for name, remote in remotes.items()} == {
        "llm": ["emotion", "questions"],
        "memory": ["memories"],
    }
    assert {name: remote.dependency.name for name, remote in remotes.items()} == {"llm": "llm", "memory": "memory"}


@pytest.mark.parametrize(
    "section", [LlmSettings(model="m", verify=False), MemorySettings(url="https://m", verify=False)]
)
async def test_without_verify_no_certificate_is_checked(section: Any) -> None:
    name = "llm" if isinstance(section, LlmSettings) else "memory"
    async with make_remote(name, Settings(**{name: section})) as remote:
        pool: Any = remote._client._open_proxied("http://127.0.0.1:1")
        for trusted in (pool._pool._ssl_context, remote._client._trusted):
            assert trusted.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize("name", ["llm", "memory"])
def test_a_file_of_an_authority_that_is_not_there_is_a_wrong_setting(name: str) -> None:
    settings = Settings(llm=LlmSettings(ca_file="/none.pem"), memory=MemorySettings(ca_file="/none.pem"))
    with pytest.raises(ConfigError, match=f"{name}: ca_file = '/none.pem' cannot be read"):
        make_remote(name, settings)

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from convo.analysis.http_part import PartService
from convo.conversation.model import Answered, Finding
from convo.conversation.owed import DeclaredPart
from convo.errors import RemoteDenied, RemoteError, RemoteGarbage, RemoteTimeout, RemoteUnavailable
from convo.settings import PartSettings, Secret
from convo.standard_webhooks import signed, signing_key
from tests.support import fakes
from tests.support.fakes import Call, FakeServer, Fault, conversation_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
SCHEMA = {
    "type": "object",
    "properties": {"tier": {"enum": ["gold"]}, "note": {"type": "string"}},
    "required": ["tier"],
}
PART = DeclaredPart(name="crm", who="http", version="p1:1", analyst="http://crm", schema=SCHEMA)
TALK = conversation_of("Why?", "Because.")


def gold(_call: Call) -> object:
    return {"tier": "gold", "note": "x\0y", "more": 1}


def answering(value: Any) -> Fault:
    async def answer(exchange: fakes.Exchange) -> None:
        await exchange.answer_json(200, value)

    return answer


async def find(server: FakeServer, **others: Any) -> Finding:
    usual: dict[str, Any] = {"attempts": 1, "attempt_seconds": 0.3, "backoff_seconds": 0.01}
    settings = PartSettings(who="http", url=f"{server.url}/find?x=1", secret=Secret(SECRET), **{**usual, **others})
    async with PartService(PART, settings) as service:
        return await service.find(TALK)


async def test_the_service_gets_the_conversation_signed_and_its_answer_is_the_parts() -> None:
    async with fakes.open_server(gold) as server:
        assert await find(server) == Answered(answer={"tier": "gold", "note": "xy"})
    (call,) = server.calls
    assert (call.method, call.path) == ("POST", "/find?x=1")
    at = int(call.headers["webhook-timestamp"])
    assert abs(at - time.time()) < 60
    signature = signed(call.headers["webhook-id"], at, call.body, [signing_key(SECRET)])
    assert call.headers["webhook-signature"] == signature["webhook-signature"]
    sent = json.loads(call.body)
    assert (sent["part"], sent["version"]) == ("crm", "p1:1")
    assert [(turn["speaker"], turn["text"]) for turn in sent["conversation"]["turns"]] == [
        ("user", "Why?"),
        ("bot", "Because."),
    ]
    assert "authorization" not in call.headers


async def test_an_attempt_that_is_made_again_has_the_same_id_and_key() -> None:
    async with fakes.open_server(gold) as server:
        server.then(fakes.failing("503"))
        await find(server, attempts=2)
    first, second = server.calls
    for name in ("webhook-id", "idempotency-key"):
        assert first.headers[name] == second.headers[name]
    assert first.headers["webhook-id"].startswith("part_")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (answering({"tier": "silver"}), RemoteGarbage),
        (answering([]), RemoteGarbage),
        (fakes.garbage, RemoteGarbage),
        (fakes.failing("401"), RemoteDenied),
        (fakes.failing("500"), RemoteUnavailable),
        (fakes.stuck, RemoteTimeout),
    ],
)
async def test_what_goes_wrong_is_an_error_of_its_kind(fault: Fault, error: type[RemoteError]) -> None:
    async with fakes.open_server(gold) as server:
        server.always = fault
        with pytest.raises(error) as raised:
            await find(server)
    assert raised.value.dependency == "part.crm"


async def test_a_certificate_of_an_unknown_authority_is_not_trusted() -> None:
    with pytest.raises(Exception, match=r"part\.crm: ca_file = '/none' cannot be read"):
        PartService(PART, PartSettings(who="http", url="https://x", secret=Secret(SECRET), ca_file="/none"))

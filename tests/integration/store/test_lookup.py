from __future__ import annotations

import pytest

from convo.conversation.digest import compact
from convo.conversation.identity import id_hash
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import Expired, NotFound
from convo.store.lookup import absent
from convo.store.postgres import Connection
from tests.support.making import accept, ask, open_process, open_store

ODD = ("talk-1", " ", "7:default", "a'b\\\\c", "%_\u00ad", "Bé-ɸ 🐘", "\U0010ffff" * 255, "é", "e\u0301", "x" * 255)


async def test_the_database_makes_the_same_hash_of_an_id(database: str) -> None:
    async with open_store(database) as postgres:
        for tenant in ("default", "", "Bé:7", "long" * 30):
            for one in ODD:
                made = await ask(postgres, "SELECT convo_id_hash($1, $2)", tenant, one)
                assert made == id_hash(one, tenant), (tenant, one)


@pytest.mark.parametrize(("state", "kind"), [("", NotFound), ("x", Expired), ("e", NotFound)])
async def test_what_is_not_stored_has_expired_or_is_not_known(database: str, state: str, kind: type[Exception]) -> None:
    async with open_process(database) as process:
        sent = accept("talk-1")
        stored = await process.committer.accept(sent)
        assert await ask(process.postgres, "SELECT digest FROM receipt WHERE seq = $1", stored.seq) == compact(
            sent.digest
        )
        await ask(process.postgres, f"WITH now AS (UPDATE receipt SET state = '{state}') SELECT 1")

        async def body(connection: Connection) -> Exception:
            return await absent(connection, WHOLE_DEFAULT, "talk-1")

        assert type(await process.postgres.run("test.absent", body)) is kind

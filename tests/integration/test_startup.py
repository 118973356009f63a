from __future__ import annotations

import gc
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from convo import config, startup
from convo.analysis import local
from convo.contracts import Contracts
from convo.conversation.owed import DEFAULT_OWED
from convo.erasure_keeper import ErasureKeeper
from convo.errors import Refused
from convo.runtime import identity
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings, JobsSettings, LlmSettings, MemorySettings, Secret, Settings
from convo.store.going_back import GoingBack
from convo.store.jobs.table import Jobs
from convo.store.postgres import Postgres, open_postgres
from convo.store.receipts import GivenReceipts
from tests.support.making import seen_processes
from tests.support.running import away


async def test_a_given_database_is_described_without_its_password() -> None:
    url = "postgresql://me:sekrit@db.example:5433/convo?password=sekrit"
    async with startup.open_database_source(Settings(database=DatabaseSettings(url=Secret(url)))) as source:
        assert source.url == url
        assert source.description == "PostgreSQL at db.example:5433/convo"
        assert source.keepers == ()


async def prepare(postgres: Postgres, data_dir: Path, pool_max: int = 8) -> list[str]:
    with identity.claim(data_dir) as me:
        jobs = Jobs(postgres, JobsSettings(), me.name)
        settings = Settings(database=DatabaseSettings(pool_max=pool_max))
        history = GoingBack(postgres, GivenReceipts(), 5.0, lambda: False)
        contracts = Contracts(postgres, me.incarnation)
        erasures = ErasureKeeper(postgres, data_dir, erased=lambda _seqs: None)
        return await startup.prepare_database(
            postgres, jobs, me, settings, history, contracts=contracts, erasures=erasures
        )


async def test_a_new_database_is_migrated_and_the_process_signed_in(empty_database: str, tmp_path: Path) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, empty_database, DatabaseSettings()) as postgres:
        with capture_logs() as records:
            assert await prepare(postgres, tmp_path) == []
        assert [record["from_version"] for record in records if record["event"] == "migrated"] == [0]
        assert len(await seen_processes(postgres)) == 1


async def test_a_database_that_is_away_is_tried_again_until_it_answers(
    postgres_url: str, database: str, tmp_path: Path
) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, database, DatabaseSettings()) as postgres:
        with capture_logs() as records:
            async with trio.open_nursery() as nursery, away(postgres_url, database):
                nursery.start_soon(prepare, postgres, tmp_path)
                while not any(record["event"] == "prepare_failed" for record in records):  # noqa: ASYNC110
                    await trio.sleep(0.01)
        assert len(await seen_processes(postgres)) == 1
    told = next(record for record in records if record["event"] == "prepare_failed")
    assert (told["database"], told["again_every_seconds"]) == ("embedded PostgreSQL", 1.0)


async def test_a_database_with_too_few_connections_is_refused(database: str, tmp_path: Path) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, database, DatabaseSettings()) as postgres:
        with pytest.raises(Refused, match="pool_max = 900"):
            await prepare(postgres, tmp_path, 900)


async def test_processes_that_may_open_more_connections_than_there_are_is_a_warning(
    database: str, tmp_path: Path
) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, database, DatabaseSettings()) as postgres:
        warnings: list[str] = []
        for number in range(3):
            warnings = await prepare(postgres, tmp_path / str(number), 15)
    assert warnings == ["all convo processes may open 87 connections, the database takes 47"]


async def test_each_part_has_the_embedded_analyst_until_a_remote_one_is_configured() -> None:
    async with startup.open_analysts(Settings()) as (analysts, remotes):
        assert {analyst.by for analyst in analysts.of(DEFAULT_OWED).values()} == {local.BY}
        assert list(remotes) == []
    llm = LlmSettings(base_url="http://127.0.0.1:1", model="a-model")
    memory = MemorySettings(url="http://127.0.0.1:1")
    async with startup.open_analysts(Settings(llm=llm, memory=memory)) as (analysts, remotes):
        assert [remote.dependency.name for remote in remotes] == ["llm", "memory"]
        assert local.BY not in {analyst.by for analyst in analysts.of(DEFAULT_OWED).values()}


def test_settling_the_collector_exempts_what_exists(tmp_path: Path) -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        startup.settle_collector()
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold()[0] == 10_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


# --- the address of the folder


@pytest.mark.parametrize(
    ("url", "called"),
    [
        ("https://10.0.0.1:7", "https://10.0.0.1:7"),
        ("http://0.0.0.0:7", "http://127.0.0.1:7"),
        ("http://[::]:7", "http://[::1]:7"),
    ],
)
def test_the_folder_says_where_its_server_listens_as_long_as_it_does(tmp_path: Path, url: str, called: str) -> None:
    with startup.noted_address(tmp_path, url):
        assert config.client_address({"CONVO_SERVER__DATA_DIR": str(tmp_path)})[0] == called
    assert not (tmp_path / config.ADDRESS_FILE).exists()


def test_a_folder_that_takes_no_file_keeps_nobody_from_serving(tmp_path: Path) -> None:
    with startup.noted_address(tmp_path / "not there", "http://127.0.0.1:7"):
        pass


# --- certificates


@pytest.mark.parametrize(
    ("environ", "warned"),
    [
        ({}, []),
        ({"CONVO_LLM__VERIFY": "false"}, []),  # it is not used
        ({"CONVO_LLM__MODEL": "m", "CONVO_LLM__VERIFY": "false"}, ["llm.verify"]),
        ({"CONVO_MEMORY__URL": "https://m", "CONVO_MEMORY__VERIFY": "false"}, ["memory.verify"]),
        ({"CONVO_ALERTS__SLACK_URL": "https://s", "CONVO_ALERTS__VERIFY": "false"}, ["alerts.verify"]),
    ],
)
def test_certificates_that_are_not_checked_are_a_warning_of_the_start(
    environ: dict[str, str], warned: list[str]
) -> None:
    found = startup.certificate_warnings(config.read_settings(None, environ))
    assert [warning.partition(" =")[0] for warning in found] == warned

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from convo.commands import reanalysing, rerun_drawing
from convo.commands.reanalysing import WantedRerun
from convo.errors import Refused
from convo.settings import DatabaseSettings, PartSettings, Secret, Settings
from convo.store.postgres import Connection
from tests.support.making import open_process, settled


def refused(match: str) -> pytest.RaisesGroup[Refused]:
    """Expect this refusal, in whichever group of a nursery it comes."""
    return pytest.RaisesGroup(pytest.RaisesExc(Refused, match=match), flatten_subgroups=True)


EMOTION = WantedRerun(part="emotion")


@pytest.fixture
def settings(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two conversations that an earlier analyst analysed, and the settings of a command on them."""
    # Not of the tests' own process.
    monkeypatch.setattr("os.nice", lambda _: 0)

    async def fill() -> None:
        async with open_process(database) as process:
            await process.accepted("talk-1", "talk-2", said=("Why do dogs bark?", "They talk."))
            await settled(process, 2)

    trio.run(fill)
    found = Settings(database=DatabaseSettings(url=Secret(database)))
    return msgspec.structs.replace(found, server=msgspec.structs.replace(found.server, data_dir=str(tmp_path)))


def ask(database: str, query: str) -> Any:
    async def run() -> Any:
        async with open_process(database) as process:

            async def body(connection: Connection) -> Any:
                return await connection.fetchval(query)

            return await process.postgres.run("test.ask", body)

    return trio.run(run)


def test_a_part_is_found_again_compared_and_promoted(
    settings: Settings, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = reanalysing.count_rerun(settings, EMOTION)
    assert (counted.conversations, counted.up_to_date) == (2, 0)
    ended = reanalysing.reanalyse(settings, EMOTION, 2)
    assert (ended.state, ended.counts, ended.version) == ("ended", {"done": 2}, counted.version)
    assert not ended.why_nothing
    before = ask(database, "SELECT score FROM relationship")
    found = reanalysing.compare_part(settings, "emotion", promote=False, min_agreement=0)
    assert (found.compared, found.made_by, found.promoted) == (2, {"local/2": 2}, None)
    assert found.agreement == 0.0
    assert {one.conversation_id for one in found.differences} == {"talk-1", "talk-2"}
    refused = reanalysing.compare_part(settings, "emotion", promote=True, min_agreement=0.9)
    assert refused.promoted is None
    assert ask(database, "SELECT score FROM relationship") == before
    done = reanalysing.compare_part(settings, "emotion", promote=True, min_agreement=0.0)
    assert done.promoted is not None
    assert done.promoted.conversations == 2
    assert ask(database, "SELECT score FROM relationship") == before + done.promoted.points
    # What has this version now has nothing to be found.
    counted = reanalysing.count_rerun(settings, EMOTION)
    assert (counted.conversations, counted.up_to_date) == (0, 2)
    again = reanalysing.reanalyse(settings, EMOTION, 2)
    assert (again.counts, again.why_nothing) == ({}, "found 0: 2 conversations have this version already")
    rerun_drawing.show_rerun(again, as_json=False)
    assert "found 0: 2 conversations have this version already." in capsys.readouterr().out


def test_a_re_run_that_may_choose_nothing_says_what_it_left_out(settings: Settings) -> None:
    ended = reanalysing.reanalyse(settings, WantedRerun(part="emotion", bot_id="nobody"), 1)
    assert ended.why_nothing.startswith("found 0: of 2 conversations none can be chosen: only those that are analysed")
    assert ended.why_nothing.endswith("and these within --bot nobody")


def test_a_part_that_nobody_declared_is_refused_with_those_that_are(settings: Settings) -> None:
    with refused(r"no part 'tier'.*questions, emotion, memories.*\[parts\.tier\]"):
        reanalysing.reanalyse(settings, WantedRerun(part="tier"), 1)
    declared = msgspec.structs.replace(settings, parts={"emotion": PartSettings(required=True)})
    assert reanalysing.count_rerun(declared, EMOTION).conversations == 2


def test_what_was_never_begun_can_neither_be_paused_nor_compared(settings: Settings) -> None:
    with refused("no re-run of emotion is open"):
        reanalysing.pause_rerun(settings, "emotion")
    with refused("convo reanalyse --part emotion"):
        reanalysing.compare_part(settings, "emotion", promote=False, min_agreement=0)


def test_an_open_re_run_is_not_gone_on_with_for_other_conversations(settings: Settings, database: str) -> None:
    reanalysing.reanalyse(settings, WantedRerun(part="emotion", bot_id="bot-1"), 1)
    ask(database, "UPDATE rerun SET state = 'paused' RETURNING 1")
    paused = "SELECT state FROM rerun"
    with refused("of other conversations"):
        reanalysing.reanalyse(settings, EMOTION, 1)
    assert ask(database, paused) == "paused"
    again = reanalysing.reanalyse(settings, WantedRerun(part="emotion", bot_id="bot-1"), 1)
    assert (again.number, again.state) == (1, "ended")

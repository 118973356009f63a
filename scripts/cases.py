#!/usr/bin/env python3
"""Post every case of a folder to real convo processes; show what became of each beside what was expected.

    scripts/cases.py                                  # ../shared/cases, on an embedded PostgreSQL of its own
    scripts/cases.py FOLDER --database-url URL        # databases are made there and dropped again
    scripts/cases.py --only temperature --only bom    # some of them

Cases with settings, and so with a fake model or memory service, get a process each; all others share one. What a case
should come to stands in case_expectations.py. Exit code 1: words were lost behind a 202, or a case came to something
else than it should.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from msgspec import Struct, structs, to_builtins
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.bench import databases  # noqa: E402
from scripts.case_expectations import Expected, Outcome, Posted, faults, said_in, silent_loss  # noqa: E402
from scripts.case_reading import Trial, body_of, read, settings_of  # noqa: E402
from scripts.fuzz_oddities import OTHER_NAMES  # noqa: E402
from tests.support.case_servers import CaseServer, open_case_server  # noqa: E402
from tests.support.running import Running, running  # noqa: E402

FOLDER = ROOT.parent / "shared/cases"
END = "/v1/conversations/end"
_LOGS = ("conversation_log", "conversation_logs", *OTHER_NAMES, "mapping")
_QUICK = {
    "jobs.backoff_seconds": "0.2",
    "jobs.backoff_max_seconds": "1",
    "jobs.poll_seconds": "0.2",
    **{f"{name}.backoff_seconds": "0.1" for name in ("llm", "memory")},
    **{f"{name}.backoff_max_seconds": "0.5" for name in ("llm", "memory")},
    "observe.log_level": "warning",
    "observe.log_format": "json",
}
_AT_A_TIME = 3
_POLL_SECONDS = 0.25
_REDRIVEN = 3


class Row(Struct, frozen=True, kw_only=True):
    """A line of the table."""

    case: str
    source: str
    outcome: str
    expected: str
    verdict: str
    why: tuple[str, ...]


def main() -> int:
    """Run the cases, print the table; return 0 where all is as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--database-url", default="", help="a PostgreSQL whose role may make databases")
    parser.add_argument("--only", action="append", default=[], help="the name of a case; may come several times")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    asked = parser.parse_args()
    trials = [trial for trial in read(asked.folder) if not asked.only or trial.name.partition(" ")[0] in asked.only]
    if not trials:
        print(f"there is no case in {asked.folder}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="convo-cases-") as folder, _server(asked.database_url, Path(folder)) as url:
        rows = trio.run(_all, trials, Path(folder), url)
    _show(rows, time.monotonic() - began)
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(rows), ensure_ascii=False, indent=1), encoding="utf-8")
    return int(any(row.verdict != "ok" for row in rows))


# --- running them


async def _all(trials: list[Trial], folder: Path, database_url: str) -> list[Row]:
    rows: dict[str, Row] = {}
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        alone = "settings" in trial.case or "steps" in trial.case
        groups[trial.name if alone else ""].append(trial)
    limiter = trio.CapacityLimiter(_AT_A_TIME)

    async def run(number: int, group: list[Trial]) -> None:
        async with limiter:
            for row in await _group(number, group, folder, database_url):
                rows[row.case] = row
                print(f"{row.case}: {row.verdict}", file=sys.stderr)

    async with trio.open_nursery() as nursery:
        for number, group in enumerate(groups.values()):
            nursery.start_soon(run, number, group)
    return [rows[trial.name] for trial in trials]


async def _group(number: int, group: list[Trial], folder: Path, database_url: str) -> list[Row]:
    first = group[0]
    case = {**first.case, **_REDRIVE} if first.name == "redrive" else first.case
    async with contextlib.AsyncExitStack() as stack:
        fake = None
        if "fake_model" in case or "fake_memory" in case:
            fake = await stack.enter_async_context(open_case_server(case, first.answer))
        settings = _QUICK | settings_of(case, fake.url.rpartition(":")[2] if fake else "")
        work = partial(_in_process, group, folder / f"group-{number}", database_url, settings, fake)
        return await trio.to_thread.run_sync(work)


def _in_process(
    group: list[Trial], folder: Path, server_url: str, settings: Mapping[str, str], fake: CaseServer | None
) -> list[Row]:
    try:
        with (
            databases.database(server_url, folder.name.replace("-", "_")) as url,
            running(folder, url, settings) as convo,
            httpx.Client(base_url=convo.url, timeout=30.0) as client,
        ):
            if group[0].name == "redrive" and fake is not None:
                return [_row(group[0], _redrive(client, convo, fake))]
            return [_row(trial, _run(trial, client, convo, fake)) for trial in group]
    except pytest.fail.Exception as failed:
        why = (str(failed)[-2000:],)
        return [_row(trial, Outcome(posted=(), notes=why)) for trial in group]


def _run(trial: Trial, client: httpx.Client, convo: Running, fake: CaseServer | None) -> Outcome:
    began, expected = time.monotonic(), trial.expected
    posted: list[Posted] = []
    for request in trial.requests:
        posted.append(_post(client, request, trial.case))
        if expected.one_by_one:
            posted[-1] = _finished(client, posted[-1], expected, began)
    ended = tuple(_finished(client, one, expected, began) for one in posted)
    notes = [f"`when` was not understood: {fake.misread}"] if fake and fake.misread else []
    notes += [] if posted else ["it holds no body, and its steps are not known here"]
    explained = [client.get(f"{_link(one)}/explain").text for one in ended if one.status == 202]
    return Outcome(
        posted=ended,
        posts=len(fake.posts) if fake else 0,
        seconds=time.monotonic() - began,
        told="\n".join([convo.output, client.get("/readyz").text, *explained]),
        warnings=Counter(_warnings(convo.output)),
        notes=tuple(notes),
    )


def _post(client: httpx.Client, request: Any, case: Mapping[str, Any]) -> Posted:
    headers = {"content-type": "application/json", **case.get("request_headers", {})}
    answer = client.post(END, content=body_of(request, case), headers=headers)
    told = answer.json() if "json" in answer.headers.get("content-type", "") else {}
    fields = request if isinstance(request, dict) else {}
    log = next((fields[name] for name in _LOGS if fields.get(name)), None)
    elsewhere = [value for value in fields.values() if isinstance(value, list | dict)]
    posted = Posted(
        status=answer.status_code,
        code=told.get("code", ""),
        detail=" ".join(str(told.get(name, "")) for name in ("path", "detail")),
        said=tuple(said_in(elsewhere if log is None else log)),
        log=log,
        receipt=told,
    )
    if posted.status != 202:
        return posted
    link = told["links"]["log"]
    turns = client.get(link)
    sent = client.get(link, params={"as": "sent"})
    return structs.replace(posted, turns=turns.json().get("turns", []), sent=_as_sent(sent))


def _as_sent(answer: httpx.Response) -> Any:
    """Return a log as sent; ``None`` where the server does not know the parameter, and answers with turns."""
    if answer.status_code != 200:
        return None
    value = answer.json()
    return None if isinstance(value, dict) and {"conversation_id", "turns"} <= value.keys() else value


def _finished(client: httpx.Client, posted: Posted, expected: Expected, began: float) -> Posted:
    """Wait until a conversation has come to its end, or is parked where that is what it should be."""
    while posted.status == 202 and posted.state not in ("done", "dead"):
        posted = structs.replace(posted, conversation=client.get(_link(posted)).json())
        parked = posted.state == "parked" and expected.state != "done" and posted.conversation["parked_since"]
        if parked or time.monotonic() > began + expected.seconds_max:
            break
        time.sleep(_POLL_SECONDS)
    return posted


def _link(posted: Posted) -> str:
    return str(posted.receipt["links"]["self"])


def _warnings(said: str) -> Iterator[str]:
    for line in said.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("level") in ("warning", "error", "critical"):
                yield str(record.get("event"))


# --- the case whose steps are commands

# Whatever a client can learn of its server, this stays an answer that cannot be used.
_REDRIVE = {
    "settings": {"CONVO_LLM__BASE_URL": "http://127.0.0.1:PORT/v1", "CONVO_LLM__MODEL": "x", "CONVO_LLM__API_KEY": "k"},
    "fake_model": {
        "when": "every call",
        "status": 200,
        "body": {"choices": [{"message": {"content": "I would rather not."}, "finish_reason": "stop"}]},
    },
}


def _redrive(client: httpx.Client, convo: Running, fake: CaseServer) -> Outcome:
    began = time.monotonic()
    said = [{"role": "user", "content": "Is the shop open?"}, {"role": "assistant", "content": "Yes."}]
    ids = {"user_id": "user-redrive", "bot_id": "bot-redrive", "conversation_log": said}
    bodies = [{"conversation_id": f"redrive-{number}", **ids} for number in range(_REDRIVEN)]
    posted = [_post(client, body, {}) for body in bodies]
    buried = [_finished(client, one, Expected(), began) for one in posted]
    fake.mend()
    command = [sys.executable, "-m", "convo", "retry", "--all", "--url", convo.url]
    retried = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    notes = [f"before: {one.state}" for one in buried if one.state != "dead"]
    if retried.returncode:
        last = (retried.stderr.strip() or retried.stdout.strip()).splitlines()[-1:]
        notes.append(f"convo retry --all: exit code {retried.returncode}: {' '.join(last)}")
    again = [structs.replace(one, conversation={}) for one in buried]
    ended = tuple(_finished(client, one, Expected(state="done"), time.monotonic()) for one in again)
    return Outcome(posted=ended, posts=len(fake.posts), seconds=time.monotonic() - began, notes=tuple(notes))


# --- the table


def _row(trial: Trial, outcome: Outcome) -> Row:
    lost = tuple(loss for posted in outcome.posted if (loss := silent_loss(posted)))
    wrong = tuple(faults(trial.expected, outcome))
    return Row(
        case=trial.name,
        source=trial.case.get("source", ""),
        outcome="\n".join(map(_told, outcome.posted)) + (f"\n{outcome.posts} POSTs" if outcome.posts else ""),
        expected=trial.case.get("expected", ""),
        verdict="LOST" if lost else "WRONG" if wrong else "ok",
        why=lost + wrong,
    )


def _told(posted: Posted) -> str:
    if posted.status != 202:
        return f"{posted.status} {posted.code} {posted.detail}"
    known = posted.conversation
    unread, ignored = (len(posted.receipt.get(name) or []) for name in ("unread", "ignored"))
    parts = [f"{name} {_part(posted.part(name))}" for name in ("questions", "emotion", "memories")]
    told = [
        f"202 turns {len(posted.turns)}"
        + (f" unread {unread}" if unread else "")
        + (f" ignored {ignored}" if ignored else "")
        + ("" if posted.sent is not None else " (no as=sent)"),
        f"{known.get('state')} attempts {known.get('attempts')} waits_for {known.get('waits_for') or '-'}",
        ", ".join(parts),
        str(known.get("last_error") or ""),
    ]
    return "\n".join(filter(None, told))


def _part(part: Mapping[str, Any]) -> str:
    if part.get("state") != "done":
        return str(part.get("state"))
    found = next((part[name] for name in ("questions", "emotion", "memories") if name in part), None)
    return str(len(found) if isinstance(found, list) else found)


def _show(rows: list[Row], seconds: float) -> None:
    console = Console()
    # A file has no width of its own.
    console = console if console.is_terminal else Console(width=180)
    table = Table(show_lines=True, title=f"{len(rows)} cases in {seconds:.0f} s")
    for name, ratio in (("case", 3), ("source", 4), ("outcome", 9), ("expected", 5), ("verdict", 6)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for row in rows:
        verdict = "\n".join([row.verdict, *row.why])
        table.add_row(*map(_plain, (row.case, row.source, row.outcome, row.expected, verdict)))
    console.print(table)
    verdicts = Counter(row.verdict for row in rows)
    console.print(
        f"silent losses {verdicts['LOST']}, other unexpected outcomes {verdicts['WRONG']}, as expected {verdicts['ok']}"
    )


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


@contextlib.contextmanager
def _server(given: str, folder: Path) -> Iterator[str]:
    """Yield the URL of the PostgreSQL that is given, or of an embedded one that ends with the block."""
    if given:
        yield given
        return
    command = [sys.executable, "-m", "tests.support.embedded_server", str(folder / "embedded"), "remove"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        url = (process.stdout.readline() if process.stdout else "").strip()
        if not url.startswith("postgresql://"):
            raise SystemExit("the embedded PostgreSQL does not start: see `convo check`, or give --database-url")
        yield url


if __name__ == "__main__":
    sys.exit(main())

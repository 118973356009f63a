"""``convo import``: posts the conversations of files in batches, and says what became of each line that was refused.

What has its final answer is noted in a small file, so that the same command goes on where it ended. Without that file
all is sent again, which gets the same receipts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from convo.client import Client, ClientError, NotReached, ProblemError, Receipt
from convo.commands import database
from convo.commands.import_files import STANDARD_INPUT, ImportLine, read_lines, size_of
from convo.commands.output import add_row, make_table, plain, print_json, show_result
from convo.commands.terminal import NO_SERVER, REFUSED, ServerCall
from convo.conversation.decode import decode
from convo.errors import ConvoError, Refused
from convo.observe.log import open_log
from convo.plural import plural
from convo.settings import Settings
from convo.store.imported import BookedTotals, EarlierTotal
from convo.web.accept import check_user, make_accept

# As long as a group is under way nothing is noted: it is small enough to be sent again.
_GROUP_LINES, _GROUP_BYTES = 500, 4 << 20
_SHOWN_MAX = 1_000
IMPORT_CALL_SECONDS = 120.0
"""A restart of the server, or of its database, takes less."""


class RefusedLine(Struct, frozen=True, kw_only=True):
    """A line that was refused, or would be, and why."""

    file: str
    line: int
    why: str


class ImportReport(Struct, kw_only=True):
    """What became of all lines; ``lines`` are those that were refused, at most 1,000 of them."""

    dry_run: bool
    accepted: int = 0
    replayed: int = 0
    refused: int = 0
    lines: list[RefusedLine] = []

    def refuse(self, file: str, line: int, why: str) -> None:
        """Note a line that is refused, and print it."""
        self.refused += 1
        if self.refused <= _SHOWN_MAX:
            self.lines.append(RefusedLine(file=file, line=line, why=why))
            Console(stderr=True).print(plain(f"{file}:{line}: {why}"), soft_wrap=True)


class ImportPlan(Struct, frozen=True, kw_only=True):
    """What is imported: the files, at most ``per_second`` lines a second (0: no limit), and where its state is kept."""

    files: Sequence[str]
    state: Path
    per_second: float = 0.0


class _Done(Struct, frozen=True, kw_only=True):
    """How many lines of a file have their final answer; the file is known again by its size."""

    size: int
    lines: int


class _State:
    """The file that says what is done."""

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = url
        self._done: dict[str, dict[str, _Done]] = {}
        try:
            self._done = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, _Done]])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            raise Refused(f"{path} is no state of an import ({error}): name another one with --state") from error

    def lines(self, file: str) -> int:
        """Return how many lines of a file were imported into this server already."""
        found = self._done.get(self._url, {}).get(_name(file))
        return found.lines if found is not None and found.size == size_of(file) else 0

    def note(self, file: str, lines: int) -> None:
        """Note that the first lines of a file have their final answer."""
        if file == STANDARD_INPUT:
            return
        self._done.setdefault(self._url, {})[_name(file)] = _Done(size=size_of(file), lines=lines)
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            fresh.write_bytes(msgspec.json.encode(self._done))
            fresh.replace(self._path)
        except OSError as error:
            raise Refused(f"the state cannot be written to {self._path} ({error}): name another --state") from error


def _name(file: str) -> str:
    return str(Path(file).absolute())


def import_files(call: ServerCall, plan: ImportPlan) -> int:
    """Post all lines, and print what became of them; return the exit code: 1 where some were refused.

    Raises:
        Refused: a file, or the state, cannot be read.
    """
    report = ImportReport(dry_run=False)
    try:
        with Client(call.url, key=call.key, call_seconds=IMPORT_CALL_SECONDS) as client:
            _post_all(client, plan, _State(plan.state, call.url), report)
    except (ClientError, KeyboardInterrupt) as error:
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        Console(stderr=True).print(plain(f"{stopped}; the same command goes on where this one ended"), soft_wrap=True)
        _show(report, as_json=call.as_json)
        return NO_SERVER if isinstance(error, NotReached) else 130 if isinstance(error, KeyboardInterrupt) else REFUSED
    _show(report, as_json=call.as_json)
    return REFUSED if report.refused else 0


def check_files(settings: Settings, files: Sequence[str], *, as_json: bool) -> int:
    """Read all lines as a server with these settings would, and print what it would refuse; nothing is sent.

    Raises:
        Refused: a file cannot be read.
    """
    report = ImportReport(dry_run=True)
    digests: dict[str, str] = {}
    with _progress(files) as (progress, files_read):
        for file in files:
            for line in read_lines(file):
                why = _fault_of(line.body, settings, digests)
                if why:
                    report.refuse(file, line.number, why)
                else:
                    report.accepted += 1
                progress.update(files_read[file], completed=line.read_bytes)
    _show(report, as_json=as_json)
    return REFUSED if report.refused else 0


def _fault_of(body: bytes, settings: Settings, digests: dict[str, str]) -> str:
    try:
        limits = {"kept_bytes_max": settings.web.body_bytes_max, "items_max": settings.intake.items_max}
        accept = make_accept(decode(body, **limits))
        check_user(accept)
    except ConvoError as error:
        at = f" at {error.path}" if error.path else ""
        return f"{error.status} {error.code}: {error.detail}{at}"
    if digests.setdefault(accept.ended.conversation_id, accept.digest) != accept.digest:
        return f"409 conflict: {accept.ended.conversation_id} stands in an earlier line with other content"
    return ""


def _post_all(client: Client, plan: ImportPlan, state: _State, report: ImportReport) -> None:
    began, sent = time.monotonic(), 0
    with _progress(plan.files) as (progress, files_read):
        for file in plan.files:
            for group in _groups(read_lines(file, state.lines(file)), plan.per_second):
                outcomes = client.batch([line.body for line in group])
                for line, outcome in zip(group, outcomes, strict=True):
                    _count(report, file, line, outcome)
                state.note(file, group[-1].number)
                progress.update(files_read[file], completed=group[-1].read_bytes)
                sent += len(group)
                if plan.per_second:
                    time.sleep(max(0.0, began + sent / plan.per_second - time.monotonic()))


def _groups(lines: Iterable[ImportLine], per_second: float) -> Iterator[list[ImportLine]]:
    count_max = max(1, min(_GROUP_LINES, int(per_second))) if per_second else _GROUP_LINES
    group: list[ImportLine] = []
    size = 0
    for line in lines:
        if group and (len(group) == count_max or size + len(line.body) > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line.body)
    if group:
        yield group


def _count(report: ImportReport, file: str, line: ImportLine, outcome: Receipt | ProblemError) -> None:
    if isinstance(outcome, Receipt):
        report.accepted += not outcome.replayed
        report.replayed += outcome.replayed
    elif outcome.retryable:
        raise outcome  # not in the time of a call: nothing behind the last group that is noted is skipped
    else:
        at = f" at {outcome.path}" if outcome.path else ""
        report.refuse(file, line.number, f"{outcome}{at}")


def import_relationships(  # noqa: PLR0913  (which totals, whose they are, and how that is shown)
    settings: Settings, file: str, import_id: str, *, tenant: str, dry_run: bool, as_json: bool
) -> int:
    """Add the totals of a file to a tenant's relationships, and print how many; nothing where a line is wrong.

    Raises:
        Refused: the file cannot be read, or as ``database.import_totals``.
    """
    report = ImportReport(dry_run=dry_run)
    totals: dict[tuple[str, str], EarlierTotal] = {}
    for line in read_lines(file):
        try:
            total = msgspec.json.decode(line.body, type=EarlierTotal)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            report.refuse(file, line.number, str(error))
            continue
        if totals.setdefault((total.user_id, total.bot_id), total) is not total:
            report.refuse(file, line.number, f"{total.user_id} and {total.bot_id} stand in an earlier line, too")
    if report.refused:
        wrong = f"{report.refused:,} {plural(report.refused, 'line')} {'is' if report.refused == 1 else 'are'} wrong"
        raise Refused(f"{file}: {wrong}, and nothing was added")
    booked = BookedTotals()

    def add(more: BookedTotals) -> None:
        nonlocal booked
        booked += more

    if not dry_run:
        with open_log(settings.observe):
            trio.run(partial(database.import_totals, settings, import_id, list(totals.values()), add, tenant=tenant))
    if as_json:
        print_json({"dry_run": dry_run, "totals": len(totals), **msgspec.structs.asdict(booked)})
        return 0
    table = make_table("totals", "count")
    add_row(table, "in the file", len(totals))
    if not dry_run:
        add_row(table, "added", booked.added)
        add_row(table, "added before, under this id", booked.before)
        add_row(table, "of users that were erased", booked.erased)
    show_result(table)
    return 0


@contextmanager
def _progress(files: Sequence[str]) -> Iterator[tuple[Progress, dict[str, TaskID]]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        yield progress, {file: progress.add_task(Path(file).name, total=size_of(file) or None) for file in files}


def _show(report: ImportReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    table = make_table("lines", "count")
    if report.dry_run:
        add_row(table, "would be taken", report.accepted)
        add_row(table, "would be refused", report.refused)
    else:
        add_row(table, "accepted", report.accepted)
        add_row(table, "replayed", report.replayed)
        add_row(table, "refused", report.refused)
    show_result(table)

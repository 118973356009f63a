"""Every wait for something outside the process stands under a deadline with a known name, read out of the source.

A call that waits for the outside stands lexically inside ``with deadline(``, or in a function of ``HELD``, beside those
who call it: each of these calls it inside ``with deadline(`` or is held itself.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

import convo.deadline  # noqa: F401  (the cells are made when it is imported)
from convo.config import Settings
from convo.observe import metrics
from convo.waits import NAMES

ROOT = Path(__file__).parents[1]

# What waits for the outside when it is awaited, or entered with `async with`: by the last word of what is called.
OUTSIDE = frozenset(
    {
        # the crossing to the database, with all that the asyncio side does; `postgres.run` and `line.run` hold theirs
        "cross",
        # HTTP clients
        "stream", "get", "post", "put", "delete", "patch", "request", "aread",
        # sockets
        "receive_some", "send_all", "send_eof", "recv", "recv_into", "sendall", "sendmsg", "accept",
        "open_tcp_stream", "open_unix_socket", "getaddrinfo", "do_handshake",
        # what a framework reads and writes for us
        "get_data", "send",
        # threads, programs, channels
        "run_sync", "run_process", "open_process", "wait", "ended", "receive",
    }
)  # fmt: skip

# Same words, but for something inside the process: (function, what is called).
INSIDE: dict[tuple[str, str], str] = {
    ("convo.bell.Bell.heard", "self._rung.wait"): "an event of ours",
    ("convo.service.Service._keep_books", "self._prepared.wait"): "an event of ours",
    ("convo.service.Service._keep_keys", "self._prepared.wait"): "an event of ours",
    ("convo.service.Service._publish", "self._prepared.wait"): "an event of ours",
    ("convo.service.Service._sample", "self._prepared.wait"): "an event of ours",
    ("convo.service.Service._fly", "self._prepared.wait"): "an event of ours",
    ("convo.alerts.delivery.Outbox.run", "async for self._receive"): "from those of ours who tell",
    ("convo.alerts.delivery.Outbox.test", "self.sink.send"): "a function of ours, with its deadline inside",
    ("convo.service.Service._stopping", "self._stop.wait"): "an event of ours",
    ("convo.store.group.Group.submit", "waiter.answered.wait"): "an event of ours",
    ("convo.web.conversations.Intake._commit", "self.committer.accept"): "with time enough, db.accept ends first",
    ("convo.web.reading.Reading._when_ended", "ended.wait"): "an event of ours",
    ("convo.web.app._route_intake.end.serve", "api.intake.receive"): "a function of ours, with deadlines inside",
    ("convo.web.asgi.Exchange._send_body", "self._talk.send"): "the connection's own send, see SCOPED",
    ("convo.pipeline.publisher.Publisher._feed", "channel.send"): "to a worker of ours that is waiting",
    ("convo.pipeline.worker.Worker.run", "async for channel"): "from our publisher; nothing to do is no fault",
    ("convo.service.Service._hear", "async for signals"): "signals come or do not",
    ("convo.service._signals.noted", "async for signals"): "signals come or do not",
}

# Waits that are as long as what they keep an eye on lives.
FOR_EVER: dict[str, str] = {
    "convo.store.private.postmaster.Postmaster.gone": "a keeper waits as long as the server lives",
}


class Held(Struct, frozen=True):
    """Who holds a function's deadline: every caller; or ``by``, which is handed it and calls it by another name."""

    callers: tuple[str, ...]
    by: str = ""
    called_as: str = ""


HELD: dict[str, Held] = {
    "convo.alerts.delivery.HttpSink._post": Held(("convo.alerts.delivery.HttpSink.send",)),
    "convo.analysis.remote.Remote._read": Held(("convo.analysis.remote.Remote._send",)),
    "convo.analysis.remote.Remote._send": Held(
        ("convo.analysis.remote.Remote.post", "convo.analysis.remote.Remote.fetch")
    ),
    "convo.analysis.remote.Remote.post": Held(
        ("convo.analysis.llm.Model._complete", "convo.analysis.memory.MemoryService._extract")
    ),
    "convo.analysis.remote.Remote.ping.ask": Held(("convo.analysis.remote.Remote.ping",)),
    "convo.analysis.llm.Model._complete": Held(("convo.analysis.llm.Model._find",)),
    "convo.analysis.llm.Model._find": Held(
        ("convo.analysis.llm.Model.questions", "convo.analysis.llm.Model.emotion"),
        by="convo.resilience.dependency.Dependency._admitted",
        called_as="attempt",
    ),
    "convo.analysis.memory.MemoryService._extract": Held(
        ("convo.analysis.memory.MemoryService.memories",),
        by="convo.resilience.dependency.Dependency._admitted",
        called_as="attempt",
    ),
    "convo.store.backup._pipe": Held(("convo.store.backup.restore",)),
    "convo.store.backup._feed": Held(("convo.store.backup._pipe",)),
}

# One client connection stands under one scope, whose deadline is moved from phase to phase: as many scopes as phases
# would cost as much as reading a request. Its functions, and the two that open the scope.
SCOPED = frozenset(
    {
        *(f"convo.web.connection.Connection.{name}" for name in ("_refuse", "_accept", "send")),
        *(f"convo.web.channel.Channel.{name}" for name in ("more", "send", "_send_all", "_send_rest")),
        "convo.web.incoming.Incoming._more",
        *(f"convo.web.wire.Tls.{name}" for name in ("open", "receive", "receive_remains", "send")),
    }
)
SCOPES = {
    "convo.web.channel.Channel.carry": "with self._scope:",
    "convo.web.channel.Channel.see_off": "with trio.CancelScope(deadline=",
}

# What the holes of names that are put together may hold.
HOLES: dict[str, tuple[str, ...]] = {
    "{self.name}": ("llm", "memory"),
    "embedded.{program}": ("embedded.initdb", "embedded.postgres"),
    "backup.{program}": ("backup.pg_dump",),
}


class Call(Struct, frozen=True):
    """One call: where, of what, inside a deadline or not, waited for or not, and the node itself."""

    function: str
    written: str
    bounded: bool
    awaited: bool
    node: ast.Call | None
    line: int

    @property
    def word(self) -> str:
        return self.written.rpartition(".")[2]


class Reader(ast.NodeVisitor):
    """Collects every call of a module, with the functions and deadlines around it."""

    def __init__(self, module: str) -> None:
        self.calls: list[Call] = []
        self._where = [module]
        self._bounded = [False]
        self._awaited: set[ast.AST] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._where.append(node.name)
        # What a function does happens when it is called, whatever stands around its definition.
        self._bounded.append(False)
        self.generic_visit(node)
        self._bounded.pop()
        self._where.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  (ast's own names)
    visit_ClassDef = visit_FunctionDef  # noqa: N815

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            if isinstance(node, ast.AsyncWith):
                self._awaited.add(item.context_expr)
            self.visit(item)
        self._bounded.append(self._bounded[-1] or any(_is_deadline(item.context_expr) for item in node.items))
        for statement in node.body:
            self.visit(statement)
        self._bounded.pop()

    visit_AsyncWith = visit_With  # noqa: N815

    def visit_Await(self, node: ast.Await) -> None:
        self._awaited.add(node.value)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._add(f"async for {ast.unparse(node.iter)}", node.lineno, awaited=True)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._add(ast.unparse(node.func), node.lineno, awaited=node in self._awaited, node=node)
        self.generic_visit(node)

    def _add(self, written: str, line: int, *, awaited: bool, node: ast.Call | None = None) -> None:
        where = ".".join(self._where)
        self.calls.append(Call(where, written, self._bounded[-1], awaited, node, line))


def _is_deadline(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Call) and ast.unparse(expression.func) == "deadline"


@cache
def modules() -> dict[str, ast.Module]:
    files = sorted((ROOT / "convo").rglob("*.py"))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): ast.parse(file.read_text("utf-8")) for file in files
    }


@cache
def calls() -> tuple[Call, ...]:
    return tuple(call for module, tree in modules().items() for call in read(module, tree))


def read(module: str, tree: ast.Module) -> list[Call]:
    reader = Reader(module)
    reader.visit(tree)
    return reader.calls


@cache
def functions() -> frozenset[str]:
    def below(node: ast.AST, where: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{where}.{child.name}"
                yield from below(child, f"{where}.{child.name}")
            else:
                yield from below(child, where)

    return frozenset(name for module, tree in modules().items() for name in below(tree, module))


def naked(found: tuple[Call, ...]) -> list[Call]:
    """The waits for the outside that no deadline stands around, in their own function."""
    return [
        call
        for call in found
        if call.awaited
        and not call.bounded
        and (call.word in OUTSIDE or call.written.startswith("async for "))
        and (call.function, call.written) not in INSIDE
    ]


# --- every wait has its deadline


def test_every_wait_for_the_outside_stands_under_a_deadline() -> None:
    excused = HELD.keys() | FOR_EVER.keys() | SCOPED
    bare = [call for call in naked(calls()) if call.function not in excused]
    assert bare == [], "\n".join(f"{call.function}: await {call.written}(…), line {call.line}" for call in bare)


@pytest.mark.parametrize("function", sorted(SCOPES))
def test_a_connections_waits_stand_under_a_scope_that_has_a_deadline(function: str) -> None:
    module, _, name = function.rpartition(".Channel.")
    (found,) = [
        node for node in ast.walk(modules()[module]) if isinstance(node, ast.AsyncFunctionDef) and node.name == name
    ]
    assert SCOPES[function] in ast.unparse(found)


def test_every_phase_of_a_connection_sets_the_deadline_of_its_scope() -> None:
    source = (ROOT / "convo/web/channel.py").read_text("utf-8")
    assert source.count("self.phase = ") == 3  # at the start, in enter, and where it takes its leave
    moved = "self.phase = phase\n        if not until - early <= self._scope.deadline <= until:\n"
    assert moved + "            self._scope.deadline = until\n" in source


@pytest.mark.parametrize("function", sorted(HELD))
def test_who_is_held_is_held_by_all_who_call_it(function: str) -> None:
    held = HELD[function]
    name = function.rpartition(".")[2]
    assert function in functions()
    if held.by:
        near = [call for call in calls() if call.node and call.function.startswith(_module(function))]
        givers = {call.function for call in near if call.node and _mentions(call.node, name)}
        assert givers == set(held.callers), "those who hand it over are others than the table says"
        taken = [call for call in calls() if call.function == held.by and call.written == held.called_as]
        assert taken, f"{held.by} does not call {held.called_as}"
        assert all(call.bounded for call in taken), f"{held.by} calls {held.called_as} outside of `with deadline(`"
        return
    own = [call for call in calls() if call.word == name and call.function in held.callers]
    assert {call.function for call in own} == set(held.callers), "a caller in the table does not call it"
    assert all(call.bounded or call.function in HELD for call in own)
    if name.startswith("_"):  # nobody outside its module calls it, and nobody inside it unseen
        near = [call for call in calls() if call.function.startswith(_module(function))]
        others = {call.function for call in near if call.word == name}
        assert others == set(held.callers)


def _module(function: str) -> str:
    return next(f"{one}." for one in sorted(modules(), key=len, reverse=True) if function.startswith(f"{one}."))


def _mentions(node: ast.Call, name: str) -> bool:
    words = {ast.unparse(inner).rpartition(".")[2] for argument in node.args for inner in ast.walk(argument)
             if isinstance(inner, ast.Name | ast.Attribute)}  # fmt: skip
    return name in words and ast.unparse(node.func) != "partial"


def test_the_tables_hold_nothing_that_is_gone() -> None:
    bare = {call.function for call in naked(calls())}
    passed_on = {caller for held in HELD.values() for caller in held.callers}
    assert {function for function in HELD if function not in bare | passed_on} == set()
    assert set(FOR_EVER) <= bare
    written = {(call.function, call.written) for call in calls()}
    assert {pair for pair in INSIDE if pair not in written} == set()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("async def f():\n    await client.get(url)", 1),
        ("async def f():\n    with deadline('llm.ping', 2):\n        await client.get(url)", 0),
        ("async def f():\n    with suppress(E), deadline('llm.ping', 2):\n        await client.get(url)", 0),
        ("async def f():\n    with move_on_after(2):\n        await client.get(url)", 1),
        ("async def f():\n    with deadline('x', 2):\n        async def g():\n            await client.get(url)", 1),
        ("async def f():\n    with deadline('x', 2):\n        pass\n    await client.get(url)", 1),
        ("async def f():\n    async with client.stream('GET', url) as answer:\n        pass", 1),
        ("async def f():\n    async for chunk in answer.aiter_raw():\n        pass", 1),
        ("async def f():\n    return [await process.wait() for process in both]", 1),
        ("async def f():\n    found = table.get(key)", 0),
    ],
)
def test_the_reader_sees_a_wait_wherever_it_stands(text: str, seen: int) -> None:
    assert len(naked(tuple(read("m", ast.parse(text))))) == seen


# --- every deadline has its name


def _takers() -> dict[str, int]:
    """The functions that pass a name on to ``deadline``: their last word, and its place among their arguments."""
    takers = {"deadline": 0}
    while True:
        found = dict(takers)
        for tree in modules().values():
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    place = _passes_on(function, takers)
                    if place is not None:
                        found[function.name] = place
        if found == takers:
            return takers
        takers = found


def _passes_on(function: ast.FunctionDef | ast.AsyncFunctionDef, takers: dict[str, int]) -> int | None:
    given = [argument for argument in function.args.args if argument.arg != "self"]
    texts = {argument.arg: place for place, argument in enumerate(given) if _is_text(argument)}
    for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
        argument = _name_in(call, takers)
        if isinstance(argument, ast.Name) and argument.id in texts:
            return texts[argument.id]
    return None


def _is_text(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) == "str"


def _name_in(call: ast.Call, takers: dict[str, int]) -> ast.expr | None:
    place = takers.get(ast.unparse(call.func).rpartition(".")[2])
    return call.args[place] if place is not None and place < len(call.args) else None


def _names_used() -> dict[str, set[str]]:
    """Every name that is given to a deadline, with the modules that do."""
    used: dict[str, set[str]] = defaultdict(set)
    takers = _takers()
    for module, tree in modules().items():
        for loop in (node for node in ast.walk(tree) if isinstance(node, ast.For)):
            for name in _looped(loop, takers):
                used[name].add(module)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            argument = _name_in(call, takers)
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                used[argument.value].add(module)
            elif isinstance(argument, ast.JoinedStr):
                for name in _filled(ast.unparse(argument)[2:-1]):
                    used[name].add(module)
    return used


def _looped(loop: ast.For, takers: dict[str, int]) -> Iterator[str]:
    """Names that a loop goes through: `for name, … in ((…, …), …)`, with the name first."""
    if not isinstance(loop.target, ast.Tuple) or not isinstance(loop.iter, ast.Tuple):
        return
    first = ast.unparse(loop.target.elts[0])
    arguments = [_name_in(call, takers) for call in ast.walk(loop) if isinstance(call, ast.Call)]
    if any(isinstance(argument, ast.Name) and argument.id == first for argument in arguments):
        for row in loop.iter.elts:
            assert isinstance(row, ast.Tuple)
            yield ast.literal_eval(row.elts[0])


def _filled(text: str) -> list[str]:
    if text in HOLES:
        return list(HOLES[text])
    head, dot, rest = text.rpartition(".")
    assert head in HOLES, f"add what {text!r} may become to HOLES"
    return [f"{filling}{dot}{rest}" for filling in HOLES[head]]


def test_every_name_stands_in_the_table_and_every_name_of_the_table_is_used() -> None:
    used = _names_used()
    unknown = {name: sorted(where) for name, where in used.items() if name not in NAMES}
    assert unknown == {}, "add them to convo/waits.py"
    assert set(NAMES) - set(used) == set(), "nobody waits under these names"


def test_a_name_says_what_is_waited_for_and_is_no_setting() -> None:
    settings = {f"{section}.{key}" for section in Settings.__struct_fields__ for key in
                getattr(Settings(), section).__struct_fields__}  # fmt: skip
    for name, text in NAMES.items():
        family, dot, rest = name.partition(".")
        assert dot
        assert f"{family}{rest}".replace("_", "").isalpha()
        assert name not in settings
        assert text
        assert "\n" not in text


def test_the_names_that_were_promised_are_there() -> None:
    promised = {
        "web.request", "web.body", "web.accept", "web.decode", "web.encode", "web.metrics",
        "db.accept", "db.lease", "llm.questions", "llm.emotion", "memory.extract",
        "llm.hold", "llm.bulkhead", "llm.ping", "memory.hold", "memory.bulkhead", "memory.ping",
        "analysis.job", "analysis.local", "analysis.decode", "job.ending", "embedded.start",
    }  # fmt: skip
    assert promised <= set(NAMES)


def test_every_name_has_both_its_metrics_from_the_start() -> None:
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    for family, sample in (
        ("convo_wait_seconds", "convo_wait_seconds_count"),
        ("convo_deadline_exceeded", "convo_deadline_exceeded_total"),
    ):
        shown = {one.labels["name"] for one in families[family].samples if one.name == sample}
        assert set(NAMES) <= shown

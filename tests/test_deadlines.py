"""Every wait for something outside the process stands under a deadline with a known name, read out of the source.

Open it when a new wait fails here. A call that waits for the outside must stand in one of these places:

- inside ``with deadline(``, in its own function;
- in a function whose callers all stand in such a place (``nursery.start_soon`` counts as a call);
- under the comment ``# no deadline: REASON``, beside the call, or beside the ``def`` or ``class`` around it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache

import pytest
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

import convo.runtime.wait_metrics  # noqa: F401  (the cells are made when it is imported)
from convo.observe import metrics
from convo.runtime.waits import NAMES
from convo.settings import Settings
from tests.support.source_tree import Function, modules, own_imports, sources

# What waits for the outside when it is awaited, or entered with `async with`: by the last word of what is called.
OUTSIDE = frozenset(
    {
        # the crossing to the database, with all that the asyncio side does; the `run` methods of its two kinds of
        # connection set their own deadline
        "cross",
        # HTTP clients
        "stream", "get", "post", "put", "delete", "patch", "request", "aread", "handle_async_request",
        # sockets
        "receive_some", "send_all", "send_eof", "recv", "recv_into", "sendall", "sendmsg", "accept",
        "open_tcp_stream", "open_unix_socket", "getaddrinfo", "do_handshake",
        # what a framework reads and writes for us
        "get_data", "send",
        # threads, programs, channels
        "run_sync", "run_process", "open_process", "wait", "ended", "receive",
    }
)  # fmt: skip
MARK = "# no deadline: "


class Call(Struct, frozen=True):
    """One call, or one function handed to a nursery: in which function, of what, and how it is awaited."""

    module: str
    function: str
    """The name of the function around it, with the classes and functions around that one."""
    written: str
    line: int
    awaited: bool
    outside: bool
    """Its name says that it waits for something outside the process."""
    bounded: bool
    """It stands inside ``with deadline(``."""
    marks: frozenset[int]
    """The marked lines that excuse it: its own, or those of a function or class around it."""

    @property
    def word(self) -> str:
        return self.written.rpartition(".")[2]

    @property
    def held(self) -> bool:
        return self.bounded or bool(self.marks)


class Reader(ast.NodeVisitor):
    """Collects every call of a module with what stands around it, and every function that is passed on by its name."""

    def __init__(self, module: str, text: str) -> None:
        self.calls: list[Call] = []
        self.passed: set[str] = set()
        self.functions: set[str] = set()
        self.marks = _marked_lines(text)
        self._module = module
        self._events = _events(ast.parse(text))
        self._where: list[str] = []
        self._bounded = [False]
        self._marked: list[frozenset[int]] = [frozenset()]
        self._awaited: set[ast.AST] = set()
        self._called: set[ast.AST] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._where.append(node.name)
        if not isinstance(node, ast.ClassDef):
            self.functions.add(".".join(self._where))
        self._marked.append(self._marked[-1] | self._marks_in(node.lineno, node.body[0].lineno - 1))
        # What a function does happens when it is called, whatever stands around its definition.
        self._bounded.append(False)
        self.generic_visit(node)
        self._bounded.pop()
        self._marked.pop()
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
        self._add(f"async for {ast.unparse(node.iter)}", node.iter, awaited=True, outside=True)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        awaited = node in self._awaited
        self._add(ast.unparse(node.func), node, awaited=awaited, outside=awaited and self._is_outside(node.func))
        self._called.add(node.func)
        if _last_word(node.func) in ("start_soon", "start") and node.args:
            started = node.args[0]
            own = isinstance(started, ast.Name)  # a function of this module, which is read itself
            self._add(ast.unparse(started), node, awaited=True, outside=not own and self._is_outside(started))
            self._called.add(node.args[0])
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name | ast.Attribute) -> None:
        if node not in self._called and isinstance(node.ctx, ast.Load):
            self.passed.add(_last_word(node))
        self.generic_visit(node)

    visit_Attribute = visit_Name  # noqa: N815

    def _is_outside(self, called: ast.expr) -> bool:
        word = _last_word(called)
        if word == "wait" and isinstance(called, ast.Attribute) and _last_word(called.value) in self._events:
            return False
        return word in OUTSIDE

    def _add(self, written: str, node: ast.expr, *, awaited: bool, outside: bool) -> None:
        marks = self._marked[-1] | self._marks_in(node.lineno, node.end_lineno or node.lineno)
        where = ".".join(self._where)
        self.calls.append(Call(self._module, where, written, node.lineno, awaited, outside, self._bounded[-1], marks))

    def _marks_in(self, first: int, last: int) -> frozenset[int]:
        return frozenset(self.marks.intersection(range(first, last + 1)))


def _marked_lines(text: str) -> set[int]:
    """Return the lines of code that a mark stands beside, or directly above."""
    marked: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.string.startswith(MARK):
            assert token.string.removeprefix(MARK).strip(), "a mark says why"
            line = token.start[0]
            marked.add(line + 1 if token.line.lstrip().startswith("#") else line)
    return marked


def _events(tree: ast.Module) -> set[str]:
    """Return the last words of what is made as an event of ours: waiting for it is no wait for the outside."""
    events: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and ast.unparse(node.value) == "trio.Event()":
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            events |= {_last_word(target) for target in targets}
    return events


def _last_word(expression: ast.expr) -> str:
    return ast.unparse(expression).rpartition(".")[2]


def _is_deadline(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Call) and ast.unparse(expression.func) == "deadline"


class Tree:
    """All calls of some modules, and which of them wait for the outside with nothing to bound the wait."""

    def __init__(self, texts: dict[str, str], imported: dict[str, list[str]]) -> None:
        self.readers = {module: Reader(module, text) for module, text in texts.items()}
        for module, reader in self.readers.items():
            reader.visit(ast.parse(texts[module]))
        self._imported = imported
        self.calls = [call for reader in self.readers.values() for call in reader.calls]
        # The functions that wait for the outside and leave the deadline to their callers.
        self.waiting: set[tuple[str, str]] = set()
        while (found := {(call.module, call.function) for call in self.naked()}) != self.waiting:
            self.waiting = found

    def naked(self) -> list[Call]:
        """Return the waits for the outside that neither a deadline nor a mark stands around, in their own function."""
        return [call for call in self.calls if self.is_outside(call) and not call.held]

    def is_outside(self, call: Call) -> bool:
        """Return whether this call waits for something outside the process, as far as its name shows."""
        return call.outside or any(self._may_call(call, *function) for function in self.waiting)

    def _may_call(self, call: Call, module: str, function: str) -> bool:
        around, _, name = function.rpartition(".")
        if not call.awaited or call.word != name or (call.module, call.function) == (module, function):
            return False
        if around in self.readers[module].functions:  # nobody else can see it
            return call.module == module and f"{call.function}.".startswith(f"{around}.")
        return call.module == module or (not name.startswith("_") and module in self._imported[call.module])

    def faults(self) -> list[str]:
        """Return the waits without a deadline, each with those callers that see to none either."""
        answered = self._answered()
        naked = [call for call in self.naked() if (call.module, call.function) not in answered]
        faults = []
        for call in naked:
            if call.outside:
                callers = [one for one in naked if self._may_call(one, call.module, call.function)]
                where = "".join(f"\n  called by {one.module}.{one.function}, line {one.line}" for one in callers)
                faults.append(f"{call.module}.{call.function}: await {call.written}(…), line {call.line}{where}")
        return faults

    def _answered(self) -> set[tuple[str, str]]:
        """Return the waiting functions whose callers all see to a deadline, each in its place or in its own callers."""
        answered: set[tuple[str, str]] = set()
        while True:
            found = {function for function in self.waiting if self._is_answered(function, answered)}
            if found == answered:
                return answered
            answered = found

    def _is_answered(self, function: tuple[str, str], answered: set[tuple[str, str]]) -> bool:
        module, name = function
        callers = [call for call in self.calls if self._may_call(call, module, name)]
        passed_on = name.rpartition(".")[2] in self.readers[module].passed
        return (
            bool(callers)
            and not passed_on
            and all(call.held or (call.module, call.function) in answered for call in callers)
        )


@cache
def tree() -> Tree:
    return Tree(sources(), {module: own_imports(module) for module in modules()})


# --- every wait has its deadline


def test_every_wait_for_the_outside_stands_under_a_deadline() -> None:
    faults = tree().faults()
    assert faults == [], "\n".join(faults)


def test_every_mark_stands_beside_a_wait_that_has_no_deadline() -> None:
    for module, reader in tree().readers.items():
        waits = [call for call in reader.calls if tree().is_outside(call) and not call.bounded]
        idle = reader.marks - {line for call in waits for line in call.marks}
        assert not idle, f"{module}: the marks on lines {sorted(idle)} excuse nothing"


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
        # an event of ours
        ("rung = trio.Event()\nasync def f():\n    await rung.wait()", 0),
        # a comment says why: beside the call, above it, beside the function, beside the class
        ("async def f():\n    await client.get(url)  # no deadline: x", 0),
        ("async def f():\n    # no deadline: x\n    await client.get(url)\n    await client.get(url)", 1),
        ("async def f():  # no deadline: x\n    await client.get(url)", 0),
        ("class A:  # no deadline: x\n    async def f(self):\n        await client.get(url)", 0),
        # those who call it see to it, or do not
        (f"{(_ASKS := 'async def _ask(): await client.get(url)')}\nasync def f():\n    await _ask()", 1),
        (f"{_ASKS}\nasync def f():\n    with deadline('x', 2):\n        await _ask()", 0),
        (f"{_ASKS}\nasync def f():\n    with deadline('x', 2):\n        nursery.start_soon(_ask, 1)", 0),
        (f"{_ASKS}\nasync def f():\n    with deadline('x', 2):\n        await call(_ask)", 1),
        (f"{_ASKS}\nasync def f():\n    with deadline('x', 2):\n        await _ask()\n    await _ask()", 1),
        ("async def _f():\n    await client.get(url)\n    await _f()", 1),
    ],
)
def test_the_reader_sees_a_wait_wherever_it_stands(text: str, seen: int) -> None:
    assert len(Tree({"m": text}, {"m": []}).faults()) == seen


# --- every deadline has its name


def _takers() -> dict[str, int]:
    """The functions that pass a name on to ``deadline``: their last word, and its place among their arguments."""
    takers = {"deadline": 0}
    # Looked through again and again: each function once with its texts and its calls.
    givers = [found for tree in modules().values() for found in map(_texts_and_calls, _functions(tree)) if found]
    while True:
        found = dict(takers)
        for name, texts, calls in givers:
            place = _passes_on(texts, calls, takers)
            if place is not None:
                found[name] = place
        if found == takers:
            return takers
        takers = found


def _functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def _texts_and_calls(function: Function) -> tuple[str, dict[str, int], list[tuple[str, ast.Call]]] | None:
    """Return the arguments of a function that are texts, each with its place, and its calls; None without a text."""
    given = [argument for argument in function.args.args if argument.arg != "self"]
    texts = {argument.arg: place for place, argument in enumerate(given) if _is_text(argument)}
    if not texts:
        return None
    return function.name, texts, [(_word(node), node) for node in ast.walk(function) if isinstance(node, ast.Call)]


def _passes_on(texts: dict[str, int], calls: list[tuple[str, ast.Call]], takers: dict[str, int]) -> int | None:
    for word, call in calls:
        argument = _argument(call, takers.get(word))
        if isinstance(argument, ast.Name) and argument.id in texts:
            return texts[argument.id]
    return None


def _is_text(argument: ast.arg) -> bool:
    return argument.annotation is not None and ast.unparse(argument.annotation) == "str"


def _name_in(call: ast.Call, takers: dict[str, int]) -> ast.expr | None:
    return _argument(call, takers.get(_word(call)))


def _word(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def _argument(call: ast.Call, place: int | None) -> ast.expr | None:
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
                for name in _filled(argument):
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


def _filled(template: ast.JoinedStr) -> Iterable[str]:
    """Return the names of the table that an f-string can become; itself where it can become none."""
    pattern = "".join(
        re.escape(part.value) if isinstance(part, ast.Constant) and isinstance(part.value, str) else r"\w+"
        for part in template.values
    )
    return [name for name in NAMES if re.fullmatch(pattern, name)] or [ast.unparse(template)]


def test_every_name_stands_in_the_table_and_every_name_of_the_table_is_used() -> None:
    used = _names_used()
    unknown = {name: sorted(where) for name, where in used.items() if name not in NAMES}
    assert unknown == {}, "add them to convo/runtime/waits.py"
    assert set(NAMES) - set(used) == set(), "nobody waits under these names"


def test_a_name_says_what_is_waited_for_and_is_no_setting() -> None:
    settings = {f"{section}.{key}" for section in Settings.__struct_fields__ if section != "parts" for key in
                getattr(Settings(), section).__struct_fields__}  # fmt: skip
    for name, text in NAMES.items():
        family, dot, rest = name.partition(".")
        assert dot
        assert f"{family}{rest}".replace("_", "").isalnum()
        assert name not in settings
        assert text
        assert "\n" not in text


def test_the_names_that_were_promised_are_there() -> None:
    promised = {
        "web.request", "web.body", "web.accept", "web.decode", "web.encode", "web.metrics",
        "db.accept", "db.lease", "llm.parts", "memory.extract",
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

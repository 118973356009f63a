"""The description of the whole interface, OpenAPI 3.1, made from the Structs that are really read and sent.

It serves nothing, and knows of each route only what the catalog's row says.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

import convo
from convo import errors
from convo.conversation.model import ConversationEnded
from convo.web import samples, shapes
from convo.web.answers import Problem, problem
from convo.web.catalog import OPERATIONS, REQUEST_TIMEOUT, Answer, Operation, Parameter

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{name}"
_TIMES = re.compile(r"(_at|_time|^at|^timestamp)$")
_ALWAYS = (
    errors.BadRequest,
    errors.MethodNotAllowed,
    errors.RequestTimeout,
    errors.TargetTooLong,
    errors.HeadTooLarge,
    errors.VersionNotSupported,
    errors.ConvoError,
)
_GUARDED = (errors.Unauthorized, errors.Forbidden)
_UNAVAILABLE = 503

_TEXT = """\
A finished conversation is posted once, answered in milliseconds when it is safe, and analysed behind the door.

Every fault is `application/problem+json` with a stable `code`. On 503, connection errors and lost answers, send the
same request again, after `Retry-After` if there is one: a conversation's id makes it count once. Answers carry
`Server-Timing`.
"""

_KEY_TEXT = "Asked for where `auth.keys` is on; the scope that a route needs stands beside it."

_BODY_TEXT = """\
JSON, or JSON compressed with `Content-Encoding: gzip`, `deflate` or `zstd`; the size limit counts after decompression.
The log stands under `conversation_log` or `conversation_logs`; missing or empty is a conversation of 0 turns.
Its items may have any of four shapes, even mixed.

Only the three ids are needed. Missing times are the log's own earliest and latest, else the time of arrival;
an end that is sent is after the start that is sent.
"""

_HEADERS: dict[str, Json] = {
    "Location": {"description": "The path of the conversation.", "required": True, "schema": {"type": "string"}},
    "Idempotent-Replayed": {
        "description": "`true` where this conversation was accepted before; absent otherwise.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "ETag": {"description": "Changes when the answer does.", "required": True, "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds to wait before the same request again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "RateLimit-Policy": {
        "description": "What this client may send, where there is a limit (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "What is left of it: `r` requests or bytes now, all of it in `t` seconds.",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {"description": "How to show a key.", "required": True, "schema": {"type": "string"}},
    "Allow": {"description": "The methods that this address takes.", "required": True, "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Milliseconds by stage: `read`, `decode`, `commit`, `total`.",
        "schema": {"type": "string"},
    },
}


@cache
def document() -> Json:
    """Describe every route, answer, header and problem as an OpenAPI 3.1 document, made once and not to be changed."""
    schemas = _Schemas()
    paths: dict[str, Json] = defaultdict(dict)
    for operation in OPERATIONS:
        paths[operation.path][operation.method] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "convo",
            "version": convo.__version__,
            "description": _TEXT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": dict(paths),
        "components": {
            "headers": _HEADERS,
            "schemas": schemas.components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": _KEY_TEXT}},
        },
    }


class _Schemas:
    """The JSON schemas of all types in use; ``components`` holds the named ones."""

    def __init__(self) -> None:
        types = list(_types())
        found, named = msgspec.json.schema_components(types, ref_template=_REFERENCE)
        self._found: dict[str, Json] = dict(zip(map(repr, types), map(_translated, found), strict=True))
        self.components: Json = {name: _translated(schema) for name, schema in sorted(named.items())}
        self.components["LogItem"] = {
            "title": "LogItem",
            "description": "One thing said, in any of these shapes.",
            "anyOf": [self.of(shape) for shape in shapes.ITEM_SHAPES],
        }
        self.components["ConversationEnded"]["description"] = "A finished conversation. Unknown fields are ignored."

    def of(self, type_: Any) -> Json:
        """Find the schema of a type: a reference, for a Struct."""
        return self._found[repr(type_)]


def _types() -> Iterable[Any]:
    yield from (ConversationEnded, Problem, REQUEST_TIMEOUT.type, *shapes.ITEM_SHAPES)
    for operation in OPERATIONS:
        yield from (parameter.type for parameter in operation.parameters)
        yield from (answer.body for answer in operation.answers if answer.media)


def _translated(schema: Any, name: str = "") -> Any:
    # What msgspec leaves out: a time is a text of a certain form. What it says in Python's words: the end of a text.
    if isinstance(schema, list | tuple):
        return [_translated(item, name) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "properties" in schema:
        properties = {key: _translated(value, key) for key, value in schema["properties"].items()}
        schema = schema | {"properties": properties}
    translated = {key: value if key == "properties" else _translated(value, name) for key, value in schema.items()}
    if "pattern" in translated:
        translated["pattern"] = translated["pattern"].replace(r"\Z", "$")
    if translated.get("type") == "string" and _TIMES.search(name):
        translated["format"] = "date-time"
    return translated


def _operation(operation: Operation, schemas: _Schemas) -> Json:
    described: Json = {"operationId": operation.name, "tags": [operation.tag], "summary": operation.summary}
    if operation.text:
        described["description"] = operation.text
    parameters = (*operation.parameters, REQUEST_TIMEOUT)
    described["parameters"] = [_parameter(parameter, schemas) for parameter in parameters]
    if operation.takes_conversation:
        described["requestBody"] = _body(schemas)
    problems = dict.fromkeys((*operation.problems, *(_GUARDED if operation.scope else ()), *_ALWAYS))
    described["security"] = [{"key": [operation.scope]}] if operation.scope else []
    responses = _answers(operation.answers, schemas) | _problems(problems, schemas)
    described["responses"] = dict(sorted(responses.items()))
    return described


def _parameter(parameter: Parameter, schemas: _Schemas) -> Json:
    described = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.text,
        "required": parameter.where == "path",
        "schema": schemas.of(parameter.type),
    }
    return described if parameter.sample is None else described | {"example": parameter.sample}


def _body(schemas: _Schemas) -> Json:
    examples = {
        f"log by {name}" if name != "no log" else name: {"value": value} for name, value in samples.SENT.items()
    }
    content = {"schema": schemas.of(ConversationEnded), "examples": examples}
    return {"description": _BODY_TEXT, "required": True, "content": {"application/json": content}}


def _answers(answers: Iterable[Answer], schemas: _Schemas) -> Json:
    return {str(answer.status): _answer(answer, schemas) for answer in answers}


def _answer(answer: Answer, schemas: _Schemas) -> Json:
    described: Json = {"description": answer.text, "headers": _headers(*answer.headers)}
    if answer.media:
        content: Json = {"schema": schemas.of(answer.body)}
        if answer.sample is not None:
            content["example"] = msgspec.to_builtins(answer.sample, builtin_types=())
        described["content"] = {answer.media: content}
    return described


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, "Server-Timing")}


def _problems(kinds: Iterable[type[errors.ConvoError]], schemas: _Schemas) -> Json:
    by_status: dict[int, list[type[errors.ConvoError]]] = defaultdict(list)
    for kind in kinds:
        by_status[kind.status].append(kind)
    return {str(status): _problem(status, same, schemas) for status, same in by_status.items()}


def _problem(status: int, kinds: list[type[errors.ConvoError]], schemas: _Schemas) -> Json:
    limits = ("Retry-After", "RateLimit-Policy", "RateLimit")
    headers = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: limits, _UNAVAILABLE: ("Retry-After",)}.get(status, ())
    content = {"schema": schemas.of(Problem), "examples": {kind.code: {"value": _sample(kind)} for kind in kinds}}
    return {
        "description": "; ".join(f"`{kind.code}`: {kind.title}" for kind in kinds) + ".",
        "headers": _headers(*headers),
        "content": {"application/problem+json": content},
    }


def _sample(kind: type[errors.ConvoError]) -> Json:
    if issubclass(kind, errors.DeadlineExceeded):
        error: errors.ConvoError = kind("db.accept", 3.0)
    elif kind is errors.Invalid:
        error = kind("must be one of pika, user", path="$.conversation_log[3].speaker")
    else:
        error = kind(kind.title)
    return msgspec.to_builtins(problem(error))  # type: ignore[no-any-return]

"""The description of the whole interface as an OpenAPI 3.1 document, made from the routes and their Structs.

Open this file when the document lacks something that every route has; a single route is described in ``routes``.
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
from convo.analysis.part import DeclaredPartView
from convo.conversation.decode import METADATA_BYTES_MAX
from convo.conversation.found_log import OTHER_LOG_NAMES
from convo.conversation.model import ConversationEnded
from convo.event_types import EVENT_TYPES, EventType
from convo.web.description import log_items, samples
from convo.web.description.batch_views import MEDIA_OF_BATCHES
from convo.web.description.event_documents import event_documents
from convo.web.description.messages import Problem, problem_view
from convo.web.description.parameters import REQUEST_TIMEOUT, SIGNATURE_HEADERS, Parameter
from convo.web.description.routes import ROUTES, Route, RouteBody, RouteResponse

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{name}"
_TIMES = re.compile(r"(_at|_time|^at|^timestamp)$")
_ALWAYS = (
    errors.BadRequest,
    errors.UnknownHost,
    errors.CrossSite,
    errors.MethodNotAllowed,
    errors.RequestTimeout,
    errors.TargetTooLong,
    errors.HeadTooLarge,
    errors.VersionNotSupported,
    errors.Invalid,
    errors.ConvoError,
)
_WITH_KEY = (errors.Unauthorized, errors.Forbidden, errors.TooManyRequests, errors.KeysUnavailable)
_WITH_DATABASE = (
    errors.TooManyRequests,
    errors.Unavailable,
    errors.DatabaseUnavailable,
    errors.DeadlineExceeded,
    errors.Draining,
)
_UNAVAILABLE = 503

_TEXT = """\
A client posts a finished conversation once. The answer comes within milliseconds, when the conversation is safely
stored. It is analysed afterwards.

Every error is `application/problem+json` with a stable `code`. After 503, a connection error or a lost answer, send
the same request again, after `Retry-After` if there is one: the conversation's id makes it count once. Answers have
`Server-Timing`.

A query parameter that a route does not take, or one that is sent twice, is 422.
"""

_KEY_TEXT = (
    "Required if `auth.keys` is on; each route names the scope that its key must have. A wrong, revoked or expired key"
    " is 401. After too many wrong keys, further ones from the same address are 429 for a while; a valid key that is in"
    " use passes. 503 `keys_unavailable`: no key can be checked now; send the same request again. A browser may sign in"
    " with its key instead (`POST /v1/session`): then a cookie stands for it."
)

_BATCH_TEXT = """\
JSON Lines: one conversation in each line, in UTF-8. Compressed bodies are sent as at `POST /v1/conversations/end`.
The schema is that of one line."""
_BODY_TEXT = f"""\
JSON, or JSON compressed with `Content-Encoding: gzip`, `deflate` or `zstd`. After decompression a body
has at most 16 MiB, and at most 2 MiB without its recordings. A log has at most 20,000 items.
The log is in `conversation_log` or `conversation_logs`. If it is missing or empty, the conversation has 0 turns.
Where neither has items, a log is also read from {", ".join(f"`{name}`" for name in OTHER_LOG_NAMES)}.

The log is stored as it was sent. Its items may have any shape, also mixed: the speaker and the words are found where
the common formats keep them. Items that cannot be read are stored and listed in the receipt as `unread`. If no item
has words that can be read, the answer is 422. A recording (over 4 KB of base64 in a field for audio) is replaced by its
length and its SHA-256.

Only the three ids are required. A missing time is the log's earliest or latest time, otherwise the time of arrival.
If both times are sent, the end must not be before the start.
"""

_HEADERS: dict[str, Json] = {
    "Location": {"description": "The path of the conversation.", "required": True, "schema": {"type": "string"}},
    "Idempotent-Replayed": {
        "description": "`true` if this conversation was accepted before; absent otherwise.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "ETag": {"description": "It changes when the answer changes.", "required": True, "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds to wait before the same request is sent again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "RateLimit-Policy": {
        "description": "What this client may send, if there is a limit (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "What is left of the limit: `r` requests or bytes now, the full limit in `t` seconds.",
        "schema": {"type": "string"},
    },
    "Set-Cookie": {"description": "The session, or its end.", "required": True, "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to send a key.", "required": True, "schema": {"type": "string"}},
    "Allow": {"description": "The methods that this path accepts.", "required": True, "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Milliseconds by stage: `read`, `decode`, `commit`, `total`.",
        "schema": {"type": "string"},
    },
}


@cache
def document() -> Json:
    """Return the OpenAPI 3.1 document of all routes; it is made once, and callers must not change it."""
    schemas = _Schemas()
    paths: dict[str, Json] = defaultdict(dict)
    for route in ROUTES:
        paths[route.path][route.method] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "convo",
            "version": convo.__version__,
            "description": _TEXT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for route in ROUTES)],
        "paths": dict(paths),
        "webhooks": {kind: _webhook(kind, schemas) for kind in EVENT_TYPES},
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
        self.components["PartsView"]["additionalProperties"] = self.of(DeclaredPartView)
        self.components["LogItem"] = {
            "title": "LogItem",
            "description": "One item of a log, in any of these shapes. One that is none of them is kept and listed.",
            "anyOf": [self.of(shape) for shape in log_items.ITEM_SHAPES],
        }
        ended = self.components["ConversationEnded"]
        ended["description"] = "A finished conversation. Unknown fields are not stored; the receipt names them."
        ended["properties"] |= _sent_properties(ended["properties"])

    def of(self, type_: Any) -> Json:
        """Find the schema of a type: a reference, for a Struct."""
        return self._found[repr(type_)]


def _sent_properties(described: Json) -> Json:
    """Describe the properties that are accepted in more forms than they are kept in, or that are kept as bytes."""
    log: Json = {"anyOf": [{"type": "array", "items": {"$ref": _REFERENCE.format(name="LogItem")}}, {"type": "null"}]}
    ids = ("conversation_id", "user_id", "bot_id")
    return {
        **{name: {"anyOf": [described[name], {"type": "integer"}]} for name in ids},
        **dict.fromkeys(("conversation_log", "conversation_logs"), log),
        "metadata": {"type": ["object", "null"], "description": f"At most {METADATA_BYTES_MAX} bytes; given back."},
    }


def _types() -> Iterable[Any]:
    yield from (ConversationEnded, Problem, DeclaredPartView, REQUEST_TIMEOUT.type, *log_items.ITEM_SHAPES)
    yield from (one.type for one in SIGNATURE_HEADERS)
    for route in ROUTES:
        yield from (parameter.type for parameter in route.parameters)
        for answer in route.answers:
            yield from _bodies(answer) if answer.media else ()
        yield from () if route.takes is None else (route.takes.type,)
    yield from event_documents().values()


def _bodies(answer: RouteResponse) -> tuple[Any, ...]:
    return answer.body if isinstance(answer.body, tuple) else (answer.body,)


def _translated(schema: Any, name: str = "") -> Any:
    # msgspec does not say that a time is a text in the form date-time, and it writes the end of a text as Python does.
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


def _operation(route: Route, schemas: _Schemas) -> Json:
    described: Json = {"operationId": route.name, "tags": [route.tag], "summary": route.summary}
    if route.text:
        described["description"] = route.text
    described["parameters"] = [_parameter(parameter, schemas) for parameter in (*route.parameters, REQUEST_TIMEOUT)]
    if route.takes_conversation:
        described["requestBody"] = _body(schemas)
    if route.takes_batch:
        described["requestBody"] = _batch_body(schemas)
    if route.takes is not None:
        described["requestBody"] = _own_body(route.takes, schemas)
    described["security"] = [{"key": [route.scope]}] if route.scope else []
    responses = _answers(route.answers, schemas) | _problems(_errors_of(route), schemas)
    described["responses"] = dict(sorted(responses.items()))
    return described


def _webhook(kind: EventType, schemas: _Schemas) -> Json:
    content = {"schema": schemas.of(event_documents()[kind])}
    return {
        "post": {
            "operationId": kind.replace(".", "_"),
            "tags": ["webhooks"],
            "summary": kind,
            "description": EVENT_TYPES[kind],
            "parameters": [_parameter(one, schemas) for one in SIGNATURE_HEADERS],
            "requestBody": {"required": True, "content": {"application/cloudevents+json": content}},
            "responses": {"2XX": {"description": "It is confirmed; any other answer is tried again."}},
        }
    }


def _errors_of(route: Route) -> Iterable[type[errors.ConvoError]]:
    """Return what can go wrong on a route: its own errors, and those of the checks that it passes."""
    with_database = _WITH_DATABASE if route.needs_database else ()
    with_key = _WITH_KEY if route.scope or route.signs_in else ()
    return dict.fromkeys((*route.problems, *with_database, *with_key, *_ALWAYS))


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


def _batch_body(schemas: _Schemas) -> Json:
    examples = {"one line": {"value": next(iter(samples.SENT.values()))}}
    line = {"schema": schemas.of(ConversationEnded), "examples": examples}
    return {"description": _BATCH_TEXT, "required": True, "content": dict.fromkeys(MEDIA_OF_BATCHES, line)}


def _own_body(body: RouteBody, schemas: _Schemas) -> Json:
    sample = msgspec.to_builtins(body.sample, builtin_types=())
    content = {"schema": schemas.of(body.type), "examples": {"sample": {"value": sample}}}
    return {"description": "JSON.", "required": True, "content": {"application/json": content}}


def _answers(answers: Iterable[RouteResponse], schemas: _Schemas) -> Json:
    return {str(answer.status): _answer(answer, schemas) for answer in answers}


def _answer(answer: RouteResponse, schemas: _Schemas) -> Json:
    described: Json = {"description": answer.text, "headers": _headers(*answer.headers)}
    if answer.media:
        several = [schemas.of(body) for body in _bodies(answer)]
        content: Json = {"schema": several[0] if len(several) == 1 else {"anyOf": several}}
        if answer.sample is not None:
            content["example"] = msgspec.to_builtins(answer.sample, builtin_types=())
        described["content"] = dict.fromkeys(answer.media, content)
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
    return msgspec.to_builtins(problem_view(error))  # type: ignore[no-any-return]

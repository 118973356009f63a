"""The pages under ``/docs``: the description of the interface, and the frame that handbook pages share with it.

A page loads nothing else, from this server or another, and its headers have the browser see to that.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from string import Template
from typing import Any
from urllib.parse import quote

from convo.web.description import openapi
from convo.web.description.openapi import Json

ORIGIN = "http://127.0.0.1:30020"
_CODE = re.compile(r"(`+)(.+?)\1")


def index_page(links: Mapping[str, str]) -> str:
    """Return the page that a browser gets at ``/``; ``links`` are paths by what they lead to."""
    entries = "".join(f'<li><a href="{_text(path)}">{_text(name)}</a></li>' for name, path in links.items())
    content = (
        "<h1>convo</h1><p>Here runs convo. It accepts finished conversations at"
        " <code>POST /v1/conversations/end</code>, stores them safely, and analyses them.</p>"
        f"<ul>{entries}</ul>"
    )
    return framed("convo", topic_links(()), content)


def framed(title: str, navigation: Iterable[str], content: str) -> str:
    """Return a whole HTML page; ``navigation`` and ``content`` are HTML already, ``title`` is text."""
    return _frame().substitute(title=_text(title), nav="\n".join(navigation), main=content, origin=ORIGIN)


@cache
def page_headers() -> tuple[tuple[str, str], ...]:
    """Return the headers of every page: nothing is loaded, no script runs but the frame's own, and nobody frames it."""
    frame = Template(_frame().template).safe_substitute(origin=ORIGIN)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(frame, 'style')}",
            f"script-src {_hash(frame, 'script')}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return (
        ("Content-Security-Policy", policy),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
    )


def _hash(frame: str, element: str) -> str:
    # Of the frame, not of a finished page: what found its way into the content is not to run.
    text = frame.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _frame() -> Template:
    return Template(resources.files("convo.web.description").joinpath("page.html").read_text("utf-8"))


@cache
def api_page(topics: tuple[str, ...] = ()) -> str:
    """Return the description as an HTML page, made once; ``topics`` are the handbook's pages to link to."""
    document = openapi.document()
    return framed("convo: the interface", _navigation(document, topics), _main(document))


def topic_links(topics: Iterable[str]) -> list[str]:
    """Return the links to the handbook's pages, for the navigation."""
    return ["<b>handbook</b>", *(f'<a href="/docs/{quote(topic)}">{_text(topic)}</a>' for topic in topics)]


def _navigation(document: Json, topics: Iterable[str]) -> list[str]:
    parts = [f"<b>{_text(document['info']['title'])} {_text(document['info']['version'])}</b>"]
    parts += topic_links(topics)
    for tag, operations in _by_tag(document).items():
        parts.append(f"<b>{_text(tag)}</b>")
        parts += [f'<a href="#{one["operationId"]}">{_text(one["summary"])}</a>' for _, _, one in operations]
    parts.append('<b>Values</b><a href="#problems">Problems by code</a><a href="#schemas">Schemas</a>')
    return parts


def _main(document: Json) -> str:
    parts = ["<h1>convo</h1>", _prose(document["info"]["description"])]
    parts.append('<p class="quiet">For programs: <a href="/openapi.json">/openapi.json</a>.</p>')
    for tag, operations in _by_tag(document).items():
        parts.append(f"<h2>{_text(tag)}</h2>")
        parts += [_operation(path, method, one) for path, method, one in operations]
    parts += ['<h2 id="problems">Problems by code</h2>', _table(_problems(document))]
    parts.append('<h2 id="schemas">Schemas</h2>')
    parts += [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    return "\n".join(parts)


def _by_tag(document: Json) -> dict[str, list[tuple[str, str, Json]]]:
    tags: dict[str, list[tuple[str, str, Json]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tags[operation["tags"][0]].append((path, method, operation))
    return tags


def _operation(path: str, method: str, operation: Json) -> str:
    parts = [
        f'<section id="{operation["operationId"]}">',
        f'<h3><span class="method {method}">{method}</span><span class="path">{_text(path)}</span></h3>',
        f"<p><b>{_text(operation['summary'])}.</b></p>",
        _prose(operation.get("description", "")),
        f'<pre class="curl">{_text(curl(path, method, operation))}</pre>',
    ]
    if "parameters" in operation:
        parts += ["<h4>Parameters</h4>", _table(map(_parameter, operation["parameters"]))]
    if "requestBody" in operation:
        parts += ["<h4>Body</h4>", _body(operation["requestBody"])]
    answers = {status: one for status, one in operation["responses"].items() if not _problem_codes(one)}
    parts += ["<h4>Answers</h4>", _table(_answer(*item) for item in answers.items())]
    codes = [code for one in operation["responses"].values() for code in _problem_codes(one)]
    if codes:
        links = ", ".join(f'<a href="#{code}"><code>{_text(code)}</code></a>' for code in codes)
        parts.append(f"<p><span class='quiet'>Problems:</span> {links}</p>")
    return "\n".join([*parts, "</section>"])


def _problem_codes(answer: Json) -> list[str]:
    """Return the codes of an answer that is a problem: each of them is described once, for all operations."""
    content: Json = answer.get("content", {}).get("application/problem+json", {"examples": {}})
    return list(content["examples"])


def curl(path: str, method: str, operation: Json, origin: str = ORIGIN) -> str:
    """Return a shell command that sends the operation's sample."""
    given = {one["name"]: one for one in operation.get("parameters", ()) if "example" in one}
    for name, one in given.items():
        path = path.replace(f"{{{name}}}", quote(str(one["example"]), safe=""))
    query = "&".join(f"{name}={quote(str(one['example']))}" for name, one in given.items() if one["in"] == "query")
    words = ["curl", "-i", origin + path + (f"?{query}" if query else "")]
    if "requestBody" not in operation:
        return shlex.join(words + (["-X", method.upper()] if method != "get" else []))
    media, content = next(iter(operation["requestBody"]["content"].items()))
    sample = next(iter(content["examples"].values()))["value"]
    # In JSON Lines a conversation is one line.
    body = json.dumps(sample, ensure_ascii=False, indent=2 if media == "application/json" else None)
    return f"{shlex.join(words)} -H 'Content-Type: {media}' -d {shlex.quote(body)}"


# --- the rows of tables: name, kind, description


TableRow = tuple[str, str, str]


def _table(rows: Iterable[TableRow]) -> str:
    cells = (f'<tr><th>{head}</th><td class="kind">{kind}</td><td>{rest}</td></tr>' for head, kind, rest in rows)
    return f"<table>{''.join(cells)}</table>"


def _parameter(parameter: Json) -> TableRow:
    kind = f"{parameter['in']}, {_kind(parameter['schema'])}"
    return _name(parameter["name"], must=parameter["required"]), kind, _inline(parameter["description"])


def _answer(status: str, answer: Json) -> TableRow:
    names = ", ".join(f"<code>{_text(name)}</code>" for name in answer["headers"])
    kinds = ", ".join(f"{_kind(one['schema'])}<br>{_text(media)}" for media, one in answer.get("content", {}).items())
    samples = [one["example"] for one in answer.get("content", {}).values() if "example" in one]
    shown = "".join(_sample("Sample", sample) for sample in samples)
    described = f"{_inline(answer['description'])}<br><span class='quiet'>{names}</span>{shown}"
    return f'<code class="s{status[0]}">{status}</code>', kinds or "no content", described


def _problems(document: Json) -> list[TableRow]:
    rows: dict[str, TableRow] = {}
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    for response in [response for one in operations for response in one["responses"].values()]:
        content = response.get("content", {}).get("application/problem+json", {"examples": {}})
        for code, sample in content["examples"].items():
            status = str(sample["value"]["status"])
            head = f'<code id="{code}" class="s{status[0]}">{code}</code>'
            rows[code] = head, status, _inline(sample["value"]["title"]) + _sample("Sample", sample["value"])
    return sorted(rows.values(), key=lambda row: (row[1], row[0]))


def _body(body: Json) -> str:
    content = next(iter(body["content"].values()))
    samples = (_sample(name, sample["value"]) for name, sample in content["examples"].items())
    return f"{_prose(body['description'])}<p>{_kind(content['schema'])}</p>{''.join(samples)}"


def _sample(name: str, value: Any) -> str:
    shown = _text(json.dumps(value, ensure_ascii=False, indent=2))
    return f"<details><summary>{_text(name)}</summary><pre>{shown}</pre></details>"


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        (_name(key, must=key in required), _kind(one), _inline(one.get("description", "")))
        for key, one in schema.get("properties", {}).items()
    ]
    below = _table(rows) if rows else f"<p>{_kind(schema)}</p>"
    head = f'<h3><span class="path">{_text(name)}</span></h3>'
    return f'<section id="schema-{name}">{head}{_prose(schema.get("description", ""))}{below}</section>'


def _name(name: str, *, must: bool) -> str:
    return f"<code{' class=must' if must else ''}>{_text(name)}</code>"


# --- a schema in a few words


def _kind(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}">{name}</a>'
    if "enum" in schema:
        return " | ".join(f"<code>{_text(json.dumps(value))}</code>" for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(map(_kind, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])} by name"
    return _text(schema.get("format") or schema.get("type", "anything")) + _bounds(schema)


def _bounds(schema: Json) -> str:
    if "minLength" in schema or "maxLength" in schema:
        return f", {schema.get('minLength', 0)} to {schema['maxLength']} characters"
    if "maximum" in schema:
        return f", {schema.get('minimum')} to {schema['maximum']}"
    return f", from {schema['minimum']}" if "minimum" in schema else ""


# --- text


def _text(value: object) -> str:
    return html.escape(str(value))


def _inline(written: str) -> str:
    return _CODE.sub(r"<code>\2</code>", _text(written))


def _prose(written: str) -> str:
    paragraphs = (_inline(" ".join(one.split())) for one in written.split("\n\n") if one.strip())
    return "".join(f"<p>{one}</p>" for one in paragraphs)

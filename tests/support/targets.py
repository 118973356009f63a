"""Targets in which a slash or a dot is encoded, and what each door and each gateway must make of them."""

from __future__ import annotations

from tests.support.doors import body_of, statuses

OUTCOMES: dict[str, tuple[int, str | None]] = {
    # In an id they are data. The problem names the id that was read.
    "/v1/conversations/a%2Fb": (404, "a/b"),
    "/v1/conversations/a%2fb/log": (404, "a/b"),
    "/v1/conversations/%2F": (404, "/"),
    "/v1/conversations/a%2F%2Fb/explain": (404, "a//b"),
    "/v1/conversations/a%252Fb": (404, "a%2Fb"),
    "/v1/conversations/..%2F..%2Flivez": (404, "../../livez"),
    "/v1/conversations/a%2Eb": (404, "a.b"),
    "/v1/conversations/%2E%2E%2E": (404, "..."),
    # A dot segment is no id.
    "/v1/conversations/%2E%2E": (422, "conversation_id"),
    "/v1/conversations/%2e/log": (422, "conversation_id"),
    "/v1/users/%2E%2E/memories": (422, "user_id"),
    "/v1/users/.%2e/relationship": (422, "user_id"),
    # Anywhere else they lead nowhere.
    "/v1/conversations/a/b": (404, None),
    "/v1/conversations%2Fabc": (404, None),
    "/v1%2Fconversations": (404, None),
    "/livez%2F": (404, None),
    "/%2Flivez": (404, None),
    "//livez": (404, None),
    "/v1//conversations": (404, None),
    "/openapi%2Ejson": (404, None),
    "/%2E/livez": (404, None),
    "/v1/%2e%2e/livez": (404, None),
    "/v1/../livez": (404, None),
    "/docs/%2E%2E": (404, None),
    "/docs/..%2Fladder": (404, None),
    "//debug/tasks": (404, None),
    "/debug//tasks": (404, None),
    "/debug/tasks/": (404, None),
    "/./debug/tasks": (404, None),
    "/debug/./tasks": (404, None),
    "/docs/../debug/tasks": (404, None),
    "/debug%2Ftasks": (404, None),
    "/debug%2ftasks": (404, None),
    "/debug/%2E/tasks": (404, None),
    "/docs/%2e%2e/debug/tasks": (404, None),
    "/debug%5Ctasks": (404, None),
    "/debug%5ctasks": (404, None),
    "/debug;/tasks": (404, None),
    "/debug/tasks;a=b": (404, None),
    "/debug/tasks%3F": (404, None),
    "/debug/tasks%20": (404, None),
    "/Debug/tasks": (404, None),
    "/docs/ladder/": (404, None),
    "/docs/ladder;a=b": (404, None),
    "/docs/./ladder": (404, None),
    "/docs/": (404, None),
    # So does a letter that is encoded: a gateway that guards a path by its name would not know it.
    "/%64ebug/tasks": (404, None),
    "/l%69vez": (404, None),
    "/docs/%6Cadder": (404, None),
    "/v1/conversations/a/%6Cog": (404, None),
    "/livez": (200, None),
    "/docs/ladder": (200, None),
    # What is not UTF-8 is no path.
    "/%FF": (400, None),
    "/livez%FF": (400, None),
    "/v1/conversations/%FF": (400, None),
    "/v1/conversations/%ED%A0%80/log": (400, None),
    "/v1/users/%C0%AF/memories": (400, None),
    "/docs/%E2%28": (400, None),
}


ABSOLUTE: dict[str, tuple[int, str | None]] = {
    # RFC 9112 3.2.2: the path in such a target is the same path, in the same one spelling.
    "http://localhost/livez": (200, None),
    "HTTPS://localhost:1/livez": (200, None),
    "http://localhost//livez": (404, None),
    "http://localhost/livez/": (404, None),
    "http://localhost/livez;a=b": (404, None),
    "http://localhost/./livez": (404, None),
    "http://localhost/%6Civez": (404, None),
}
"""Targets with a scheme. Gateways make origin form of them, or refuse them."""


def outcome(got: bytes) -> tuple[int, str | None]:
    """Return an answer's status, and the id or the path that its problem names."""
    (status,) = statuses(got)
    problem = body_of(got) if b"application/problem+json" in got else {}
    return status, problem.get("path") or problem.get("conversation_id")


def spellings(path: str) -> list[str]:
    """Return other ways to write a path that a lenient server would take for the same one."""
    segments = path.removeprefix("/").split("/")
    found = [f"{path}{end}" for end in _ENDS]
    for at, segment in enumerate(segments):
        before = "".join(f"/{one}" for one in segments[:at])
        after = "".join(f"/{one}" for one in segments[at + 1 :])
        found += [f"{before}{slash}{segment}{after}" for slash in _SLASHES]
        if segment and "{" not in segment:
            written = (segment.upper(), segment.capitalize(), *(f"{segment}{one}" for one in _TAILS))
            encoded = (f"%{ord(segment[0]):02X}{segment[1:]}", f"%25{ord(segment[0]):02x}{segment[1:]}")
            everything = "".join(f"%{ord(one):02x}" for one in segment)
            found += [f"{before}/{one}{after}" for one in (*written, *encoded, everything)]
    return [one for one in dict.fromkeys(found) if one != path]


_SLASHES = (
    "//", "///", "/./", "/x/../", "/../", "%2F", "%2f", "/%2F", "%2F/", "\\", "/\\", "%5C", "%5c",
    "/%2E/", "/%2e/", "/.%2e/", "/%2e%2E/", "/x/%2e%2e/", "/x%2f..%2f", "/;/", "/.;/", "/..;/", "/%00/", "/%252F",
)  # fmt: skip
_ENDS = (
    "/",
    "//",
    "/.",
    "/..",
    "/x/..",
    "%2F",
    "%2f",
    ";",
    ";a=b",
    "%3B",
    "%3F",
    "%23",
    "%20",
    "%00",
    ".",
    "%2E",
    ".json",
)
_TAILS = (";", ";a=b", "%00", ".", "%2e")

"""Two hundred requests, good and bad, and why our connection and h11 do not agree on some of them.

Where ``differs`` is empty both say the same; where it holds a reason they do not, and that is meant.
"""

from __future__ import annotations

from msgspec import Struct, structs


class Case(Struct, frozen=True, kw_only=True):
    """What a client sends, piece by piece; then it ends its side, or asks for ``NEXT``."""

    pieces: tuple[bytes, ...]
    ends: bool = False
    differs: str = ""


NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n"


def line(first: str, *fields: str) -> Case:
    """Send a request line, a Host and other fields."""
    return raw("".join(f"{one}\r\n" for one in (first, "Host: convo", *fields)) + "\r\n")


def fields(*lines: str) -> Case:
    """Send a GET with other fields."""
    return line("GET / HTTP/1.1", *lines)


def sized(body: str, *lines: str, ends: bool = False) -> Case:
    """Send a POST whose fields say how long the body is."""
    first = line("POST /sized HTTP/1.1", *lines).pieces[0]
    return Case(pieces=(first + body.encode("latin-1"),), ends=ends)


def chunked(body: str, *lines: str, ends: bool = False) -> Case:
    """Send a POST in chunks."""
    return sized(body, "Transfer-Encoding: chunked", *lines, ends=ends)


def raw(*pieces: str, ends: bool = False) -> Case:
    """Send it as it stands."""
    return Case(pieces=tuple(piece.encode("latin-1") for piece in pieces), ends=ends)


_POST = "POST /sized HTTP/1.1\r\nHost: convo\r\n"

_METHODS = {
    f"method {name}": line(f"{name} /x HTTP/1.1")
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PROPFIND", "BREW",
                 "get", "M-SEARCH", "!#$%&'*+.^_`|~", "G3T")
} | {
    "method with a space before": line(" GET / HTTP/1.1"),
    "method with an at sign": line("G@T / HTTP/1.1"),
    "method with a colon": line("GET: / HTTP/1.1"),
    "method with a bracket": line("G[T / HTTP/1.1"),
    "method missing": line("/ HTTP/1.1"),
    "method with a high byte": line("G\xe9T / HTTP/1.1"),
    "method with NUL": line("G\0T / HTTP/1.1"),
    "method of 500 letters": line("M" * 500 + " / HTTP/1.1"),
    "method in quotes": line('"GET" / HTTP/1.1'),
    "a TLS greeting": raw("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n"),
    "the preface of HTTP/2": raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
}  # fmt: skip

_VERSIONS = {
    "HTTP/1.0": raw("GET / HTTP/1.0\r\n\r\n"),
    "HTTP/1.0 with a Host": line("GET / HTTP/1.0"),
    "HTTP/1.0 kept alive": line("GET / HTTP/1.0", "Connection: keep-alive"),
    "HTTP/1.0 kept alive and closed": line("GET / HTTP/1.0", "Connection: keep-alive, close"),
    "HTTP/1.0 with a body": raw("POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"),
    "HTTP/1.0 in chunks": raw("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "HTTP/1.0 that expects": raw("POST / HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", "abc"),
    "HTTP/0.9": raw("GET /\r\n\r\n"),
    "HTTP/0.9 by name": line("GET / HTTP/0.9"),
    "HTTP/1.2": line("GET / HTTP/1.2"),
    "HTTP/1.9": line("GET / HTTP/1.9"),
    "HTTP/2.0": line("GET / HTTP/2.0"),
    "HTTP/3.0": line("GET / HTTP/3.0"),
    "HTTP/1.10": line("GET / HTTP/1.10"),
    "HTTP/01.1": line("GET / HTTP/01.1"),
    "HTTP/1": line("GET / HTTP/1"),
    "HTTP/11": line("GET / HTTP/11"),
    "http/1.1": line("GET / http/1.1"),
    "ICE/1.1": line("GET / ICE/1.1"),
    "a space behind the version": line("GET / HTTP/1.1 "),
    "a tab behind the version": line("GET / HTTP/1.1\t"),
    "a fourth word": line("GET / HTTP/1.1 x"),
}

_TARGETS = {
    f"target {name}": line(f"GET {target} HTTP/1.1")
    for name, target in {
        "with a query": "/a?b=c&d",
        "with an empty query": "/a?",
        "with two question marks": "/a?b?c",
        "escaped": "/a%20b%2Fc",
        "escaped badly": "/a%zz%",
        "with dots": "/a/../b/./c",
        "with two slashes": "//a//b",
        "with a fragment": "/a#b",
        "absolute": "http://other/a?b",
        "absolute in capitals": "HTTP://OTHER/a",
        "absolute without a path": "http://other",
        "absolute, https": "https://other:1/a",
        "absolute, another scheme": "ftp://other/a",
        "of a host and port": "convo:80",
        "of a star": "*",
        "that is no path": "a",
        "that is only a query": "?a",
        "with brackets": "/[a]{b}|c\\d^`",
        "in quotes": '/"a"<b>',
        "with a high byte": "/\xe9",
        "with NUL": "/\0",
        "with a control character": "/\x01",
        "with DEL": "/\x7f",
        "with a space": "/a b",
        "with a tab": "/a\tb",
        "with a bare CR": "/a\rb",
        "of 8,000 bytes": "/" + "a" * 7999,
        "of 8,193 bytes": "/" + "a" * 8192,
        "of 20,000 bytes": "/" + "a" * 19999,
    }.items()
} | {
    "OPTIONS of a star": line("OPTIONS * HTTP/1.1"),
    "CONNECT of a host and port": line("CONNECT convo:80 HTTP/1.1"),
    "two spaces before the target": line("GET  / HTTP/1.1"),
    "two spaces behind the target": line("GET /  HTTP/1.1"),
    "a tab before the target": line("GET\t/ HTTP/1.1"),
}

_FIELDS = {
    "field with spaces around": fields("X-A:  \t a b \t "),
    "field with no space": fields("X-A:b"),
    "field that is empty": fields("X-A:"),
    "field of spaces": fields("X-A:   "),
    "field twice": fields("X-A: 1", "X-A: 2"),
    "field in capitals": fields("X-UPPER: Value"),
    "field with a space before the colon": fields("X-A : b"),
    "field with a tab before the colon": fields("X-A\t: b"),
    "field without a colon": fields("nonsense"),
    "field without a name": fields(": b"),
    "field with a bracket in its name": fields("X(A): b"),
    "field with a high byte in its name": fields("X-\xe9: b"),
    "field with NUL in its name": fields("X-\0: b"),
    "field with NUL": fields("X-A: a\0b"),
    "field with a control character": fields("X-A: a\x01b"),
    "field with an escape": fields("X-A: a\x1bb"),
    "field with DEL": fields("X-A: a\x7fb"),
    "field with a tab inside": fields("X-A: a\tb"),
    "field with high bytes": fields("X-A: \xe9\xff"),
    "field with a bare CR": fields("X-A: a\rb"),
    "field with a bare LF": fields("X-A: a\nX-B: b"),
    "field that is folded": fields("X-A: a", " b"),
    "field that is folded by a tab": fields("X-A: a", "\tb"),
    "first field folded": raw("GET / HTTP/1.1\r\n Host: convo\r\n\r\n"),
    "field with a colon inside": fields("X-A: a:b:c"),
    "field with an underscore": fields("X_A: b"),
    "field of 10,000 bytes": fields("X-A: " + "b" * 10_000),
    "field of 30,000 bytes": fields("X-A: " + "b" * 30_000),
    "150 fields": fields(*(f"X-{number}: a" for number in range(150))),
    "900 fields": fields(*(f"X-{number}: aaaaaaaaaaaaa" for number in range(900))),
    "no Host": raw("GET / HTTP/1.1\r\n\r\n"),
    "an empty Host": raw("GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "two Hosts": fields("Host: other"),
    "two equal Hosts": fields("Host: convo"),
    "a Host with a port": raw("GET / HTTP/1.1\r\nHost: convo:80\r\n\r\n"),
    "a Host in brackets": raw("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"),
    "a Host with a space": raw("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "a Host with a path": raw("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "a Host with a user": raw("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    "a Host with a comma": raw("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n"),
}

_ENDS_OF_LINES = {
    "bare LF everywhere": raw("GET / HTTP/1.1\nHost: convo\n\n"),
    "bare LF behind the request line": raw("GET / HTTP/1.1\nHost: convo\r\n\r\n"),
    "bare LF behind a field": raw("GET / HTTP/1.1\r\nHost: convo\nX-A: b\r\n\r\n"),
    "bare LF at the end": raw("GET / HTTP/1.1\r\nHost: convo\r\n\n"),
    "bare CR everywhere": raw("GET / HTTP/1.1\rHost: convo\r\r", ends=True),
    "CR CR LF": raw("GET / HTTP/1.1\r\r\nHost: convo\r\n\r\n"),
    "LF CR": raw("GET / HTTP/1.1\n\rHost: convo\n\r\n\r"),
    "an empty line before": raw("\r\nGET / HTTP/1.1\r\nHost: convo\r\n\r\n"),
    "three empty lines before": raw("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: convo\r\n\r\n"),
    "a bare LF before": raw("\nGET / HTTP/1.1\r\nHost: convo\r\n\r\n"),
    "a space before": raw(" \r\nGET / HTTP/1.1\r\nHost: convo\r\n\r\n"),
    "an empty line between two": raw("GET / HTTP/1.1\r\nHost: convo\r\n\r\n\r\n"),
}

_SIZED = {
    "sized": sized("abc", "Content-Length: 3"),
    "sized, nothing": sized("", "Content-Length: 0"),
    "sized, 200,000 bytes": sized("x" * 200_000, "Content-Length: 200000"),
    "sized, with zeros before": sized("abc", "Content-Length: 0003"),
    "sized, with spaces around": sized("abc", "Content-Length:  3 "),
    "sized, in two pieces": raw(_POST + "Content-Length: 6\r\n\r\nabc", "def"),
    "sized, binary": sized("\0\r\n\xff\n", "Content-Length: 5"),
    "sized, looks like a request": sized("GET / HTTP/1.1\r\n\r\n", "Content-Length: 18"),
    "sized, GET with a body": fields("Content-Length: 0"),
    "sized, with a sign": sized("abc", "Content-Length: +3"),
    "sized, negative": sized("abc", "Content-Length: -3"),
    "sized, hexadecimal": sized("abc", "Content-Length: 0x3"),
    "sized, with a point": sized("abc", "Content-Length: 3.0"),
    "sized, with an exponent": sized("abc", "Content-Length: 3e0"),
    "sized, with an underscore": sized("abc", "Content-Length: 1_0"),
    "sized, with a space inside": sized("abc", "Content-Length: 1 3"),
    "sized, empty": sized("abc", "Content-Length:"),
    "sized, no number": sized("abc", "Content-Length: three"),
    "sized, a digit of another script": sized("abc", "Content-Length: \xb3"),
    "sized, 19 digits": sized("abc", "Content-Length: " + "9" * 19),
    "sized, 40 digits": sized("abc", "Content-Length: " + "9" * 40),
    "sized, 2 to the 64th and 3": sized("abc", "Content-Length: 18446744073709551619"),
    "sized twice alike": sized("abc", "Content-Length: 3", "Content-Length: 3"),
    "sized twice otherwise": sized("abc", "Content-Length: 3", "Content-Length: 4"),
    "sized twice in one line alike": sized("abc", "Content-Length: 3, 3"),
    "sized twice in one line otherwise": sized("abc", "Content-Length: 3, 4"),
    "sized, a space before the colon": sized("abc", "Content-Length : 3"),
    "no size at all": sized(""),
}

_CHUNKED = {
    "chunked": chunked("3\r\nabc\r\n0\r\n\r\n"),
    "chunked, nothing": chunked("0\r\n\r\n"),
    "chunked, several": chunked("1\r\na\r\n2\r\nbc\r\nA\r\n0123456789\r\n0\r\n\r\n"),
    "chunked, in small letters": chunked("a\r\n0123456789\r\n0\r\n\r\n"),
    "chunked, CHUNKED": sized("1\r\na\r\n0\r\n\r\n", "Transfer-Encoding: CHUNKED"),
    "chunked, zeros before": chunked("0003\r\nabc\r\n000\r\n\r\n"),
    "chunked, with an extension": chunked("3;a=b\r\nabc\r\n0;c\r\n\r\n"),
    "chunked, with an extension in quotes": chunked('3;a="b;c"\r\nabc\r\n0\r\n\r\n'),
    "chunked, with a space before the extension": chunked("3 ;a\r\nabc\r\n0\r\n\r\n"),
    "chunked, with a space behind the size": chunked("3 \r\nabc\r\n0\r\n\r\n"),
    "chunked, with a space before the size": chunked(" 3\r\nabc\r\n0\r\n\r\n"),
    "chunked, an extension of 300 bytes": chunked("3;" + "a" * 300 + "\r\nabc\r\n0\r\n\r\n"),
    "chunked, LF in an extension": chunked("3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "chunked, CR in an extension": chunked("3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "chunked, NUL in an extension": chunked("3;a\0\r\nabc\r\n0\r\n\r\n"),
    "chunked, with a trailer": chunked("3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-B:\r\n\r\n"),
    "chunked, with a trailer that is none": chunked("0\r\nnonsense\r\n\r\n"),
    "chunked, with a trailer that is folded": chunked("0\r\nX-A: b\r\n c\r\n\r\n"),
    "chunked, with a length as a trailer": chunked("0\r\nContent-Length: 5\r\n\r\n"),
    "chunked, with a trailer of 9,000 bytes": chunked("0\r\nX-A: " + "b" * 9000 + "\r\n\r\n"),
    "chunked, no size": chunked("\r\nabc\r\n0\r\n\r\n"),
    "chunked, a size that is none": chunked("g\r\nabc\r\n0\r\n\r\n"),
    "chunked, a size with a sign": chunked("+3\r\nabc\r\n0\r\n\r\n"),
    "chunked, a size with 0x": chunked("0x3\r\nabc\r\n0\r\n\r\n"),
    "chunked, a size with an underscore": chunked("1_0\r\nabc\r\n0\r\n\r\n"),
    "chunked, a size of 17 digits": chunked("10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunked, a size of 30 digits": chunked("3" * 30 + "\r\nabc\r\n0\r\n\r\n"),
    "chunked, more than it says": chunked("2\r\nabc\r\n0\r\n\r\n"),
    "chunked, less than it says": chunked("4\r\nabc\r\n0\r\n\r\n"),
    "chunked, LF behind the size": chunked("3\nabc\r\n0\r\n\r\n"),
    "chunked, LF behind the data": chunked("3\r\nabc\n0\r\n\r\n"),
    "chunked, LF at the end": chunked("3\r\nabc\r\n0\r\n\n", ends=True),
    "chunked, ended in the middle": chunked("3\r\nab", ends=True),
    "chunked, ended before its end": chunked("3\r\nabc\r\n", ends=True),
}

_SMUGGLED = {
    "smuggling: a length and chunks": chunked("0\r\n\r\n", "Content-Length: 5"),
    "smuggling: chunks and a length": sized("0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "smuggling: chunks twice": chunked("0\r\n\r\n", "Transfer-Encoding: chunked"),
    "smuggling: chunks twice in one line": sized("0\r\n\r\n", "Transfer-Encoding: chunked, chunked"),
    "smuggling: gzip, then chunks": sized("0\r\n\r\n", "Transfer-Encoding: gzip, chunked"),
    "smuggling: chunks, then identity": sized("0\r\n\r\n", "Transfer-Encoding: chunked, identity"),
    "smuggling: identity": sized("", "Transfer-Encoding: identity"),
    "smuggling: xchunked": sized("0\r\n\r\n", "Transfer-Encoding: xchunked"),
    "smuggling: chunked with a tab before": sized("0\r\n\r\n", "Transfer-Encoding:\tchunked"),
    "smuggling: chunked in quotes": sized("0\r\n\r\n", 'Transfer-Encoding: "chunked"'),
    "smuggling: chunked with a form feed": sized("0\r\n\r\n", "Transfer-Encoding: \x0cchunked"),
    "smuggling: an empty coding": sized("", "Transfer-Encoding:"),
    "smuggling: a coding, folded": sized("0\r\n\r\n", "Transfer-Encoding:", " chunked"),
    "smuggling: a space before the coding's colon": sized("0\r\n\r\n", "Transfer-Encoding : chunked"),
    "smuggling: a request behind the body": sized("abcGET /second HTTP/1.1\r\nHost: a\r\n\r\n", "Content-Length: 3"),
}

_ENDINGS = {
    "two at once": raw("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two at once, the second bad": raw("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost a\r\n\r\n"),
    "two at once with bodies": raw(2 * (_POST + "Content-Length: 3\r\n\r\nabc")),
    "two at once, the first closes": raw(_POST + "Connection: close\r\n\r\n" + _POST + "\r\n"),
    "Connection: close": fields("Connection: close"),
    "Connection: Close, in capitals": fields("Connection: CLOSE"),
    "Connection: a list with close": fields("Connection: x, close ,y"),
    "Connection: close in a second line": fields("Connection: x", "Connection: close"),
    "Connection: closer": fields("Connection: closer"),
    "Connection: empty": fields("Connection:"),
    "Connection: upgrade": fields("Connection: Upgrade", "Upgrade: websocket"),
    "upgrade with a body": sized("abc", "Connection: Upgrade", "Upgrade: h2c", "Content-Length: 3"),
    "Expect, the body at once": sized("abc", "Expect: 100-continue", "Content-Length: 3"),
    "Expect, the body afterwards": raw(_POST + "Expect: 100-Continue\r\nContent-Length: 3\r\n\r\n", "abc"),
    "Expect without a body": sized("", "Expect: 100-continue"),
    "Expect something else": sized("abc", "Expect: the-unexpected", "Content-Length: 3"),
    "half-closed behind a request": Case(pieces=fields().pieces, ends=True),
    "half-closed behind a body": sized("abc", "Content-Length: 3", ends=True),
    "half-closed in a head": raw("GET / HTTP/1.1\r\nHos", ends=True),
    "half-closed in a body": sized("ab", "Content-Length: 3", ends=True),
    "half-closed at once": Case(pieces=(b"",), ends=True),
    "byte by byte": Case(pieces=tuple(bytes([byte]) for byte in b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")),
}

_DIFFER = {
    "the preface of HTTP/2": "both refuse; h11 first takes PRI as a request in HTTP/2.0, ours answers 505 at once",
    "HTTP/1.0 kept alive": "h11 keeps no HTTP/1.0 connection; ours keeps it for a client that asks and says so",
    "HTTP/1.0 in chunks": (
        "RFC 9112 6.1: framing in HTTP/1.0 by chunks is faulty; a gateway of HTTP/1.0 would not see them"
    ),
    "HTTP/0.9 by name": "h11 leaves versions to its caller; ours answers 505",
    "HTTP/1.2": "h11 leaves versions to its caller; ours answers 505 to what it does not know",
    "HTTP/1.9": "h11 leaves versions to its caller; ours answers 505 to what it does not know",
    "HTTP/2.0": "h11 leaves versions to its caller; ours answers 505",
    "HTTP/3.0": "h11 leaves versions to its caller; ours answers 505",
    "target with an empty query": "ASGI has no word for it: an empty query_string is no query",
    "target absolute": "h11 hands it on; RFC 9112 3.2.2 has a server take it, and ours passes its path to the app",
    "target absolute in capitals": "h11 hands it on; a scheme has no case, and ours passes its path to the app",
    "target absolute without a path": "h11 hands it on; its path is the root",
    "target absolute, https": "h11 hands it on; ours passes its path to the app, whatever the scheme",
    "target of a host and port": (
        "h11 leaves the form to its caller; this one belongs to CONNECT (RFC 9112 3.2.3), ours is 400"
    ),
    "target that is no path": "h11 leaves the form to its caller; it is none of RFC 9112 3.2, ours is 400",
    "target that is only a query": "h11 leaves the form to its caller; it is none of RFC 9112 3.2, ours is 400",
    "target of 8,193 bytes": "over connection.target_bytes_max: 414; h11 knows no limit of its own for a target",
    "target of 20,000 bytes": "over connection.target_bytes_max: 414; h11 bounds only a head that is not whole yet",
    "field with a control character": "RFC 9110 5.5 has no such octet in a value; h11 refuses NUL and line ends only",
    "field with an escape": (
        "RFC 9110 5.5 has no such octet in a value, and a terminal obeys it; h11 refuses NUL and line ends only"
    ),
    "field with DEL": "RFC 9110 5.5 has no such octet in a value; h11 refuses NUL and line ends only",
    "field with a bare LF": (
        "h11 takes LF for a line's end as RFC 9112 2.2 lets it; a gateway that does not sees one field here"
    ),
    "field that is folded": "h11 unfolds; RFC 9112 5.2 has a server refuse it or unfold it, ours is 400",
    "field that is folded by a tab": "h11 unfolds; RFC 9112 5.2 has a server refuse it or unfold it, ours is 400",
    "field of 30,000 bytes": "over connection.head_bytes_max: 431; h11 bounds only a head that is not whole yet",
    "150 fields": "over 100 fields: 431; h11 does not count them",
    "900 fields": "over connection.head_bytes_max: 431; h11 bounds only a head that is not whole yet",
    "a Host with a space": "RFC 9112 3.2: a Host that is none is 400; h11 does not look into it",
    "a Host with a path": "RFC 9112 3.2: a Host that is none is 400; h11 does not look into it",
    "a Host with a user": "RFC 9110 7.2: a Host has no user; h11 does not look into it",
    "bare LF everywhere": "h11 takes LF for a line's end; ours does not, for a gateway may not either",
    "bare LF behind the request line": "h11 takes LF for a line's end; ours does not, for a gateway may not either",
    "bare LF behind a field": "h11 takes LF for a line's end; ours does not, for a gateway may not either",
    "bare LF at the end": "h11 takes LF for a line's end; to a gateway that does not, the head goes on",
    "bare CR everywhere": "h11 waits for a line to end; ours refuses a CR with no LF behind it at once",
    "an empty line before": "RFC 9112 2.2: a server should read past an empty line there; h11 refuses",
    "three empty lines before": "RFC 9112 2.2: at least one empty line is read past, ours takes several; h11 refuses",
    "an empty line between two": "RFC 9112 2.2: some clients send a line's end too many behind a body; h11 refuses",
    "sized, 19 digits": "h11 waits for as many bytes; ours takes 18 digits, which no body of ours comes near",
    "sized, 2 to the 64th and 3": "h11 waits for as many bytes; who counts in 64 bits would read 3, so ours refuses",
    "sized twice alike": "RFC 9112 6.3 lets a server make them one or refuse; h11 does the one, ours the other",
    "sized twice in one line alike": (
        "RFC 9112 6.3 lets a server make them one or refuse; h11 does the one, ours the other"
    ),
    "chunked, CHUNKED": "understood alike; h11 hands the coding on in small letters, ours as it was sent",
    "chunked, with a space behind the size": "RFC 9112 7.1 has no space there; h11 reads past it",
    "chunked, an extension of 300 bytes": (
        "RFC 9112 7.1.1 has a server bound extensions: ours does at 256 bytes, h11 by its buffer"
    ),
    "chunked, CR in an extension": "who takes a CR for a line's end would find other chunks; h11 looks for LF only",
    "chunked, NUL in an extension": "RFC 9112 7.1.1 has no NUL there; h11 does not look into extensions",
    "chunked, with a trailer that is folded": "h11 unfolds it; ours refuses it, as in a head",
    "chunked, with a trailer of 9,000 bytes": (
        "ours reads past 8 KiB of trailers at most; h11 past as much as its buffer holds"
    ),
    "chunked, a size of 17 digits": (
        "h11 waits for as many bytes, up to 20 digits; who counts in 64 bits would read 3, so ours refuses"
    ),
    "chunked, LF at the end": "h11 takes LF for a line's end; to a gateway that does not, the body goes on",
    "smuggling: a length and chunks": (
        "RFC 9112 6.3 lets a server refuse or go by the chunks; h11 goes by them, ours is 400"
    ),
    "smuggling: chunks and a length": (
        "RFC 9112 6.3 lets a server refuse or go by the chunks; h11 goes by them, ours is 400"
    ),
    "smuggling: a coding, folded": "h11 unfolds it; who does not would see no coding, so ours refuses",
}

_ALL = _METHODS | _VERSIONS | _TARGETS | _FIELDS | _ENDS_OF_LINES | _SIZED | _CHUNKED | _SMUGGLED | _ENDINGS
REQUESTS = {name: structs.replace(case, differs=_DIFFER.pop(name, "")) for name, case in _ALL.items()}
assert not _DIFFER, f"these are explained, and are not there: {list(_DIFFER)}"

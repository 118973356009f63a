from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard

from convo import errors
from convo.settings import WebSettings
from convo.web import inflate as inflating
from convo.web.inflate import GRANT_BYTES, inflate_up_to

KIB = 1 << 10
MIB = 1 << 20
SETTINGS = WebSettings(raw_bytes_max=2 * MIB)
TEXT = json.dumps({"said": "Con chó nhà mình tên là Bruno. " * 99}).encode()
# What no compressor makes smaller, so that it fills several pieces of input.
NOISE = random.Random(1).randbytes(300_000)


def zstd_without_size(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(body)


def zstd_with_window(body: bytes, window_log: int = 23) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(body) + packer.flush()


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}
# All that a client may mean by an encoding.
PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    **{encoding: (encoding, pack) for encoding, pack in ENCODERS.items()},
    "deflate without a head": ("deflate", raw_deflate),
    "zstd without its size": ("zstd", zstd_without_size),
    "zstd with a large window": ("zstd", zstd_with_window),
}


def inflate(body: bytes, encoding: str, settings: WebSettings, grow: Callable[[int], None] = lambda _: None) -> bytes:
    return inflating.inflate(body, encoding, settings, grow)


def gzip_bomb(mebibytes: int) -> bytes:
    """One gzip member that inflates to zeros: the same flushed block again and again."""
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (mebibytes - 1) + packer.flush()


def zstd_bomb(mebibytes: int) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    return b"".join(packer.compress(bytes(MIB)) for _ in range(mebibytes)) + packer.flush()


BOMBS = {
    "one gzip member": ("gzip", gzip_bomb(1024)),
    "many gzip members": ("gzip", gzip.compress(bytes(MIB)) * 1024),
    "zlib": ("deflate", zlib.compress(bytes(64 * MIB))),
    "one zstd frame": ("zstd", zstd_bomb(1024)),
    "many zstd frames": ("zstd", zstandard.compress(bytes(MIB)) * 1024),
    "a zstd frame without its size": ("zstd", zstd_without_size(bytes(64 * MIB))),
    "deflate without a head": ("deflate", raw_deflate(bytes(64 * MIB))),
}


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_plain_body_stays_as_it_is(encoding: str) -> None:
    assert inflate(TEXT, encoding, SETTINGS) is TEXT


@pytest.mark.parametrize("body", [TEXT, NOISE, b"", bytes(2 * MIB)], ids=["text", "noise", "empty", "the limit"])
@pytest.mark.parametrize("packer", PACKERS)
def test_a_compressed_body_is_inflated_up_to_the_limit(packer: str, body: bytes) -> None:
    encoding, pack = PACKERS[packer]
    assert inflate(pack(body), f" {encoding.upper()} ", SETTINGS) == body


@pytest.mark.parametrize("body", [b"", TEXT, NOISE, bytes(2 * MIB)], ids=["empty", "text", "noise", "the limit"])
@pytest.mark.parametrize("packer", PACKERS)
def test_no_byte_is_inflated_that_was_not_granted(packer: str, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    granted = made = 0
    real = inflating._pieces

    def watched(packed: bytes, encoding: str) -> Iterator[bytes]:
        nonlocal made
        for piece in real(packed, encoding) or ():
            made += len(piece)
            assert made <= granted
            yield piece

    def grow(bytes_: int) -> None:
        nonlocal granted
        assert granted - made < 64 * KIB, "no more is asked for than is needed"
        granted += bytes_

    monkeypatch.setattr(inflating, "_pieces", watched)
    encoding, pack = PACKERS[packer]
    assert inflate(pack(body), encoding, SETTINGS, grow) == body
    assert len(body) <= granted <= len(body) + GRANT_BYTES + 64 * KIB


@pytest.mark.parametrize("packer", PACKERS)
def test_inflating_ends_where_no_more_is_granted(packer: str) -> None:
    room = 1

    def grow(_: int) -> None:
        nonlocal room
        if not room:
            raise errors.Overloaded("full")
        room -= 1

    encoding, pack = PACKERS[packer]
    packed = pack(bytes(2 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(errors.Overloaded):
            inflate(packed, encoding, SETTINGS, grow)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * GRANT_BYTES


@pytest.mark.parametrize("packer", PACKERS)
def test_a_short_body_is_inflated_and_a_long_one_is_left(packer: str) -> None:
    encoding, pack = PACKERS[packer]
    assert inflate_up_to(pack(bytes(1000)), encoding, 1000) == bytes(1000)
    assert inflate_up_to(pack(bytes(1001)), encoding, 1000) is None


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_body_in_several_parts_is_one_body(encoding: str) -> None:
    pack = ENCODERS[encoding]
    assert inflate(pack(TEXT) + pack(b"") + pack(NOISE) + pack(TEXT), encoding, SETTINGS) == TEXT + NOISE + TEXT


@pytest.mark.parametrize("encoding", ["", *ENCODERS])
def test_one_byte_over_the_limit_is_too_large(encoding: str) -> None:
    body = bytes(2 * MIB + 1)
    with pytest.raises(errors.TooLarge, match=r"raw_bytes_max = 2097152"):
        inflate(ENCODERS[encoding](body) if encoding else body, encoding, SETTINGS)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_without_inflating_it(bomb: str) -> None:
    encoding, body = BOMBS[bomb]
    tracemalloc.start()
    try:
        with pytest.raises(errors.TooLarge):
            inflate(body, encoding, SETTINGS)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What is granted, and what the last step grew by.
    assert most < 2 * SETTINGS.raw_bytes_max


def test_a_body_of_very_many_members_costs_no_more_than_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    make = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._inflater = make(wbits)

        def decompress(self, data: bytes, room: int) -> bytes:
            given.append(len(data))
            return self._inflater.decompress(data, room)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inflater, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    member = gzip.compress(b"")
    assert inflate(member * 20_000, "gzip", SETTINGS) == b""
    assert len(given) < 21_000
    # What a member leaves over is copied: of one piece, never of the whole body.
    assert max(given) == 64 * KIB


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("missing", [1, 4, 20_000])
def test_a_truncated_body_is_refused(encoding: str, missing: int) -> None:
    with pytest.raises(errors.BadRequest, match="ends in the middle"):
        inflate(ENCODERS[encoding](NOISE)[:-missing], encoding, SETTINGS)


def test_a_truncated_zstd_body_never_reads_as_a_whole_one() -> None:
    packed = zstandard.compress(NOISE)
    assert all(inflate(packed[:size], "zstd", SETTINGS) != NOISE for size in range(0, len(packed), 10_007))


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("body", [TEXT, b"\x00", b"\x1f\x8b\x08\x00"], ids=["plain", "a NUL", "a head of gzip"])
def test_a_body_that_is_not_what_its_encoding_says_is_refused(encoding: str, body: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        inflate(body, encoding, SETTINGS)


@pytest.mark.parametrize("encoding", ENCODERS)
def test_garbage_after_a_compressed_body_is_refused(encoding: str) -> None:
    with pytest.raises(errors.BadRequest):
        inflate(ENCODERS[encoding](TEXT) + b"garbage", encoding, SETTINGS)


def test_nothing_follows_a_deflate_body_without_a_head() -> None:
    # It has no mark by which a second one could be known.
    with pytest.raises(errors.BadRequest, match="something follows"):
        inflate(raw_deflate(TEXT) + raw_deflate(TEXT), "deflate", SETTINGS)
    with pytest.raises(errors.BadRequest, match="ends in the middle"):
        inflate(raw_deflate(NOISE)[:-1], "deflate", SETTINGS)


def test_a_zstd_frame_cannot_ask_for_more_window_than_its_sender_may() -> None:
    assert inflate(zstd_with_window(TEXT, 23), "zstd", SETTINGS) == TEXT
    with pytest.raises(errors.BadRequest):
        inflate(zstd_with_window(TEXT, 24), "zstd", SETTINGS)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress", "gzip\x00", "zstd;q=1"])
def test_an_unknown_encoding_is_not_taken(encoding: str) -> None:
    with pytest.raises(errors.UnsupportedMedia, match="gzip, deflate or zstd"):
        inflate(TEXT, encoding, SETTINGS)

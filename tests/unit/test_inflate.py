from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard

from convo import errors
from convo.config import WebSettings
from convo.web.inflate import inflate

KIB = 1 << 10
MIB = 1 << 20
SETTINGS = WebSettings(body_bytes_max=2 * MIB)
TEXT = json.dumps({"said": "Con chó nhà mình tên là Bruno. " * 99}).encode()
# What no compressor makes smaller, so that it fills several pieces of input.
NOISE = random.Random(1).randbytes(300_000)
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


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
}


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_plain_body_stays_as_it_is(encoding: str) -> None:
    assert inflate(TEXT, encoding, SETTINGS) is TEXT


@pytest.mark.parametrize("body", [TEXT, NOISE, b"", bytes(2 * MIB)], ids=["text", "noise", "empty", "the limit"])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_compressed_body_is_inflated_up_to_the_limit(encoding: str, body: bytes) -> None:
    assert inflate(ENCODERS[encoding](body), f" {encoding.upper()} ", SETTINGS) == body


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_body_in_several_parts_is_one_body(encoding: str) -> None:
    pack = ENCODERS[encoding]
    assert inflate(pack(TEXT) + pack(b"") + pack(NOISE) + pack(TEXT), encoding, SETTINGS) == TEXT + NOISE + TEXT


@pytest.mark.parametrize("encoding", ["", *ENCODERS])
def test_one_byte_over_the_limit_is_too_large(encoding: str) -> None:
    body = bytes(2 * MIB + 1)
    with pytest.raises(errors.TooLarge, match=r"body_bytes_max = 2097152"):
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
    # The pieces, and the same joined.
    assert most < 2 * SETTINGS.body_bytes_max + MIB


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


def test_a_zstd_frame_cannot_ask_for_more_window_than_its_sender_may() -> None:
    def pack(window_log: int) -> bytes:
        parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return packer.compress(TEXT) + packer.flush()

    assert inflate(pack(23), "zstd", SETTINGS) == TEXT
    with pytest.raises(errors.BadRequest):
        inflate(pack(24), "zstd", SETTINGS)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress", "gzip\x00", "zstd;q=1"])
def test_an_unknown_encoding_is_not_taken(encoding: str) -> None:
    with pytest.raises(errors.UnsupportedMedia, match="gzip, deflate or zstd"):
        inflate(TEXT, encoding, SETTINGS)

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from convo.errors import DatabaseUnavailable, Refused
from convo.store.timeline import DatabaseServer, NewestTimeline, address_of, split_hosts


def server(timeline: int, *, address: str = "a:1", writable: bool = True, system: str = "7") -> DatabaseServer:
    return DatabaseServer(address=address, writable=writable, timeline=timeline, system=system)


def after(folder: Path | None, *seen: DatabaseServer) -> NewestTimeline:
    newest = NewestTimeline(folder)
    for one in seen:
        newest.note(one)
        newest.save()
    return newest


# --- which server


@pytest.mark.parametrize(
    ("servers", "best"),
    [
        ([server(1)], 0),
        ([server(1), server(2)], 1),
        ([server(2), server(1)], 0),
        ([server(2), server(2)], 0),
        ([server(0, writable=False), server(1)], 1),
        ([server(0, writable=False), server(0, writable=False)], 0),
        ([server(3, writable=False), server(1)], 1),
        ([server(0), server(0)], 0),
    ],
)
def test_the_first_writable_server_on_the_newest_timeline_is_used(servers: list[DatabaseServer], best: int) -> None:
    assert NewestTimeline(None).admit(servers) == best


def test_an_older_timeline_than_one_seen_is_refused_and_logged() -> None:
    with (
        capture_logs() as logged,
        pytest.raises(DatabaseUnavailable, match=r"b:2 is an old primary.*timeline 1.*seen 2"),
    ):
        after(None, server(2)).admit([server(1, address="b:2")])
    assert [one["event"] for one in logged] == ["old_primary"]


def test_an_old_primary_beside_the_new_one_is_logged_and_not_used() -> None:
    with capture_logs() as logged:
        assert after(None, server(2)).admit([server(1), server(2)]) == 1
    assert [one["event"] for one in logged] == ["old_primary"]


def test_another_cluster_counts_its_timelines_anew() -> None:
    newest = after(None, server(5))
    assert newest.admit([server(1, system="8")]) == 0
    assert newest.note(server(1, system="8"))
    assert newest.admit([server(1, system="8")]) == 0


def test_only_a_change_of_the_timeline_is_newer() -> None:
    newest = NewestTimeline(None)
    assert not newest.note(server(1))
    assert not newest.note(server(1))
    assert not newest.note(server(0, writable=False))
    assert newest.note(server(2))


# --- its file


def test_the_next_start_knows_what_was_seen(tmp_path: Path) -> None:
    after(tmp_path, server(1), server(2))
    with pytest.raises(DatabaseUnavailable):
        NewestTimeline(tmp_path).admit([server(1)])
    assert [path.name for path in tmp_path.iterdir()] == ["timeline"]


def test_what_is_saved_is_not_saved_again(tmp_path: Path) -> None:
    newest = NewestTimeline(tmp_path)
    assert not newest.unsaved
    newest.note(server(1))
    assert newest.unsaved
    newest.save()
    assert not newest.unsaved
    again = NewestTimeline(tmp_path)
    again.note(server(1))
    assert not again.unsaved


def test_a_file_that_cannot_be_read_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "timeline").write_text("nonsense")
    with pytest.raises(Refused, match="timeline cannot be read"):
        NewestTimeline(tmp_path)


def test_what_cannot_be_written_is_logged_and_known_until_the_end(tmp_path: Path) -> None:
    newest = NewestTimeline(tmp_path / "none")
    newest.note(server(2))
    with capture_logs() as logged:
        newest.save()
    assert [one["event"] for one in logged] == ["timeline_not_saved"]
    with pytest.raises(DatabaseUnavailable):
        newest.admit([server(1)])


# --- hosts


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p%2C@one/db", ["postgresql://u:p%2C@one/db"]),
        ("postgresql:///db?host=/run/pg", ["postgresql:///db?host=/run/pg"]),
        ("postgresql://[::1/db", ["postgresql://[::1/db"]),
        (
            # Newer Pythons take an address in brackets only as the first host.
            "postgresql://u:p@[::1]:2,one:1,three/db?target_session_attrs=read-write",
            [f"postgresql://u:p@{host}/db?target_session_attrs=read-write" for host in ("[::1]:2", "one:1", "three")],
        ),
        (
            "postgresql://u@/db?host=one,two&port=1,2&sslmode=require",
            [f"postgresql://u@/db?sslmode=require&host={host}&port={port}" for host, port in (("one", 1), ("two", 2))],
        ),
        (
            "postgresql://u@/db?host=one,two&port=1",
            [f"postgresql://u@/db?host={host}&port=1" for host in ("one", "two")],
        ),
    ],
)
def test_a_url_of_several_hosts_is_one_url_for_each(url: str, hosts: list[str]) -> None:
    assert split_hosts(url) == hosts


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://me:sekrit@one:1/db", "one:1"),
        ("postgresql://me:sekrit@/db?host=two&password=sekrit", "two"),
        ("postgresql:///db", "a local socket"),
    ],
)
def test_an_address_holds_no_password(url: str, address: str) -> None:
    assert address_of(url) == address

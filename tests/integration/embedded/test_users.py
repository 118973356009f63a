from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from convo.embedded import users
from convo.embedded.programs import User

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows all processes and its own numbers")
FOLDER = Path("/srv/convo/postgres")


def owned_by(uid: int) -> os.stat_result:
    return os.stat_result((0o40700, 0, 0, 0, uid, uid, 0, 0, 0, 0))


def test_new_data_a_copy_of_roots_and_nobodys_get_a_user_without_a_name_and_always_the_same() -> None:
    own = users.user_for(FOLDER, None)
    assert users._OWN_FIRST <= own.uid <= users._OWN_LAST
    assert own.uid == own.gid
    with pytest.raises(KeyError):
        pwd.getpwuid(own.uid)
    assert users.user_for(FOLDER, owned_by(0)) == users.user_for(FOLDER, owned_by(65534)) == own
    assert users.user_for(Path("/srv/other/postgres"), None) != own


def test_data_that_were_given_to_somebody_stay_theirs() -> None:
    assert users.user_for(FOLDER, owned_by(4322)) == User(4322, 4322)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a program as another user")
def test_a_number_that_a_process_has_is_not_taken() -> None:
    own = users.user_for(FOLDER, None)
    with subprocess.Popen(["/bin/sleep", "1000"], cwd="/", user=own.uid, group=own.gid, extra_groups=[]) as process:
        try:
            assert own.uid in users._numbers_in_use()
            # The one after it, unless another test's server has that.
            assert own.uid < users.user_for(FOLDER, None).uid < own.uid + 100
        finally:
            process.kill()


@pytest.mark.parametrize("lacking", ["uid_map", "gid_map"])
def test_a_container_without_such_numbers_uses_nobody(lacking: str) -> None:
    def mapped(kind: str) -> list[tuple[int, int]]:
        return [(0, 1000)] if kind == lacking else [(0, 65536)]

    with mock.patch.object(users, "_mapped", mapped):
        assert users.user_for(FOLDER, None) == User(users.NOBODY, users.NOBODY)


def test_initdb_gets_a_user_with_a_name_that_no_process_has() -> None:
    found = users.maker(users.user_for(FOLDER, None))
    assert pwd.getpwuid(found.uid).pw_name
    assert found.uid != 0
    assert found.uid not in users._numbers_in_use()
    assert users.maker(User(1, 1)) == User(1, 1)

"""A data folder as convo 0.1 made it: it trusts whoever can reach its socket, and convo is its superuser."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import msgspec

from convo.embedded import access, location, postmaster
from convo.embedded.programs import User
from tests.support.asking import ask

NOBODY = User(65534, 65534)
HOW = ("-U", "convo", "-E", "UTF8", "--locale=C", "--data-checksums", "--auth-local=trust", "--auth-host=reject")


@asynccontextmanager
async def old_server(data_dir: Path) -> AsyncIterator[str]:
    """Make such a folder below ``data_dir``, and yield the URL of its database while the block runs."""
    here = await location.prepare_location(data_dir)
    if os.geteuid() == 0:
        here = msgspec.structs.replace(here, user=NOBODY)
    location._make_private(here.socket_folder, here.user)
    location.make_data_folder(here, here.folder)
    made = postmaster.launch(here, here.folder, "initdb", "-D", postmaster.FOLDER, *HOW)
    assert await postmaster.finish(made, "embedded.initdb", 60.0) == 0
    server = postmaster.Postmaster(here)
    with mock.patch.object(access, "admit_convo"):
        await server.start()
    try:
        url = access.login_url(here.folder, here.socket_folder)
        await ask(url.replace("@/convo?", "@/postgres?"), "CREATE DATABASE convo")
        yield url
    finally:
        await server.stop()  # noqa: ASYNC102  (nobody cancels a test)

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from convo.errors import Refused
from convo.rabbitmq import broker
from convo.settings import RabbitmqSettings, Secret


async def nothing(_: Any) -> None:
    """Declare nothing."""


def test_without_rabbitmq_its_library_is_not_imported() -> None:
    program = "import sys, convo.service; assert not {'aio_pika', 'aiormq', 'pamqp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_where_the_library_is_missing_a_person_learns_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aio_pika", None)
    with pytest.raises(Refused, match=r"rabbitmq\.url is set, and aio-pika.*pip install 'convo\[rabbitmq\]'"):
        broker.Broker(None, RabbitmqSettings(url=Secret("amqp://localhost/")), "events", nothing)  # type: ignore[arg-type]

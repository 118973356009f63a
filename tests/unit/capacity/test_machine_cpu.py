from __future__ import annotations

import os
from pathlib import Path

import pytest

from convo.capacity.machine_cpu import MachineCpu


def test_a_container_with_a_limit_is_its_own_machine(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\n")
    machine = MachineCpu(tmp_path / "stat", tmp_path)
    assert (machine.cores, machine.read()) == (1.5, 2.5)


def test_without_a_limit_all_processors_of_the_machine_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    ticks = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal guest: waiting and guests do not count.
    fields = [1, 2, 3, 1_000, 1_000, 4, 5, 6, 1_000]
    (tmp_path / "stat").write_text(f"cpu  {' '.join(str(one * ticks) for one in fields)}\ncpu0 1 1 1\n")
    machine = MachineCpu(tmp_path / "stat", tmp_path)
    assert machine.cores == float(os.cpu_count() or 1)
    assert machine.read() == pytest.approx(21.0)


def test_where_nothing_is_counted_it_stays_at_nothing(tmp_path: Path) -> None:
    machine = MachineCpu(tmp_path / "stat", tmp_path)
    assert (machine.read(), machine.cores) == (0.0, float(os.cpu_count() or 1))
    (tmp_path / "stat").write_text("nothing\n")
    assert machine.read() == 0.0

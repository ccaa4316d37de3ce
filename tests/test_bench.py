"""The verb ``bench``: cycles are exact, speeds are there for what was asked for."""

import json

import pytest

from vmxswitch import bench, cli
from vmxswitch.sim.verilator import VerilatorPort
from vmxswitch.spec.capabilities import PRESETS


def test_cycles_of_the_unit():
    found = bench.cycles(VerilatorPort(PRESETS[bench.CONFIG]))
    assert found | {
        "VM entry, settled": 2, "VM entry right after a VMWRITE": 3,
        "VM exit, VMCALL": 2, "VM exit, guest event": 2, "VMREAD": 2, "VMWRITE": 2,
        "VMPTRLD, resident": 2,
        f"{bench.STREAM} VMWRITEs, back to back": bench.STREAM + 1,
    } == found
    assert found["VMRESUME and exit, back to back"] <= 4
    assert found["VMPTRLD, not resident"] < found["whole switch"]


def test_a_speed_is_the_best_that_was_seen(monkeypatch):
    now, asked = 0.0, []

    def action(count):
        nonlocal now
        asked.append(count)
        now += count * (0.5 if len(asked) == 3 else 1.0)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    assert bench.rate(action, seconds=100.0) == 2.0
    assert asked[:3] == [1, 2, 4] and asked[-1] == asked[-2] == 8  # a twentieth of the time or more


def test_text(capsys):
    assert cli.main(["bench", "--backend", "model", "--seconds", "0.05"]) == 0
    out, err = capsys.readouterr()
    assert "Cycles" not in out  # the model has no clock
    head, row = out.splitlines()[-2:]
    assert head.split() == "backend cycles/s round trips/s checked entries/s cases/s".split()
    assert row.split()[:2] == ["model", "-"] and row.count("(x1)") == 3
    assert err == "bench: speed of model\n"


def test_json(capsys):
    assert cli.main(["bench", "--backend", "model", "--seconds", "0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cycles"] is None and found["config"] == "full"
    assert found["speed"]["model"].keys() == {"round_trips", "checked_entries", "cases"}
    assert all(number > 0 for number in found["speed"]["model"].values())
    assert set(found["times_slowest"]["model"].values()) == {1}
    assert found["tools"].keys() >= {"Python", "amaranth"}


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "inf"])
def test_a_time_that_is_none(capsys, seconds):
    assert cli.main(["bench", "--seconds", seconds]) == 2
    assert "is not a number above 0" in capsys.readouterr().err

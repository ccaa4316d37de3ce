# amaranth: UnusedElaboratable=no
"""Builds for boards: the table, the tools, a small design on its way to a bitstream."""

import json
import os

import pytest
from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib import io

from vmxswitch import build, cli
from vmxswitch.boards import flow, measured, room, table
from vmxswitch.spec.capabilities import configuration

NEXTPNR = """#!/bin/sh
case "$*" in *--version*) echo nextpnr 0.9; exit;; esac
printf 'Info: \\t ICESTORM_LC: 9000/ 7680 117%%\\n' >seed-1.tim
echo 'ERROR: no BELs remaining'; exit 1
"""
YOSYS = """#!/bin/sh
case "$*" in *--version*) echo Yosys 0.9; exit;; esac
cat >size.json <<end
{"design": {"num_cells_by_type": {"SB_LUT4": 7, "SB_DFFESR": 3, "SB_DFF": 2, "SB_CARRY": 9}}}
end
"""


class Counter(Elaboratable):
    """A small design in place of the unit."""

    def __init__(self, capabilities, *, frames):
        pass

    def elaborate(self, platform):
        m = Module()
        count = Signal(8)
        uart = platform.request("uart", dir="-")
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.d.sync += count.eq(count + rx.i)
        m.d.comb += tx.o.eq(count[-1])
        return m


@pytest.fixture
def small(monkeypatch):
    """The counter is what is built."""
    monkeypatch.setattr(flow, "BoardTop", Counter)


@pytest.fixture
def native(monkeypatch, tmp_path):
    """A function that puts tools, given as scripts, on a PATH of their own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")

    def install(**tools):
        for name, text in tools.items():
            path = folder / name.replace("_", "-")
            path.write_text(text)
            path.chmod(0o755)
    return install


@pytest.fixture
def records(monkeypatch, tmp_path):
    """An empty table of measured builds."""
    monkeypatch.setattr(measured, "PATH", tmp_path / "measured.csv")


def run(capsys, *argv):
    """Exit status, the line on stdout as a dictionary, and stderr."""
    status = cli.main(argv)
    out, err = capsys.readouterr()
    return status, dict(word.split("=") for word in out.split()), err


@pytest.mark.parametrize("name", table.BOARDS)
def test_every_board_has_a_clock_a_uart_and_a_configuration(name):
    board = table.board(name)
    platform = board.platform()
    assert platform.default_clk_frequency >= 12e6
    assert platform.lookup("uart")
    assert configuration(board.config)


def test_boards_lists_all_of_them(capsys):
    assert cli.main(["boards"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["board", *table.BOARDS]


def test_a_small_design_becomes_a_bitstream(capsys, small, records, tmp_path):
    status, line, err = run(capsys, "build", "icebreaker", "--output", str(tmp_path / "out"),
                            "--seeds", "2", "--record")
    assert status == 0, err
    assert (line["routed"], line["met"], line["seeds"]) == ("yes", "yes", "2")
    assert (tmp_path / "out" / "top.bin").stat().st_size > 1000
    assert "build: place and route: 0:" in err
    row, = measured.read()
    assert (row.board, row.best_mhz, row.yosys[:2]) == ("icebreaker", line["best_mhz"], "0.")
    assert float(row.worst_mhz) <= float(row.best_mhz)


def test_a_clock_that_is_not_met_is_status_1(capsys, small, tmp_path):
    status, line, err = run(capsys, "build", "icebreaker", "--output", str(tmp_path / "out"),
                            "--freq", "900")
    assert (status, line["met"]) == (1, "no")
    assert "900 MHz are not met; see the critical path in" in err


def test_on_an_ecp5_tables_are_left_empty_and_not_counted(capsys, small, tmp_path):
    status, line, err = run(capsys, "build", "ulx3s-25f", "--output", str(tmp_path))
    assert status == 0, err
    netlist = json.loads((tmp_path / "top.json").read_text())
    cells = netlist["modules"]["top"]["cells"]
    held = [cell for name, cell in cells.items() if name.startswith("placeholder")]
    free = room.free_for("LFE5U-25F", {}, int(line["lut"]))
    assert len(held) > 2500 * free
    assert int(line["cells"]) < 100
    assert (tmp_path / "top.bit").stat().st_size > 1000


@pytest.mark.parametrize("device, luts, free", [
    ("LFE5U-85F", 22829, 5), ("LFE5U-85F", 15702, 6), ("LFE5U-25F", 15702, 0)])
def test_what_is_left_empty_leaves_room_for_the_design(device, luts, free):
    assert room.free_for(device, {}, luts) == free
    assert room.free_for(device, {"TRELLIS_DPR16X4": 2000}, luts) == 0


def test_what_does_not_fit_is_said_and_recorded(capsys, small, native, records, tmp_path):
    native(yosys=YOSYS, nextpnr_ice40=NEXTPNR, icepack="#!/bin/sh\n")
    status, line, err = run(capsys, "build", "ice40-hx8k-evn", "--native", "--record",
                            "--output", str(tmp_path / "out"))
    assert status == 1
    assert "does not fit: 9000 ICESTORM_LC of 7680; take a larger board or" in err
    assert (line["lut"], line["ff"], line["routed"]) == ("7", "5", "no")
    row, = measured.read()
    assert (row.cells, row.available, row.yosys) == ("9000", "7680", "0.9")


def test_no_route_stops_after_synthesis(capsys, small, native, tmp_path):
    native(yosys=YOSYS, nextpnr_ice40=NEXTPNR, icepack="#!/bin/sh\n")
    status, line, _ = run(capsys, "build", "icebreaker", "--native", "--no-route",
                          "--output", str(tmp_path / "out"))
    assert (status, line["lut"], "cells" in line) == (0, "7", False)


def test_a_tool_that_fails_is_named(capsys, small, native, tmp_path):
    native(yosys="#!/bin/sh\necho ERROR: no memory; exit 1\n", nextpnr_ice40=NEXTPNR,
           icepack="#!/bin/sh\n")
    status, _, err = run(capsys, "build", "icebreaker", "--native",
                         "--output", str(tmp_path / "out"))
    assert status == 1 and "yosys failed: ERROR: no memory; see " in err


def test_a_missing_native_tool_is_named_and_nothing_else_taken(capsys, native):
    native(yosys=YOSYS, icepack="#!/bin/sh\n")
    status, _, err = run(capsys, "build", "icebreaker", "--native")
    assert (status, err) == (2, "vmxswitch: no nextpnr-ice40; put it on the PATH, or leave out "
                                "--native\n")


def test_an_unknown_board_gets_a_suggestion(capsys):
    status, _, err = run(capsys, "build", "icebraker")
    assert (status, err) == (2, "vmxswitch: no board 'icebraker'; did you mean 'icebreaker'? "
                                "(`vmxswitch boards` lists all)\n")


def test_a_later_measurement_replaces_the_earlier_one(records):
    fields = dict.fromkeys(measured.Measurement.__dataclass_fields__, "")
    for lut in ("1", "2"):
        measured.record(measured.Measurement(**fields | {"board": "icebreaker", "lut": lut}))
    measured.record(measured.Measurement(**fields | {"board": "icesugar"}))
    assert [(row.board, row.lut) for row in measured.read()] == [
        ("icebreaker", "2"), ("icesugar", "")]


def test_program_wants_a_build_first(capsys, tmp_path):
    status, _, err = run(capsys, "program", "ulx3s-25f", "--output", str(tmp_path))
    assert status == 2 and "run `vmxswitch build ulx3s-25f` first" in err


def test_program_says_how_without_the_loader(capsys, native, tmp_path):
    (tmp_path / "top.bit").touch()
    status, _, err = run(capsys, "program", "ulx3s-25f", "--output", str(tmp_path))
    assert status == 2 and f"run `openFPGALoader -b ulx3s {tmp_path / 'top.bit'}`" in err


@pytest.mark.parametrize("end, status", [(0, 0), (3, 1)])
def test_program_hands_over_to_the_loader(capsys, native, tmp_path, end, status):
    native(openFPGALoader=f"#!/bin/sh\nexit {end}\n")
    (tmp_path / "top.bit").touch()
    assert run(capsys, "program", "ulx3s-25f", "--output", str(tmp_path))[0] == status


def test_a_build_has_a_folder_for_each_configuration():
    assert build.folder("ulx3s-85f", "full:16").name == "ulx3s-85f-full-16"

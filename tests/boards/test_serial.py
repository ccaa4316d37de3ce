"""The backend `serial` against the whole of a board in compiled simulation, over a pseudo-terminal.

The board stays on from test to test, in whatever state one leaves it: every start must recover it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tty
from contextlib import suppress
from pathlib import Path

import pytest

from vmxswitch import cli
from vmxswitch.boards.serial_link import LinkError
from vmxswitch.boards.serial_port import SerialPort
from vmxswitch.hdl.register_map import RESET_WORD, board_registers, unit_registers
from vmxswitch.sim.board import BAUD, FRAMES, BoardServer
from vmxswitch.sim.cases import read_cases
from vmxswitch.sim.fuzz.case import profile_record
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Instruction, Mode, Outcome
from vmxswitch.subjects import subject_of

FULL = PRESETS["full"]
CASES = Path(__file__).parents[1] / "cases" / "entries.jsonl.gz"
LEDS = {Mode.OFF: 0b0000, Mode.ROOT: 0b0001, Mode.NON_ROOT: 0b0010}
#: What VMXON wants of the processor.
BARE = {"CR0": 0x8000_0031, "CR4": 0x2020, "EFER": 0x500, "IA32_FEATURE_CONTROL": 5,
        "CS_AR": 0xA09B, "SS_AR": 0xC093}
REGION = 0x5000


@pytest.fixture(scope="module")
def powered():
    return BoardServer(FULL)


@pytest.fixture
def server(powered):
    """The board, plugged in, with a sound line."""
    powered.to_board = powered.to_host = bytes
    with powered:
        yield powered


@pytest.fixture
def call(server, capsys):
    """Runs a verb on the board; its exit status and what it printed."""
    def run(*argv):
        status = cli.main([*argv, "--backend", "serial", "--port", server.path,
                           "--baud", str(BAUD)])
        return status, *capsys.readouterr()
    return run


def opened(server):
    return SerialPort(FULL, server.path, BAUD)


def works(port):
    """Whether VMXON leads to VMX root operation."""
    port.write_registers(BARE)
    port.write_memory(REGION, 4, FULL.revision)
    return (port.execute(Instruction("VMXON", pointer=REGION)).outcome is Outcome.SUCCEED
            and port.mode is Mode.ROOT)


class Line:
    """A line that does something to byte number ``number``, counted from when it is put in."""

    def __init__(self, number, change):
        self._left, self._change = number, change

    def __call__(self, data):
        place, self._left = self._left, self._left - len(data)
        if not 0 <= place < len(data):
            return data
        return data[:place] + self._change(data[place]) + data[place + 1:]


DAMAGES = {
    "changed": lambda byte: bytes([byte ^ 0x10]),
    "lost": lambda byte: b"",
    "added": lambda byte: bytes([0x3C, byte]),
}


# --- The verbs ---

def test_the_canonical_switch(call, capsys):
    status, out, err = call("switch")
    assert (status, err) == (0, "")
    assert "processor  full, serial\n" in out
    assert out.endswith("each time it was exactly one of them, whole.\nVM entry 2 cycles, VM "
                        "exit 2 cycles, counted on the board.\n")


def test_a_run_of_guests_is_that_of_the_model(call, capsys):
    guests = ["linux-6.1-amd64-idle", "xen-4.17-panic", "--turns", "4", "--json"]
    status, out, err = call("run", *guests)
    assert status == 0
    assert cli.main(["run", *guests]) == 0
    model, board = json.loads(capsys.readouterr().out), json.loads(out)
    assert board["intact"]
    assert board["guests"] == model["guests"]
    assert board["cycles"]["world_switch"]["least"] > 2  # MSR lists are read


def test_a_replay_gives_the_results_of_the_model(call, tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "full.json").write_text(json.dumps(profile_record(subject_of("full"))))
    cases = [case for case in read_cases(CASES) if case.profile.stem == "skylake_x_64"][:200:50]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps({
        "id": case.id, "profile": "full", "env": dict(case.env), "base": case.base,
        "writes": case.writes, "ops": case.ops}) + "\n" for case in cases))
    status, out, err = call("replay", str(path), "--results", str(tmp_path / "board"))
    assert status == 0 and "cases=4 compared=0 disagree=0" in out
    assert cli.main(["replay", str(path), "--results", str(tmp_path / "model")]) == 0
    assert (tmp_path / "board").read_text() == (tmp_path / "model").read_text()


def test_a_board_for_another_processor_is_refused(call):
    status, out, err = call("switch", "--config", "compact")
    assert (status, out) == (2, "")
    assert err.endswith("the board was built for another processor than compact, or from other "
                        "tables; --config names one\n")


@pytest.mark.parametrize("argv, message", [
    (["--backend", "serial"],
     "--backend serial needs --port, the serial port of the board, such as /dev/ttyUSB0"),
    (["--port", "/dev/x"], "--port /dev/x names a board; it needs --backend serial"),
    (["--backend", "serial", "--port", "/no/such"],
     "/no/such: cannot be opened (No such file or directory); --port names the serial port of the "
     "board"),
    (["--backend", "serial", "--port", "/dev/x", "--waves", "w"],
     "--waves shows the hardware; it needs --backend pysim or verilator"),
])
def test_a_bad_port_ends_in_one_line(capsys, argv, message):
    assert cli.main(["switch", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"vmxswitch: {message}\n")


# --- The port ---

def test_lights_show_the_mode(server):
    port = opened(server)
    assert server.board.leds == LEDS[port.mode] == LEDS[Mode.OFF]
    assert works(port)
    assert server.board.leds == LEDS[Mode.ROOT]
    port.execute(Instruction("VMXOFF"))
    assert server.board.leds == LEDS[Mode.OFF]


def test_memory_is_zero_at_first_and_after_a_reset(server):
    port = opened(server)
    assert port.read_memory(0x12_3456_7000, 8) == 0
    port.write_memory(0x12_3456_7000, 8, 0x1122_3344_5566_7788)
    port.write_memory(0x12_3456_7004, 4, 0x99AA_BBCC)
    assert port.read_memory(0x12_3456_7000, 8) == 0x99AA_BBCC_5566_7788
    assert port.read_memory(0x12_3456_7000, 4) == 0x5566_7788
    port.reset()
    assert port.read_memory(0x12_3456_7000, 8) == 0


def test_memory_that_is_used_up_is_named(server):
    port = opened(server)
    for frame in range(FRAMES):
        port.write_memory(frame << 20, 8, frame)
    assert port.read_memory(FRAMES - 1 << 20, 8) == FRAMES - 1
    with pytest.raises(LinkError, match="all 64 frames of the board's memory are in use"):
        port.write_memory(FRAMES << 20, 8, 1)
    assert works(opened(server))


@pytest.mark.parametrize("address, size", [(3, 4), (4, 8), (0, 2), (-8, 8)])
def test_an_access_that_cannot_be_is_refused(server, address, size):
    port = opened(server)
    with pytest.raises(ValueError, match="no access of"):
        port.read_memory(address, size)


def test_cycles_are_counted_on_the_board(server):
    port = opened(server)
    assert works(port)
    before = port.cycle
    assert port.execute(Instruction("VMPTRST")).cycles == 2
    assert port.cycle > before


def test_a_watcher_sees_every_operation(server):
    port, seen = opened(server), []
    port.watcher = seen.append
    port.write_registers({"RIP": 0x1234})
    port.execute(Instruction("VMXOFF"))
    assert [sample.registers["RIP"] for sample in seen] == [0x1234] * 2
    assert seen[0].cycle < seen[1].cycle


# --- The line ---

@pytest.mark.parametrize("direction, number", [
    *(("to_board", number) for number in (0, 1, 5, 6, 40, 70, 80)),
    *(("to_host", number) for number in (0, 3, 20, 30))])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_byte_is_noticed_and_the_next_start_recovers(server, direction, number, damage):
    port = opened(server)
    setattr(server, direction, Line(number, DAMAGES[damage]))
    with pytest.raises(LinkError, match="were changed or lost|does not answer|stays busy"):
        works(port)
        port.execute(Instruction("VMXOFF"))
    setattr(server, direction, bytes)
    assert works(opened(server))


def test_split_bytes_are_put_together(server):
    def slowly(data):
        time.sleep(0.002)
        return data
    server.to_board = server.to_host = slowly
    assert works(opened(server))


def test_a_frame_that_was_left_unfinished_does_not_reach_into_the_next_start(server):
    file = os.open(server.path, os.O_RDWR | os.O_NOCTTY)
    os.write(file, bytes([1, 255, 0, 0, 0, 0x10, 1, 2, 3]))  # 255 words to REQUEST
    os.close(file)
    assert works(opened(server))


def test_the_board_may_be_unplugged_in_the_middle_and_plugged_in_again(powered, capsys):
    halfway = threading.Event()
    def count(data):
        if len(seen) > 3000:
            halfway.set()
        seen.extend(data)
        return data
    seen = bytearray()
    powered.to_board, powered.to_host = bytes, count
    with powered:
        puller = threading.Thread(target=lambda: (halfway.wait(), powered.unplug()))
        puller.start()
        argv = ["switch", "--backend", "serial", "--port", powered.path, "--baud", str(BAUD)]
        assert cli.main(argv) == 2
        puller.join()
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "the serial port is gone" in err and "plug the board in and start again" in err
    powered.to_host = bytes
    with powered:
        assert works(opened(powered))


def test_a_port_without_a_board_is_named():
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    with pytest.raises(LinkError, match=r"the board does not answer \(0 of 4 bytes came in 1 s\); "
                                        "is it on, is this its port, and is 10000 its baud rate"):
        SerialPort(FULL, os.ttyname(theirs), BAUD)
    os.close(ours)
    os.close(theirs)


def test_something_else_at_the_port_is_named():
    ours, theirs = os.openpty()  # it echoes
    tty.setraw(theirs)
    def echo():
        with suppress(OSError):  # when it is closed
            while True:
                os.write(ours, os.read(ours, 64))
    threading.Thread(target=echo, daemon=True).start()
    with pytest.raises(LinkError, match="what answers is no board of ours"):
        SerialPort(FULL, os.ttyname(theirs), BAUD)
    os.close(theirs)


def test_a_simulated_board_can_be_served_on_its_own():
    command = [sys.executable, "-m", "vmxswitch.sim.board", "--config", "full"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell's `&` does
    ) as process:
        option, path, baud_option, baud = process.stdout.readline().split()
        assert (option, baud_option, int(baud)) == ("--port", "--baud", BAUD)
        try:
            assert works(SerialPort(FULL, path, int(baud)))
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0


# --- LiteX's own client ---

LITEX = f"""
import sys
from litex.tools.remote.comm_uart import CommUART
wire = CommUART(sys.argv[1], int(sys.argv[2]))
wire.write({unit_registers(FULL)["RESET"].address}, {RESET_WORD})
print(wire.read({unit_registers(FULL)["ID"].address}).to_bytes(4, "big").decode())
print(wire.read({board_registers()["CLOCK_HZ"].address}))
wire.write({unit_registers(FULL)["UPDATE"].address}, [0x1234 << 6, 0, 0, 1]) # register 0: RIP
print([hex(word) for word in wire.read({unit_registers(FULL)["LIVE"].address}, 2)])
print(wire.read({unit_registers(FULL)["ID"].address}, 2, burst="fixed"))
"""


def test_the_client_of_litex_works_too(server):
    done = subprocess.run([sys.executable, "-c", LITEX, server.path, str(BAUD)],
                          capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (
        f"VMXS\n40000\n['0x1234', '0x0']\n{[0x564D5853] * 2}\n", 0), done.stderr

"""A board in compiled simulation, with a pseudo-terminal in place of its serial port.

    python -m vmxswitch.sim.board --config full      # prints the port and serves it until Ctrl-C

What is simulated is the whole top level: receiver, bridge, registers, unit, memory, transmitter.
"""

import argparse
import ctypes
import os
import select
import signal
import sys
import threading
import tty
from collections.abc import Callable
from pathlib import Path

from vmxswitch.hdl.serial_unit import PAUSE_S, SerialUnit
from vmxswitch.spec.capabilities import Capabilities, configuration

from .verilator_build import library

__all__ = ["BAUD", "Board", "BoardServer"]

RUNNER = Path(__file__).with_name("board_runner.cpp")
DIVISOR = 4  # cycles per bit, the least there can be
#: The board's own time must not be behind that of who waits for it: its clock is slow.
CLOCK_HZ = 40_000
BAUD = CLOCK_HZ // DIVISOR
FRAMES = 64
RECEIVED_BYTES, CHUNK_CYC = 64, 400  # taken from the port at once; then simulated at once
BYTE_CYC = 10 * DIVISOR


def _top(capabilities):
    return SerialUnit(capabilities, clock_hz=CLOCK_HZ, baud=BAUD, frames=FRAMES)


class Board:
    """A compiled board; it is built on first use and then kept in a cache."""

    def __init__(self, capabilities: Capabilities):
        self._library = ctypes.CDLL(str(
            library(capabilities, {"DIVISOR": DIVISOR}, unit=_top, runner=RUNNER)))
        self._library.board_new.restype = ctypes.c_void_p
        self._library.board_free.argtypes = [ctypes.c_void_p]
        self._library.board_leds.argtypes = [ctypes.c_void_p]
        self._library.board_run.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p]
        self._handle = self._library.board_new()

    def __del__(self):
        if hasattr(self, "_handle"):
            self._library.board_free(self._handle)

    @property
    def leds(self) -> int:
        """The board's lights."""
        return self._library.board_leds(self._handle)

    def run(self, received: bytes, cycles: int) -> bytes:
        """Send bytes to the board, then let cycles go by; what the board sent meanwhile."""
        answer = ctypes.create_string_buffer(len(received) + cycles // BYTE_CYC + 1)
        count = self._library.board_run(self._handle, received, len(received), cycles, answer)
        return answer.raw[:count]


class BoardServer:
    """A board behind a pseudo-terminal, served by a thread while in a ``with`` statement.

    The board's clock stands still while nothing is on the line and none of its pauses runs.

    Attributes
    ----------
    path : str
        The port, for `--port`.
    to_board, to_host : callable
        What becomes of bytes on the line; may be changed, to damage them.
    """
    def __init__(self, capabilities: Capabilities):
        self.board = Board(capabilities)
        self.to_board: Callable[[bytes], bytes] = bytes
        self.to_host: Callable[[bytes], bytes] = bytes

    def __enter__(self):
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        self.path = os.ttyname(self._theirs)
        self._stop, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.unplug()
        for file in (self._stop, self._waker):
            os.close(file)

    def unplug(self) -> None:
        """Take the port away; whoever has it open sees that."""
        if self._thread.is_alive():
            os.write(self._waker, b"x")
            self._thread.join()
            for file in (self._ours, self._theirs):
                os.close(file)

    def _serve(self):
        pause_cyc = round(2 * PAUSE_S * CLOCK_HZ)
        idle_cyc = 0  # since something was on the line
        while True:
            waits = None if idle_cyc > pause_cyc else 0
            ready, _, _ = select.select([self._ours, self._stop], [], [], waits)
            if self._stop in ready:
                return
            received = b""
            if self._ours in ready:
                received = self.to_board(os.read(self._ours, RECEIVED_BYTES))
            sent = self.to_host(self.board.run(received, CHUNK_CYC))
            idle_cyc = 0 if received or sent else idle_cyc + CHUNK_CYC
            if sent:
                os.write(self._ours, sent)


def main():
    """Serve a board until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m vmxswitch.sim.board",
                                     description="Serves a simulated board on a pseudo-terminal.")
    parser.add_argument("--config", default="full", help="processor (default: %(default)s)")
    with BoardServer(configuration(parser.parse_args().config)) as server:
        # A shell that starts it in the background has it ignore the interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(f"--port {server.path} --baud {BAUD}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())

"""Registers of a board over a serial port, in the framing of LiteX's ``uartbone``."""

import os
import time
import zlib

import serial

from vmxswitch.hdl.register_map import Register, board_registers
from vmxswitch.hdl.serial_unit import PAUSE_S
from vmxswitch.hdl.uart_bridge import UartCommand
from vmxswitch.spec.errors import UsageError

__all__ = ["LinkError", "SerialLink"]

ANSWER_S = 1.0   # longest wait for the bytes of an answer
WORD_BYTES = 4


class LinkError(UsageError):
    """The serial line, or the board at its end, does not do what it should."""


class SerialLink:
    """A serial line to a :class:`~vmxswitch.hdl.serial_unit.SerialUnit`.

    Bytes that are lost show as an answer that does not come; bytes that are changed show in
    :meth:`check`.

    Parameters
    ----------
    port : str
        A device, or a URL that pyserial knows.
    baud : int
        Bits per second.

    Raises
    ------
    :exc:`LinkError`
        If the port cannot be opened; later, if the line is gone or the board does not answer.
    """
    def __init__(self, port: str, baud: int):
        self._name, self._baud, self._check = port, baud, 0
        self._registers = board_registers()
        try:
            self._port = serial.serial_for_url(port, baud, timeout=ANSWER_S, write_timeout=ANSWER_S)
        except (serial.SerialException, ValueError, OSError) as error:
            raise LinkError(f"{port}: cannot be opened ({_reason(error)}); --port names the serial "
                            "port of the board") from None

    def close(self) -> None:
        """Give the port back."""
        self._port.close()

    def resynchronize(self) -> None:
        """Bring the board's end of the line to the start of a frame; begin :meth:`check` anew."""
        time.sleep(1.5 * PAUSE_S)
        self._do(lambda: self._port.read(self._port.in_waiting))
        self.write(self._registers["LINK_RESTART"], 1)
        self._check = 0

    def read(self, register: Register, words: int | None = None) -> int:
        """The value of a register, or of so many words from it on."""
        count = words or register.words
        self._send(UartCommand.READ, register, count)
        data = self._do(lambda: self._port.read(WORD_BYTES * count))
        self._check = zlib.crc32(data, self._check)
        if len(data) < WORD_BYTES * count:
            raise LinkError(f"{self._name}: the board does not answer ({len(data)} of "
                            f"{WORD_BYTES * count} bytes came in {ANSWER_S:g} s); is it on, is "
                            f"this its port, and is {self._baud} its baud rate?")
        return int.from_bytes(b"".join(reversed(_split(data))), "big")

    def write(self, register: Register, value: int, words: int | None = None) -> None:
        """Write a register, or so many words from it on."""
        count = words or register.words
        data = value.to_bytes(WORD_BYTES * count, "big")
        self._send(UartCommand.WRITE, register, count, b"".join(reversed(_split(data))))

    def check(self) -> None:
        """Compare what the board saw on the line with what was sent and received here."""
        register = self._registers["LINK_CHECK"]
        self._send(UartCommand.READ, register, register.words)
        expected = self._check
        data = self._do(lambda: self._port.read(WORD_BYTES))
        self._check = zlib.crc32(data, self._check)
        if int.from_bytes(data, "big") != expected:
            raise LinkError(f"{self._name}: bytes were changed or lost on the line; check cable "
                            "and baud rate, and start again: that resets the unit")

    def _send(self, command, register, count, data=b""):
        frame = bytes([command.value, count]) + register.first.to_bytes(4, "big") + data
        self._do(lambda: self._port.write(frame))
        self._check = zlib.crc32(frame, self._check)

    def _do(self, action):
        """The result of something done with the port."""
        try:
            return action()
        except (serial.SerialException, OSError) as error:
            raise LinkError(f"{self._name}: the serial port is gone ({_reason(error)}); plug the "
                            "board in and start again: that resets the unit") from None


def _split(data: bytes) -> list[bytes]:
    """The words of a frame, or of a number."""
    return [data[start:start + WORD_BYTES] for start in range(0, len(data), WORD_BYTES)]


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)

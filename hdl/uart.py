"""Serial line: one start bit, eight data bits from the lowest, one stop bit."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["UartReceiver", "UartTransmitter", "require_divisor"]

DATA_BITS = 8
LEAST_DIVISOR = 4  # cycles per bit with which the middle of a bit is still found


def require_divisor(divisor: int) -> int:
    """The number of cycles per bit; :exc:`ValueError` if it is none that a receiver can do."""
    if not isinstance(divisor, int) or divisor < LEAST_DIVISOR:
        raise ValueError(f"A bit must take {LEAST_DIVISOR} cycles or more, not {divisor!r}; "
                         "choose a lower baud rate")
    return divisor


class UartReceiver(wiring.Component):
    """Bytes from a serial line.

    Each bit is looked at in its middle. A byte without a stop bit is dropped, and so is one that
    comes while the byte before it has not been taken.

    Parameters
    ----------
    divisor : int
        Cycles per bit, 4 or more.

    Members
    -------
    rx : In(1), 1 while the line is idle
        The line; asynchronous.
    bytes : Out(stream of 8 bits)
        What was received.

    Raises
    ------
    :exc:`ValueError`
        If ``divisor`` is too small.
    """
    def __init__(self, divisor: int):
        self._divisor = require_divisor(divisor)
        super().__init__({"rx": In(1, init=1), "bytes": Out(stream.Signature(DATA_BITS))})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)
        wait = Signal(range(self._divisor))  # cycles until the line is looked at
        bits = Signal(DATA_BITS)
        count = Signal(range(DATA_BITS))
        with m.If(self.bytes.ready):
            m.d.sync += self.bytes.valid.eq(0)
        with m.If(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.FSM():
            with m.State("IDLE"):
                with m.If(~line):
                    m.d.sync += wait.eq(self._divisor // 2 - 1)
                    m.next = "START"
            with m.State("START"):
                with m.If(wait == 0):
                    m.d.sync += [wait.eq(self._divisor - 1), count.eq(0)]
                    m.next = "DATA"
                    with m.If(line):  # too short for a start bit
                        m.next = "IDLE"
            with m.State("DATA"):
                with m.If(wait == 0):
                    m.d.sync += [wait.eq(self._divisor - 1), count.eq(count + 1),
                                 bits.eq((line << DATA_BITS | bits) >> 1)]
                    with m.If(count == DATA_BITS - 1):
                        m.next = "STOP"
            with m.State("STOP"):
                with m.If(wait == 0):
                    m.next = "BREAK"
                    with m.If(line & (~self.bytes.valid | self.bytes.ready)):
                        m.d.sync += [self.bytes.payload.eq(bits), self.bytes.valid.eq(1)]
            with m.State("BREAK"):
                with m.If(line):
                    m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a serial line.

    Parameters
    ----------
    divisor : int
        Cycles per bit, 4 or more.

    Members
    -------
    bytes : In(stream of 8 bits)
        What to send; ``ready`` while the line is idle.
    tx : Out(1), resets to 1
        The line.

    Raises
    ------
    :exc:`ValueError`
        If ``divisor`` is too small.
    """
    def __init__(self, divisor: int):
        self._divisor = require_divisor(divisor)
        super().__init__({"bytes": In(stream.Signature(DATA_BITS)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        wait = Signal(range(self._divisor))
        left = Signal(range(DATA_BITS + 3))  # bits that are still to end
        bits = Signal(DATA_BITS + 1)         # those to come after the one on the line
        m.d.comb += self.bytes.ready.eq(left == 0)
        with m.If(left == 0):
            with m.If(self.bytes.valid):
                m.d.sync += [self.tx.eq(0), bits.eq(1 << DATA_BITS | self.bytes.payload),
                             left.eq(DATA_BITS + 2), wait.eq(self._divisor - 1)]
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Else():
            m.d.sync += [self.tx.eq(bits[0]), bits.eq(1 << DATA_BITS | bits >> 1),
                         left.eq(left - 1), wait.eq(self._divisor - 1)]
        return m

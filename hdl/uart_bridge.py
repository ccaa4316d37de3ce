"""From a serial line to a Wishbone bus, in the framing of LiteX's ``uartbone``.

Source: LiteX, ``litex/soc/cores/uart.py`` (class ``Stream2Wishbone``).
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from .memory_unit import BusSignature, require_timeout

__all__ = ["ADDRESS_BITS", "UartBridge", "UartCommand"]

ADDRESS_BITS = 32
WORD_BITS, WORD_BYTES = 32, 4


class UartCommand(enum.Enum, shape=8):
    """First byte of a frame; any other is passed over."""
    WRITE = 1        # words to consecutive addresses
    READ = 2
    WRITE_FIXED = 3  # every word to the same address
    READ_FIXED = 4


class UartBridge(wiring.Component):
    """Carries out frames: a command, the number of words, the address of the first one, and words.

    Address (32 bits, it counts words) and words go from the highest byte on. After a read command
    the words come back; a write command has no answer. A frame that stops in the middle for
    ``timeout_cyc`` cycles is given up; the next byte is then a command.

    Parameters
    ----------
    timeout_cyc : int
        Longest pause in a frame, in cycles.

    Members
    -------
    received : In(stream of 8 bits), sent : Out(stream of 8 bits)
        From the receiver; to the transmitter.
    bus : Out(BusSignature)
        Wishbone initiator: 32 bits of data.
    check : Out(32)
        CRC-32 (that of zlib) of all bytes in both directions, in the order of the line.
    restart : In(1)
        Starts ``check`` again at the next edge.

    Raises
    ------
    :exc:`ValueError`
        If ``timeout_cyc`` is not a positive number.
    """
    def __init__(self, timeout_cyc: int):
        self._timeout_cyc = require_timeout(timeout_cyc)
        super().__init__({
            "received": In(stream.Signature(8)), "sent": Out(stream.Signature(8)),
            "bus": Out(BusSignature(address_bits=ADDRESS_BITS, data_bits=WORD_BITS)),
            "check": Out(32), "restart": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        command = Signal(8)
        left = Signal(8)                  # words still to come
        place = Signal(range(WORD_BYTES)) # byte of address or word, from the highest
        address = Signal(ADDRESS_BITS)
        word = Signal(WORD_BITS)
        pause = Signal(range(self._timeout_cyc + 1))
        reads = (command == UartCommand.READ) | (command == UartCommand.READ_FIXED)
        steps = (command == UartCommand.READ) | (command == UartCommand.WRITE)
        late = pause == self._timeout_cyc
        taken = self.received.valid & self.received.ready
        given = self.sent.valid & self.sent.ready

        m.submodules.crc = crc = CRC32_ISO_HDLC(data_width=8).create()
        m.d.comb += [
            crc.start.eq(self.restart), crc.valid.eq(taken | given),
            crc.data.eq(Mux(given, self.sent.payload, self.received.payload)),
            self.check.eq(crc.crc),
            self.bus.adr.eq(address), self.bus.dat_w.eq(word), self.bus.sel.eq(0xF),
            self.sent.payload.eq(word[-8:]),
        ]
        with m.If(taken | given):
            m.d.sync += pause.eq(0)
        with m.Elif(~late):
            m.d.sync += pause.eq(pause + 1)

        def next_word(again):
            """After a word: the next one, or the next frame."""
            m.d.sync += [left.eq(left - 1), address.eq(address + steps)]
            m.next = again
            with m.If(left == 1):
                m.next = "COMMAND"

        with m.FSM():
            with m.State("COMMAND"):
                m.d.comb += self.received.ready.eq(1)
                m.d.sync += place.eq(0)
                with m.If(taken):
                    m.d.sync += command.eq(self.received.payload)
                    with m.Switch(self.received.payload):
                        with m.Case(*UartCommand):
                            m.next = "LENGTH"
            with m.State("LENGTH"):
                m.d.comb += self.received.ready.eq(1)
                with m.If(taken):
                    m.d.sync += left.eq(self.received.payload)
                    m.next = "ADDRESS"
                with m.Elif(late):
                    m.next = "COMMAND"
            with m.State("ADDRESS"):
                m.d.comb += self.received.ready.eq(1)
                with m.If(taken):
                    m.d.sync += [address.eq(Cat(self.received.payload, address)),
                                 place.eq(place + 1)]
                    with m.If(place == WORD_BYTES - 1):
                        m.next = "WORD"
                        with m.If(reads):
                            m.next = "READ"
                with m.Elif(late):
                    m.next = "COMMAND"
            with m.State("WORD"):
                m.d.comb += self.received.ready.eq(1)
                with m.If(taken):
                    m.d.sync += [word.eq(Cat(self.received.payload, word)), place.eq(place + 1)]
                    with m.If(place == WORD_BYTES - 1):
                        m.next = "WRITE"
                with m.Elif(late):
                    m.next = "COMMAND"
            with m.State("WRITE"):
                m.d.comb += [self.bus.cyc.eq(1), self.bus.stb.eq(1), self.bus.we.eq(1)]
                with m.If(self.bus.ack | self.bus.err):
                    next_word("WORD")
            with m.State("READ"):
                m.d.comb += [self.bus.cyc.eq(1), self.bus.stb.eq(1)]
                with m.If(self.bus.ack | self.bus.err):
                    m.d.sync += word.eq(self.bus.dat_r)
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.sent.valid.eq(1)
                with m.If(given):
                    m.d.sync += [word.eq(word << 8), place.eq(place + 1)]
                    with m.If(place == WORD_BYTES - 1):
                        next_word("READ")
        return m

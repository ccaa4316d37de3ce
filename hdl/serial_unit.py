"""The whole of a board: unit, registers, memory, and a serial line to drive it."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode

from .interface import require_capabilities
from .register_file import WORD_BITS, RegisterFile
from .register_map import MemoryStatus, board_registers
from .sparse_memory import SparseMemory, require_frames
from .uart import UartReceiver, UartTransmitter, require_divisor
from .uart_bridge import UartBridge
from .wishbone_unit import ADDRESS_BITS, WishboneUnit

__all__ = ["BAUD", "SerialUnit"]

BAUD = 115_200           #: bits per second if nothing else is said
PAUSE_S = 0.1            # longest pause in a frame, as LiteX has it
BAUD_TOLERANCE = 0.02    # of which half is left to the other end
FRAMES, FRAME_WORDS = 32, 128


class SerialUnit(wiring.Component):
    """What a board's top level instantiates: two wires, four lights and a clock.

    A host drives it through the registers of :func:`~.register_map.unit_registers` and
    :func:`~.register_map.board_registers`. The reset word resets the unit and clears the memory;
    the serial line is back in step after a pause of 0.1 s.

    Parameters
    ----------
    capabilities : Capabilities
        The processor that the unit is built for.
    clock_hz : int
        Frequency of the clock.
    baud : int
        Bits per second on the serial line; at most a quarter of ``clock_hz``, of which a whole
        number of cycles must make 2 % or better.
    frames, frame_words : int
        Size of the memory; see :class:`~.sparse_memory.SparseMemory`.

    Members
    -------
    rx : In(1), tx : Out(1)
        Serial line, 8 data bits, no parity, 1 stop bit; idle 1.
    leds : Out(4), resets to 0
        Lights, on if 1: VMX root operation, VMX non-root operation (the guest), VMX abort, an
        operation is being carried out.

    Raises
    ------
    :exc:`ValueError`
        If the clock is no frequency, or too slow for the serial line, or the memory no size.
    """
    def __init__(self, capabilities: Capabilities, *, clock_hz: int, baud: int = BAUD,
                 frames: int = FRAMES, frame_words: int = FRAME_WORDS):
        self._capabilities = require_capabilities(self, capabilities)
        for name, value in (("clock_hz", clock_hz), ("baud", baud)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a number from 1, not {value!r}")
        self._clock_hz = clock_hz
        self._divisor = require_divisor(round(clock_hz / baud))
        nearest = round(clock_hz / self._divisor)
        if abs(nearest - baud) > BAUD_TOLERANCE * baud:
            raise ValueError(f"A clock of {clock_hz} Hz makes {nearest} bits per second, too far "
                             f"from {baud}; choose another baud rate")
        self._frames, self._frame_words = require_frames(frames, frame_words)
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "leds": Out(4)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        m.submodules.bridge = bridge = UartBridge(max(1, round(PAUSE_S * self._clock_hz)))
        m.submodules.unit = unit = WishboneUnit(self._capabilities)
        m.submodules.memory = memory = SparseMemory(
            self._capabilities.physical_address_width,
            frames=self._frames, frame_words=self._frame_words)
        registers = board_registers()
        m.submodules.file = file = RegisterFile(
            registers.values(), address_bits=ADDRESS_BITS + 1)

        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx)]
        wiring.connect(m, receiver.bytes, bridge.received)
        wiring.connect(m, bridge.sent, transmitter.bytes)
        wiring.connect(m, unit.memory, memory.unit)
        m.d.comb += [
            memory.clear.eq(unit.cleared),
            self.leds.eq(Cat(unit.mode == Mode.ROOT, unit.mode == Mode.NON_ROOT,
                             unit.mode == Mode.ABORT, unit.busy)),
        ]

        # the unit's registers are below those of the board
        of_board = bridge.bus.adr[ADDRESS_BITS]
        for target, chosen in ((unit.bus, ~of_board), (file.bus, of_board)):
            m.d.comb += [
                target.cyc.eq(bridge.bus.cyc & chosen), target.stb.eq(bridge.bus.stb & chosen),
                target.we.eq(bridge.bus.we), target.adr.eq(bridge.bus.adr),
                target.sel.eq(bridge.bus.sel), target.dat_w.eq(bridge.bus.dat_w),
            ]
        m.d.comb += [
            bridge.bus.ack.eq(unit.bus.ack | file.bus.ack),
            bridge.bus.dat_r.eq(Mux(of_board, file.bus.dat_r, unit.bus.dat_r)),
        ]

        # board registers
        host = memory.host
        address, w_data, r_data, access = Signal(64), Signal(64), Signal(64), Signal(8)
        accessing = Signal()
        status = Signal(MemoryStatus)
        with m.If(file.w_stb):
            for name, storage in (("MEMORY_ADDRESS", address), ("MEMORY_W_DATA", w_data),
                                  ("MEMORY_ACCESS", access)):
                register = registers[name]
                for word in range(register.words):
                    with m.If(file.address == register.first + word):
                        m.d.sync += storage.word_select(word, WORD_BITS).eq(file.w_data)
            with m.If(file.address == registers["MEMORY_ACCESS"].first):
                m.d.sync += accessing.eq(1)
        m.d.comb += [
            host.cyc.eq(accessing), host.stb.eq(accessing), host.we.eq(access.any()),
            host.adr.eq(address[3:]), host.sel.eq(access), host.dat_w.eq(w_data),
            bridge.restart.eq(file.w_stb & (file.address == registers["LINK_RESTART"].first)),
            status.busy.eq(accessing | memory.busy), status.full.eq(memory.full),
            status.used.eq(memory.used), status.all.eq(self._frames),
        ]
        with m.If(host.ack | host.err):
            m.d.sync += [accessing.eq(0), r_data.eq(host.dat_r)]
        for name, value in {
            "LINK_CHECK": bridge.check, "CLOCK_HZ": self._clock_hz, "MEMORY_STATUS": status,
            "MEMORY_R_DATA": r_data,
        }.items():
            m.d.comb += file.values[name].eq(value)
        return m

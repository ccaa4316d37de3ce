"""A small memory that looks like a large one: block RAM at the addresses that are used."""

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from .memory_unit import BusSignature

__all__ = ["SparseMemory", "require_frames"]

WORD_BITS = 64


def require_frames(frames: int, frame_words: int) -> tuple[int, int]:
    """Number and size of frames; :exc:`ValueError` if there is none, or the size cannot be."""
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"Number of frames must be 1 or more, not {frames!r}")
    if not isinstance(frame_words, int) or frame_words < 8 or frame_words.bit_count() != 1:
        raise ValueError(f"Words of a frame must be a power of two from 8, not {frame_words!r}")
    return frames, frame_words


class SparseMemory(wiring.Component):
    """Memory for a unit on a board without any: all zero at first, as much as is written.

    The first write to an address takes a free frame for it and its neighbours. An address without
    a frame reads as zero. A write that finds no free frame ends in ``err``, and ``full`` stays high
    until ``clear``.

    Both initiators have the whole memory; ``unit`` goes first. A transfer takes three cycles in the
    frame of the transfer before, and one more for every other frame that is looked at, in turn.

    Parameters
    ----------
    address_bits : int
        Width of a physical address in bytes.
    frames : int
        Number of frames.
    frame_words : int
        64-bit words of a frame; a power of two, 8 or more.

    Members
    -------
    unit : In(BusSignature), host : In(BusSignature)
        Wishbone targets.
    clear : In(1)
        Makes everything zero, one word per cycle, from the end of the present transfer on.
    busy : Out(1)
        Registered: to be cleared, or being cleared; transfers wait.
    full : Out(1)
        A write found no frame.
    used : Out
        Number of frames taken.

    Raises
    ------
    :exc:`ValueError`
        If there is no frame, or a frame's size is none that can be.
    """
    def __init__(self, address_bits: int, *, frames: int, frame_words: int):
        self._frames, self._frame_words = require_frames(frames, frame_words)
        self._tag_bits = address_bits - 3 - exact_log2(frame_words)
        super().__init__({
            "unit": In(BusSignature()), "host": In(BusSignature()),
            "clear": In(1), "busy": Out(1), "full": Out(1), "used": Out(range(frames + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        depth = self._frames * self._frame_words
        m.submodules.words = words = Memory(shape=WORD_BITS, depth=depth, init=[])
        write, read = words.write_port(granularity=32), words.read_port()
        by_host = Signal()  # whose transfer it is
        bus = Array([self.unit, self.host])[by_host]
        m.submodules.tags = tags = Memory(shape=self._tag_bits, depth=self._frames, init=[])
        take, known = tags.write_port(), tags.read_port()
        offset_bits = exact_log2(self._frame_words)
        tag, offset = bus.adr[offset_bits:offset_bits + self._tag_bits], bus.adr[:offset_bits]
        beyond = bus.adr[offset_bits + self._tag_bits:].any()
        frame, following = Signal(range(self._frames)), Signal(range(self._frames))
        looked = Signal(range(self._frames))  # how many frames were others
        found, last, takes = Signal(), Signal(), Signal()
        hits, fails = Signal(), Signal()  # of the transfer that is answered
        place = Cat(offset, frame)
        cleared = Signal(range(depth))

        m.d.comb += [
            following.eq(frame), known.addr.eq(following),
            found.eq((frame < self.used) & (known.data == tag) & ~beyond),
            last.eq(found | beyond | (looked + 1 >= self.used)),
            takes.eq(~found & ~beyond & (self.used < self._frames)),  # if it is written
            take.addr.eq(self.used), take.data.eq(tag),
            read.en.eq(1), read.addr.eq(place),
        ]
        m.d.sync += frame.eq(following)

        with m.If(self.clear):
            m.d.sync += self.busy.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [by_host.eq(~self.unit.stb), looked.eq(0)]
                with m.If(self.busy):
                    m.d.sync += [self.full.eq(0), self.used.eq(0), cleared.eq(0)]
                    m.next = "CLEAR"
                with m.Elif(self.unit.stb | self.host.stb):
                    m.next = "LOOK UP"
            with m.State("LOOK UP"):
                with m.If(~last):
                    m.d.comb += following.eq(Mux(frame + 1 >= self.used, 0, frame + 1))
                    m.d.sync += looked.eq(looked + 1)
                with m.Else():
                    with m.If(bus.stb & bus.we):
                        m.d.comb += [
                            take.en.eq(takes),
                            write.en.eq(Mux(found | takes, Cat(bus.sel[0], bus.sel[4]), 0)),
                        ]
                        m.d.sync += [
                            self.used.eq(self.used + takes),
                            self.full.eq(self.full | ~(found | takes)),
                        ]
                    m.d.comb += [
                        write.addr.eq(Mux(found, place, Cat(offset, self.used))),
                        write.data.eq(bus.dat_w),
                    ]
                    m.d.sync += [hits.eq(found), fails.eq(bus.we & ~found & ~takes)]
                    with m.If(bus.we & takes):
                        m.d.comb += following.eq(self.used)
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                for own, target in enumerate((self.unit, self.host)):
                    mine = target.stb & (by_host == own)
                    m.d.comb += [
                        target.dat_r.eq(Mux(hits, read.data, 0)),
                        target.ack.eq(mine & ~fails), target.err.eq(mine & fails),
                    ]
                m.next = "IDLE"
            with m.State("CLEAR"):
                m.d.comb += [write.addr.eq(cleared), write.en.eq(0b11)]
                m.d.sync += cleared.eq(cleared + 1)
                with m.If(cleared == depth - 1):
                    m.d.sync += self.busy.eq(0)
                    m.next = "IDLE"
        return m

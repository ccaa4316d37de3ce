"""Registers on a Wishbone bus: what one is, and the hardware that reads and writes them."""

from collections.abc import Iterable
from dataclasses import dataclass

from amaranth import Module, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .memory_unit import BusSignature

__all__ = ["WORD_BITS", "WORD_BYTES", "Register", "RegisterFile"]

WORD_BITS, WORD_BYTES = 32, 4


@dataclass(frozen=True)
class Register:
    """A register of one or more 32-bit words, the lowest bits at the lowest address.

    Attributes
    ----------
    name : str
        Upper case.
    address : int
        Of the first word, in bytes.
    bits : int
        Width; the rest of the last word reads as 0.
    access : str
        "r" or "w".
    meaning : str
        For the documentation and the C header.
    reset : int or None
        Value after reset; None where it is that of the unit's port.
    """
    name: str
    address: int
    bits: int
    access: str
    meaning: str
    reset: int | None = 0

    @property
    def words(self) -> int:
        """Number of its words."""
        return -(-self.bits // WORD_BITS)

    @property
    def first(self) -> int:
        """Number of its first word: what the bus counts in."""
        return self.address // WORD_BYTES


class RegisterFile(wiring.Component):
    """A Wishbone target with registers; each access takes two cycles.

    Whole words are accessed: ``sel`` is not looked at. Where there is no register, 0 is read and
    a write is passed over.

    Parameters
    ----------
    registers : iterable of Register
        What can be read; who reads the strobes below knows what can be written.
    address_bits : int
        Width of ``adr``, which counts words.

    Members
    -------
    bus : In(BusSignature)
        Wishbone target: 32 bits of data.
    values : In(struct)
        Present value of every register that can be read, by name.
    address : Out(address_bits), w_data : Out(32)
        Of the access at hand.
    r_stb : Out(1), w_stb : Out(1)
        Combinational: a word is read, or written, at the next edge.
    """
    def __init__(self, registers: Iterable[Register], *, address_bits: int):
        self._readable = [register for register in registers if register.access == "r"]
        super().__init__({
            "bus": In(BusSignature(address_bits=address_bits, data_bits=WORD_BITS)),
            "values": In(data.StructLayout({one.name: one.bits for one in self._readable})),
            "address": Out(address_bits), "w_data": Out(WORD_BITS),
            "r_stb": Out(1), "w_stb": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        begins = bus.cyc & bus.stb & ~bus.ack
        m.d.comb += [
            self.address.eq(bus.adr), self.w_data.eq(bus.dat_w),
            self.r_stb.eq(begins & ~bus.we), self.w_stb.eq(begins & bus.we),
        ]
        m.d.sync += [bus.ack.eq(begins), bus.dat_r.eq(0)]
        with m.Switch(bus.adr):
            for register in self._readable:
                value = Value.cast(self.values[register.name])
                for number in range(register.words):
                    with m.Case(register.first + number):
                        m.d.sync += bus.dat_r.eq(value.word_select(number, WORD_BITS))
        return m

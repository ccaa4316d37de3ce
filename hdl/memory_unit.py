"""Everything that the unit reads and writes in memory.

Source: transfers of Intel SDM vol. 3C, "VM Entries" and "VMX Instruction Reference"; the region's
layout is :mod:`vmxswitch.spec.region`.
"""

from amaranth import Module, Mux, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.region import LAUNCH_OFFSET
from vmxswitch.spec.structures import VTPR_OFFSET

from .entry_checker import PDPTES, ListEntry, MemoryWords, Wants
from .interface import require_capabilities

__all__ = [
    "TIMEOUT_CYC", "BusSignature", "Command", "CommandSignature", "MemoryUnit",
    "require_timeout",
]

TIMEOUT_CYC = 1024  #: cycles that a transfer may take if nothing else is said


def require_timeout(cycles: int) -> int:
    """The number of cycles; :exc:`ValueError` if it is none."""
    if not isinstance(cycles, int) or cycles < 1:
        raise ValueError(f"Timeout must be a number of cycles from 1, not {cycles!r}")
    return cycles


class BusSignature(wiring.Signature):
    """Wishbone B4, classic cycles; ``adr`` counts words of ``data_bits``, which are 64 to memory.

    ``cyc`` and ``stb`` stay high until ``ack`` or ``err``; one transfer per ``ack``.
    """
    def __init__(self, *, address_bits: int = 61, data_bits: int = 64):
        super().__init__({
            "cyc": Out(1), "stb": Out(1), "we": Out(1), "adr": Out(address_bits),
            "sel": Out(data_bits // 8), "dat_w": Out(data_bits), "dat_r": In(data_bits),
            "ack": In(1), "err": In(1),
        })


class Command(enum.Enum, shape=3):
    """What the memory unit is to do, from ``address`` on."""
    READ = 0        # one word, to ``word``
    WRITE = 1       # one word, ``w_word``
    FETCH = 2       # the words of ``wants``, to ``words``
    LIST_ENTRY = 3  # two words, to ``list_entry``
    LOAD = 4        # launch word and fields of a region, into the bank
    STORE = 5       # launch word and fields, out of the bank
    PDPTES = 6      # four words, to ``host_pdptes``


class CommandSignature(wiring.Signature):
    """Commands to the memory unit, one at a time, as who gives them sees it.

    ``start`` is held high, with the operands, until ``done``.
    """
    def __init__(self):
        super().__init__({
            "command": Out(Command), "address": Out(64), "w_word": Out(64), "start": Out(1),
            "done": In(1), "error": In(1), "word": In(64),
        })


class MemoryUnit(wiring.Component):
    """Carries out one command at a time on a Wishbone initiator.

    Parameters
    ----------
    capabilities : Capabilities
        The processor; its fields make up a region.
    timeout_cyc : int
        A transfer without ``ack`` and ``err`` in so many cycles counts as one that ended in
        ``err``: ``cyc`` falls, and an answer that comes later is not looked at.

    Members
    -------
    bus : Out(BusSignature)
        Wishbone initiator.
    command : In(Command), address : In(64), w_word : In(64), start : In(1)
        Starts a command at the next edge while not ``busy``; held until ``done``.
    busy : Out(1)
        A command is under way.
    done : Out(1)
        High for one cycle when the command is complete or a transfer ended in an error.
    error : Out(1)
        Together with ``done``: memory answered with ``err`` or not in time; the command was given
        up there.
    wants : In(Wants), virtual_apic, link, cr3 : In(64)
        For FETCH: which words, and the VMCS fields that say where.
    word : Out(64), words : Out(MemoryWords), list_entry : Out(ListEntry), host_pdptes : Out(PDPTES)
        What was read; kept until the next command of the kind.
    number : Out(8), number_next : Out(8)
        For LOAD and STORE: field at hand, in table order; the one after the next edge.
    r_field : In(64), r_launched : In(1)
        Present value of field ``number``; launch state, for STORE.
    w_field : Out(64), w_field_stb : Out(1), w_launched_stb : Out(1)
        Value read; strobes for the field ``number`` and for the launch state (bit 0).

    Raises
    ------
    :exc:`ValueError`
        If ``timeout_cyc`` is not a positive number.
    """
    def __init__(self, capabilities: Capabilities, *, timeout_cyc: int = TIMEOUT_CYC):
        require_capabilities(self, capabilities)
        self._timeout_cyc = require_timeout(timeout_cyc)
        self._field_count = len(capabilities.fields)
        super().__init__({
            "bus": Out(BusSignature()),
            "command": In(Command), "address": In(64), "w_word": In(64), "start": In(1),
            "busy": Out(1), "done": Out(1), "error": Out(1),
            "wants": In(Wants), "virtual_apic": In(64), "link": In(64), "cr3": In(64),
            "word": Out(64), "words": Out(MemoryWords), "list_entry": Out(ListEntry),
            "host_pdptes": Out(PDPTES),
            "number": Out(8), "number_next": Out(8), "r_field": In(64), "r_launched": In(1),
            "w_field": Out(64), "w_field_stb": Out(1), "w_launched_stb": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        step = Signal(range(self._field_count + 2))
        step_next = Signal.like(step)
        last = Signal.like(step)
        wanted = Signal()    # this step has a transfer
        offset = Signal(64)  # byte address of this step's word
        done = Signal()
        failed = Signal()
        waited = Signal(range(self._timeout_cyc))  # cycles of the present transfer
        late = waited == self._timeout_cyc - 1
        answered = self.bus.ack | self.bus.err | late
        fails = wanted & (self.bus.err | (late & ~self.bus.ack))

        m.d.comb += [
            wanted.eq(1),
            offset.eq(self.address + (step << 3)),
            step_next.eq(step),
            self.number.eq(step - 1),
            self.number_next.eq(step_next - 1),
            self.w_field.eq(self.bus.dat_r),
            self.bus.sel.eq(0xFF),
            self.bus.adr.eq(offset[3:]),
            self.bus.we.eq((self.command == Command.WRITE) | (self.command == Command.STORE)),
            self.bus.dat_w.eq(self.w_word),
            self.done.eq(done),
            self.error.eq(failed),
        ]
        with m.Switch(self.command):
            with m.Case(Command.FETCH):
                m.d.comb += last.eq(5)
                with m.Switch(step):
                    with m.Case(0):
                        m.d.comb += [wanted.eq(self.wants.vtpr),
                                     offset.eq(self.virtual_apic | VTPR_OFFSET)]
                    with m.Case(1):
                        m.d.comb += [wanted.eq(self.wants.link), offset.eq(self.link)]
                    with m.Default():
                        m.d.comb += [wanted.eq(self.wants.pdptes),
                                     offset.eq((self.cr3 & 0xFFFFFFE0) + ((step - 2)[:2] << 3))]
            with m.Case(Command.LIST_ENTRY):
                m.d.comb += last.eq(1)
            with m.Case(Command.PDPTES):
                m.d.comb += last.eq(3)
            with m.Case(Command.LOAD, Command.STORE):
                m.d.comb += [
                    last.eq(self._field_count),
                    offset.eq(self.address + LAUNCH_OFFSET + (step << 3)),
                    self.bus.dat_w.eq(Mux(step == 0, self.r_launched, self.r_field)),
                ]

        m.d.sync += [step.eq(step_next), done.eq(0), failed.eq(0)]
        with m.If(self.busy):
            m.d.comb += [self.bus.cyc.eq(wanted), self.bus.stb.eq(wanted)]
            with m.If(answered | ~wanted):
                m.d.comb += step_next.eq(step + 1)
                m.d.sync += waited.eq(0)
                with m.If((step == last) | fails):
                    m.d.sync += [self.busy.eq(0), done.eq(1), failed.eq(fails)]
            with m.Else():
                m.d.sync += waited.eq(waited + 1)
            with m.If(wanted & self.bus.ack & ~self.bus.err):
                self._capture(m, step)
        with m.Elif(self.start & ~done):
            m.d.comb += step_next.eq(0)
            m.d.sync += self.busy.eq(1)
        return m

    def _capture(self, m, step):
        """Put the word on the bus where the command wants it."""
        word = self.bus.dat_r
        with m.Switch(self.command):
            with m.Case(Command.READ):
                m.d.sync += self.word.eq(word)
            with m.Case(Command.FETCH):
                with m.Switch(step):
                    with m.Case(0):
                        m.d.sync += self.words.VTPR.eq(word)
                    with m.Case(1):
                        m.d.sync += self.words.LINK_WORD.eq(word)
                    for n in range(4):
                        with m.Case(2 + n):
                            m.d.sync += self.words[f"PDPTE{n}"].eq(word)
            with m.Case(Command.PDPTES):
                with m.Switch(step):
                    for n in range(4):
                        with m.Case(n):
                            m.d.sync += self.host_pdptes[f"PDPTE{n}"].eq(word)
            with m.Case(Command.LIST_ENTRY):
                with m.If(step == 0):
                    m.d.sync += [self.list_entry.LIST_INDEX.eq(word[:32]),
                                 self.list_entry.LIST_RESERVED.eq(word[32:])]
                with m.Else():
                    m.d.sync += self.list_entry.LIST_DATA.eq(word)
            with m.Case(Command.LOAD):
                m.d.comb += [self.w_launched_stb.eq(step == 0), self.w_field_stb.eq(step != 0)]

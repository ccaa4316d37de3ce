"""Which VMCSs are resident and which one is current; the VMXON pointer.

Source: Intel SDM vol. 3C, "Inactive, Active, Current, Launch State" (24.1) and VMPTRLD, VMCLEAR.
"""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import NO_VMCS

from .interface import require_capabilities

__all__ = ["Change", "VmcsPointers"]

PAGE_BITS = 12  # of an address within a region's 4-KByte page


class Change(enum.Enum, shape=3):
    """What happens to the pointers at the next edge."""
    VMXON = 0   # ``pointer`` is the VMXON pointer; no VMCS is resident
    VMXOFF = 1  # no VMCS is resident
    LOAD = 2    # ``slot`` holds the VMCS at ``pointer``, which is current
    FREE = 3    # ``slot`` is free; if it was the current VMCS's, there is none
    EVICT = 4   # the same; the next victim is another one
    LAUNCH = 5  # the current VMCS is launched


class VmcsPointers(wiring.Component):
    """Pointer, launch state and shadow indicator of every resident VMCS.

    A VMCS that is not resident goes to the lowest free slot. If none is free it takes the place of
    a victim: each slot in turn, but for the current VMCS's where there are several slots.

    Parameters
    ----------
    capabilities : Capabilities
        The processor; has the number of slots.

    Members
    -------
    pointer : In(64)
        VMCS pointer of the operation at hand.
    resident : Out(1)
        Combinational: a slot holds the VMCS at ``pointer``.
    slot : Out(range(slots))
        Combinational: that slot; else the one for it.
    occupied : Out(1)
        ``slot`` holds a VMCS: that one or the victim.
    slot_pointer : Out(64), slot_launched, slot_shadow : Out(1)
        Pointer, launch state and shadow indicator of the VMCS in ``slot``.
    change : In(Change), strobe : In(1)
        What happens at the next edge if ``strobe`` is high.
    w_shadow : In(1)
        For LOAD of a VMCS that is not resident: its shadow indicator.
    w_launched : In(1), w_launched_stb : In(1)
        Launch state for ``slot``, from the region that is being loaded.
    current : Out(range(slots)), current_next : Out(range(slots))
        Slot of the current VMCS, now and after the next edge.
    current_vmcs : Out(64), resets to all ones
        Current-VMCS pointer; all ones if there is none.
    launched : Out(1), shadow : Out(1)
        Launch state and shadow indicator of the current VMCS; 0 if there is none.
    vmxon_pointer : Out(64), resets to 0
        The VMXON pointer.
    """
    def __init__(self, capabilities: Capabilities):
        self._slots = require_capabilities(self, capabilities).resident_vmcss
        self._address_bits = capabilities.constants["ADDRESS_WIDTH"]
        slot = range(self._slots)
        super().__init__({
            "pointer": In(64), "resident": Out(1), "slot": Out(slot), "occupied": Out(1),
            "slot_pointer": Out(64), "slot_launched": Out(1), "slot_shadow": Out(1),
            "change": In(Change), "strobe": In(1), "w_shadow": In(1),
            "w_launched": In(1), "w_launched_stb": In(1),
            "current": Out(slot), "current_next": Out(slot),
            "current_vmcs": Out(64, init=NO_VMCS), "launched": Out(1), "shadow": Out(1),
            "vmxon_pointer": Out(64),
        })

    def elaborate(self, platform):
        m = Module()
        slots = self._slots
        table = Signal(data.ArrayLayout(data.StructLayout({
            "used": 1, "page": self._address_bits - PAGE_BITS, "launched": 1, "shadow": 1}), slots))
        has_current = Signal()
        victim = Signal(range(slots))

        def address(entry):
            return Cat(Const(0, PAGE_BITS), entry.page, Const(0, 64 - self._address_bits))

        # where the VMCS at hand is, or comes to
        other = Mux(victim == slots - 1, 0, victim + 1)
        m.d.comb += self.slot.eq(
            Mux(has_current & (victim == self.current), other, victim))
        for number in reversed(range(slots)):
            with m.If(~table[number].used):
                m.d.comb += self.slot.eq(number)
        for number in range(slots):
            with m.If(table[number].used & (address(table[number]) == self.pointer)):
                m.d.comb += [self.resident.eq(1), self.slot.eq(number)]
        here, current = table[self.slot], table[self.current]
        m.d.comb += [
            self.occupied.eq(here.used), self.slot_pointer.eq(address(here)),
            self.slot_launched.eq(here.launched), self.slot_shadow.eq(here.shadow),
            self.current_vmcs.eq(Mux(has_current, address(current), NO_VMCS)),
            self.launched.eq(has_current & current.launched),
            self.shadow.eq(has_current & current.shadow),
        ]

        m.d.comb += self.current_next.eq(self.current)
        m.d.sync += self.current.eq(self.current_next)
        with m.If(self.w_launched_stb):
            m.d.sync += here.launched.eq(self.w_launched)
        with m.If(self.strobe):
            with m.Switch(self.change):
                with m.Case(Change.VMXON, Change.VMXOFF):
                    m.d.sync += [has_current.eq(0), victim.eq(0)]
                    m.d.sync += [entry.used.eq(0) for entry in table]
                    with m.If(self.change == Change.VMXON):
                        m.d.sync += self.vmxon_pointer.eq(self.pointer)
                with m.Case(Change.LOAD):
                    m.d.sync += [
                        here.used.eq(1), here.page.eq(self.pointer[PAGE_BITS:self._address_bits]),
                        has_current.eq(1),
                    ]
                    m.d.comb += self.current_next.eq(self.slot)
                    with m.If(~self.resident):
                        m.d.sync += here.shadow.eq(self.w_shadow)
                with m.Case(Change.FREE, Change.EVICT):
                    m.d.sync += here.used.eq(0)
                    with m.If(self.slot == self.current):
                        m.d.sync += has_current.eq(0)
                    with m.If(self.change == Change.EVICT):
                        m.d.sync += victim.eq(Mux(self.slot == slots - 1, 0, self.slot + 1))
                with m.Case(Change.LAUNCH):
                    m.d.sync += current.launched.eq(1)
        return m

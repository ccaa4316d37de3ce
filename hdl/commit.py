"""What goes live, and what is saved, at a commit.

Facts: registers.csv. Sources: Intel SDM vol. 3C, "Loading Guest State", "Saving Guest State",
"Loading Host State".
"""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode

from .entry_checker import PDPTES, ListEntry
from .expression import lower
from .interface import (
    Event,
    cause_values,
    field_layout,
    register_layout,
    require_capabilities,
    symbol_values,
)

__all__ = ["Commit"]


class Commit(wiring.Component):
    """Computes the next environment and the fields that an exit saves; holds staged MSR loads.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    fields, live : In(:func:`~.interface.field_layout`), In(:func:`~.interface.register_layout`)
        The resident VMCS and the running environment.
    pdptes : In(:data:`~.entry_checker.PDPTES`)
        Page-directory-pointer-table entries for the guest.
    mode : In(Mode)
        Present mode.
    exit : In(1)
        Which way, if any: 0 guest state goes live, 1 host state goes live.
    cause : In(Event), by_instruction : In(1)
        About the VM exit; read if ``exit``.
    host_pdptes : In(:data:`~.entry_checker.PDPTES`)
        Page-directory-pointer-table entries of the host, if it uses PAE paging.
    stage_stb : In(1), stage : In(ListEntry)
        Keeps the value of an MSR-load entry for the coming VM entry or exit, at the next edge.
    unstage : In(1)
        Forgets the staged values at the next edge. Wins over ``stage_stb``.
    next : Out(:func:`~.interface.register_layout`)
        Combinational: the environment to put in force.
    saved : Out(:func:`~.interface.field_layout`)
        Combinational: guest-state fields as a VM exit saves them; other fields as they are.
    saved_en : Out(number of fields)
        Constant: bit n is 1 if a VM exit saves field n.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        fields, registers = field_layout(capabilities), register_layout(capabilities)
        super().__init__({
            "fields": In(fields), "live": In(registers),
            "pdptes": In(PDPTES), "mode": In(Mode),
            "exit": In(1), "cause": In(Event), "by_instruction": In(1), "host_pdptes": In(PDPTES),
            "stage_stb": In(1), "stage": In(ListEntry), "unstage": In(1),
            "next": Out(registers), "saved": Out(fields),
            "saved_en": Out(len(capabilities.fields)),
        })

    def elaborate(self, platform):
        m = Module()
        capabilities = self._capabilities
        values = symbol_values(capabilities, fields=self.fields, live=self.live) | {
            "NON_ROOT": self.mode == Mode.NON_ROOT, "EXIT_BY_INSTRUCTION": self.by_instruction,
        } | cause_values(self.cause)
        values |= {name: self.pdptes[name] for name in PDPTES.members}
        values |= {f"HOST_{name}": self.host_pdptes[name] for name in PDPTES.members}
        m.d.comb += self.saved.eq(self.fields)
        numbers = {symbol: number for number, symbol in enumerate(capabilities.fields)}
        for name, row in capabilities.registers.items():
            entry = lower(capabilities.bind(row.entry), values)
            leave = lower(capabilities.bind(row.exit), values)
            following = Mux(self.exit, leave, entry)
            if row.msr in capabilities.wrmsr_rules:
                following = self._staged(m, name, row.msr, following)
            m.d.comb += self.next[name].eq(following)
            if row.field in numbers:
                m.d.comb += [
                    self.saved[row.field].eq(lower(capabilities.bind(row.save), values)),
                    self.saved_en[numbers[row.field]].eq(1),
                ]
        return m

    def _staged(self, m, name, msr, following):
        """The value that goes live: the staged one if the MSR-load list named the MSR."""
        staged = Signal(len(self.live[name]), name=f"staged_{name}")
        present = Signal(name=f"present_{name}")
        with m.If(self.unstage):
            m.d.sync += present.eq(0)
        with m.Elif(self.stage_stb & (self.stage.LIST_INDEX == msr)):
            m.d.sync += [staged.eq(self.stage.LIST_DATA), present.eq(1)]
        return Mux(present, staged, following)

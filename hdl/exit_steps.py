"""What a move to the host comes to beside the registers: MSRs to store, and VMX aborts.

Facts: vmx_aborts.csv, registers.csv. Source: Intel SDM vol. 3C, "VM Exits", "VMX Aborts".
"""

from amaranth import Module
from amaranth.hdl import Const
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.tables import ABORTS, expression

from .entry_checker import PDPTES, ListEntry
from .expression import lower
from .interface import field_layout, register_layout, symbol_values

__all__ = ["ExitSteps"]


class ExitSteps(wiring.Component):
    """Combinational: what decides whether a move to the host ends in a VMX abort.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    fields, live, mode : In
        The resident VMCS, the running environment and the present mode.
    list_entry : In(ListEntry)
        Entry of the VM-exit MSR-store list at hand.
    host_pdptes : In(:data:`~.entry_checker.PDPTES`)
        Page-directory-pointer-table entries of the host, as read from memory.
    msr_value : Out(64)
        What RDMSR of the entry's MSR reads.
    store_fails : Out(1)
        The entry must not be stored (VMX abort 1).
    pae : Out(1)
        The host uses PAE paging: its page-directory-pointer-table entries must be read.
    pdptes_fail : Out(1)
        One of them is not valid (VMX abort 2).
    long_mode_fails : Out(1)
        The processor is in IA-32e mode and the host is not (VMX abort 6).
    """
    def __init__(self, capabilities: Capabilities):
        if not isinstance(capabilities, Capabilities):
            raise TypeError(f"Exit steps want Capabilities, not {capabilities!r}")
        self._capabilities = capabilities
        super().__init__({
            "fields": In(field_layout(capabilities)), "live": In(register_layout(capabilities)),
            "mode": In(Mode), "list_entry": In(ListEntry), "host_pdptes": In(PDPTES),
            "msr_value": Out(64), "store_fails": Out(1), "pae": Out(1), "pdptes_fail": Out(1),
            "long_mode_fails": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        capabilities = self._capabilities
        readable = capabilities.readable_msrs
        with m.Switch(self.list_entry.LIST_INDEX):
            for index, source in readable.items():
                with m.Case(index):
                    m.d.comb += self.msr_value.eq(
                        self.live[source] if isinstance(source, str) else Const(source, 64))
        values = symbol_values(capabilities, fields=self.fields, live=self.live) | {
            "NON_ROOT": self.mode == Mode.NON_ROOT,
            "LIST_RESERVED": self.list_entry.LIST_RESERVED,
            "RDMSR_ACCEPTED": self.list_entry.LIST_INDEX.matches(*readable),
        } | {f"HOST_{name}": self.host_pdptes[name] for name in PDPTES.members}
        for output, condition in [
            (self.store_fails, ABORTS[1].condition), (self.pdptes_fail, ABORTS[2].condition),
            (self.long_mode_fails, ABORTS[6].condition), (self.pae, expression("HOST_PAE")),
        ]:
            m.d.comb += output.eq(lower(capabilities.bind(condition), values))
        return m

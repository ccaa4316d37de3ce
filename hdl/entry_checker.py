"""All VM-entry checks of the configured processor, in parallel.

Facts: entry_checks.csv. Source: Intel SDM vol. 3C, "VM Entries".
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import WRMSR_RULES, Capabilities
from vmxswitch.spec.expression import symbols
from vmxswitch.spec.tables import expression

from .expression import lower
from .interface import field_layout, register_layout, require_capabilities, symbol_values

__all__ = ["PDPTES", "EntryChecker", "ListEntry", "MemoryWords", "Wants"]


class MemoryWords(data.Struct):
    """What an entry has read from memory before its checks."""
    VTPR:      8
    LINK_WORD: 32
    PDPTE0:    64
    PDPTE1:    64
    PDPTE2:    64
    PDPTE3:    64


class ListEntry(data.Struct):
    """An entry of the VM-entry MSR-load list."""
    LIST_INDEX:    32
    LIST_RESERVED: 32
    LIST_DATA:     64


#: The four page-directory-pointer-table entries of PAE paging.
PDPTES = data.StructLayout({f"PDPTE{n}": 64 for n in range(4)})


class Wants(data.Struct):
    """What an entry must read from memory before its checks."""
    vtpr:   1
    link:   1
    pdptes: 1


class EntryChecker(wiring.Component):
    """Evaluates every check that can fail on this processor.

    The rows are evaluated on the stored fields in every cycle and registered: ``failing`` and all
    that follows from it tell of the inputs one cycle ago, and of the present ones if ``settled``.

    Parameters
    ----------
    capabilities : Capabilities
        The processor; its :attr:`~.Capabilities.state_checks` and
        :attr:`~.Capabilities.list_checks` are the rows.

    Members
    -------
    fields, live : In(:func:`~.interface.field_layout`), In(:func:`~.interface.register_layout`)
        What is checked: the resident VMCS and the running environment.
    current_vmcs, vmxon_pointer : In(64)
        Pointers that checks compare with.
    memory : In(MemoryWords)
        What has been read from memory for this entry.
    changing : In(1)
        An input above may change at the next edge.
    settled : Out(1)
        Outputs below tell of the present inputs.
    failing : Out(number of state checks), resets to 0
        Bit n: state check n fails.
    controls_fail, host_fails, guest_fails : Out(1)
        A row of stage control; host; guest or guest-nonregister fails.
    qualification : Out(8)
        Exit qualification of the first failing guest row.
    pdptes : Out(layout of PDPTE0 to PDPTE3)
        Combinational: the guest's page-directory-pointer-table entries, from the VMCS with EPT,
        else from ``memory``.
    wants : Out(Wants)
        Memory words that checks read in this VMCS.
    list_entry : In(ListEntry)
        Entry of the MSR-load list at hand.
    list_failing : Out(number of list checks)
        Combinational: bit n: list check n fails for ``list_entry``.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        self._rows, self._list_rows = capabilities.state_checks, capabilities.list_checks
        super().__init__({
            "fields": In(field_layout(capabilities)), "live": In(register_layout(capabilities)),
            "current_vmcs": In(64), "vmxon_pointer": In(64), "memory": In(MemoryWords),
            "changing": In(1), "settled": Out(1), "failing": Out(len(self._rows)),
            "controls_fail": Out(1), "host_fails": Out(1), "guest_fails": Out(1),
            "qualification": Out(8), "pdptes": Out(PDPTES), "wants": Out(Wants),
            "list_entry": In(ListEntry), "list_failing": Out(len(self._list_rows)),
        })

    def elaborate(self, platform):
        m = Module()
        values = symbol_values(self._capabilities, fields=self.fields, live=self.live) | {
            "CURRENT_VMCS": self.current_vmcs, "VMXON_POINTER": self.vmxon_pointer,
            "VTPR": self.memory.VTPR, "LINK_WORD": self.memory.LINK_WORD,
        } | {name: self.pdptes[name] for name in PDPTES.members}
        uses_ept = lower(self._capabilities.bind(expression("PROC2_ENABLE_EPT")), values)
        for name in PDPTES.members:
            field = f"GUEST_{name}"
            m.d.comb += self.pdptes[name].eq(
                Mux(uses_ept, self.fields[field], self.memory[name])
                if field in self._capabilities.fields else self.memory[name])
        changed = Signal(init=1)
        m.d.sync += changed.eq(self.changing)
        m.d.comb += self.settled.eq(~changed)

        for bit, row in zip(self.failing, self._rows, strict=True):
            m.d.sync += bit.eq(lower(row.fails, values))
        for output, stages in [
            (self.controls_fail, ("control",)), (self.host_fails, ("host",)),
            (self.guest_fails, ("guest", "guest-nonregister")),
        ]:
            m.d.comb += output.eq(Cat(
                self.failing[number] for number, row in enumerate(self._rows)
                if row.stage in stages).any())
        for number, row in reversed(list(enumerate(self._rows))):  # so that the first one wins
            if row.check.failure.qualification is not None:
                with m.If(self.failing[number]):
                    m.d.comb += self.qualification.eq(row.check.failure.qualification)

        m.d.sync += [
            self.wants.vtpr.eq(self._reads("VTPR", values)),
            self.wants.link.eq(self._reads("LINK_WORD", values)),
            self.wants.pdptes.eq(self._reads("PDPTE0", values) & ~uses_ept),
        ]
        m.d.comb += self.list_failing.eq(Cat(
            lower(row.fails, self._list_symbols()) for row in self._list_rows))
        return m

    def _reads(self, symbol, values):
        """Whether a check that reads the symbol applies: 1 where memory must be read for it."""
        readers = [row.check for row in self._rows if symbol in symbols(row.check.condition)]
        return Cat(
            lower(self._capabilities.bind(check.applies), values) for check in readers).any()

    def _list_symbols(self):
        entry = {name: self.list_entry[name] for name, _ in data.Layout.cast(ListEntry)}
        accepted = Cat(
            (entry["LIST_INDEX"] == index)
            & lower(self._capabilities.bind(expression(WRMSR_RULES[rule])), entry)
            for index, rule in self._capabilities.wrmsr_rules.items()).any()
        return entry | {"WRMSR_ACCEPTED": accepted}

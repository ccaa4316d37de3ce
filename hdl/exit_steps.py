"""What a move to the host does in memory before it goes live: MSR lists, host PDPTEs, VMX aborts.

Facts: vmx_aborts.csv, registers.csv. Source: Intel SDM vol. 3C, "VM Exits", "VMX Aborts".
"""

from amaranth import Cat, Module, Signal
from amaranth.hdl import Const
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.region import WORD_BYTES
from vmxswitch.spec.structures import LIST_ENTRY_BYTES
from vmxswitch.spec.tables import ABORTS, expression

from .entry_checker import PDPTES, ListEntry
from .expression import lower
from .interface import field_layout, register_layout, require_capabilities, symbol_values
from .memory_unit import Command, CommandSignature

__all__ = ["ExitSteps"]

#: VMX-abort codes.
SAVE_GUEST_MSR, LOAD_HOST_PDPTE, _, LOAD_HOST_MSR, MACHINE_CHECK, NOT_LONG_MODE = ABORTS


class ExitSteps(wiring.Component):
    """Goes through the VM-exit MSR-store list, the host's PDPTEs and the VM-exit MSR-load list.

    Everything that goes wrong, an error of memory included, ends in a VMX abort, whose indicator it
    writes. Nothing has gone live by then.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    exit : In(1)
        The move is a VM exit, else a failed VM entry, which stores no MSRs.
    needed : Out(1)
        Combinational: this move has steps.
    start : In(1)
        Begins them at the next edge; ``exit`` is then held until ``done``.
    busy : Out(1)
        They are under way.
    done : Out(1)
        Combinational, high for one cycle: the steps are over.
    abort : Out(3)
        Together with ``done``: code of the VMX abort, 0 if there is none.
    fields, live, mode, current_vmcs : In
        The current VMCS and its pointer, the running environment and the present mode.
    memory : Out(CommandSignature)
        To and from the memory unit, while ``busy``.
    list_entry : In(ListEntry)
        Entry of the MSR list at hand.
    list_fails : In(1)
        It must not be loaded (VMX abort 4).
    host_pdptes : In(:data:`~.entry_checker.PDPTES`)
        Page-directory-pointer-table entries of the host, as read from memory.
    stage_stb : Out(1), unstage : Out(1)
        For the VM-exit MSR-load list: keep the value at hand; forget all.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        super().__init__({
            "exit": In(1), "needed": Out(1), "start": In(1), "busy": Out(1), "done": Out(1),
            "abort": Out(3),
            "fields": In(field_layout(capabilities)), "live": In(register_layout(capabilities)),
            "mode": In(Mode), "current_vmcs": In(64), "memory": Out(CommandSignature()),
            "list_entry": In(ListEntry), "list_fails": In(1),
            "host_pdptes": In(PDPTES), "stage_stb": Out(1), "unstage": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        self._msr_value = Signal(64)     # what RDMSR of the entry's MSR reads
        self._store_fails = Signal()     # the entry must not be stored
        self._pae = Signal()             # the host uses PAE paging: its PDPTEs must be read
        self._pdptes_fail = Signal()     # one of them is not valid
        self._long_mode_fails = Signal() # the processor is in IA-32e mode and the host is not
        self._conditions(m)
        self._steps(m)
        return m

    def _conditions(self, m):
        capabilities = self._capabilities
        readable = capabilities.readable_msrs
        with m.Switch(self.list_entry.LIST_INDEX):
            for index, source in readable.items():
                with m.Case(index):
                    m.d.comb += self._msr_value.eq(
                        self.live[source] if isinstance(source, str) else Const(source, 64))
        values = symbol_values(capabilities, fields=self.fields, live=self.live) | {
            "NON_ROOT": self.mode == Mode.NON_ROOT,
            "LIST_RESERVED": self.list_entry.LIST_RESERVED,
            "RDMSR_ACCEPTED": self.list_entry.LIST_INDEX.matches(*readable),
        } | {f"HOST_{name}": self.host_pdptes[name] for name in PDPTES.members}
        for output, condition in [
            (self._store_fails, ABORTS[SAVE_GUEST_MSR].condition),
            (self._pdptes_fail, ABORTS[LOAD_HOST_PDPTE].condition),
            (self._long_mode_fails, ABORTS[NOT_LONG_MODE].condition),
            (self._pae, expression("HOST_PAE")),
        ]:
            m.d.comb += output.eq(lower(capabilities.bind(condition), values))

    def _steps(self, m):
        fields, memory = self.fields, self.memory
        code = Signal(3)       # of the VMX abort to come
        position = Signal(32)  # entries of the list at hand that are done
        stores = self.exit & (fields.VM_EXIT_MSR_STORE_COUNT != 0)
        loads = fields.VM_EXIT_MSR_LOAD_COUNT != 0
        store_address = fields.VM_EXIT_MSR_STORE_ADDR + position * LIST_ENTRY_BYTES
        load_address = fields.VM_EXIT_MSR_LOAD_ADDR + position * LIST_ENTRY_BYTES
        m.d.comb += [
            self.needed.eq(stores | self._pae | self._long_mode_fails | loads),
            self.busy.eq(1),
        ]

        def command(what, address=0, word=0):
            m.d.comb += [memory.command.eq(what), memory.address.eq(address),
                         memory.w_word.eq(word), memory.start.eq(1)]

        def end(abort=0):
            m.d.comb += [self.done.eq(1), self.abort.eq(abort)]
            m.next = "IDLE"

        def abort(number):
            m.d.sync += code.eq(number)
            m.next = "ABORT"

        def go_on_to_loads():
            with m.If(loads):
                m.next = "LOAD"
            with m.Else():
                end()

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                m.d.sync += position.eq(0)
                with m.If(self.start):
                    m.d.comb += self.unstage.eq(1)
                    m.next = "HOST"
                    with m.If(stores):
                        m.next = "STORE"
            with m.State("STORE"):
                command(Command.LIST_ENTRY, store_address)
                with m.If(memory.done):
                    with m.If(memory.error):
                        abort(MACHINE_CHECK)
                    with m.Elif(self._store_fails):
                        abort(SAVE_GUEST_MSR)
                    with m.Else():
                        m.next = "STORE DATA"
            with m.State("STORE DATA"):
                command(Command.WRITE, store_address + WORD_BYTES, self._msr_value)
                with m.If(memory.done):
                    m.d.sync += position.eq(position + 1)
                    m.next = "STORE"
                    with m.If(memory.error):
                        abort(MACHINE_CHECK)
                    with m.Elif(position + 1 == fields.VM_EXIT_MSR_STORE_COUNT):
                        m.d.sync += position.eq(0)
                        m.next = "HOST"
            with m.State("HOST"):
                with m.If(self._long_mode_fails):
                    abort(NOT_LONG_MODE)
                with m.Elif(self._pae):
                    m.next = "PDPTES"
                with m.Else():
                    go_on_to_loads()
            with m.State("PDPTES"):
                command(Command.PDPTES, fields.HOST_CR3 & 0xFFFFFFE0)
                with m.If(memory.done):
                    with m.If(memory.error):
                        abort(MACHINE_CHECK)
                    with m.Elif(self._pdptes_fail):
                        abort(LOAD_HOST_PDPTE)
                    with m.Else():
                        go_on_to_loads()
            with m.State("LOAD"):
                command(Command.LIST_ENTRY, load_address)
                with m.If(memory.done):
                    m.d.sync += position.eq(position + 1)
                    with m.If(memory.error):
                        abort(MACHINE_CHECK)
                    with m.Elif(self.list_fails):
                        abort(LOAD_HOST_MSR)
                    with m.Else():
                        m.d.comb += self.stage_stb.eq(1)
                        with m.If(position + 1 == fields.VM_EXIT_MSR_LOAD_COUNT):
                            end()
            with m.State("ABORT"):
                command(Command.READ, self.current_vmcs)
                with m.If(memory.done):
                    m.next = "INDICATE"
                    with m.If(memory.error):  # then there is no indicator either
                        end(code)
            with m.State("INDICATE"):
                command(Command.WRITE, self.current_vmcs, Cat(memory.word[:32], code))
                with m.If(memory.done):
                    end(code)

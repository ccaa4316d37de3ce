"""The unit: moves a processor from one environment to another in a single clock edge.

This is the only public face of the core; the other components of this folder are its parts.
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.tables import EXIT_INFORMATION, expression

from .commit import Commit
from .entry_checker import EntryChecker
from .exit_steps import ExitSteps
from .exit_unit import ExitUnit
from .expression import lower
from .instruction_unit import InstructionUnit
from .interface import (
    Event,
    Request,
    Response,
    control_layout,
    register_layout,
    require_capabilities,
    symbol_values,
    update_layout,
)
from .live_state import LiveState
from .memory_unit import TIMEOUT_CYC, BusSignature, MemoryUnit, require_timeout
from .mode_controller import ModeController
from .sequencer import Retired, Sequencer
from .vmcs_bank import VmcsBank
from .vmcs_pointers import VmcsPointers

__all__ = ["VmxUnit"]


class VmxUnit(wiring.Component):
    """A whole VMX unit for one logical processor.

    Latencies, in cycles from the one in which a request or event is accepted to the first one that
    shows the result, where nothing must be read from memory: VM entry 2, and 3 in the cycle after a
    VMWRITE, a change of pointer or a register write; VM exit 2; every other
    instruction 2, one per cycle. The response comes in the same cycle as the result.

    Parameters
    ----------
    capabilities : Capabilities
        The processor that the unit is built for: a preset or a profile.
    timeout_cyc : int
        Cycles that memory has for a transfer; see :class:`~.memory_unit.MemoryUnit`.

    Members
    -------
    requests : In(stream of :class:`~.interface.Request`)
        VMX instructions that the core has decoded, in program order.
    responses : Out(stream of :class:`~.interface.Response`)
        What became of each request, in the same order.
    events : In(stream of :class:`~.interface.Event`)
        Guest events that the core asks about in VMX non-root operation.
    verdicts : Out(stream of :class:`~.interface.Response`)
        What became of each event, in the same order.
    live : Out(:func:`~.interface.register_layout`), resets to 0
        The running environment. Always one whole environment.
    updates : In(stream of :func:`~.interface.update_layout`)
        The core's own register writes; taken while no operation is being carried out.
    ticks : In(32)
        How often bit IA32_VMX_MISC[4:0] of the time-stamp counter changes at the next edge: the
        VMX-preemption timer, register PREEMPTION_TIMER of ``live``, counts with it in the guest.
    mode : Out(Mode), resets to ``Mode.OFF``
        Present mode; changes at the same edge as ``live``.
    controls : Out(:func:`~.interface.control_layout`)
        Control area of the current VMCS: what the core itself acts on in the guest, such as
        EPT_POINTER, VPID, TSC_OFFSET and the event to inject. With several resident VMCSs it is
        not defined while VMPTRLD, VMCLEAR, VMREAD or VMWRITE is being carried out.
    memory : Out(BusSignature)
        Wishbone initiator to physical memory.
    diagnosis : Out(number of rows)
        Bit n: row n of :attr:`rows` failed in the last VM entry that came to its checks.
    retired : Out(Retired)
        For formal properties, waves and tests: each operation in the cycle after it ended.
    """
    def __init__(self, capabilities: Capabilities, *, timeout_cyc: int = TIMEOUT_CYC):
        self._capabilities = require_capabilities(self, capabilities)
        self._timeout_cyc = require_timeout(timeout_cyc)
        #: Checks of this unit, in the order of the bits of ``diagnosis``.
        self.rows = (*capabilities.state_checks, *capabilities.list_checks)
        super().__init__({
            "requests": In(stream.Signature(Request)), "responses": Out(stream.Signature(Response)),
            "events": In(stream.Signature(Event)), "verdicts": Out(stream.Signature(Response)),
            "live": Out(register_layout(capabilities)),
            "updates": In(stream.Signature(update_layout(capabilities))),
            "ticks": In(32), "mode": Out(Mode), "controls": Out(control_layout(capabilities)),
            "memory": Out(BusSignature()),
            "diagnosis": Out(len(self.rows)), "retired": Out(Retired),
        })

    @property
    def capabilities(self) -> Capabilities:
        """The processor that the unit is built for."""
        return self._capabilities

    def elaborate(self, platform):
        m = Module()
        capabilities = self._capabilities
        m.submodules.mode = mode = ModeController()
        m.submodules.bank = bank = VmcsBank(capabilities)
        m.submodules.live = live = LiveState(capabilities)
        m.submodules.checker = checker = EntryChecker(capabilities)
        m.submodules.exits = exits = ExitUnit(capabilities)
        m.submodules.steps = steps = ExitSteps(capabilities)
        m.submodules.commit = commit = Commit(capabilities)
        m.submodules.memory_unit = memory = MemoryUnit(capabilities, timeout_cyc=self._timeout_cyc)
        m.submodules.pointers = pointers = VmcsPointers(capabilities)
        m.submodules.instructions = instructions = InstructionUnit(capabilities)
        m.submodules.sequencer = sequencer = Sequencer(capabilities)

        for name, port in [("requests", sequencer.requests), ("events", sequencer.events),
                           ("updates", live.updates)]:
            wiring.connect(m, wiring.flipped(getattr(self, name)), port)
        for name, port in [("responses", sequencer.responses), ("verdicts", sequencer.verdicts),
                           ("memory", memory.bus)]:
            wiring.connect(m, port, wiring.flipped(getattr(self, name)))
        m.d.comb += [
            self.live.eq(live.live), self.mode.eq(mode.mode), self.retired.eq(sequencer.retired),
            mode.transition.eq(sequencer.transition), mode.strobe.eq(sequencer.strobe),
        ]
        for symbol in control_layout(capabilities).members:
            m.d.comb += self.controls[symbol].eq(bank.fields[symbol])

        for component in (checker, exits, steps, commit, instructions):
            m.d.comb += [component.fields.eq(bank.fields), component.live.eq(live.live)]
        m.d.comb += sequencer.fields.eq(bank.fields)
        for component in (exits, steps, commit, instructions, sequencer):
            m.d.comb += component.mode.eq(mode.mode)
        for component in (checker, steps, instructions, sequencer):
            m.d.comb += component.current_vmcs.eq(pointers.current_vmcs)
        list_fails = checker.list_failing.any()

        # instructions
        m.d.comb += [
            instructions.request.eq(sequencer.request), instructions.named.eq(sequencer.named),
            instructions.word.eq(sequencer.word),
            instructions.vmxon_pointer.eq(pointers.vmxon_pointer),
            instructions.launched.eq(pointers.launched), instructions.shadow.eq(pointers.shadow),
            instructions.failures.controls.eq(checker.controls_fail),
            instructions.failures.host.eq(checker.host_fails),
            instructions.failures.guest.eq(checker.guest_fails),
            instructions.failures.list.eq(sequencer.list_failed),
            sequencer.decision.eq(instructions.decision), sequencer.source.eq(instructions.source),
            sequencer.select.eq(instructions.select), sequencer.wide.eq(instructions.wide),
            sequencer.word_address.eq(instructions.word_address),
        ]

        # checks
        m.d.comb += [
            checker.vmxon_pointer.eq(pointers.vmxon_pointer),
            checker.memory.eq(memory.words), checker.list_entry.eq(memory.list_entry),
            checker.changing.eq(bank.changing | live.changing | memory.busy | sequencer.transfer
                                | sequencer.moving),
            sequencer.settled.eq(checker.settled), sequencer.wants.eq(checker.wants),
            sequencer.qualification.eq(checker.qualification),
            sequencer.list_fails.eq(list_fails),
        ]
        list_failing = Signal.like(checker.list_failing)  # by the entry that failed; it is not kept
        with m.If(~sequencer.list_failed):
            m.d.sync += list_failing.eq(checker.list_failing)
        with m.If(sequencer.checked):
            m.d.sync += self.diagnosis.eq(Cat(
                checker.failing, Mux(sequencer.list_failed, list_failing, 0)))

        # pointers
        m.d.comb += [
            pointers.pointer.eq(sequencer.pointer), pointers.change.eq(sequencer.change),
            pointers.strobe.eq(sequencer.change_stb), pointers.w_shadow.eq(sequencer.word[31]),
            pointers.w_launched.eq(memory.w_field[0]),
            pointers.w_launched_stb.eq(memory.w_launched_stb),
            sequencer.resident.eq(pointers.resident), sequencer.occupied.eq(pointers.occupied),
            sequencer.slot_pointer.eq(pointers.slot_pointer),
            sequencer.slot_launched.eq(pointers.slot_launched),
            sequencer.launched.eq(pointers.launched), instructions.resident.eq(pointers.resident),
            instructions.slot_shadow.eq(pointers.slot_shadow),
        ]

        # exits
        m.d.comb += [
            exits.event.eq(sequencer.event), exits.other.eq(sequencer.other),
            exits.by_event.eq(sequencer.by_event), exits.words.eq(sequencer.event_words),
            sequencer.word_wants.eq(exits.wants), sequencer.word_addresses.eq(exits.addresses),
            sequencer.verdict.eq(exits.verdict), sequencer.event_value.eq(exits.value),
            sequencer.cause.eq(exits.cause),
            sequencer.exit_qualification.eq(exits.information.EXIT_QUALIFICATION),
            steps.list_entry.eq(memory.list_entry), steps.list_fails.eq(list_fails),
            steps.exit.eq(sequencer.exit), steps.start.eq(sequencer.leave_start),
            sequencer.leave_needed.eq(steps.needed), sequencer.leave_done.eq(steps.done),
            sequencer.leave_abort.eq(steps.abort),
        ]

        # commit; which way it goes is known before it is known whether there is one
        to_host = Signal()
        m.d.comb += to_host.eq(
            (mode.mode != Mode.ROOT) | checker.guest_fails | sequencer.list_failed)
        # while a VMCS is transferred the bank may show another one than the current one
        counts, counted = Signal(), Signal()
        m.d.comb += counts.eq(
            Mux(sequencer.transfer, counted, self._counts(bank, live, mode)))
        m.d.sync += counted.eq(counts)
        m.d.comb += [
            commit.pdptes.eq(checker.pdptes), commit.exit.eq(to_host),
            commit.cause.eq(exits.cause), commit.by_instruction.eq(exits.by_instruction),
            commit.stage.eq(memory.list_entry),
            commit.stage_stb.eq(sequencer.stage_stb | steps.stage_stb),
            commit.unstage.eq(sequencer.unstage | steps.unstage),
            live.next.eq(commit.next), live.commit.eq(sequencer.enter | sequencer.leave),
            live.update_en.eq(~sequencer.busy),
            live.ticks.eq(Mux(counts, self.ticks, 0)),
        ]
        for component in (commit, steps):
            m.d.comb += component.host_pdptes.eq(memory.host_pdptes)

        # bank
        m.d.comb += [
            bank.select.eq(instructions.select), bank.w_data.eq(sequencer.w_data),
            bank.w_en.eq(sequencer.w_en),
            bank.w_stb.eq(sequencer.w_stb), sequencer.r_data.eq(bank.r_data),
            memory.r_field.eq(bank.r_data), bank.slot.eq(pointers.current),
            bank.slot_next.eq(pointers.current_next), bank.select_next.eq(sequencer.show),
        ]
        with m.If(sequencer.transfer):
            m.d.comb += [
                bank.slot.eq(pointers.slot), bank.slot_next.eq(pointers.slot),
                bank.select.number.eq(memory.number), bank.select.high.eq(0),
                bank.select_next.number.eq(memory.number_next), bank.select_next.high.eq(0),
                bank.w_data.eq(memory.w_field), bank.w_en.eq(1),
                bank.w_stb.eq(memory.w_field_stb),
            ]
        self._bank_load(m, bank, commit, exits, sequencer)

        # memory
        for user in (sequencer.memory, steps.memory):
            m.d.comb += [user.done.eq(memory.done), user.error.eq(memory.error),
                         user.word.eq(memory.word)]
        for name in ("command", "address", "w_word", "start"):
            m.d.comb += getattr(memory, name).eq(Mux(
                steps.busy, getattr(steps.memory, name), getattr(sequencer.memory, name)))
        m.d.comb += [
            memory.wants.eq(checker.wants), memory.link.eq(bank.fields.VMCS_LINK_POINTER),
            memory.cr3.eq(bank.fields.GUEST_CR3), memory.r_launched.eq(sequencer.store_launched),
        ]
        if "VIRTUAL_APIC_ADDR" in capabilities.fields:
            m.d.comb += memory.virtual_apic.eq(bank.fields.VIRTUAL_APIC_ADDR)
        return m

    def _counts(self, bank, live, mode):
        """Whether the VMX-preemption timer counts."""
        values = symbol_values(self._capabilities, fields=bank.fields, live=live.live)
        counts = self._capabilities.bind(expression("TIMER_COUNTS"))
        return lower(counts, values) & (mode.mode == Mode.NON_ROOT)

    def _bank_load(self, m, bank, commit, exits, sequencer):
        """Fields that the unit itself writes: saved guest state, exit information, errors."""
        m.d.comb += bank.load.eq(commit.saved)
        for number, symbol in enumerate(self._capabilities.fields):
            with m.If(sequencer.save & commit.saved_en[number]):
                m.d.comb += bank.load_stb[number].eq(1)
            if symbol in EXIT_INFORMATION:  # and then no exit saves it
                m.d.comb += bank.load[symbol].eq(exits.information[symbol])
            with m.If(sequencer.inform & exits.information_en[number]):
                m.d.comb += bank.load_stb[number].eq(1)
            for name, strobe, value in [
                ("VM_INSTRUCTION_ERROR", sequencer.error_stb, sequencer.error_number),
                ("EPT_POINTER", sequencer.eptp_stb, sequencer.eptp),
                ("EPTP_INDEX", sequencer.eptp_index_stb, sequencer.eptp_index),
            ]:
                if symbol == name:
                    with m.If(strobe):
                        m.d.comb += [bank.load[symbol].eq(value), bank.load_stb[number].eq(1)]

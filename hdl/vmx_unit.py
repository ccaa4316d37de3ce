"""The unit: moves a processor from one environment to another in a single clock edge.

This is the only public face of the core; the other components of this folder are its parts.
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.tables import expression

from .commit import Commit
from .entry_checker import EntryChecker
from .exit_steps import ExitSteps
from .exit_unit import ExitUnit
from .expression import lower
from .instruction_unit import InstructionUnit, Retired
from .interface import (
    Event,
    Request,
    Response,
    control_layout,
    register_layout,
    symbol_values,
    update_layout,
)
from .live_state import LiveState
from .memory_unit import BusSignature, Command, MemoryUnit
from .mode_controller import ModeController
from .vmcs_bank import VmcsBank

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
        Control area of the resident VMCS: what the core itself acts on in the guest, such as
        EPT_POINTER, VPID, TSC_OFFSET and the event to inject.
    memory : Out(BusSignature)
        Wishbone initiator to physical memory.
    diagnosis : Out(number of rows)
        Bit n: row n of :attr:`rows` failed in the last VM entry that came to its checks.
    retired : Out(Retired)
        For formal properties, waves and tests: each operation in the cycle after it ended.
    """
    def __init__(self, capabilities: Capabilities):
        if not isinstance(capabilities, Capabilities):
            raise TypeError(f"Unit wants Capabilities, not {capabilities!r}")
        self._capabilities = capabilities
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
        m.submodules.memory = memory = MemoryUnit(capabilities)
        m.submodules.instructions = unit = InstructionUnit(capabilities)

        for name, port in [("requests", unit.requests), ("events", unit.events),
                           ("updates", live.updates)]:
            wiring.connect(m, wiring.flipped(getattr(self, name)), port)
        for name, port in [("responses", unit.responses), ("verdicts", unit.verdicts),
                           ("memory", memory.bus)]:
            wiring.connect(m, port, wiring.flipped(getattr(self, name)))
        m.d.comb += [
            self.live.eq(live.live), self.mode.eq(mode.mode), self.retired.eq(unit.retired),
        ]
        for symbol in control_layout(capabilities).members:
            m.d.comb += self.controls[symbol].eq(bank.fields[symbol])

        for component in (checker, exits, steps, commit, unit):
            m.d.comb += [component.fields.eq(bank.fields), component.live.eq(live.live)]
        for component in (exits, steps, commit, unit):
            m.d.comb += component.mode.eq(mode.mode)
        m.d.comb += [mode.transition.eq(unit.transition), mode.strobe.eq(unit.strobe)]

        # checks
        m.d.comb += [
            checker.current_vmcs.eq(unit.current_vmcs),
            checker.vmxon_pointer.eq(unit.vmxon_pointer),
            checker.memory.eq(memory.words), checker.list_entry.eq(memory.list_entry),
            checker.changing.eq(bank.changing | live.changing | memory.busy | unit.moving),
            unit.checks.settled.eq(checker.settled),
            unit.checks.controls_fail.eq(checker.controls_fail),
            unit.checks.host_fails.eq(checker.host_fails),
            unit.checks.guest_fails.eq(checker.guest_fails),
            unit.checks.qualification.eq(checker.qualification),
            unit.checks.list_fails.eq(checker.list_failing.any()),
            unit.wants.eq(checker.wants),
        ]
        list_failing = Signal.like(checker.list_failing)  # by the entry that failed; it is not kept
        with m.If(~unit.list_failed):
            m.d.sync += list_failing.eq(checker.list_failing)
        with m.If(unit.checked):
            m.d.sync += self.diagnosis.eq(Cat(
                checker.failing, Mux(unit.list_failed, list_failing, 0)))

        # exits
        m.d.comb += [
            exits.event.eq(unit.event), exits.other.eq(unit.other),
            exits.by_event.eq(unit.by_event), exits.words.eq(unit.event_words),
            unit.word_wants.eq(exits.wants), unit.word_addresses.eq(exits.addresses),
            unit.verdict.eq(exits.verdict), unit.event_value.eq(exits.value),
            unit.cause.eq(exits.cause), unit.qualification.eq(exits.information.EXIT_QUALIFICATION),
            steps.list_entry.eq(memory.list_entry), unit.msr_value.eq(steps.msr_value),
            unit.store_fails.eq(steps.store_fails), unit.pae.eq(steps.pae),
            unit.pdptes_fail.eq(steps.pdptes_fail), unit.long_mode_fails.eq(steps.long_mode_fails),
        ]

        # commit
        m.d.comb += [
            commit.pdptes.eq(checker.pdptes), commit.exit.eq(unit.leave),
            commit.cause.eq(exits.cause), commit.by_instruction.eq(exits.by_instruction),
            commit.stage.eq(memory.list_entry), commit.stage_stb.eq(unit.stage_stb),
            commit.unstage.eq(unit.unstage),
            live.next.eq(commit.next), live.commit.eq(unit.enter | unit.leave),
            live.update_en.eq(~unit.busy),
            live.ticks.eq(Mux(self._counts(bank, live, mode), self.ticks, 0)),
        ]
        for component in (commit, steps):
            m.d.comb += component.host_pdptes.eq(memory.host_pdptes)

        # bank
        transfer = memory.busy & (
            (unit.command == Command.LOAD) | (unit.command == Command.STORE))
        m.d.comb += [
            bank.select.eq(unit.select), bank.w_data.eq(unit.w_data), bank.w_stb.eq(unit.w_stb),
            unit.r_data.eq(bank.r_data), memory.r_field.eq(bank.r_data),
        ]
        with m.If(transfer):
            m.d.comb += [
                bank.select.number.eq(memory.number), bank.select.high.eq(0),
                bank.w_data.eq(memory.w_field), bank.w_stb.eq(memory.w_field_stb),
            ]
        self._bank_load(m, bank, commit, exits, unit)

        # memory
        m.d.comb += [
            memory.command.eq(unit.command), memory.address.eq(unit.address),
            memory.w_word.eq(unit.w_word), memory.start.eq(unit.start),
            unit.done.eq(memory.done), unit.error.eq(memory.error), unit.word.eq(memory.word),
            memory.wants.eq(checker.wants), memory.link.eq(bank.fields.VMCS_LINK_POINTER),
            memory.cr3.eq(bank.fields.GUEST_CR3), memory.r_launched.eq(unit.store_launched),
            unit.w_launched.eq(memory.w_field[0]), unit.w_launched_stb.eq(memory.w_launched_stb),
        ]
        if "VIRTUAL_APIC_ADDR" in capabilities.fields:
            m.d.comb += memory.virtual_apic.eq(bank.fields.VIRTUAL_APIC_ADDR)
        return m

    def _counts(self, bank, live, mode):
        """Whether the VMX-preemption timer counts."""
        values = symbol_values(self._capabilities, fields=bank.fields, live=live.live)
        counts = self._capabilities.bind(expression("TIMER_COUNTS"))
        return lower(counts, values) & (mode.mode == Mode.NON_ROOT)

    def _bank_load(self, m, bank, commit, exits, unit):
        """Fields that the unit itself writes: saved guest state, exit information, errors."""
        m.d.comb += bank.load.eq(commit.saved)
        for number, symbol in enumerate(self._capabilities.fields):
            with m.If(unit.save & commit.saved_en[number]):
                m.d.comb += bank.load_stb[number].eq(1)
            with m.If(unit.inform & exits.information_en[number]):
                m.d.comb += [bank.load[symbol].eq(exits.information[symbol]),
                             bank.load_stb[number].eq(1)]
            for name, strobe, value in [
                ("VM_INSTRUCTION_ERROR", unit.error_stb, unit.error_number),
                ("EPT_POINTER", unit.eptp_stb, unit.eptp),
                ("EPTP_INDEX", unit.eptp_index_stb, unit.eptp_index),
            ]:
                if symbol == name:
                    with m.If(strobe):
                        m.d.comb += [bank.load[symbol].eq(value), bank.load_stb[number].eq(1)]

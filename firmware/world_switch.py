"""The canonical world switch: from one environment to another through a VM entry and a VM exit.

The original becomes a guest whose first instruction is VMCALL, the target the host that this VMCALL
exits to and whose first instruction is VMXOFF. So the processor itself, not software, replaces the
whole environment, at one clock edge. :mod:`~vmxswitch.firmware.plan` says where the two
instructions are.

Software runs in the original's environment up to that edge, and in the target's after it.

Ref: Intel SDM (325462), vol. 3C, "VMM Setup & Tear Down", "Preparation and Launching a Virtual
Machine".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Answer, Mode

from .carried import NotCarried, not_carried
from .driver import Driver, EntryFailure, VmxError
from .environment import Adjustment, Environment, listed
from .plan import Plan, misfits
from .port import Port
from .refusal import Refusal, explain, explain_checks, together
from .watch import MIXED, ORIGINAL, TARGET, OwnerChange, Version, Watch

__all__ = ["Step", "SwitchResult", "switch"]


@dataclass(frozen=True)
class Step:
    """One thing that the software or the processor did.

    ``cycle`` is the clock cycle after it, ``owner`` whose environment is live then, ``changed`` the
    live registers that it changed: name -> (before, after).
    """
    instruction: str
    cycle: int
    mode_before: Mode
    mode_after: Mode
    owner: str
    changed: Mapping[str, tuple[int, int]]
    note: str = ""

    def as_dict(self) -> dict:
        """The form that JSON outputs use."""
        return {
            "instruction": self.instruction, "cycle": self.cycle,
            "mode_before": self.mode_before.name, "mode_after": self.mode_after.name,
            "owner": self.owner, "note": self.note,
            "changed": {name: list(values) for name, values in self.changed.items()},
        }


@dataclass(frozen=True)
class SwitchResult:
    """What a switch came to.

    Attributes
    ----------
    refused_by : tuple of Refusal
        Every row that refuses; empty if the target was reached.
    cures : mapping of str to int, optional
        Fields and values that together cure all failing entry checks, if they could be found.
    steps : tuple of Step
        In order, up to the one that was refused.
    changes : tuple of OwnerChange
        Every edge at which ``live`` changed owner, as seen in the cycles. A VM entry that fails
        beyond its host checks ends in the target too: the processor then loads the host area.
    mixed_cycles : tuple of int
        Cycles that showed no whole environment.
    checked_cycles, total_cycles : int
        Cycles that were compared; cycles of the run, from the original being loaded.
    entry_cycles, exit_cycles : int
        VMLAUNCH, and VMCALL, to the commit; 0 where the backend has no clock.
    start, final : mapping of str to int
        Live registers with the original loaded, and in the end.
    adjusted : tuple of Adjustment
        What the processor holds differently from what the dumps show; ``why`` names the dump.
    not_carried : tuple of NotCarried
        Registers of the target that are not as the target had them.
    misfits : tuple of str
        Registers of the original that the processor lacks or has narrower, so that nothing could be
        tried.
    """
    refused_by: tuple[Refusal, ...]
    cures: Mapping[str, int] | None
    steps: tuple[Step, ...]
    changes: tuple[OwnerChange, ...]
    mixed_cycles: tuple[int, ...]
    checked_cycles: int
    total_cycles: int
    entry_cycles: int
    exit_cycles: int
    start: Mapping[str, int]
    final: Mapping[str, int]
    adjusted: tuple[Adjustment, ...]
    not_carried: tuple[NotCarried, ...]
    misfits: tuple[str, ...] = ()

    @property
    def switched(self) -> bool:
        """Whether the target was reached."""
        return not self.refused_by

    @property
    def whole(self) -> bool:
        """Whether nothing was mixed, and ``live`` went to the target once and never back."""
        reached = self.switched or bool(self.changes)
        return (not self.mixed_cycles and all(step.owner != MIXED for step in self.steps)
                and [owner for _, owner in self.changes] == [TARGET] * reached)

    def as_dict(self) -> dict:
        """The object that ``vmxswitch switch --json`` prints."""
        return {
            "result": "switched" if self.switched else "refused",
            "refused_by": [refusal.as_dict() for refusal in self.refused_by],
            "owner_changes": len(self.changes),
            "mixed_cycles": len(self.mixed_cycles),
            "checked_cycles": self.checked_cycles,
            "cycles": {"total": self.total_cycles, "entry": self.entry_cycles,
                       "exit": self.exit_cycles},
            "steps": [step.as_dict() for step in self.steps],
            "adjusted": [adjustment.as_dict() for adjustment in self.adjusted],
            "final": dict(self.final),
            "not_carried": [register.as_dict() for register in self.not_carried],
        }


def switch(port: Port, original: Environment, target: Environment,
           settings: Mapping[str, int] | None = None) -> SwitchResult:
    """Load ``original`` into the processor and move the processor to ``target``.

    ``settings`` are VMCS fields that software sets after it has filled the VMCS. The processor is
    reset first.

    An original in IA-32e mode on a processor without it is refused by the entry checks that its
    VMCS fails, without a try: the processor could not hold it.

    Raises
    ------
    :exc:`UsageError`
        If this processor cannot hold the original for another reason, if the original cannot
        execute instructions, or if a setting names no field of this processor or is too wide.
    """
    original, target = original.adjusted(), target.adjusted()
    plan = Plan(port.capabilities, original, target, settings or {})
    run = _Run(port, plan)
    if not (found := misfits(plan.capabilities, original)):
        refused_by = run.sequence()
    elif original.long_mode and not plan.capabilities.intel64:
        refused_by = explain_checks(plan.situation.failing(), plan.situation, curable=False)
    else:
        raise UsageError(f"{original.source}: the {plan.capabilities.name} processor lacks "
                         f"{listed(found)}, or has it narrower; choose another processor")
    return run.result(refused_by, original, target, found)


class _Run:
    """One switch on a port, step by step, with every cycle watched."""

    def __init__(self, port: Port, plan: Plan):
        self._port, self._plan = port, plan
        self._watch = Watch(ORIGINAL)
        self._steps: list[Step] = []
        self._live = {ORIGINAL: plan.start, TARGET: plan.host} # as it is now, or would be
        self._before: Mapping[str, int] = {}                   # what was live before a step
        self._cycles = self._entry_cycles = self._exit_cycles = 0

    def sequence(self) -> tuple[Refusal, ...]:
        """Carry out the switch; return what refused it."""
        port, plan = self._port, self._plan
        port.reset()
        port.write_registers(plan.start)
        for region in (plan.vmxon_region, plan.vmcs_region):
            port.write_memory(region, 4, plan.capabilities.revision)
        self._before = port.read_registers()
        first_cycle, previous = port.cycle, port.watcher

        def watcher(sample):
            self._watch(sample)
            if previous is not None:
                previous(sample)

        port.watcher = watcher
        self._expect()
        try:
            self._in_the_original()
            self._in_the_target()
        except VmxError as error:
            return explain(error, plan.situation.running(self._before))
        finally:
            self._cycles, port.watcher = port.cycle - first_cycle, previous
        return ()

    def _in_the_original(self):
        """What the software does in the original's environment, up to the entry as a guest."""
        port, plan, driver = self._port, self._plan, Driver(self._port)
        for instruction, register, value in plan.preparations:
            self._step(instruction, partial(port.write_registers, {register: value}),
                       original=self._live[ORIGINAL] | {register: value},
                       note=f"preparation: {self._before[register]:#x} to {value:#x}")
        for instruction, region in ((driver.vmxon, plan.vmxon_region),
                                    (driver.vmclear, plan.vmcs_region),
                                    (driver.vmptrld, plan.vmcs_region)):
            self._step(instruction.__name__.upper(), partial(instruction, region),
                       note=f"region at {region:#x}")
        for fields, notes in ((plan.fields, plan.notes),
                              (plan.settings, dict.fromkeys(plan.settings, "as set by the user"))):
            for field, value in fields.items():
                why = f", {notes[field]}" if field in notes else ""
                self._step(f"VMWRITE {field}", partial(driver.vmwrite, field, value),
                           note=f"{value:#x}{why}")
        answer = self._step("VMLAUNCH", driver.vmlaunch, original=plan.guest,
                            note="the original runs on as a guest, at its VMCALL")
        self._entry_cycles = answer.cycles

    def _in_the_target(self):
        """The exit to the target, and what the software does there."""
        port, plan, driver = self._port, self._plan, Driver(self._port)
        answer = self._step("VMCALL", driver.vmcall,
                            note="the target runs as the host, at its VMXOFF")
        self._exit_cycles = answer.cycles
        self._step("VMXOFF", driver.vmxoff)
        self._step("JMP", partial(port.write_registers, {"RIP": plan.arrived["RIP"]}),
                   target=plan.arrived, note="to the target's own instruction pointer")

    def _step(self, instruction: str, action: Callable[[], Answer | None], note: str = "",
              **becomes: Mapping[str, int]) -> Answer | None:
        """Do one thing; ``becomes`` says which environments it changes, and into what."""
        port, failed, answer = self._port, None, None
        mode, before = port.mode, self._before
        self._expect(**becomes)
        try:
            answer = action()
        except VmxError as error:
            failed, note, becomes = error, error.reason, {}
            if isinstance(error, EntryFailure):
                becomes = {TARGET: self._plan.failed_host}
        self._live |= becomes
        self._expect()
        after = port.read_registers()
        changed = {name: (before[name], value) for name, value in after.items()
                   if before[name] != value}
        self._steps.append(Step(instruction, port.cycle, mode, port.mode, self._watch.whose(after),
                                changed, note))
        if failed:
            raise failed
        self._before = after
        return answer

    def _expect(self, **becomes: Mapping[str, int]) -> None:
        """Tell the watch what may be live now, and what during a step that changes it."""
        self._watch.expect(*(
            Version(owner, registers) for owner, now in self._live.items()
            for registers in (now, becomes.get(owner, now))))

    def result(self, refused_by: tuple[Refusal, ...], original: Environment, target: Environment,
               misfits: list[str]) -> SwitchResult:
        """What it came to."""
        plan, watch = self._plan, self._watch
        final = self._port.read_registers() if self._steps else {}
        adjusted = [
            replace(adjustment, why=f"{owner}: {adjustment.why}")
            for owner, adjustments in ((ORIGINAL, [*original.adjustments, *plan.adjustments]),
                                       (TARGET, target.adjustments))
            for adjustment in adjustments]
        cures = None if misfits else together(refused_by, plan.situation)
        return SwitchResult(
            refused_by, cures, tuple(self._steps),
            tuple(watch.changes), tuple(watch.mixed_cycles), watch.checked_cycles,
            self._cycles, self._entry_cycles, self._exit_cycles,
            plan.start, final, tuple(adjusted),
            () if refused_by else not_carried(target, original.registers | final), tuple(misfits))

"""What the processor does in a guest: from a VM entry to the VM exit.

It plays the core beside the unit. It delivers the event that the entry injects before anything
else, tells the unit of every instruction boundary and of what is pending there, lets the
VMX-preemption timer count, reports what the guest's program does, and delivers what does not exit
through the guest's IDT.

Every gate is an interrupt gate.

Ref: Intel SDM (325462), vol. 3A, "Interrupt and Exception Handling"; vol. 3C, "Event Injection",
"Other Causes of VM Exits".
"""

from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Answer, Boundary, Delivery, Event, Instruction, Outcome
from vmxswitch.spec.tables import EXIT_REASONS

from .exits import NMI, TYPE, Reason, exception
from .machine import Machine
from .port import Port
from .program import HALTED, VM, Change, Cpu, Frame, Work, kernel_segments

__all__ = ["Core", "Shutdown"]

#: RFLAGS that an interrupt gate clears: TF, IF, NT, RF, VM.
CLEARED = 1 << 8 | 1 << 9 | 1 << 14 | 1 << 16 | 1 << 17
IF = 1 << 9
STI_MOV_SS, NMI_BLOCKING = 0b11, 1 << 3  # interruptibility
UNUSABLE = 1 << 16
WAIT_FOR_SIPI = 3
SOFTWARE = (4, 5, 6)                     # types of events that an instruction causes
PENDING_MTF = 7
#: A stay in a guest that takes longer is taken for endless, in cycles.
LIMIT_CYC = 1 << 32


class Shutdown(Exception):
    """The processor cannot go on: a VMX abort, or memory that answers with an error."""


class Core:
    """The processor in VMX non-root operation.

    Parameters
    ----------
    port : Port
    machine : Machine
        Where time passes and interrupts come from.
    counts : bool
        The VMX-preemption timer is in use.
    acknowledges : bool
        A VM exit for an external interrupt acknowledges it.
    """
    def __init__(self, port: Port, machine: Machine, *, counts: bool, acknowledges: bool):
        self._port, self._machine = port, machine
        self._counts, self._acknowledges = counts, acknowledges
        self._rate = port.capabilities.msr("IA32_VMX_MISC") & 0x1F

    def stay(self, cpu: Cpu, delivery: Delivery | None) -> Answer:
        """Run a guest that has been entered, and deliver what the entry says, until it exits."""
        limit = self._machine.now + LIMIT_CYC
        if delivery is not None:
            self._deliver(cpu, delivery)
        first = True
        while True:
            answer = self._boundary(first)
            if answer.outcome is Outcome.EXIT:
                if answer.reason == Reason.EXTERNAL_INTERRUPT and self._acknowledges:
                    self._machine.acknowledge()
                return answer
            if answer.delivery is not None:
                self._accept(cpu, answer.delivery)
                continue
            first = False
            answer = self._step(cpu)
            if answer is not None and answer.outcome is Outcome.EXIT:
                return answer
            if self._machine.now >= limit:
                raise UsageError("the guest works on for ever: this processor offers neither "
                                 "VMX-preemption timer nor interrupts to take it back with")

    # --- Between two instructions ---

    def _boundary(self, first):
        machine = self._machine
        vector = None if machine.masked else machine.pending
        return self._checked(self._port.report(Boundary(
            first=first, nmi=machine.nmi, interrupt=vector is not None, vector=vector or 0)))

    def _accept(self, cpu, delivery):
        """Deliver what was pending at a boundary."""
        if delivery.information & TYPE == NMI:
            self._machine.nmi = False
        elif delivery.information & TYPE == 0:
            self._machine.acknowledge()
        self._deliver(cpu, delivery)

    def _deliver(self, cpu, delivery):
        kind, vector = delivery.information >> 8 & 7, delivery.information & 0xFF
        if kind == PENDING_MTF:
            return
        registers = cpu.registers
        saved = ["RIP", "RSP", "RFLAGS", *_parts("CS"), *_parts("SS")]
        if registers["RFLAGS"] & VM:
            saved += [part for name in ("ES", "DS", "FS", "GS") for part in _parts(name)]
        frame = Frame(_handler(cpu, vector), {name: registers[name] for name in saved},
                      dict(cpu.general))
        if kind in SOFTWARE:
            frame.saved["RIP"] = registers["RIP"] + delivery.length & cpu.mask
        cpu.frames.append(frame)
        changes = {
            "RIP": registers["IDTR_BASE"] + 16 * vector & cpu.mask,
            "RSP": (registers["RSP"] if cpu.cpl == 0 else cpu.kernel_stack) - 64 & cpu.mask,
            "RFLAGS": registers["RFLAGS"] & ~CLEARED,
            "ACTIVITY": 0,
            "INTERRUPTIBILITY": registers["INTERRUPTIBILITY"] & ~STI_MOV_SS
                                | (NMI_BLOCKING if kind == NMI >> 8 else 0)}
        if cpu.cpl:
            selector = registers.get("STAR", 0) >> 32 or registers["SYSENTER_CS"] or 8
            changes |= kernel_segments(selector, cpu.long_mode)
        if registers["RFLAGS"] & VM:
            changes |= {f"{name}_{part}": value for name in ("ES", "DS", "FS", "GS")
                        for part, value in (("SELECTOR", 0), ("AR", UNUSABLE))}
        self._write(cpu, changes)

    def _write(self, cpu, changes):
        """Change registers, as far as they differ."""
        changes = {name: value for name, value in changes.items() if cpu.registers[name] != value}
        if changes:
            self._port.write_registers(changes)
            cpu.registers |= changes

    # --- One instruction ---

    def _step(self, cpu):
        """Do what comes next; returns the answer if it may be a VM exit."""
        frame = cpu.frames[-1]
        if cpu.registers["ACTIVITY"] == HALTED:
            return self._wait(cpu)
        if frame.work:
            return self._work(cpu, frame)
        operation, frame.operation = frame.operation, None
        if operation is None:
            try:
                operation, frame.result = frame.program.send(frame.result), None
            except StopIteration:
                operation = self._return(cpu)
        blocking = cpu.registers["INTERRUPTIBILITY"] & STI_MOV_SS
        answer = self._carry_out(cpu, frame, operation)
        if answer is not None and answer.outcome is Outcome.EXIT:
            return answer
        if blocking:  # it lasts for one instruction
            self._write(cpu, {
                "INTERRUPTIBILITY": cpu.registers["INTERRUPTIBILITY"] & ~STI_MOV_SS})
        if not isinstance(operation, Work):
            self._pass(cpu, 1)
        return None

    def _carry_out(self, cpu, frame, operation):
        match operation:
            case Work(cycles):
                frame.work = cycles
                return self._work(cpu, frame)
            case Change(registers):
                return self._write(cpu, registers)
            case Delivery():
                return self._deliver(cpu, operation)
            case Instruction():
                answer = self._checked(self._port.execute(operation))
            case Event():
                answer = self._checked(self._port.report(operation))
        match answer.outcome:
            case Outcome.NO_EXIT | Outcome.CONTINUE if not _is_exception(operation):
                frame.result = answer.value
                if isinstance(operation, Instruction) or (
                        EXIT_REASONS[operation.reason].by_instruction):
                    rip = cpu.registers["RIP"] + operation.length & cpu.mask
                    self._write(cpu, {"RIP": rip})
            case Outcome.NO_EXIT:
                self._deliver(cpu, Delivery(
                    operation.interruption, operation.error_code, operation.length))
            case Outcome.FAULT:
                fault = exception(answer.vector, answer.error_code or 0)
                return self._carry_out(cpu, frame, Event(
                    Reason.EXCEPTION_NMI, interruption=fault.information,
                    error_code=fault.error_code))
        return answer

    def _return(self, cpu):
        """A program has ended: an IRET; the first one halts for good."""
        if len(cpu.frames) == 1:
            cpu.frames = [Frame(_end(cpu))]
            return next(cpu.frames[0].program)
        frame = cpu.frames.pop()
        cpu.general |= frame.general
        return Change({**frame.saved,
                       "INTERRUPTIBILITY": cpu.registers["INTERRUPTIBILITY"] & ~NMI_BLOCKING})

    # --- Time ---

    def _work(self, cpu, frame):
        """Let work go on up to the next thing that may happen."""
        cycles = min(frame.work, *self._until(cpu))
        frame.work -= cycles
        self._pass(cpu, cycles)

    def _wait(self, cpu):
        """Let time pass in HLT, up to the next thing that may happen."""
        times = self._until(cpu)
        if min(times) >= LIMIT_CYC:
            raise UsageError("the guest has halted for good, and this processor offers nothing to "
                             "take it back with")
        self._pass(cpu, min(times))

    def _until(self, cpu):
        """Cycles until the timer expires and until the next interrupt, as far as known."""
        machine, rate = self._machine, self._rate
        times = [LIMIT_CYC]
        if self._timer_counts(cpu):
            ticks = (machine.now >> rate) + cpu.registers["PREEMPTION_TIMER"]
            times.append((ticks << rate) - machine.now)
        if not machine.masked and machine.next_interrupt is not None:
            times.append(max(machine.next_interrupt - machine.now, 0) or LIMIT_CYC)
        return times

    def _pass(self, cpu, cycles):
        machine = self._machine
        before = machine.now >> self._rate
        machine.now += cycles
        ticks = (machine.now >> self._rate) - before
        if ticks and self._timer_counts(cpu):
            self._port.pass_time(ticks)
            left = cpu.registers["PREEMPTION_TIMER"] - ticks
            cpu.registers["PREEMPTION_TIMER"] = max(left, 0)

    def _timer_counts(self, cpu):
        return self._counts and cpu.registers["ACTIVITY"] != WAIT_FOR_SIPI

    @staticmethod
    def _checked(answer):
        if answer.outcome is Outcome.ABORT:
            raise Shutdown(f"VMX abort {answer.error}: a VM exit could not load the host")
        if answer.outcome is Outcome.BUS_ERROR:
            raise Shutdown("memory answered with an error")
        return answer


def _is_exception(operation) -> bool:
    return isinstance(operation, Event) and operation.reason == Reason.EXCEPTION_NMI


def _parts(segment: str) -> list[str]:
    return [f"{segment}_{part}" for part in ("SELECTOR", "BASE", "LIMIT", "AR")]


def _handler(cpu, vector):
    return cpu.gates.get(vector, _nothing)(cpu)


def _nothing(cpu):
    yield from ()


def _end(cpu):
    """What a guest does when its program has nothing left to do."""
    yield from cpu.cli()
    while True:
        yield from cpu.hlt()

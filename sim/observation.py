"""Programs of operations on a ``Port``, and what each operation leaves behind.

An operation is an :class:`~vmxswitch.spec.operations.Instruction`, an
:class:`~vmxswitch.spec.operations.Event` or :class:`~vmxswitch.spec.operations.Boundary`, or
something around the unit: :class:`RegisterWrites`, :class:`MemoryWrite`, :class:`MemoryFault`,
:class:`TimePasses`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Answer, Boundary, Event, Instruction, Mode

from .memory import Fault

__all__ = [
    "PROMPT", "MemoryFault", "MemoryWrite", "Observation", "Operation", "RegisterWrites",
    "TimePasses", "Timing", "observe",
]


@dataclass(frozen=True)
class RegisterWrites:
    """Changes of the live environment: pairs of register and value."""
    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class MemoryWrite:
    """A write of ``size`` bytes (4 or 8, naturally aligned) to physical memory."""
    address: int
    size: int
    value: int


@dataclass(frozen=True)
class MemoryFault:
    """From now on memory fails at the 64-bit word of an address, or no longer (None)."""
    address: int
    fault: Fault | None


@dataclass(frozen=True)
class TimePasses:
    """The VMX-preemption timer counts ``ticks`` (32 bits) down, in the guest."""
    ticks: int


Operation = (Instruction | Event | Boundary | RegisterWrites | MemoryWrite | MemoryFault
             | TimePasses)


@dataclass(frozen=True)
class Timing:
    """How the surroundings of the unit behave; no result may depend on it.

    Attributes
    ----------
    back_to_back : bool
        A request is offered before the one before it is answered.
    bus_wait_cyc : int
        Memory answers so many cycles later than it could.
    stall_cyc : int
        The core takes an answer so many cycles later than it could.
    """
    back_to_back: bool = False
    bus_wait_cyc: int = 0
    stall_cyc: int = 0


PROMPT = Timing()  #: one request at a time, and nothing waits


@dataclass(frozen=True)
class Observation:
    """What an operation left behind; ``answer`` is None after the core's own writes.

    ``current_vmcs`` and ``launched`` are pointer and launch state of the current VMCS.
    """
    answer: Answer | None
    mode: Mode
    registers: Mapping[str, int]
    current_vmcs: int
    launched: bool

    @property
    def vmcs(self) -> dict[str, int]:
        """Pointer and launch state by name."""
        return {"current_vmcs": self.current_vmcs, "launched": int(self.launched)}

    def agrees(self, expected: "Observation") -> bool:
        """Whether all is as expected but for the number of cycles."""
        answer, wanted = self.answer, expected.answer
        same = (self.mode == expected.mode and self.registers == expected.registers
                and self.vmcs == expected.vmcs)
        return same and (
            answer == wanted or None not in (answer, wanted)
            and replace(answer, cycles=0) == replace(wanted, cycles=0))


def observe(port, operations: Iterable[Operation], timing: Timing = PROMPT) -> list:
    """Carry out a program and observe each operation but those on memory (None).

    On a port that can, all of it is one call, with the given timing; what comes back then only has
    the members of an :class:`Observation`. Another one must have ``fail_memory``, ``current_vmcs``
    and ``launched`` beside the members of a ``Port``. An operation that gets no answer ends the
    list.
    """
    if hasattr(port, "observe"):
        return port.observe(operations, timing)
    observations = []
    for operation in operations:
        try:
            observations.append(_step(port, operation))
        except (RuntimeError, UsageError):  # as a port in the wrong mode may say of an event
            break
    return observations


def _step(port, operation):
    answer = None
    match operation:
        case MemoryWrite(address, size, value):
            port.write_memory(address, size, value)
            return None
        case MemoryFault(address, fault):
            port.fail_memory(address, fault)
            return None
        case RegisterWrites(values):
            port.write_registers(dict(values))
        case Instruction():
            answer = port.execute(operation)
        case TimePasses(ticks):
            port.pass_time(ticks)
        case Event() | Boundary():
            answer = port.report(operation)
    return Observation(
        answer, port.mode, port.read_registers(), port.current_vmcs, port.launched)

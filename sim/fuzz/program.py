"""Programs of the fuzzer: steps, and the operations that a step stands for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Instruction
from vmxswitch.spec.region import LAUNCH_OFFSET, field_offsets
from vmxswitch.spec.tables import FIELDS

from ..observation import PROMPT, MemoryWrite, Operation, Timing
from ..row_cases import Subject

__all__ = [
    "FieldWrites", "Program", "Region", "Step", "is_64_bit", "operations", "revision", "vmwrites",
    "writable",
]

LMA, AR_L = 1 << 10, 1 << 13


@dataclass(frozen=True)
class Region:
    """A VMCS region that software writes to memory, all of it.

    Attributes
    ----------
    pointer : int
        Where it begins.
    word : int
        Its first 32 bits: revision identifier and shadow-VMCS indicator.
    launch : int
        The word whose bit 0 is the launch state.
    baseline : str, optional
        Name of the VMCS of the :class:`~vmxswitch.sim.row_cases.Subject` that the fields are from;
        None: all 0.
    changes : tuple of (field, word)
        What differs from it.
    """
    pointer: int
    word: int
    launch: int = 0
    baseline: str | None = None
    changes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class FieldWrites:
    """VMWRITEs to the current VMCS, of a baseline and of changes, up to the first that fails."""
    baseline: str
    changes: tuple[tuple[str, int], ...] = ()


Step = Operation | Region | FieldWrites


@dataclass(frozen=True)
class Program:
    """Steps from the environment of the subject, outside VMX operation, with memory all 0.

    An event where no guest runs is passed over.
    """
    steps: tuple[Step, ...]
    timing: Timing = PROMPT


def operations(step: Step, subject: Subject) -> Iterator[Operation]:
    """What a step stands for."""
    match step:
        case Region(pointer, word, launch, baseline, changes):
            values = {**subject.baselines.get(baseline, {}), **dict(changes)}
            yield MemoryWrite(pointer, 4, word)
            yield MemoryWrite(pointer + LAUNCH_OFFSET, 8, launch)
            for field, offset in field_offsets(subject.capabilities).items():
                yield MemoryWrite(pointer + offset, 8, values.get(field, 0))
        case FieldWrites(baseline, changes):
            halves = not is_64_bit(subject.environment)
            for field, value in (*writable(subject.baselines[baseline]), *changes):
                yield from vmwrites(field, value, halves=halves)
        case _:
            yield step


def writable(values: Mapping[str, int]) -> list[tuple[str, int]]:
    """Pairs of field and value, without the fields that VMWRITE may refuse."""
    return [(field, value) for field, value in values.items() if FIELDS[field].access == "rw"]


def vmwrites(field: str, value: int, *, halves: bool) -> Iterator[Instruction]:
    """The VMWRITE of a field; of each half of a 64-bit field if software has 32-bit registers."""
    encoding = FIELDS[field].encoding
    if halves and FIELDS[field].width_class == "64":
        yield Instruction("VMWRITE", encoding=encoding, value=value & 0xFFFFFFFF)
        yield Instruction("VMWRITE", encoding=encoding + 1, value=value >> 32)
    else:
        yield Instruction("VMWRITE", encoding=encoding, value=value)


def is_64_bit(registers: Mapping[str, int]) -> bool:
    """Whether the operands of VMREAD and VMWRITE have 64 bits in an environment."""
    return bool(registers.get("EFER", 0) & LMA and registers["CS_AR"] & AR_L)


def revision(capabilities: Capabilities) -> int:
    """The revision identifier in the first word of a region."""
    return capabilities.revision

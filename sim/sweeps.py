"""Programs that try one thing after the other: operands bit by bit, events, region 0.

They are the same for every mutant; what they try is what random programs come to too rarely.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmxswitch.spec.operations import Event, Instruction
from vmxswitch.spec.tables import EXIT_REASONS, INSTRUCTIONS

from .fuzz.author import DECIDING
from .fuzz.program import Region, operations, revision
from .observation import PROMPT, MemoryWrite, Operation, RegisterWrites, Timing
from .row_cases import VMCS_POINTER, VMXON_POINTER, Subject

__all__ = ["SWEEPS", "Sweep"]

OTHER_POINTER = 0x22_0000
GOOD_EPTP = 0x11_001E
#: Operands that instructions succeed with, and how many bits of them are tried.
OPERANDS = {
    "VMXON": {"pointer": (VMXON_POINTER, 64)}, "VMCLEAR": {"pointer": (VMCS_POINTER, 64)},
    "VMPTRLD": {"pointer": (VMCS_POINTER, 64)}, "VMREAD": {"encoding": (0x6802, 64)},
    "VMWRITE": {"encoding": (0x6802, 64)},
    "INVEPT": {"invalidation": (1, 64), "descriptor": (GOOD_EPTP, 128)},
    "INVVPID": {"invalidation": (1, 64), "descriptor": (1, 128)},
    "VMFUNC": {"eax": (0, 32), "ecx": (0, 32)},
}


@dataclass(frozen=True)
class Sweep:
    """A program, by the processor that it is for, and its timing."""
    name: str
    program: Callable[[Subject], Iterator[Operation]]
    timing: Timing = PROMPT


def _registers(subject):
    return RegisterWrites(tuple(subject.environment.items()))


def _regions(subject, *pointers, **changes):
    """Regions in memory, not launched, with the first VMCS of the processor."""
    word, baseline = revision(subject.capabilities), next(iter(subject.baselines))
    for pointer in pointers:
        yield from operations(Region(pointer, word, 0, baseline, tuple(changes.items())), subject)


def _off(subject):
    """Leave the guest and VMX operation."""
    yield _registers(subject)
    yield Instruction("VMXOFF")
    yield _registers(subject)
    yield Instruction("VMXOFF")
    yield MemoryWrite(VMXON_POINTER, 4, revision(subject.capabilities))
    yield MemoryWrite(VMCS_POINTER, 4, revision(subject.capabilities))


def _root(subject):
    """VMX root operation with a VMCS."""
    yield from _off(subject)
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    yield Instruction("VMCLEAR", pointer=VMCS_POINTER)
    yield Instruction("VMPTRLD", pointer=VMCS_POINTER)


def _guest(subject):
    yield from _root(subject)
    yield Instruction("VMLAUNCH")


def _operand_bits(subject):
    """Every bit of every operand, of a region's first word and of the registers that decide."""
    word = revision(subject.capabilities)
    yield from _regions(subject, VMCS_POINTER)
    for situation in (_off, _root, _guest):
        for name in INSTRUCTIONS:
            operands = OPERANDS.get(name, {})
            usual = {operand: value for operand, (value, _) in operands.items()}
            for operand, (value, bits) in operands.items():
                for bit in range(bits):
                    yield from situation(subject)
                    yield Instruction(name, **usual | {operand: value ^ 1 << bit})
            for bit in range(32) if name in ("VMXON", "VMPTRLD") else ():
                yield from situation(subject)
                yield MemoryWrite(usual["pointer"], 4, word ^ 1 << bit)
                yield Instruction(name, **usual)
            for register in DECIDING:
                if register in subject.environment:
                    row = subject.capabilities.registers[register]
                    for bit in range(min(subject.capabilities.bits(row), 32)):
                        yield from situation(subject)
                        yield RegisterWrites((
                            (register, subject.environment[register] ^ 1 << bit),))
                        yield Instruction(name, **usual)


def _events(subject):
    """Every event in guests whose registers are all inverted or all as loaded."""
    yield _registers(subject)
    capabilities = subject.capabilities
    for reason, row in EXIT_REASONS.items():
        if row.condition is None:
            continue
        for inverted in (False, True):
            yield from _regions(subject, VMCS_POINTER)
            yield from _guest(subject)
            if inverted:
                yield RegisterWrites(tuple(
                    (name, (1 << capabilities.bits(register)) - 1)
                    for name, register in capabilities.registers.items()))
            yield Event(reason, 0x1234_5678_9ABC_DEF1, 5, 0x8765_4321, 0x1111, 0x2222)
            yield _registers(subject)
            yield Instruction("VMCLEAR", pointer=VMCS_POINTER)


def _region_zero(subject):
    """Physical address 0 is like any other: as link pointer, and for the current VMCS."""
    word = revision(subject.capabilities)
    yield from _regions(subject, VMCS_POINTER, VMCS_LINK_POINTER=0)
    for first in (word, word ^ 1 << 31, 0):
        yield from _root(subject)
        yield MemoryWrite(0, 4, first)
        yield Instruction("VMLAUNCH")
    yield from _off(subject)
    yield from _regions(subject, 0, VMCS_LINK_POINTER=0)
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    yield Instruction("VMPTRLD", pointer=0)
    yield Instruction("VMLAUNCH")


def _pointers(subject):
    """Entries right after a change of pointer that decides whether a check fails."""
    yield from _regions(subject, VMCS_POINTER, VMCS_LINK_POINTER=OTHER_POINTER)
    yield from _regions(subject, OTHER_POINTER, VMCS_LINK_POINTER=OTHER_POINTER)
    yield from _off(subject)
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    for pointer in (OTHER_POINTER, VMCS_POINTER, OTHER_POINTER):
        yield Instruction("VMPTRLD", pointer=pointer)
        yield Instruction("VMLAUNCH")
        yield Instruction("VMCALL")


SWEEPS = (
    Sweep("operand bits", _operand_bits), Sweep("events", _events),
    Sweep("region 0", _region_zero), Sweep("pointers", _pointers, Timing(back_to_back=True)),
)

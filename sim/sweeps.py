"""Programs that try one thing after the other: operands bit by bit, events, ports, region 0.

They are the same for every mutant; what they try is what random programs come to too rarely.
"""

from collections.abc import Callable, Iterator
from itertools import product

from vmxswitch.spec.operations import Event, Instruction
from vmxswitch.spec.tables import CONTROL_WORDS, CONTROLS, EVENT_EXITS

from .fuzz.program import Region, operations, revision
from .observation import MemoryWrite, Operation, RegisterWrites
from .row_cases import EFER_LMA, REGION_BYTES, VMCS_POINTER, VMXON_POINTER, Subject

__all__ = ["SWEEPS"]

GOOD_EPTP = 0x11_001E
EVENT_POINTERS = 0x40_0000  # of a region for each event, one after the other
IO_BITMAP = 0x30_0000
IO_INSTRUCTION = 30  # exit reason
WORD_BITS, ALL_ONES = 64, (1 << 64) - 1
#: Operands that instructions succeed with, and how many bits of them are tried.
OPERANDS = (
    ("VMXON", {"pointer": (VMXON_POINTER, 64)}), ("VMCLEAR", {"pointer": (VMCS_POINTER, 64)}),
    ("VMPTRLD", {"pointer": (VMCS_POINTER, 64)}),
    *(("INVEPT", {"invalidation": (1, 64), "descriptor": (GOOD_EPTP & ~0x7 | memory_type, 64)})
      for memory_type in (0, 6)),
    ("INVVPID", {"invalidation": (0, 64), "descriptor": (1, 128)}),
)


def _registers(subject):
    return RegisterWrites(tuple(subject.environment.items()))


def _region(subject, pointer, baseline=None, **changes):
    """A region in memory, not launched, with a VMCS of the processor, if not the first."""
    baseline = baseline or next(iter(subject.baselines))
    yield from operations(Region(
        pointer, revision(subject.capabilities), 0, baseline, tuple(changes.items())), subject)


def _off(subject):
    """Leave the guest and VMX operation."""
    yield _registers(subject)
    yield Instruction("VMXOFF")
    yield _registers(subject)
    yield Instruction("VMXOFF")
    yield MemoryWrite(VMXON_POINTER, 4, revision(subject.capabilities))
    yield MemoryWrite(VMCS_POINTER, 4, revision(subject.capabilities))


def _root(subject, pointer=VMCS_POINTER):
    """VMX root operation with a VMCS."""
    yield from _off(subject)
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    yield Instruction("VMCLEAR", pointer=pointer)
    yield Instruction("VMPTRLD", pointer=pointer)


def _operand_bits(subject):
    """Every bit of operands, of a region's first word, and of the registers that allow VMXON."""
    word = revision(subject.capabilities)
    yield from _region(subject, VMCS_POINTER)
    for name, operands in OPERANDS:
        usual = {operand: value for operand, (value, _) in operands.items()}
        yield from _root(subject)
        for operand, (value, bits) in operands.items():
            for bit in range(bits):
                if name == "VMXON":
                    yield from _off(subject)
                yield Instruction(name, **usual | {operand: value ^ 1 << bit})
        for bit in range(32) if name in ("VMXON", "VMPTRLD") else ():
            if name == "VMXON":
                yield from _off(subject)
            else:  # a resident VMCS is not read again
                yield Instruction("VMCLEAR", pointer=usual["pointer"])
            yield MemoryWrite(usual["pointer"], 4, word ^ 1 << bit)
            yield Instruction(name, **usual)
    for register in ("CR0", "CR4"):
        for bit in range(subject.capabilities.bits(subject.capabilities.registers[register])):
            yield from _off(subject)
            yield RegisterWrites(((register, subject.environment[register] ^ 1 << bit),))
            yield Instruction("VMXON", pointer=VMXON_POINTER)


def _events(subject):
    """Every event, with registers as loaded or with all bits 1, of some or of all of them."""
    ones = {name: (1 << subject.capabilities.bits(row)) - 1
            for name, row in subject.capabilities.registers.items()}
    reasons = [*EVENT_EXITS]
    first, *_, last = subject.baselines
    guests = [(first, {}), (first, ones), (first, {"PENDING_DBG": ones["PENDING_DBG"]})]
    if "EFER" in ones:  # PAE paging, with EPT if there is any
        guests.append((last, ones | {"EFER": ones["EFER"] & ~EFER_LMA}))
    for number, (reason, (baseline, values)) in enumerate(product(reasons, guests)):
        pointer = EVENT_POINTERS + number * REGION_BYTES  # so that every region stays to be seen
        yield from _region(subject, pointer, baseline)
        yield from _root(subject, pointer)
        yield Instruction("VMLAUNCH")
        yield RegisterWrites(tuple(values.items()))
        yield Event(reason, 0x1234_5678_9ABC_DEF1, 5, 0x8765_4321, 0x1111, 0x2222)
        yield _registers(subject)
        yield Instruction("VMCLEAR", pointer=pointer)


def _ports(subject):
    """Accesses to ports at the end of a word of an I/O bitmap and beyond, for each bit there."""
    control = CONTROLS["PROC1_USE_IO_BITMAPS"]
    if not subject.capabilities.allows(control.symbol):
        return
    field = CONTROL_WORDS[control.word].field
    controls = next(iter(subject.baselines.values()))[field] | 1 << control.low
    yield from _region(
        subject, VMCS_POINTER, **{field: controls, "IO_BITMAP_A_ADDR": IO_BITMAP})
    yield from _root(subject)
    yield Instruction("VMLAUNCH")
    for bit in range(WORD_BITS - 4, WORD_BITS + 4):
        for word in (0, 1):
            yield MemoryWrite(IO_BITMAP + 8 * word, 8, 1 << bit >> WORD_BITS * word & ALL_ONES)
        for port, size in product(range(WORD_BITS - 4, WORD_BITS), (1, 2, 4)):
            yield Event(IO_INSTRUCTION, size - 1 | port << 16, length=1)
            if port <= bit < port + size:  # it exits
                yield _registers(subject)
                yield Instruction("VMRESUME")


def _region_zero(subject):
    """Physical address 0 is like any other: as link pointer, and for the current VMCS."""
    word = revision(subject.capabilities)
    yield from _region(subject, VMCS_POINTER, VMCS_LINK_POINTER=0)
    for first in (word, word ^ 1 << 31, 0):
        yield from _root(subject)
        yield MemoryWrite(0, 4, first)
        yield Instruction("VMLAUNCH")
    yield from _off(subject)
    yield from _region(subject, 0, VMCS_LINK_POINTER=0)
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    yield Instruction("VMPTRLD", pointer=0)
    yield Instruction("VMLAUNCH")


SWEEPS: dict[str, Callable[[Subject], Iterator[Operation]]] = {
    "operand bits": _operand_bits, "events": _events, "ports": _ports, "region 0": _region_zero,
}

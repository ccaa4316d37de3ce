"""Which change of one VMCS field would cure a failing entry check.

Found by trying: the check's own expression gives the numbers to try, and a candidate counts only if
the check then passes and no other check fails that passed before. Bits that say in which mode a
program runs are left alone: without them it would be another program.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields as attributes
from typing import Protocol, Self

from vmxswitch.spec.expression import Const, Expression, Member, Slice
from vmxswitch.spec.tables import CHECKS, FIELDS

__all__ = ["Situation", "cure", "cure_all"]


class Situation(Protocol):
    """What cures are looked for in, such as :class:`vmxswitch.firmware.prediction.Situation`."""
    values: Mapping[str, int]

    def having(self, changes: Mapping[str, int]) -> Self:
        """The same with some values changed."""

    def fails(self, check: str) -> bool:
        """Whether one check fails."""

    def failing(self) -> tuple[str, ...]:
        """Ids of the failing checks."""

    def expression(self, check: str) -> Expression | None:
        """What is 1 if the check fails; None if it cannot."""

    def width(self, symbol: str) -> int:
        """Bits of a VMCS field; 0 for what is none, or is not known."""


#: Bits that are the mode of a program: CR0.PE and PG, CR4.PAE, EFER.LME and LMA, the controls
#: "IA-32e mode guest" and "host address-space size".
MODE_BITS = {
    "GUEST_CR0": 0x8000_0001, "HOST_CR0": 0x8000_0001, "GUEST_CR4": 0x20, "HOST_CR4": 0x20,
    "GUEST_IA32_EFER": 0x500, "HOST_IA32_EFER": 0x500,
    "VM_ENTRY_CTLS": 0x200, "VM_EXIT_CTLS": 0x200,
}


def cure(situation: Situation, check: str) -> tuple[str, int] | None:
    """The field and value that cure one failing check, nearest to what the field holds.

    None if no single field can, or if another check would then fail.
    """
    before = set(situation.failing())

    def distance(found: tuple[str, int]) -> tuple[int, int]:
        field, value = found
        return (situation.values[field] ^ value).bit_count(), value

    for field, value in sorted(_candidates(situation, check), key=distance):
        changed = situation.having({field: value})
        if not changed.fails(check) and before.issuperset(changed.failing()):
            return field, value
    return None


def cure_all(situation: Situation, checks: Sequence[str]) -> dict[str, int] | None:
    """One set of fields and values that cures all of ``checks``, or None if they can't be found.

    Cures are found one after another, each on top of those before it.
    """
    changes: dict[str, int] = {}
    while remaining := [check for check in checks if situation.having(changes).fails(check)]:
        found = cure(situation.having(changes), remaining[0])
        if found is None:
            return None
        changes[found[0]] = found[1]
    return changes


def _candidates(situation: Situation, check: str) -> Iterator[tuple[str, int]]:
    fails = situation.expression(check)
    if fails is None:
        return
    nodes = list(_nodes(fails))
    numbers = {number for node in nodes for number in _numbers(node)}
    slices = {(node.low, node.width) for node in nodes if isinstance(node, Slice)}
    for field in CHECKS[check].fields:
        bits = situation.width(field)
        if bits and FIELDS[field].access == "rw":
            present, mode = situation.values[field], MODE_BITS.get(field, 0)
            yield from ((field, value) for value in _near(present, bits, numbers, slices)
                        if not (value ^ present) & mode)


def _near(value: int, bits: int, numbers: set[int], slices: set[tuple[int, int]]) -> set[int]:
    """Values worth trying in place of ``value``; ``slices`` are bit fields: (low, width)."""
    ones = (1 << bits) - 1
    found = {value ^ 1 << bit for bit in range(bits)}
    for bit in range(bits):
        low = (1 << bit) - 1
        found |= {value & low, value & ~low, value | ones & ~low}  # cut, aligned, canonical
    for number in numbers:
        found |= {number, value & number, value | number, value & ~number}
        for low, width in slices:
            found.add(value & ~((1 << width) - 1 << low) | number << low)
    return {candidate & ones for candidate in found} - {value}


def _nodes(expression: Expression) -> Iterator[Expression]:
    yield expression
    for attribute in attributes(expression):
        if isinstance(operand := getattr(expression, attribute.name), Expression):
            yield from _nodes(operand)


def _numbers(node: Expression) -> tuple[int, ...]:
    match node:
        case Const(_, value):
            return (value,)
        case Member(_, _, numbers):
            return numbers
    return ()

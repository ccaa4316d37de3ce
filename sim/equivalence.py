"""Proofs that a mutant does what the unit does: its row never differs from the right one."""

from collections.abc import Iterator
from functools import cache, reduce

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import (
    ALWAYS,
    NEVER,
    Binary,
    Expression,
    Invert,
    Member,
    Symbol,
    symbols,
)
from vmxswitch.spec.proof import Known, Undecided, known_bits, witness
from vmxswitch.spec.tables import EVENT_EXITS, EXIT_REASONS, expression

from .mutants import Mutant, differences, passed_stages
from .rules import rules

__all__ = ["PROOF_CASES", "equivalent"]

PROOF_CASES = 4000  #: that a proof may take
REASON = Symbol(16, "EXIT_REASON")


def equivalent(capabilities: Capabilities, mutant: Mutant) -> bool:
    """Whether it is proved that a mutant does what the unit does.

    Of wrong outcomes and control logic there are no proofs.
    """
    if mutant.kind in ("outcome", "control"):
        return False
    passed = passed_stages(capabilities, mutant)
    try:
        for differ in differences(capabilities, mutant):
            names = symbols(differ)
            inputs = {name: known for name in names
                      if (known := _settled(capabilities, passed, name)) is not None}
            for fact in _facts(capabilities, passed, names):
                differ = Binary(1, "&", differ, fact)
            if witness(differ, PROOF_CASES, inputs) is not None:
                return False
    except Undecided:
        return False
    return True


def _facts(capabilities, passed, names) -> Iterator[Expression]:
    """What holds wherever an expression over symbols with these names is looked at."""
    if "IN_VMX" in names:
        yield capabilities.bind(expression("implies(NON_ROOT, IN_VMX)"))
    if "EXIT_REASON" in names:
        yield Member(1, REASON, _reasons(capabilities))
    if "EXIT_BY_INSTRUCTION" in names:
        instructions = Member(1, REASON, tuple(
            number for number, row in EXIT_REASONS.items() if row.by_instruction))
        yield Binary(1, "==", Symbol(1, "EXIT_BY_INSTRUCTION"), instructions)
    for reads, holds in _passed(capabilities, passed):
        if reads & names:
            yield holds


def _reasons(capabilities) -> tuple[int, ...]:
    """The reasons with which a processor can come to the host: events and VMX instructions."""
    events = {
        number for number, row in EVENT_EXITS.items()
        if capabilities.bind(row.condition) != NEVER
        and capabilities.bind(row.undefined) != ALWAYS}
    instructions = {
        row.number for rows in rules(capabilities).instructions.values() for row, _ in rows
        if row.kind in ("exit", "entry failure")}
    return tuple(sorted(events | instructions))


@cache
def _passed(capabilities, stages) -> tuple[tuple[frozenset[str], Expression], ...]:
    """What holds of fields that have passed the checks of some stages, and which these are."""
    return tuple(
        (reads, Invert(1, row.fails)) for row in capabilities.checks.values()
        if row.stage in stages and (reads := symbols(row.fails)) <= capabilities.fields.keys())


@cache
def _settled(capabilities, stages, name) -> Known | None:
    """The bits of a field that can have one value only, by what holds of it alone."""
    alone = [holds for reads, holds in _passed(capabilities, stages) if reads == {name}]
    if not alone:
        return None
    holds = reduce(lambda one, other: Binary(1, "&", one, other), alone)
    width = capabilities.fields[name].bits
    mask = bits = 0
    for bit in (1 << number for number in range(width)):
        for other, value in ((bit, 0), (0, bit)):
            given = {name: known_bits(width, mask | bit, bits | other)}
            if witness(holds, PROOF_CASES, given) is None:
                mask, bits = mask | bit, bits | value
    return known_bits(width, mask, bits)

"""For each entry check a program that tries VMCSs near a failing and a passing one.

The pairs of :mod:`.row_cases` show that a row fails where it must. These programs also show where
it applies: from both sides of the pair every bit that the row could read is inverted in turn, every
narrow bit field gets all its values, what is compared with a number gets that number and the ones
beside it, and each symbol the values between which the row changes; at depth 2 two of these at a
time. The answer names *all* rows that fail then. Another failing row keeps the attempts from
entering the guest, but for rows about the MSR-load list, which only an entry that passes all others
reads.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields

from vmxswitch.spec.capabilities import LIST_STAGE, BoundCheck
from vmxswitch.spec.expression import (
    Binary,
    Const,
    Expression,
    Extend,
    Member,
    Slice,
    Symbol,
    symbols,
)
from vmxswitch.spec.operations import Instruction
from vmxswitch.spec.proof import Undecided, witness
from vmxswitch.spec.structures import LIST_ENTRY_BYTES, VTPR_OFFSET
from vmxswitch.spec.tables import SYMBOL_WIDTHS

from .fuzz.program import Region, is_64_bit, operations, revision, vmwrites
from .observation import MemoryWrite, Operation, RegisterWrites
from .row_cases import VMCS_POINTER, VMXON_POINTER, RowCase, RowPair, Subject
from .solver import evaluate

__all__ = ["attempt_with", "neighbours"]

#: A field and a value that no VM entry passes with.
BLOCKS = (("CR3_TARGET_COUNT", 5), ("HOST_CS_SELECTOR", 0))
LIST_WORDS = {"LIST_INDEX": (0, 4), "LIST_RESERVED": (4, 4), "LIST_DATA": (8, 8)}
NARROW, NARROW_OF_TWO = 8, 4  #: bits of a field that gets all its values, alone and beside another


def neighbours(
    subject: Subject, row: BoundCheck, pair: RowPair, depth: int = 1,
) -> Iterator[Operation]:
    """The program of a row.

    ``pair`` is that of the row; for a row that cannot fail alone that of another row of its stage:
    then values with which the row fails replace those of the failing VMCS. Depth 1 or 2.
    """
    yield from _begin(subject)
    for case, values in ((pair.fails, _failing(row, pair)), (pair.passes, {})):
        yield from _around(_Place(subject, row, case, values), depth)


def attempt_with(
    subject: Subject, row: BoundCheck, pair: RowPair, values: Mapping[str, int],
) -> Iterator[Operation]:
    """The program that only tries the failing VMCS of a pair, with some values in it replaced."""
    yield from _begin(subject)
    yield from _around(_Place(subject, row, pair.fails, values), 0)


def _begin(subject):
    yield RegisterWrites(tuple(subject.environment.items()))
    yield MemoryWrite(VMXON_POINTER, 4, revision(subject.capabilities))
    yield Instruction("VMXON", pointer=VMXON_POINTER)


def _failing(row, pair) -> Mapping[str, int]:
    """Values with which a row fails that cannot fail alone."""
    if pair.fails.row == row.id:
        return {}
    try:
        return witness(row.fails) or {}
    except Undecided:
        return {}


class _Place:
    """A VMCS with its surroundings, and where the symbols that a row reads are in it."""

    def __init__(self, subject: Subject, row: BoundCheck, case: RowCase, values):
        self.subject, self.row, self.case = subject, row, case
        self.environment = {**subject.environment, **dict(case.registers)}
        self.fields = {**subject.baselines[case.baseline], **dict(case.writes)}
        self.reads = sorted(symbols(row.fails))
        if row.stage != LIST_STAGE:
            blocks = next((field, value) for field, value in BLOCKS if field not in self.reads)
            self.fields |= dict([blocks])
        self.words = {address: (size, value) for address, size, value in case.memory}
        for symbol, value in values.items():
            if symbol in self.fields:
                self.fields[symbol] = value
            elif place := self.word(symbol):
                self.words[place[0]] = place[1], value
            elif symbol.removeprefix("LIVE_") in self.environment:
                self.environment[symbol.removeprefix("LIVE_")] = value

    def word(self, symbol) -> tuple[int, int] | None:
        """Address and size in bytes of a symbol that is a word of memory."""
        if symbol in LIST_WORDS:
            offset, size = LIST_WORDS[symbol]
            last = self.fields["VM_ENTRY_MSR_LOAD_COUNT"] - 1
            return self.fields["VM_ENTRY_MSR_LOAD_ADDR"] + LIST_ENTRY_BYTES * last + offset, size
        if symbol.startswith("PDPTE"):
            return (self.fields["GUEST_CR3"] & 0xFFFFFFE0) + 8 * int(symbol[-1]), 8
        if symbol == "LINK_WORD":
            return self.fields["VMCS_LINK_POINTER"], 4
        if symbol == "VTPR":
            return self.fields["VIRTUAL_APIC_ADDR"] + VTPR_OFFSET, 4
        return None


def _around(place, depth):
    """The VMCS as it is, and its neighbours."""
    yield Instruction("VMCLEAR", pointer=VMCS_POINTER)
    baseline = place.subject.baselines[place.case.baseline]
    changes = tuple((field, value) for field, value in place.fields.items()
                    if value != baseline[field])
    word = revision(place.subject.capabilities)
    yield from operations(
        Region(VMCS_POINTER, word, 0, place.case.baseline, changes), place.subject)
    for address, (size, value) in place.words.items():
        yield MemoryWrite(address, size, value)
    yield RegisterWrites(tuple(place.environment.items()))
    yield Instruction("VMPTRLD", pointer=VMCS_POINTER)
    yield from _attempt(place)
    if depth == 0:
        return
    inputs = {symbol: there for symbol in place.reads if (there := _input(place, symbol))}
    values = {symbol: now for symbol, (now, _, _) in inputs.items()}
    for symbol, (now, bits, put) in inputs.items():
        bounds = _bounds(place.row, values, symbol, bits) if {*values} >= {*place.reads} else ()
        for value in dict.fromkeys((
                *_flips(now, bits), *_values(place.row, symbol, now, NARROW), *bounds)):
            yield from put(value)
            yield from _attempt(place)
            yield from put(now)
    if depth > 1 and place.row.stage != LIST_STAGE:
        for first, (now, _, put) in inputs.items():
            for value in dict.fromkeys(_values(place.row, first, now, NARROW_OF_TWO)):
                yield from put(value)
                for second, (other, bits, put_other) in inputs.items():
                    start = value if second == first else other
                    for changed in dict.fromkeys(
                            (*_flips(start, bits), *_values(place.row, second, start, NARROW))):
                        yield from put_other(changed)
                        yield from _attempt(place)
                    yield from put_other(start)
                yield from put(now)


def _attempt(place):
    yield Instruction("VMLAUNCH")
    if place.row.stage == LIST_STAGE:  # which may have ended in the guest or in the host
        yield Instruction("VMRESUME")
        yield Instruction("VMCALL")
        yield RegisterWrites(tuple(place.environment.items()))


def _flips(now, bits) -> Iterator[int]:
    """The number with each of its bits inverted."""
    return (now ^ 1 << bit for bit in range(bits))


def _values(row, symbol, now, narrow) -> Iterator[int]:
    """Values of a symbol that the expression of a row suggests, other bits as they are."""
    for low, width, numbers in _fields(row.fails, symbol):
        mask = (1 << width) - 1
        chosen = range(1 << width) if width <= narrow else numbers
        yield from (now & ~(mask << low) | (number & mask) << low for number in chosen)


def _bounds(row, values, symbol, bits) -> Iterator[int]:
    """Two neighbouring values of a symbol between which the row changes, below and above."""
    def fails(value):
        return evaluate(row.fails, {**values, symbol: value})

    for end in (0, (1 << bits) - 1):
        low, high = sorted((values[symbol], end))
        if fails(low) != fails(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fails(middle) == fails(low) else (low, middle)
            yield from (low, high)


def _fields(node: Expression, symbol: str) -> Iterator[tuple[int, int, list[int]]]:
    """Bit fields of a symbol in an expression: lowest bit, width, numbers compared with it."""
    match node:
        case Member(_, value, numbers) if field := _field(value, symbol):
            yield *field, [near for number in numbers for near in (number, number + 1)]
        case Binary(_, "==" | "!=" | "<" | "<=", left, right):
            for value, other in ((left, right), (right, left)):
                if isinstance(other, Const) and (field := _field(value, symbol)):
                    yield *field, [other.value - 1, other.value, other.value + 1]
        case Slice() if field := _field(node, symbol):
            yield *field, []
    for part in fields(node):
        if isinstance(child := getattr(node, part.name), Expression):
            yield from _fields(child, symbol)


def _field(value, symbol) -> tuple[int, int] | None:
    """Lowest bit and width, if a value is a symbol or bits of it."""
    match value:
        case Symbol(width, name) if name == symbol:
            return 0, width
        case Slice(width, inner, low) if field := _field(inner, symbol):
            return field[0] + low, width
        case Extend(_, inner):
            return _field(inner, symbol)
    return None


Put = Callable[[int], list[Operation]]


def _input(place, symbol) -> tuple[int, int, Put] | None:
    """Present value of a symbol, its width, and how it is given another; None for a pointer."""
    capabilities = place.subject.capabilities
    register = symbol.removeprefix("LIVE_")
    if symbol in place.fields:
        halves = not is_64_bit(place.environment)
        bits = capabilities.bits(capabilities.fields[symbol])
        return place.fields[symbol], bits, lambda value: [
            *vmwrites(symbol, value & (1 << bits) - 1, halves=halves)]
    if register != symbol and register in place.environment:
        bits = capabilities.bits(capabilities.registers[register])
        return place.environment[register], bits, lambda value: [
            RegisterWrites(((register, value & (1 << bits) - 1),))]
    if there := place.word(symbol):
        address, size = there
        return _at(place.words, address, size), SYMBOL_WIDTHS[symbol], lambda value: [
            MemoryWrite(address, size, value)]
    return None


def _at(words, address, size):
    """What the words of a case say of a place in memory; the rest is 0."""
    for start, (length, value) in words.items():
        if start <= address < start + length:
            return value >> 8 * (address - start) & (1 << 8 * size) - 1
    return 0

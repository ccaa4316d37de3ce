"""For each entry check a program that tries VMCSs near a failing and a passing one.

The pairs of :mod:`.row_cases` show that a row fails where it must. These programs also show where
it applies: from both sides of the pair every bit that the row could read is inverted in turn, every
narrow bit field gets all its values, and what is compared with a number gets that number and the
ones beside it, and sums come to where they overflow; at depth 2 two of these at a time. Words in
memory go with the pointers to them. The answer names *all* rows that fail then.
Another failing row keeps the attempts from entering the guest, but for rows about the MSR-load
list, which only an entry that passes all others reads.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import islice

from vmxswitch.spec.capabilities import BoundCheck
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
from vmxswitch.spec.tables import SYMBOL_WIDTHS

from .fuzz.program import Region, is_64_bit, operations, revision, vmwrites
from .observation import MemoryWrite, Operation, RegisterWrites
from .row_cases import VMCS_POINTER, VMXON_POINTER, RowCase, RowPair, Subject
from .solver import Solver

__all__ = ["flips", "near", "neighbours", "suggested"]

#: A field and a value that no VM entry passes with.
BLOCKS = (("CR3_TARGET_COUNT", 5), ("HOST_CS_SELECTOR", 0))
LIST_STAGE, LIST_ENTRY_BYTES = "msr-load", 16
LIST_WORDS = {"LIST_INDEX": (0, 4), "LIST_RESERVED": (4, 4), "LIST_DATA": (8, 8)}
VTPR_OFFSET = 0x80
NARROW, NARROW_OF_TWO = 8, 4  #: bits of a field that gets all its values, alone and beside another
BOUND_SOLUTIONS = 4  #: ways to one bound


def neighbours(
    subject: Subject, row: BoundCheck, pair: RowPair, depth: int = 1,
) -> Iterator[Operation]:
    """The program of a row.

    ``pair`` is that of the row; for a row that cannot fail alone that of another row of its stage:
    then values with which the row fails replace those of the failing VMCS. Depth 1 or 2.
    """
    word = revision(subject.capabilities)
    yield RegisterWrites(tuple(subject.environment.items()))
    yield MemoryWrite(VMXON_POINTER, 4, word)
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    pointers = (VMCS_POINTER, 0) if "CURRENT_VMCS" in symbols(row.fails) else (VMCS_POINTER,)
    for pointer in pointers:
        for case, values in ((pair.fails, _failing(row, pair)), (pair.passes, {})):
            yield from _around(_Place(subject, row, case, values, pointer), word, depth)


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

    def __init__(self, subject: Subject, row: BoundCheck, case: RowCase, values, pointer: int):
        self.subject, self.row, self.case, self.pointer = subject, row, case, pointer
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

    def word(self, symbol, fields=None) -> tuple[int, int] | None:
        """Address and size in bytes of a symbol that is a word of memory."""
        fields = fields or self.fields
        if symbol in LIST_WORDS:
            offset, size = LIST_WORDS[symbol]
            last = fields["VM_ENTRY_MSR_LOAD_COUNT"] - 1
            return fields["VM_ENTRY_MSR_LOAD_ADDR"] + LIST_ENTRY_BYTES * last + offset, size
        if symbol.startswith("PDPTE"):
            return (fields["GUEST_CR3"] & 0xFFFFFFE0) + 8 * int(symbol[-1]), 8
        if symbol == "LINK_WORD":
            return fields["VMCS_LINK_POINTER"], 4
        if symbol == "VTPR":
            return fields["VIRTUAL_APIC_ADDR"] + VTPR_OFFSET, 4
        return None

    def moved(self, field, value) -> Iterator[MemoryWrite]:
        """The words that the row reads where a field says with another value."""
        fields = self.fields | {field: value}
        for symbol in self.reads:
            there, now = self.word(symbol, fields), self.word(symbol)
            if there and there != now:
                address, size = there
                if address % size == 0 and not VMXON_POINTER <= address < VMCS_POINTER + 4096:
                    yield MemoryWrite(address, size, _at(self.words, *now))


def _around(place, word, depth):
    """The VMCS as it is, and its neighbours."""
    row = place.row
    yield Instruction("VMCLEAR", pointer=place.pointer)
    baseline = place.subject.baselines[place.case.baseline]
    changes = tuple((field, value) for field, value in place.fields.items()
                    if value != baseline[field])
    yield from operations(
        Region(place.pointer, word, 0, place.case.baseline, changes), place.subject)
    for address, (size, value) in place.words.items():
        yield MemoryWrite(address, size, value)
    yield RegisterWrites(tuple(place.environment.items()))
    yield Instruction("VMPTRLD", pointer=place.pointer)
    yield from _attempt(place)
    inputs = {symbol: there for symbol in place.reads if (there := _input(place, symbol))}
    for symbol, (now, bits, put) in inputs.items():
        for value in near([row.fails], symbol, now, bits, NARROW):
            yield from put(value)
            yield from _attempt(place)
            yield from put(now)
    for changes in _at_bounds(row.fails, inputs):
        for symbol, value in changes.items():
            yield from inputs[symbol][2](value)
        yield from _attempt(place)
        for symbol in changes:
            yield from inputs[symbol][2](inputs[symbol][0])
    if depth > 1 and place.row.stage != LIST_STAGE:
        for first, (now, _, put) in inputs.items():
            for value in dict.fromkeys(suggested(row.fails, first, now, NARROW_OF_TWO)):
                yield from put(value)
                for second, (other, bits, put_other) in inputs.items():
                    start = value if second == first else other
                    for changed in near([row.fails], second, start, bits, NARROW):
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


def flips(now: int, bits: int) -> Iterator[int]:
    """The number with each of its bits inverted."""
    return (now ^ 1 << bit for bit in range(bits))


def suggested(node: Expression, symbol: str, now: int, narrow: int) -> Iterator[int]:
    """Values of a symbol that an expression suggests, other bits as they are.

    A bit field of at most ``narrow`` bits gets all its values.
    """
    for low, width, numbers in _fields(node, symbol):
        mask = (1 << width) - 1
        chosen = range(1 << width) if width <= narrow else numbers
        yield from (now & ~(mask << low) | (number & mask) << low for number in chosen)


def near(
    nodes: Iterable[Expression], symbol: str, now: int, bits: int, narrow: int,
) -> Iterator[int]:
    """A symbol's value with each bit inverted, and the values that expressions suggest."""
    values = (*flips(now, bits), *(
        value for node in nodes for value in suggested(node, symbol, now, narrow)))
    return iter(dict.fromkeys(value & (1 << bits) - 1 for value in values))


def _at_bounds(node, inputs) -> Iterator[Mapping[str, int]]:
    """Values of symbols that bring each sum or product in an expression to where it overflows."""
    values = {symbol: now for symbol, (now, _, _) in inputs.items()}
    solver = Solver(lambda symbol, value: (
        value if symbol in inputs and value < 1 << inputs[symbol][1] else None))
    for result, low in _cut(node):
        if symbols(result) <= values.keys():
            for bound in ((1 << low) - 1, 1 << low):
                wanted = Binary(1, "==", result, Const(result.width, bound))
                yield from islice(solver.solve(wanted, 1, values), BOUND_SOLUTIONS)


def _cut(node) -> Iterator[tuple[Expression, int]]:
    """Sums and products in an expression of which it reads the bits from the given one on."""
    match node:
        case Slice(_, Binary(_, "+" | "-" | "*", _, _) as result, low):
            yield result, low
    for part in fields(node):
        if isinstance(child := getattr(node, part.name), Expression):
            yield from _cut(child)


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
            *vmwrites(symbol, value & (1 << bits) - 1, halves=halves),
            *place.moved(symbol, value & (1 << bits) - 1)]
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

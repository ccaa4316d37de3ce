"""Whether an expression can be 1 at all: by case distinction over the bits that it reads.

:func:`witness` fixes one input bit after the other and computes with what is known of each value
(:class:`Known`), so a comparison is mostly decided long before all its bits are. It always ends;
how soon depends on the expression, and a limit stops it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .expression import (
    Binary,
    Const,
    Expression,
    Extend,
    Invert,
    Member,
    Mux,
    Slice,
    Symbol,
)

__all__ = ["Known", "Undecided", "example", "know", "known_bits", "witness"]


class Undecided(Exception):
    """The limit of cases was reached."""


@dataclass(slots=True)
class Known:
    """What is known of a value: the bits of ``mask``, and that it is at least and at most this."""
    width: int
    mask: int
    bits: int
    least: int
    most: int

    @property
    def unknown(self) -> int:
        return (1 << self.width) - 1 & ~self.mask


def known_bits(width: int, mask: int, bits: int) -> Known:
    """What is known of a value whose bits of ``mask`` are those of ``bits``, others of which are 0.
    """
    return Known(width, mask, bits, bits, bits | (1 << width) - 1 & ~mask)


def _between(width: int, least: int, most: int) -> Known:
    mask = (1 << width) - 1 & ~((1 << (least ^ most).bit_length()) - 1)  # their leading bits
    return Known(width, mask, least & mask, least, most)


def witness(
    expression: Expression, limit: int = 20_000, inputs: Mapping[str, Known] = {},
) -> dict[str, int] | None:
    """Values of symbols with which a one-bit expression is 1, or None if there are none.

    Parameters and exception are those of :func:`example`.
    """
    case = example(expression, limit, inputs)
    return None if case is None else {name: known.bits for name, known in case.items()}


def example(
    expression: Expression, limit: int = 20_000, inputs: Mapping[str, Known] = {},
) -> dict[str, Known] | None:
    """Bits of symbols with which a one-bit expression is 1 whatever the others are, None if none.

    Parameters
    ----------
    expression : Expression
        Bound to a processor, at least as far as its address rules go.
    limit : int
        Cases after which it gives up.
    inputs : mapping of str to Known
        What is known of symbols from the start; :func:`known_bits` makes it.

    Raises
    ------
    :exc:`Undecided`
        After ``limit`` cases.
    """
    cases, open_cases = 0, [dict(inputs)]
    while open_cases:
        case = open_cases.pop()
        cases += 1
        if cases > limit:
            raise Undecided(f"{limit} cases were not enough")
        result = know(expression, case)
        if result.mask:
            if result.bits:
                return case
            continue
        symbol, bit = _undecided_bit(expression, 1, case)
        known = case.get(symbol.name, known_bits(symbol.width, 0, 0))
        for value in (bit, 0):
            open_cases.append(case | {
                symbol.name: known_bits(symbol.width, known.mask | bit, known.bits | value)})
    return None


def know(node: Expression, inputs: Mapping[str, Known]) -> Known:
    """What is known of a value if this is known of the inputs; nothing is known of others."""
    width, ones = node.width, (1 << node.width) - 1
    match node:
        case Const(_, value):
            return known_bits(width, ones, value)
        case Symbol(_, name):
            return inputs.get(name, known_bits(width, 0, 0))
        case Slice(_, value, low):
            value = know(value, inputs)
            known = known_bits(width, value.mask >> low & ones, value.bits >> low & ones)
            if low + width < value.width:
                return known
            return replace(known, least=max(known.least, value.least >> low),
                           most=min(known.most, value.most >> low))
        case Extend(_, value):
            value = know(value, inputs)
            mask = value.mask | ones & ~((1 << value.width) - 1)
            return replace(value, width=width, mask=mask)
        case Invert(_, value):
            value = know(value, inputs)
            return known_bits(width, value.mask, ~value.bits & value.mask)
        case Mux(_, condition, yes, no):
            condition = know(condition, inputs)
            if condition.mask:
                return know(yes if condition.bits else no, inputs)
            a, b = know(yes, inputs), know(no, inputs)
            mask = a.mask & b.mask & ~(a.bits ^ b.bits)
            return known_bits(width, mask, a.bits & mask)
        case Member(_, value, numbers):
            value = know(value, inputs)
            possible = [number for number in numbers if number & value.mask == value.bits]
            return _truth(not value.unknown and bool(possible), not possible)
        case Binary(_, operator, left, right):
            return _binary(operator, width, know(left, inputs), know(right, inputs))
    raise TypeError(f"{node!r} is not bound to a processor")


def _truth(true, false):
    return known_bits(1, int(true or false), int(true))


def _binary(operator, width, a, b):
    both = a.mask & b.mask
    match operator:
        case "&":
            zero = a.mask & ~a.bits | b.mask & ~b.bits
            return known_bits(width, zero | a.bits & b.bits, a.bits & b.bits)
        case "|":
            zero = a.mask & ~a.bits & b.mask & ~b.bits
            return known_bits(width, zero | a.bits | b.bits, a.bits | b.bits)
        case "^":
            return known_bits(width, both, (a.bits ^ b.bits) & both)
        case "==" | "!=":
            differ = bool((a.bits ^ b.bits) & both) or a.most < b.least or b.most < a.least
            same = not differ and not a.unknown and not b.unknown
            return _truth(same, differ) if operator == "==" else _truth(differ, same)
        case "<":
            return _truth(a.most < b.least, a.least >= b.most)
        case "<=":
            return _truth(a.most <= b.least, a.least > b.most)
        case "<<":
            places = b.bits
            return known_bits(width, a.mask << places | (1 << places) - 1, a.bits << places)
        case ">>" if not b.unknown:
            ones = (1 << width) - 1
            return known_bits(width, a.mask >> b.bits | ones & ~(ones >> b.bits), a.bits >> b.bits)
        case "+":
            return _between(width, a.least + b.least, a.most + b.most)
        case "*":
            return _between(width, a.least * b.least, a.most * b.most)
        case "-" if a.least >= b.most:
            return _between(width, a.least - b.most, a.most - b.least)
        case "-" if not a.unknown and not b.unknown:
            return known_bits(width, (1 << width) - 1, a.bits - b.bits & (1 << width) - 1)
    return known_bits(width, 0, 0)


def _undecided_bit(node, wanted, inputs):
    """An unknown input bit that some unknown bits of a value, those of ``wanted``, depend on."""
    match node:
        case Symbol():
            unknown = wanted & ~inputs.get(node.name, known_bits(node.width, 0, 0)).mask
            return node, 1 << unknown.bit_length() - 1
        case Slice(_, value, low):
            return _undecided_bit(value, wanted << low, inputs)
        case Mux(_, condition, yes, no):
            known = know(condition, inputs)
            if not known.mask:
                return _undecided_bit(condition, 1, inputs)
            return _undecided_bit(yes if known.bits else no, wanted, inputs)
        case Binary(_, ">>", left, right):
            places = know(right, inputs)
            if not places.unknown:  # else nothing that is known of the left side helps
                return _undecided_bit(left, wanted << places.bits, inputs)
            parts = ((right, -1),)
        case Binary(_, "&" | "|" | "^", left, right):
            parts = ((left, wanted), (right, wanted))
        case Binary(_, _, left, right):
            parts = ((left, -1), (right, -1))
        case Member(_, value, _):
            parts = ((value, -1),)
        case Invert(_, value) | Extend(_, value):
            parts = ((value, wanted),)
    for part, of_it in parts:
        unknown = know(part, inputs).unknown & of_it
        if unknown:
            return _undecided_bit(part, unknown, inputs)
    raise AssertionError(f"nothing is unknown in {node!r}")

"""Assignments that give an expression the value one asks for: small steps from a known state.

The entry checks are conjunctions of comparisons of bit fields, so a value that makes one fail, or
hold again, can be read off its tree: a bit of a slice inverted, a bound and its neighbours, a
member of a set and what lies beside it. :class:`Solver` yields such steps, the simplest first. It
is not complete: it misses solutions that change a symbol for two parts of an expression at once.
Everything it yields has been evaluated.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from vmxswitch.spec.expression import (
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

__all__ = ["Changes", "Solver", "distance", "evaluate"]

Changes = dict[str, int]  #: new values of some symbols

OTHER_SIDE = 16  # solutions of one side looked at for each of the other, where both must change
NEGATION = {"==": "!=", "!=": "==", "<": "<=", "<=": "<"}  # of the last two with sides exchanged


def evaluate(expression: Expression, values: Mapping[str, int]) -> int:
    """The value of a bound expression, as ``to_function`` computes it, without compiling it."""
    ones = (1 << expression.width) - 1
    match expression:
        case Const(_, value):
            return value
        case Symbol(_, name):
            return values[name]
        case Slice(_, value, low):
            return evaluate(value, values) >> low & ones
        case Invert(_, value):
            return evaluate(value, values) ^ ones
        case Extend(_, value):
            return evaluate(value, values)
        case Member(_, value, numbers):
            return int(evaluate(value, values) in numbers)
        case Mux(_, condition, yes, no):
            return evaluate(yes if evaluate(condition, values) else no, values)
        case Binary(_, operator, left, right):
            return _BINARY[operator](evaluate(left, values), evaluate(right, values)) & ones
    raise TypeError(f"{expression!r} is not bound to a processor")


_BINARY = {
    "&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b,
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "<<": lambda a, b: a << b, ">>": lambda a, b: a >> b,
    "==": lambda a, b: int(a == b), "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b), "<=": lambda a, b: int(a <= b),
}


class Solver:
    """Finds small changes of symbols that give expressions wanted values.

    Parameters
    ----------
    settle : callable
        ``settle(symbol, value)``: the value that the symbol gets where one asks for ``value``; None
        if there is none near it.
    """

    def __init__(self, settle: Callable[[str, int], int | None]):
        self._settle = settle

    def solve(
        self, expression: Expression, target: int, values: Mapping[str, int],
    ) -> Iterator[Changes]:
        """Yield changes of ``values`` that make a one-bit expression ``target`` (0 or 1).

        No change at all, ``{}``, is the only solution where the expression has the value already.
        """
        if evaluate(expression, values) == target:
            yield {}
            return
        for changes in self._solve(expression, target, values):
            if evaluate(expression, {**values, **changes}) == target:
                yield changes

    def _solve(self, node, target, values):
        match node:
            case Invert(_, value):
                yield from self.solve(value, 1 - target, values)
            case Binary(1, "&" | "|" as operator, left, right):
                if target == (operator == "&"):
                    yield from self._both(left, right, target, values)
                else:
                    yield from self.solve(left, target, values)
                    yield from self.solve(right, target, values)
            case Binary(_, "==" | "!=" | "<" | "<=" as operator, left, right):
                yield from self._compare(operator, left, right, target, values)
            case Binary(1, "^", left, right):
                yield from self._compare("!=", left, right, target, values)
            case Member(_, value, numbers):
                now = evaluate(value, values)
                if target:
                    wanted = sorted(numbers, key=lambda number: (distance(now, number), number))
                else:
                    wanted = [number for number in _beside(value.width, now)
                              if number not in numbers]
                for number in wanted:
                    yield from self._bits(value, number, values)
            case _:
                yield from self._bits(node, target, values)

    def _both(self, left, right, target, values):
        """Changes after which both sides have the value; either side may have to be put right."""
        for first, second in ((left, right), (right, left)):
            for one in self.solve(first, target, values):
                then = self.solve(second, target, {**values, **one})
                for two in islice(then, OTHER_SIDE) if one else then:
                    yield one | two

    def _compare(self, operator, left, right, target, values):
        if not target:
            if operator in ("<", "<="):
                left, right = right, left
            operator = NEGATION[operator]
        for side, other, step in ((left, right, -1), (right, left, 1)):
            if isinstance(side, Const):
                continue
            now, bound = evaluate(side, values), evaluate(other, values)
            match operator:
                case "==":
                    wanted = [bound]
                case "!=":
                    wanted = _beside(side.width, bound)
                case "<=":
                    wanted = [bound]
                case "<":
                    wanted = [bound + step, *(n for n in _beside(side.width, now)
                                              if (n < bound if step < 0 else n > bound))]
            for number in wanted:
                if 0 <= number < 1 << side.width:
                    yield from self._bits(side, number, values)

    def _bits(self, node, want, values, mask=None) -> Iterator[Changes]:
        """Changes that give the bits of ``mask`` (default: all) of a value the value ``want``."""
        ones = (1 << node.width) - 1
        mask = ones if mask is None else mask & ones
        if want & ~mask:
            return
        if evaluate(node, values) & mask == want:
            yield {}
            return
        match node:
            case Symbol(_, name):
                value = self._settle(name, values[name] & ~mask | want)
                if value is not None:
                    yield {name: value}
            case Slice(_, value, low):
                yield from self._bits(value, want << low, values, mask << low)
            case Extend(_, value):
                yield from self._bits(value, want, values, mask)
            case Invert(width, value) if width > 1:
                yield from self._bits(value, ~want & mask, values, mask)
            case Binary(_, "&" | "|" | "^" as operator, left, right) if node.width > 1:
                for side, other in ((left, right), (right, left)):
                    there = evaluate(other, values) & mask
                    if operator == "&" and not want & ~there:
                        yield from self._bits(side, want, values, there)
                    elif operator == "|" and not there & ~want:
                        yield from self._bits(side, want & ~there, values, mask & ~there)
                    elif operator == "^":
                        yield from self._bits(side, want ^ there, values, mask)
            case Binary(_, "<<", value, Const(_, places)):
                if not want & (1 << places) - 1:
                    yield from self._bits(value, want >> places, values, mask >> places)
            case Binary(_, "+" | "-" | "*", _, _):
                yield from self._arithmetic(node, want, values, mask)
            case Mux(_, condition, yes, no):
                chosen = evaluate(condition, values)
                for choice in (chosen, 1 - chosen):
                    for one in self.solve(condition, choice, values):
                        for two in self._bits(yes if choice else no, want, {**values, **one}, mask):
                            yield one | two
            case Invert() | Member() | Binary(1, "&" | "|" | "^" | "==" | "!=" | "<" | "<="):
                yield from self.solve(node, want, values)

    def _arithmetic(self, node, want, values, mask):
        """One operand changed so that the result has the wanted bits and, below, near ones."""
        a, b = evaluate(node.left, values), evaluate(node.right, values)
        below = evaluate(node, values) & (mask & -mask) - 1
        kept = (below & (1 << bits) - 1 for bits in (4, 0, 12, node.width))  # bits: for alignment
        for number in dict.fromkeys(want | bits for bits in kept):
            wanted = {
                "+": (number - b, number - a),
                "-": (number + b, a - number),
                "*": (number // b if b else -1, number // a if a else -1),
            }[node.operator]
            for operand, value in zip((node.left, node.right), wanted, strict=True):
                if 0 <= value < 1 << operand.width:
                    yield from self._bits(operand, value, values)


def distance(a: int, b: int) -> int:
    """Bits in which two numbers differ; 1 as well if they are one step apart."""
    return 1 if abs(a - b) == 1 else (a ^ b).bit_count()


def _beside(width, number):
    """Numbers one bit or one step from a number: lowest bit, highest bit, the others upwards."""
    order = dict.fromkeys([0, width - 1, *range(width)])
    near = [number ^ 1 << bit for bit in order] + [number + 1, number - 1]
    return [other for other in dict.fromkeys(near) if 0 <= other < 1 << width]

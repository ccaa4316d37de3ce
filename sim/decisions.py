"""The decisions in an expression, and when the value depends on one of them.

For each bit that is decided inside an expression there are two goals: the bit is 0, and it is 1,
where everything else is so that the value depends on it (modified condition/decision coverage). A
bit that a comparison with numbers decides has more: each number and those beside it.
"""

from collections.abc import Iterator
from dataclasses import fields
from functools import cache

from vmxswitch.spec.expression import (
    ALWAYS,
    NEVER,
    Binary,
    Const,
    Expression,
    Invert,
    Member,
    Mux,
    bind,
)

__all__ = ["decisions"]


def decisions(expression: Expression) -> Iterator[tuple[Expression, Expression]]:
    """Goals, which are one-bit expressions, each with the part of the expression it is about.

    A part that is wider than a bit has one goal: the value depends on it. No goal comes twice, and
    none that is constant 0.
    """
    seen = {NEVER}
    for goal, part in _goals(expression, ALWAYS):
        if goal not in seen:
            seen.add(goal)
            yield goal, part


def _goals(node, given):
    match node:
        case Mux(_, condition, yes, no):
            yield from _goals(condition, _both(given, bind(Binary(1, "!=", yes, no), {})))
            yield from _goals(yes, _both(given, condition))
            yield from _goals(no, _both(given, _not(condition)))
            return
        case Binary(1, "&" | "|" as operator, left, right):
            for part, other in ((left, right), (right, left)):
                yield from _goals(part, _both(given, other if operator == "&" else _not(other)))
            return
        case Invert(1, value):
            yield from _goals(value, given)
            return
    for value, number in _near(node):
        yield _both(given, bind(Binary(1, "==", value, number), {})), node
    if node.width > 1:
        yield given, node
    else:
        yield _both(given, node), node
        yield _both(given, _not(node)), node
    for part in _parts(node):
        if _decides(part):
            yield from _goals(part, given)


def _near(node):
    """What a comparison with numbers compares, with each number and those beside it."""
    match node:
        case Binary(_, "==" | "!=" | "<" | "<=", value, Const(width, number)):
            numbers = (number,)
        case Binary(_, "==" | "!=" | "<" | "<=", Const(width, number), value):
            numbers = (number,)
        case Member(_, value, numbers):
            width = value.width
        case _:
            return
    for number in dict.fromkeys(near for n in numbers for near in (n, n + 1, n - 1)):
        if 0 <= number < 1 << width:
            yield value, Const(width, number)


def _parts(node):
    return [part for field in fields(node)
            if isinstance(part := getattr(node, field.name), Expression)]


@cache
def _decides(node):
    """Whether a part of a value is itself the outcome of a decision."""
    return isinstance(node, Mux) or any(map(_decides, _parts(node)))


def _both(one, other):
    return bind(Binary(1, "&", one, other), {})


def _not(one):
    return bind(Invert(1, one), {})

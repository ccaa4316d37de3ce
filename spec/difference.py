"""Where two expressions differ, as an expression: 1 if they do.

What both have in common is taken out, so a change deep inside an expression gives a small one: what
leads to the place, and what is other there.
"""

from collections.abc import Iterator

from .expression import NEVER, Binary, Const, Expression, Extend, Invert, Mux, Slice, bind

__all__ = ["differences"]


def differences(one: Expression, other: Expression) -> Iterator[Expression]:
    """For each bit of two equally wide expressions that may differ: whether it does."""
    for number in range(one.width):
        differ = _differ(_bit(one, number), _bit(other, number))
        if differ != NEVER:
            yield differ


def _bit(node, number) -> Expression:
    """A bit of a value, as an expression of one bit as far as it goes."""
    match node:
        case Mux(_, condition, yes, no):
            return _folded(Mux(1, condition, _bit(yes, number), _bit(no, number)))
        case Binary(width, "&" | "|" | "^" as operator, left, right) if width > 1:
            return _folded(Binary(1, operator, _bit(left, number), _bit(right, number)))
        case Invert(_, value):
            return _folded(Invert(1, _bit(value, number)))
        case Extend(_, value):
            return _bit(value, number) if number < value.width else NEVER
        case Slice(_, value, low):
            return _bit(value, low + number)
    return _folded(Slice(1, node, number))


def _differ(one, other) -> Expression:
    """Whether two expressions of one bit differ."""
    if one == other:
        return NEVER
    match one, other:
        case (Const(_, value), rest) | (rest, Const(_, value)):
            return _folded(Invert(1, rest)) if value else rest
        case Invert(_, a), Invert(_, b):
            return _differ(a, b)
        case Mux(_, a, yes, no), Mux(_, b, other_yes, other_no):
            if a == b:
                return _folded(Mux(1, a, _differ(yes, other_yes), _differ(no, other_no)))
            if (yes, no) == (other_yes, other_no):
                return _folded(Binary(1, "&", _differ(a, b), _differ(yes, no)))
        case Binary(_, "&" | "|" as operator, _, _), Binary(_, same, _, _) if same == operator:
            for side, rest in (("left", "right"), ("right", "left")):
                if (common := getattr(one, side)) == getattr(other, side):
                    counts = common if operator == "&" else Invert(1, common)
                    return _folded(Binary(
                        1, "&", counts, _differ(getattr(one, rest), getattr(other, rest))))
    return _folded(Binary(1, "^", one, other))


def _folded(node):
    return bind(node, {})

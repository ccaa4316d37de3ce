"""Goals for the decisions in an expression."""

from dataclasses import fields, replace

import pytest

from vmxswitch.sim.decisions import decisions
from vmxswitch.sim.solver import evaluate
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.expression import Const, Expression, bind, symbols
from vmxswitch.spec.proof import witness
from vmxswitch.spec.tables import EXIT_REASONS, expression

NESTED = ("(LIVE_ACTIVITY == 3 if LIVE_RFLAGS[9] else LIVE_CR4[5] and not LIVE_CR0[31])"
          " or LIVE_INTERRUPTIBILITY[1:0] in {1, 2}")


def bound(text):
    return bind(expression(text, None), {})


def values_of(goal, whole):
    """Values with which a goal is 1, of all symbols of an expression."""
    return dict.fromkeys(symbols(whole), 0) | witness(goal)


def replaced(node, part, other):
    """The expression with another part in place of one."""
    if node == part:
        return other
    return replace(node, **{
        field.name: replaced(child, part, other) for field in fields(node)
        if isinstance(child := getattr(node, field.name), Expression)})


@pytest.mark.parametrize("whole", [
    bound(NESTED), bound("LIVE_CR0 if LIVE_RFLAGS[9] and LIVE_CR4[5] else HOST_CR0"),
    PRESETS["compact"].bind(EXIT_REASONS[7].condition)])
def test_where_a_goal_holds_the_value_depends_on_the_part(whole):
    goals = [(goal, part) for goal, part in decisions(whole) if part.width == 1]
    assert goals
    for goal, part in goals:
        values = values_of(goal, whole)
        other = Const(1, 1 - evaluate(part, values))
        assert evaluate(whole, values) != evaluate(replaced(whole, part, other), values)


def test_each_bit_that_is_decided_is_wanted_0_and_1():
    whole = bound(NESTED)
    wanted = {}
    for goal, part in decisions(whole):
        wanted.setdefault(part, set()).add(evaluate(part, values_of(goal, whole)))
    assert {*map(len, wanted.values())} == {2}
    assert len(wanted) == 5


def test_a_number_that_is_compared_with_is_wanted_with_those_beside_it():
    whole = bound("LIVE_ACTIVITY == 3 and LIVE_RFLAGS[9]")
    seen = {values_of(goal, whole)["LIVE_ACTIVITY"] for goal, part in decisions(whole)
            if "LIVE_ACTIVITY" in symbols(part)}
    assert seen >= {2, 3, 4}


def test_no_goal_comes_twice_and_none_is_impossible_by_itself():
    goals = [goal for goal, _ in decisions(bound("LIVE_CR0[0] and LIVE_CR0[0]"))]
    assert len(goals) == len({*goals}) and Const(1, 0) not in goals


def test_a_wide_part_has_a_goal_that_it_is_the_value():
    whole = bound("LIVE_CR0 if LIVE_RFLAGS[9] else HOST_CR0")
    goal, = (goal for goal, part in decisions(whole) if part == bound("HOST_CR0"))
    assert evaluate(goal, {"LIVE_RFLAGS": 0}) == 1
    assert evaluate(goal, {"LIVE_RFLAGS": 1 << 9}) == 0

"""Expressions of where two expressions differ."""

import random

import pytest

from vmxswitch.spec.difference import differences
from vmxswitch.spec.expression import bind, symbols, to_function
from vmxswitch.spec.tables import SYMBOL_WIDTHS, expression

PAIRS = [
    ("LIVE_RFLAGS[9]", "LIVE_RFLAGS[10]"),
    ("LIVE_CR0 & 0xFF", "LIVE_CR0 & 0xFE"),
    ("LIVE_CR0 if LIVE_RFLAGS[9] else HOST_CR0", "LIVE_CR0 if LIVE_RFLAGS[8] else HOST_CR0"),
    ("LIVE_CR0 if LIVE_RFLAGS[9] else HOST_CR0", "LIVE_CR3 if LIVE_RFLAGS[9] else HOST_CR0"),
    ("LIVE_CR0 if LIVE_RFLAGS[9] else HOST_CR0", "LIVE_CR3 if LIVE_RFLAGS[8] else HOST_CR3"),
    ("LIVE_RFLAGS[9] and LIVE_ACTIVITY == 3", "LIVE_RFLAGS[9] and LIVE_ACTIVITY == 4"),
    ("LIVE_RFLAGS[9] or LIVE_ACTIVITY < 3", "LIVE_RFLAGS[9] or LIVE_ACTIVITY <= 3"),
    ("LIVE_RFLAGS[9] and LIVE_CR4[5]", "LIVE_RFLAGS[8] and LIVE_CR4[6]"),
    ("not (LIVE_RFLAGS[9] or LIVE_CR4[5])", "not (LIVE_RFLAGS[9] or LIVE_CR4[6])"),
    ("(LIVE_CR0 | LIVE_CR3)[11:4]", "(LIVE_CR0 | LIVE_CR3)[12:5]"),
    ("zext(LIVE_CR0[7:0], 32) | 0x100", "zext(LIVE_CR0[8:1], 32) | 0x100"),
    ("(LIVE_CR0 ^ LIVE_CR3) & ~LIVE_CR4", "(LIVE_CR0 ^ LIVE_CR4) & ~LIVE_CR4"),
]


def bound(text):
    return bind(expression(text, None), {})


@pytest.mark.parametrize("one, other", PAIRS)
def test_some_difference_holds_where_the_values_differ_and_nowhere_else(one, other):
    one, other = bound(one), bound(other)
    differ = [to_function(each) for each in differences(one, other)]
    first, second = to_function(one), to_function(other)
    chance, seen = random.Random(1), set()
    for _ in range(200):
        values = {
            name: chance.choice((chance.randrange(6), chance.getrandbits(SYMBOL_WIDTHS[name])))
            for name in sorted(symbols(one) | symbols(other))}
        seen.add(first(values) != second(values))
        assert any(each(values) for each in differ) == (first(values) != second(values)), values
    assert seen == {True, False}


def test_equal_expressions_have_no_difference():
    assert [*differences(bound("LIVE_CR0 | LIVE_CR3"), bound("LIVE_CR0 | LIVE_CR3"))] == []


def test_a_bit_that_cannot_differ_has_no_difference():
    differ, = differences(bound("LIVE_CR0 & 0xFF"), bound("LIVE_CR0 & 0xFE"))
    assert differ == bound("LIVE_CR0[0]")


def test_what_both_have_in_common_is_taken_out():
    """Of the branch that is not taken, and of the other side of a disjunction, nothing is left."""
    text = ("(LIVE_CR3 == HOST_CR3 or LIVE_ACTIVITY == {})"
            " if LIVE_RFLAGS[9] else LIVE_CR4 < HOST_CR4")
    differ, = differences(bound(text.format(2)), bound(text.format(3)))
    assert not symbols(differ) & {"LIVE_CR4", "HOST_CR4"}

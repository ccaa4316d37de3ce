"""Steps that give an expression a value, and proofs that there are none."""

from itertools import product
from random import Random

import pytest

from vmxswitch.sim.solver import Solver, distance, evaluate
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.expression import Binary, Invert, parse, symbols, to_function
from vmxswitch.spec.proof import Undecided, example, witness
from vmxswitch.spec.tables import SYMBOL_WIDTHS

SCOPE = {"a": 4, "b": 4, "c": 1}
EXPRESSIONS = [
    "a == 3", "a != b", "a < b", "a <= 5 and b[0] == 1", "a in {1, 4, 9}", "a not in {0, 15}",
    "a[3:2] == b[1:0]", "(a & 6) == 4", "(~a & 5) == 0", "(a if c else b) == 7",
    "(a << 2) == 20", "a + b == 9", "a - b == 3", "a * 2 == 12", "(a | b) == 15",
    "(a ^ b) == 0", "c and not (a[0] == b[0])", "(a[0] ^ b[0]) == 1", "zext(a, 6) == 9",
    "implies(c, a == b)", "(a + 4 * b)[6:4] == 0", "a <= b <= 9",
]
IMPOSSIBLE = ["a == 3 and a == 5", "a < b and b < a", "a[0] and (a & 1) == 0", "a + b == 31",
              "c and not c", "a in {1, 2} and a in {4, 8}", "(a << 1)[0]", "(a >> b) > a"]


def any_value(symbol, value):
    return value


def values_of(text):
    expression = parse(text, SCOPE, {}, 1)
    for a, b, c in product(range(16), range(16), range(2)):
        yield expression, {"a": a, "b": b, "c": c}


@pytest.mark.parametrize("text", [*EXPRESSIONS, *IMPOSSIBLE])
def test_evaluation_is_that_of_the_compiled_function(text):
    function = None
    for expression, values in values_of(text):
        function = function or to_function(expression)
        assert evaluate(expression, values) == int(bool(function(values)))


@pytest.mark.parametrize("name", PRESETS)
def test_evaluation_of_every_check_is_that_of_the_compiled_function(name):
    random = Random(1)
    for check in PRESETS[name].checks.values():
        function = to_function(check.fails)
        for bits in (0.02, 0.5, 0.98):
            values = {
                symbol: sum((random.random() < bits) << bit for bit in range(SYMBOL_WIDTHS[symbol]))
                for symbol in sorted(symbols(check.fails))}
            assert evaluate(check.fails, values) == int(bool(function(values))), check.id


@pytest.mark.parametrize("text", EXPRESSIONS)
@pytest.mark.parametrize("target", [0, 1])
def test_a_step_leads_to_the_value_wanted(text, target):
    solver = Solver(any_value)
    solved = 0
    for expression, values in values_of(text):
        steps = list(solver.solve(expression, target, values))
        solved += bool(steps)
        for step in steps:
            assert evaluate(expression, {**values, **step}) == target
        if evaluate(expression, values) == target:
            assert steps == [{}]
    assert solved > 256  # from most states


def test_a_step_keeps_to_what_a_symbol_may_be():
    expression = parse("a == b", SCOPE, {}, 1)
    solver = Solver(lambda symbol, value: value if symbol == "a" else None)
    assert list(solver.solve(expression, 1, {"a": 1, "b": 2})) == [{"a": 2}]


def test_the_lowest_and_highest_bit_come_first():
    expression = parse("a == 0", SCOPE, {}, 1)
    steps = Solver(any_value).solve(expression, 0, {"a": 0})
    assert [step["a"] for step in steps] == [1, 8, 2, 4]


@pytest.mark.parametrize("a, b, bits", [(5, 5, 0), (4, 5, 1), (7, 8, 1), (0, 3, 2), (15, 0, 4)])
def test_distance_counts_bits_and_a_step_as_one(a, b, bits):
    assert distance(a, b) == bits


@pytest.mark.parametrize("text", [*EXPRESSIONS, *IMPOSSIBLE])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_witness_is_there_exactly_if_some_values_do(text, inverted):
    expression = parse(text, SCOPE, {}, 1)
    if inverted:
        expression = Invert(1, expression)
    found = witness(expression)
    if found is None:
        assert not any(evaluate(expression, values) for _, values in values_of(text))
    else:
        assert evaluate(expression, {"a": 0, "b": 0, "c": 0} | found) == 1


def test_a_sum_does_not_fall_back_below_a_bound_that_a_part_exceeds():
    scope = {"address": 64, "count": 32}
    above = parse("count != 0 and address[63:40] != 0", scope, {}, 1)
    inside = parse("(address + 16 * count - 1)[64:40] == 0", scope, {}, 1)
    assert witness(Binary(1, "&", above, inside)) is None


def test_what_tells_how_far_is_shifted_is_decided_first():
    scope = {"bitmap": 64, "number": 8}
    expression = parse("(bitmap >> number[5:0])[0] and number[5:0] == 14", scope, {}, 1)
    assert witness(expression, limit=100)["bitmap"] == 1 << 14


def test_bits_that_do_not_matter_are_not_in_an_example():
    found = example(parse("a[2:1] == 2", {"a": 8}, {}, 1))
    assert {name: (known.mask, known.bits) for name, known in found.items()} == {
        "a": (0b110, 0b100)}


def test_too_many_cases_are_refused():
    expression = parse("a + b == 9 and a == b", SCOPE, {}, 1)
    with pytest.raises(Undecided, match="3 cases were not enough"):
        witness(expression, limit=3)
    assert witness(expression) is None

# amaranth: UnusedElaboratable=no
"""The two compilers of the expression language agree on every expression of the tables."""

import random

import pytest
from amaranth.hdl import Module, Signal

from vmxswitch.hdl.expression import lower
from vmxswitch.spec.expression import ExpressionError, symbols, to_function
from vmxswitch.spec.tables import (
    EXIT_INFORMATION,
    EXIT_REASONS,
    INSTRUCTIONS,
    SYMBOL_WIDTHS,
    expression,
)

VECTORS = 40


def expressions(capabilities):
    """Every expression of the tables, bound to a processor, by a name."""
    for check in capabilities.checks.values():
        yield check.id, check.fails
    for name, row in capabilities.registers.items():
        for column in ("entry", "save", "exit"):
            value = getattr(row, column)
            if value is not None:
                yield f"{name}.{column}", capabilities.bind(value)
    for rows in INSTRUCTIONS.values():
        for row in rows:
            yield row.id, capabilities.bind(row.condition)
    for row in EXIT_REASONS.values():
        if row.condition is not None:
            yield row.symbol, capabilities.bind(row.condition)
    for row in EXIT_INFORMATION.values():
        yield row.field, capabilities.bind(row.value)


def interesting(generator, width):
    """A value that conditions are likely to tell apart: few bits, edges of fields, any."""
    ones = (1 << width) - 1
    bit = 1 << generator.randrange(width)
    return generator.choice([
        0, ones, bit, bit - 1, ones ^ bit, ones ^ (bit - 1), generator.getrandbits(width)])


def test_hardware_computes_what_the_function_computes(simulate, preset):
    generator = random.Random(1)
    table = dict(expressions(preset))
    names = sorted(set().union(*map(symbols, table.values())))
    widths = SYMBOL_WIDTHS | {name: preset.bits(row) for name, row in preset.fields.items()} | {
        row.symbol: preset.bits(row) for row in preset.registers.values()}
    inputs = {name: Signal(widths[name], name=name) for name in names}
    outputs = {name: Signal(row.width, name=f"out_{n}")
               for n, (name, row) in enumerate(table.items())}
    m = Module()
    for name, row in table.items():
        m.d.comb += outputs[name].eq(lower(row, inputs))
    m.d.sync += Signal().eq(0)
    functions = {name: to_function(row) for name, row in table.items()}
    seen = {name: set() for name in table}

    async def testbench(ctx):
        for _ in range(VECTORS):
            values = {name: interesting(generator, len(inputs[name])) for name in names}
            for name, value in values.items():
                ctx.set(inputs[name], value)
            await ctx.delay(1e-9)
            for name, function in functions.items():
                expected = function(values)
                assert ctx.get(outputs[name]) == expected, (name, values)
                seen[name].add(expected)

    simulate(m, testbench)
    assert sum(len(values) > 1 for values in seen.values()) > len(seen) // 2


@pytest.mark.parametrize(("text", "width", "values", "result"), [
    ("GUEST_CR3 - 1", 64, {"GUEST_CR3": 0}, (1 << 64) - 1),
    ("TPR_THRESHOLD * VPID == 6", 1, {"TPR_THRESHOLD": 2, "VPID": 3}, 1),
    ("VPID << 4", 20, {"VPID": 0xFFFF}, 0xFFFF0),
    ("VPID ^ 0xFF", 16, {"VPID": 0xF0}, 0x0F),
    ("VPID < 3", 1, {"VPID": 2}, 1), ("VPID > 3", 1, {"VPID": 4}, 1),
    ("3 if VPID == 1 else 5", 8, {"VPID": 2}, 5),
])
def test_nodes(simulate, text, width, values, result):
    inputs = {name: Signal(SYMBOL_WIDTHS[name]) for name in values}
    output = Signal(64)
    m = Module()
    m.d.comb += output.eq(lower(expression(text, width), inputs))
    m.d.sync += Signal().eq(0)

    async def testbench(ctx):
        for name, value in values.items():
            ctx.set(inputs[name], value)
        await ctx.delay(1e-9)
        assert ctx.get(output) == result

    simulate(m, testbench)


def test_a_signal_of_another_width_is_refused():
    with pytest.raises(ValueError, match="VPID: 15 bits, not 16"):
        lower(expression("VPID == 0"), {"VPID": Signal(15)})


def test_an_unbound_address_rule_is_refused():
    with pytest.raises(TypeError, match="not a bound expression"):
        lower(expression("CANON(GUEST_RIP)"), {"GUEST_RIP": Signal(64)})
    with pytest.raises(ExpressionError, match="must be bound"):
        to_function(expression("CANON(GUEST_RIP)"))

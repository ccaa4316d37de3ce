# amaranth: UnusedElaboratable=no
"""The watchdog; transfers themselves are tested in the whole unit."""

import pytest

from vmxswitch.hdl.memory_unit import Command, MemoryUnit
from vmxswitch.spec.capabilities import PRESETS

COMPACT = PRESETS["compact"]


async def until_done(ctx, dut, answer_after):
    """Carry out a READ that memory answers after so many cycles; its error and the cycles."""
    ctx.set(dut.command, Command.READ)
    ctx.set(dut.start, 1)
    cycles = waited = 0
    while not ctx.get(dut.done):
        waited += ctx.get(dut.bus.stb)
        ctx.set(dut.bus.ack, waited > answer_after)
        await ctx.tick()
        cycles += 1
    ctx.set(dut.bus.ack, 0)
    error = ctx.get(dut.error)
    ctx.set(dut.start, 0)
    await ctx.tick()
    return error, cycles


@pytest.mark.parametrize("timeout", [1, 4, 5])
def test_a_transfer_may_take_as_long_as_the_timeout_and_no_longer(simulate, timeout):
    dut = MemoryUnit(COMPACT, timeout_cyc=timeout)

    async def testbench(ctx):
        for late in range(timeout):
            assert await until_done(ctx, dut, late) == (0, late + 2)
        assert await until_done(ctx, dut, timeout) == (1, timeout + 1)
        assert not ctx.get(dut.bus.cyc)
        assert await until_done(ctx, dut, 0) == (0, 2)

    simulate(dut, testbench)


@pytest.mark.parametrize("timeout", [0, -1, 1.5, None])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(ValueError, match=f"timeout of 1 cycle or more, not {timeout!r}"):
        MemoryUnit(COMPACT, timeout_cyc=timeout)

# amaranth: UnusedElaboratable=no
"""The watchdog of the memory unit; transfers are tested in the whole unit."""

import pytest

from vmxswitch.hdl.memory_unit import Command, MemoryUnit
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec.capabilities import PRESETS

COMPACT = PRESETS["compact"]
TIMEOUT_CYC = 5


async def read(ctx, dut, answer):
    """Carry out a READ that memory answers in the cycle ``answer`` of its transfer, or never.

    Returns in how many cycles ``cyc`` was high, and ``error``.
    """
    ctx.set(dut.command, Command.READ)
    ctx.set(dut.start, 1)
    high = 0
    while not ctx.get(dut.done):
        await ctx.tick()
        ctx.set(dut.bus.ack, 0)
        if ctx.get(dut.bus.cyc):
            ctx.set(dut.bus.ack, int(high == answer))
            ctx.set(dut.bus.dat_r, 0x55 + high)
            high += 1
    ctx.set(dut.start, 0)
    error = ctx.get(dut.error)
    await ctx.tick()
    return high, error


@pytest.mark.parametrize("answer, cycles, error", [
    (0, 1, 0), (TIMEOUT_CYC - 1, TIMEOUT_CYC, 0), (TIMEOUT_CYC, TIMEOUT_CYC, 1),
])
def test_a_transfer_without_an_answer_ends_as_an_error(simulate, answer, cycles, error):
    dut = MemoryUnit(COMPACT, timeout_cyc=TIMEOUT_CYC)

    async def testbench(ctx):
        assert await read(ctx, dut, answer) == (cycles, error)
        assert not ctx.get(dut.bus.cyc)
        assert not ctx.get(dut.busy)

    simulate(dut, testbench)


def test_an_answer_that_comes_too_late_is_not_looked_at(simulate):
    dut = MemoryUnit(COMPACT, timeout_cyc=TIMEOUT_CYC)

    async def testbench(ctx):
        assert await read(ctx, dut, None) == (TIMEOUT_CYC, 1)
        ctx.set(dut.bus.ack, 1)
        ctx.set(dut.bus.dat_r, 0x66)
        await ctx.tick()
        ctx.set(dut.bus.ack, 0)
        assert not ctx.get(dut.word)
        assert await read(ctx, dut, 2) == (3, 0)
        assert ctx.get(dut.word) == 0x57

    simulate(dut, testbench)


@pytest.mark.parametrize("unit", [MemoryUnit, VmxUnit])
@pytest.mark.parametrize("wrong", [0, -1, None, 2.5])
def test_a_timeout_that_is_no_number_of_cycles_is_refused(unit, wrong):
    with pytest.raises(ValueError, match=f"a number of cycles from 1, not {wrong!r}"):
        unit(COMPACT, timeout_cyc=wrong)

# amaranth: UnusedElaboratable=no
import pytest

from vmxswitch.hdl.mode_controller import ModeController
from vmxswitch.spec.operations import EDGES, Mode, Transition

REACH = {
    Mode.OFF: [], Mode.ROOT: [Transition.VMXON],
    Mode.NON_ROOT: [Transition.VMXON, Transition.ENTRY],
    Mode.ABORT: [Transition.VMXON, Transition.ABORT],
}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("transition", Transition)
def test_every_pair_follows_the_edge_table(simulate, mode, transition):
    dut = ModeController()

    async def testbench(ctx):
        for step in REACH[mode]:
            ctx.set(dut.transition, step)
            ctx.set(dut.strobe, 1)
            await ctx.tick()
        assert ctx.get(dut.mode) == mode
        ctx.set(dut.transition, transition)
        ctx.set(dut.strobe, 1)
        assert ctx.get(dut.refused) == ((mode, transition) not in EDGES)
        await ctx.tick()
        assert ctx.get(dut.mode) == EDGES.get((mode, transition), mode)

    simulate(dut, testbench)


def test_mode_stays_without_a_strobe(simulate):
    dut = ModeController()

    async def testbench(ctx):
        ctx.set(dut.transition, Transition.VMXON)
        await ctx.tick().repeat(3)
        assert ctx.get(dut.mode) == Mode.OFF
        assert not ctx.get(dut.refused)

    simulate(dut, testbench)

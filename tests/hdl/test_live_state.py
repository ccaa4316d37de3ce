# amaranth: UnusedElaboratable=no
import pytest

from vmxswitch.hdl.live_state import LiveState


def test_commit_replaces_every_register_at_one_edge(simulate, preset):
    dut = LiveState(preset)
    new = {name: 0x1234_5678_9ABC_DEF1 & (1 << preset.bits(row)) - 1
           for name, row in preset.registers.items()}

    async def testbench(ctx):
        ctx.set(dut.next, new)
        await ctx.tick().repeat(2)
        assert all(ctx.get(dut.live[name]) == 0 for name in new)
        ctx.set(dut.commit, 1)
        assert ctx.get(dut.changing)
        await ctx.tick()
        assert {name: ctx.get(dut.live[name]) for name in new} == new

    simulate(dut, testbench)


def test_update_writes_one_register_cut_to_its_width(simulate, preset):
    dut = LiveState(preset)

    async def testbench(ctx):
        ctx.set(dut.update_en, 1)
        for number, (name, row) in enumerate(preset.registers.items()):
            ctx.set(dut.updates.payload, {"register": number, "value": (1 << 64) - 1 - number})
            ctx.set(dut.updates.valid, 1)
            before = {other: ctx.get(dut.live[other]) for other in preset.registers}
            await ctx.tick()
            after = {other: ctx.get(dut.live[other]) for other in preset.registers}
            assert after == before | {name: (1 << 64) - 1 - number & (1 << preset.bits(row)) - 1}

    simulate(dut, testbench)


@pytest.mark.parametrize("commit", [0, 1])
def test_update_waits_while_disabled(simulate, preset, commit):
    dut = LiveState(preset)

    async def testbench(ctx):
        ctx.set(dut.updates.payload, {"register": 0, "value": 7})
        ctx.set(dut.updates.valid, 1)
        ctx.set(dut.update_en, 0)
        ctx.set(dut.commit, commit)
        assert not ctx.get(dut.updates.ready)
        await ctx.tick()
        assert ctx.get(dut.live.RIP) == 0
        ctx.set(dut.update_en, 1)
        ctx.set(dut.commit, 0)
        await ctx.tick()
        assert ctx.get(dut.live.RIP) == 7

    simulate(dut, testbench)

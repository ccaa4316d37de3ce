# amaranth: UnusedElaboratable=no
"""A small memory with large addresses."""

import pytest

from vmxswitch.hdl.sparse_memory import SparseMemory

FRAMES, FRAME_WORDS = 3, 8
FRAME_BYTES = 8 * FRAME_WORDS


@pytest.fixture
def dut():
    return SparseMemory(40, frames=FRAMES, frame_words=FRAME_WORDS)


async def access(ctx, bus, address, data=None, sel=0xFF, taken=None):
    """One transfer; what was read, or None if it ended in an error. ``taken``: cycles are added."""
    ctx.set(bus.adr, address >> 3)
    ctx.set(bus.we, int(data is not None))
    ctx.set(bus.dat_w, data or 0)
    ctx.set(bus.sel, sel)
    ctx.set(bus.cyc, 1)
    ctx.set(bus.stb, 1)
    cycles = 1
    while not (ctx.get(bus.ack) or ctx.get(bus.err)):
        await ctx.tick()
        cycles += 1
    if taken is not None:
        taken.append(cycles)
    result = None if ctx.get(bus.err) else ctx.get(bus.dat_r)
    await ctx.tick()
    ctx.set(bus.cyc, 0)
    ctx.set(bus.stb, 0)
    return result


def test_all_is_zero_at_first_and_takes_no_frame(simulate, dut):
    async def testbench(ctx):
        for address in (0, 0x12_3456_7000, (1 << 40) - 8):
            assert await access(ctx, dut.unit, address) == 0
        assert ctx.get(dut.used) == 0
    simulate(dut, testbench)


def test_what_is_written_is_read_by_both(simulate, dut):
    places = {0x00_0000_0040: 11, 0x12_3456_7000: 22, (1 << 40) - 8: 33}

    async def testbench(ctx):
        for address, value in places.items():
            await access(ctx, dut.unit, address, value)
        for address, value in places.items():
            assert await access(ctx, dut.host, address) == value
            assert await access(ctx, dut.unit, address) == value
            assert await access(ctx, dut.unit, address ^ 8) == 0
        assert ctx.get(dut.used) == len(places)
    simulate(dut, testbench)


def test_another_frame_costs_one_cycle_for_each_that_is_passed(simulate, dut):
    async def testbench(ctx):
        for frame in range(FRAMES):
            await access(ctx, dut.unit, frame * FRAME_BYTES, 7)
        taken = []
        for frame in (2, 2, 0, 0, 2, 1):
            await access(ctx, dut.unit, frame * FRAME_BYTES, taken=taken)
        assert taken == [3, 3, 4, 3, 5, 5]
    simulate(dut, testbench)


def test_halves_are_written_alone(simulate, dut):
    async def testbench(ctx):
        await access(ctx, dut.host, 0x40, 0x1111_1111_2222_2222)
        await access(ctx, dut.host, 0x40, 0x3333_3333_4444_4444, sel=0xF0)
        assert await access(ctx, dut.host, 0x40) == 0x3333_3333_2222_2222
        await access(ctx, dut.host, 0x40, 0x5555_5555_6666_6666, sel=0x0F)
        assert await access(ctx, dut.host, 0x40) == 0x3333_3333_6666_6666
    simulate(dut, testbench)


def test_a_write_without_a_free_frame_is_an_error(simulate, dut):
    async def testbench(ctx):
        for frame in range(FRAMES):
            assert await access(ctx, dut.unit, frame * FRAME_BYTES, 7) is not None
        assert not ctx.get(dut.full)
        assert await access(ctx, dut.unit, FRAMES * FRAME_BYTES, 8) is None
        assert ctx.get(dut.full)
        assert await access(ctx, dut.unit, FRAMES * FRAME_BYTES) == 0
        assert await access(ctx, dut.unit, FRAME_BYTES) == 7
    simulate(dut, testbench)


def test_an_address_beyond_the_width_reads_as_zero_and_is_not_written(simulate, dut):
    async def testbench(ctx):
        await access(ctx, dut.unit, 0, 7)
        assert await access(ctx, dut.unit, 1 << 40) == 0
        assert await access(ctx, dut.unit, 1 << 40, 8) is None
        assert await access(ctx, dut.unit, 0) == 7
    simulate(dut, testbench)


def test_clear_makes_everything_zero(simulate, dut):
    async def testbench(ctx):
        for frame in range(FRAMES + 1):
            await access(ctx, dut.unit, frame * FRAME_BYTES, 7)
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert ctx.get(dut.busy)
        assert await access(ctx, dut.unit, 8) == 0  # waits
        assert not ctx.get(dut.busy) and not ctx.get(dut.full) and ctx.get(dut.used) == 0
        await access(ctx, dut.unit, 8, 9)
        assert [await access(ctx, dut.unit, address) for address in (0, 8, 16)] == [0, 9, 0]
    simulate(dut, testbench)


def test_both_at_once_are_served_one_after_the_other(simulate, dut):
    done = []

    async def unit(ctx):
        await access(ctx, dut.unit, 0x40, 1)
        done.append("unit")

    async def host(ctx):
        await access(ctx, dut.host, 0x80, 2)
        done.append("host")
        assert await access(ctx, dut.host, 0x40) == 1
        assert await access(ctx, dut.host, 0x80) == 2

    simulate(dut, unit, host)
    assert done == ["unit", "host"]


@pytest.mark.parametrize("frames, words, message", [
    (0,   8,  "Number of frames must be 1 or more, not 0"),
    ("4", 8,  "Number of frames must be 1 or more, not '4'"),
    (4,   4,  "Words of a frame must be a power of two from 8, not 4"),
    (4,   24, "Words of a frame must be a power of two from 8, not 24"),
])
def test_a_size_that_cannot_be_is_refused(frames, words, message):
    with pytest.raises(ValueError, match=message):
        SparseMemory(40, frames=frames, frame_words=words)

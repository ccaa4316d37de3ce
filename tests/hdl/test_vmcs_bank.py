# amaranth: UnusedElaboratable=no
from dataclasses import replace

import pytest
from amaranth.hdl import Module, Signal

from vmxswitch.hdl.vmcs_bank import FieldSelect, VmcsBank
from vmxswitch.spec.tables import FIELDS

PATTERN = 0x1122_3344_5566_7788


async def read(ctx, dut, selected, slot=0):
    """What ``r_data`` shows of a field, in the cycle after it is selected."""
    ctx.set(dut.select_next, selected)
    ctx.set(dut.slot_next, slot)
    await ctx.tick()
    return ctx.get(dut.r_data)


def select(preset, symbol, high=0):
    return {"number": list(preset.fields).index(symbol), "high": high, "exists": 1}


@pytest.mark.parametrize("slots", [1, 3])
def test_every_field_is_written_and_read_at_its_width(simulate, preset, slots):
    dut = VmcsBank(replace(preset, resident_vmcss=slots))

    async def testbench(ctx):
        for number, symbol in enumerate(preset.fields):
            ctx.set(dut.select, select(preset, symbol))
            ctx.set(dut.w_data, PATTERN ^ number)
            ctx.set(dut.w_en, 1)
            ctx.set(dut.w_stb, 1)
            assert ctx.get(dut.changing)
            await ctx.tick()
        ctx.set(dut.w_stb, 0)
        for number, (symbol, row) in enumerate(preset.fields.items()):
            expected = (PATTERN ^ number) & (1 << preset.bits(row)) - 1
            assert await read(ctx, dut, select(preset, symbol)) == expected, symbol
            assert ctx.get(dut.fields[symbol]) == expected, symbol
        assert not ctx.get(dut.changing)

    simulate(dut, testbench)


@pytest.mark.parametrize("slots", [1, 3])
def test_high_half_replaces_bits_63_to_32_only(simulate, preset, slots):
    dut = VmcsBank(replace(preset, resident_vmcss=slots))

    async def testbench(ctx):
        for high, data in ((0, PATTERN), (1, 0xAAAA_BBBB_CCCC_DDDD)):
            ctx.set(dut.select, select(preset, "TSC_OFFSET", high))
            ctx.set(dut.w_data, data)
            ctx.set(dut.w_en, 1)
            ctx.set(dut.w_stb, 1)
            await ctx.tick()
        ctx.set(dut.w_stb, 0)
        assert await read(ctx, dut, select(preset, "TSC_OFFSET", high=1)) == 0xCCCC_DDDD
        assert await read(ctx, dut, select(preset, "TSC_OFFSET")) == 0xCCCC_DDDD_5566_7788
        assert ctx.get(dut.fields.TSC_OFFSET) == 0xCCCC_DDDD_5566_7788

    simulate(dut, testbench)


@pytest.mark.parametrize("symbol", ["HOST_RSP", "GUEST_RSP"])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_read_at_the_edge_of_a_write_shows_what_is_written(simulate, preset, slots, symbol):
    dut = VmcsBank(replace(preset, resident_vmcss=slots))

    async def testbench(ctx):
        ctx.set(dut.select, select(preset, symbol))
        ctx.set(dut.w_data, PATTERN)
        ctx.set(dut.w_en, 1)
        ctx.set(dut.w_stb, 1)
        expected = PATTERN & (1 << preset.bits(FIELDS[symbol])) - 1
        assert await read(ctx, dut, select(preset, symbol)) == expected

    simulate(dut, testbench)


@pytest.mark.parametrize("slots", [1, 3])
def test_load_writes_the_strobed_fields_only(simulate, preset, slots):
    dut = VmcsBank(replace(preset, resident_vmcss=slots))
    chosen = list(preset.fields).index("GUEST_RIP")

    async def testbench(ctx):
        assert "GUEST_RIP" in VmcsBank.loaded(preset)
        ctx.set(dut.load, dict.fromkeys(preset.fields, 0x5A))
        ctx.set(dut.load_stb, 1 << chosen)
        await ctx.tick()
        for symbol in preset.fields:
            assert ctx.get(dut.fields[symbol]) == (0x5A if symbol == "GUEST_RIP" else 0)

    simulate(dut, testbench)


@pytest.mark.parametrize("slots", [2, 5, 16])
def test_slots_are_apart_and_shown_in_the_same_cycle(simulate, preset, slots):
    dut = VmcsBank(replace(preset, resident_vmcss=slots))
    number = list(preset.fields).index("GUEST_RIP")

    async def testbench(ctx):
        for slot in range(slots):
            ctx.set(dut.slot, slot)
            ctx.set(dut.load.GUEST_RIP, 0x100 + slot)
            ctx.set(dut.load_stb, 1 << number)
            await ctx.tick()
            ctx.set(dut.load_stb, 0)
            ctx.set(dut.w_en, 1)
            ctx.set(dut.w_stb, 1)
            for symbol, value in (("GUEST_RSP", 0x200), ("HOST_RSP", 0x300)):
                ctx.set(dut.select, select(preset, symbol))
                ctx.set(dut.w_data, value + slot)
                await ctx.tick()
            ctx.set(dut.w_en, 0)
            ctx.set(dut.w_stb, 0)
        for slot in reversed(range(slots)):
            ctx.set(dut.slot, slot)
            assert ctx.get(dut.fields.GUEST_RIP) == 0x100 + slot
            for symbol, expected in (("GUEST_RSP", 0x200), ("HOST_RSP", 0x300)):
                assert await read(ctx, dut, select(preset, symbol), slot) == expected + slot

    simulate(dut, testbench)


def test_decoder_knows_the_encodings_of_this_processor_and_no_other(simulate, preset):
    m = Module()
    encoding, chosen = Signal(32), Signal(FieldSelect)
    VmcsBank.decode(preset, m, encoding, chosen)
    m.d.sync += Signal().eq(0)
    numbers = {symbol: number for number, symbol in enumerate(preset.fields)}

    async def testbench(ctx):
        for field in FIELDS.values():
            for wide in (0, 1 << 31, 1 << 16):
                ctx.set(encoding, field.encoding | wide)
                await ctx.delay(1e-9)
                exists = not wide and field.encoding in preset.encodings
                assert ctx.get(chosen.exists) == exists, field.symbol
                if exists:
                    assert ctx.get(chosen.number) == numbers[field.symbol.removesuffix("_HIGH")]
                    assert ctx.get(chosen.high) == field.is_high

    simulate(m, testbench)

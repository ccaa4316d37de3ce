# amaranth: UnusedElaboratable=no
"""The unit behind its registers: what a bus master sees, and that the map holds together."""

import pytest

from vmxswitch.hdl.codec import Codec, Layout
from vmxswitch.hdl.register_file import Register
from vmxswitch.hdl.register_map import (
    BOARD_BASE,
    IDENTITY,
    RESET_WORD,
    Status,
    _checked,
    board_registers,
    configuration_word,
    unit_registers,
)
from vmxswitch.hdl.serial_unit import SerialUnit
from vmxswitch.hdl.wishbone_unit import WishboneUnit
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Event, Instruction, Mode, Outcome

COMPACT = PRESETS["compact"]
CODEC = Codec(COMPACT)
WORD = (1 << 32) - 1


class Master:
    """What drives the registers."""

    def __init__(self, ctx, dut):
        self.ctx, self.dut = ctx, dut

    async def access(self, word, data=None):
        bus, ctx = self.dut.bus, self.ctx
        ctx.set(bus.adr, word)
        ctx.set(bus.we, int(data is not None))
        ctx.set(bus.dat_w, data or 0)
        ctx.set(bus.cyc, 1)
        ctx.set(bus.stb, 1)
        await ctx.tick()
        assert ctx.get(bus.ack) and not ctx.get(bus.err)
        value = ctx.get(bus.dat_r)
        await ctx.tick()
        ctx.set(bus.cyc, 0)
        ctx.set(bus.stb, 0)
        return value

    async def read(self, name):
        register = self.dut.registers[name]
        words = [await self.access(register.first + n) for n in range(register.words)]
        return sum(word << 32 * n for n, word in enumerate(words))

    async def write(self, name, value):
        register = self.dut.registers[name]
        for n in range(register.words):
            await self.access(register.first + n, value >> 32 * n & WORD)

    async def status(self):
        return Layout(Status).unpack(await self.read("STATUS"))

    async def do(self, name, payload):
        """Hand an operation over and wait for its end."""
        await self.write(name, payload)
        await self.write(f"{name}_START", 0)
        while (await self.status())["busy"]:
            pass

    async def execute(self, instruction):
        await self.do("REQUEST", CODEC.request(instruction))
        return CODEC.answer(await self.read("RESPONSE"), event=False, diagnosis=0,
                            cycles=await self.read("CYCLES"))


@pytest.fixture
def drive(simulate):
    """Runs a coroutine that is given a :class:`Master` of the 32-bit unit."""
    def run(job):
        dut = WishboneUnit(COMPACT)
        async def testbench(ctx):
            await job(Master(ctx, dut))
        simulate(dut, testbench)
    return run


def test_constants_say_what_is_there(drive):
    async def job(master):
        assert await master.read("ID") == IDENTITY
        assert await master.read("CONFIGURATION") == configuration_word(COMPACT)
    drive(job)


def test_an_instruction_goes_in_and_its_answer_comes_out(drive):
    async def job(master):
        answer = await master.execute(Instruction("VMXOFF"))
        assert (answer.outcome, answer.vector, answer.cycles) == (Outcome.FAULT, 6, 2)
        assert await master.status() == {"busy": 0, "checked": 0, "launched": 0, "mode": Mode.OFF}
        assert await master.read("CURRENT_VMCS") == (1 << 64) - 1
    drive(job)


def test_updates_show_in_live(drive):
    async def job(master):
        await master.do("UPDATE", CODEC.update("RIP", 0x1234_5678))
        await master.do("UPDATE", CODEC.update("CR3", 0x9ABC_D000))
        live = CODEC.registers(await master.read("LIVE"))
        assert {name: value for name, value in live.items() if value} == {
            "RIP": 0x1234_5678, "CR3": 0x9ABC_D000}
    drive(job)


def test_the_reset_word_resets_the_unit_and_nothing_else_does(drive):
    async def job(master):
        await master.do("UPDATE", CODEC.update("RIP", 0x1234))
        await master.write("RESET", RESET_WORD ^ 1)
        assert CODEC.registers(await master.read("LIVE"))["RIP"] == 0x1234
        await master.write("RESET", RESET_WORD)
        assert CODEC.registers(await master.read("LIVE"))["RIP"] == 0
        assert await master.read("CYCLE") < 200
    drive(job)


def test_the_reset_word_ends_an_operation_under_way(drive):
    async def job(master):
        await master.write("EVENT", CODEC.event(Event(10)))
        await master.write("EVENT_START", 0)
        await master.write("RESET", RESET_WORD)
        assert not (await master.status())["busy"]
        assert (await master.execute(Instruction("VMXOFF"))).outcome is Outcome.FAULT
    drive(job)


def test_the_words_of_the_cycle_counter_belong_together(drive):
    async def job(master):
        first = await master.read("CYCLE")
        second = await master.read("CYCLE")
        assert second - first == 4  # two accesses of two cycles
    drive(job)


def test_where_there_is_no_register_zero_is_read(drive):
    async def job(master):
        await master.access(0xFF, 7)
        assert await master.access(0xFF) == 0
        assert await master.access(master.dut.registers["REQUEST"].first) == 0
    drive(job)


@pytest.mark.parametrize("profile", PRESETS)
def test_registers_of_unit_and_board_do_not_overlap(profile):
    registers = unit_registers(PRESETS[profile]) | board_registers()
    words = [register.first + n for register in registers.values() for n in range(register.words)]
    assert len(words) == len(set(words))
    assert all(register.access in "rw" and register.meaning for register in registers.values())


def test_a_start_register_follows_its_payload():
    registers = unit_registers(COMPACT)
    for name in ("REQUEST", "EVENT", "UPDATE"):
        payload = registers[name]
        assert registers[f"{name}_START"].first == payload.first + payload.words


def test_registers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="register A: 2 words do not fit before 0x4"):
        _checked([Register("A", 0, 64, "r", "a"), Register("B", 4, 32, "r", "b")],
                 range(0, BOARD_BASE))


def test_the_configuration_word_tells_processors_apart():
    assert configuration_word(PRESETS["full"]) != configuration_word(COMPACT)


@pytest.mark.parametrize("options, message", [
    ({"clock_hz": 0},                       "clock_hz must be a number from 1, not 0"),
    ({"clock_hz": 1e6},                     "clock_hz must be a number from 1, not 1000000.0"),
    ({"clock_hz": 1_000_000, "baud": -1},   "baud must be a number from 1, not -1"),
    ({"clock_hz": 300_000},                 "4 cycles or more, not 3; choose a lower baud rate"),
    ({"clock_hz": 1_000_000},               "A clock of 1000000 Hz makes 111111 bits per second, "
                                            "too far from 115200; choose another baud rate"),
    ({"clock_hz": 12_000_000, "frames": 0}, "Number of frames must be 1 or more, not 0"),
])
def test_a_line_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SerialUnit(COMPACT, **options)

# amaranth: UnusedElaboratable=no
"""Slots: which VMCS is where, which one gives way, what is forgotten."""

from dataclasses import replace

import pytest

from vmxswitch.hdl.vmcs_pointers import Change, VmcsPointers
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import NO_VMCS

SLOTS = 3
A, B, C, D, E = (0x1000 * number for number in range(1, 6))


@pytest.fixture
def run(simulate):
    """Run ``testbench(do, look)``; ``do`` makes a change, ``look`` reads outputs for a pointer."""
    def run(testbench, slots=SLOTS):
        dut = VmcsPointers(replace(PRESETS["full"], resident_vmcss=slots))

        async def whole(ctx):
            async def do(change, pointer=0, **inputs):
                for name, value in {"pointer": pointer, "change": change, "strobe": 1,
                                    "w_shadow": 0, **inputs}.items():
                    ctx.set(getattr(dut, name), value)
                await ctx.tick()
                ctx.set(dut.strobe, 0)

            def look(pointer, *names):
                ctx.set(dut.pointer, pointer)
                found = tuple(ctx.get(getattr(dut, name)) for name in names)
                return found[0] if len(found) == 1 else found

            await testbench(do, look)
        simulate(dut, whole)
    return run


def test_vmcss_take_the_lowest_free_slots(run):
    async def testbench(do, look):
        for number, pointer in enumerate((A, B, C)):
            assert look(pointer, "resident", "slot", "occupied") == (0, number, 0)
            await do(Change.LOAD, pointer)
            assert look(pointer, "resident", "slot", "current", "current_vmcs") == (
                1, number, number, pointer)
        await do(Change.FREE, B)
        assert look(D, "slot", "occupied", "current_vmcs") == (1, 0, C)
        await do(Change.FREE, C)
        assert look(D, "slot", "current_vmcs") == (1, NO_VMCS)
    run(testbench)


def test_victims_come_in_turn_and_the_current_vmcs_is_none(run):
    async def testbench(do, look):
        for pointer in (A, B, C):
            await do(Change.LOAD, pointer)
        for pointer, slot, victim in ((D, 0, A), (E, 1, B), (A, 2, C), (B, 0, D)):
            assert look(pointer, "slot", "occupied", "slot_pointer") == (slot, 1, victim)
            await do(Change.EVICT, pointer)
            await do(Change.LOAD, pointer)
        await do(Change.LOAD, E)                                      # in slot 1, whose turn it is
        assert look(C, "slot", "slot_pointer") == (2, A)
    run(testbench)


def test_with_one_slot_the_victim_is_the_current_vmcs(run):
    async def testbench(do, look):
        await do(Change.LOAD, A)
        assert look(B, "resident", "occupied", "slot_pointer") == (0, 1, A)
        await do(Change.EVICT, B)
        assert look(B, "occupied", "current_vmcs") == (0, NO_VMCS)
    run(testbench, slots=1)


def test_launch_state_and_shadow_indicator_stay_with_their_vmcs(run):
    async def testbench(do, look):
        await do(Change.LOAD, A, w_shadow=1)
        await do(Change.LOAD, B)
        await do(Change.LAUNCH, B)
        assert look(A, "slot_launched", "slot_shadow", "launched", "shadow") == (0, 1, 1, 0)
        await do(Change.LOAD, A)  # its indicator is not read again
        assert look(B, "slot_launched", "slot_shadow", "launched", "shadow") == (1, 0, 0, 1)
    run(testbench)


@pytest.mark.parametrize("change, pointer", [(Change.VMXON, D), (Change.VMXOFF, 0)])
def test_vmxon_and_vmxoff_forget_everything(run, change, pointer):
    async def testbench(do, look):
        for each in (A, B, C):
            await do(Change.LOAD, each)
        await do(Change.EVICT, E)
        await do(change, D)
        assert look(C, "resident", "slot", "current_vmcs", "launched") == (0, 0, NO_VMCS, 0)
        assert look(C, "vmxon_pointer") == pointer
    run(testbench)


def test_a_pointer_must_match_in_every_bit(run):
    async def testbench(do, look):
        await do(Change.LOAD, A)
        for other in (A | 1, A | 1 << 63, A | 1 << 46, NO_VMCS):
            assert not look(other, "resident")
    run(testbench)

"""Several resident VMCSs in the reference model: what memory is read and written for them."""

from dataclasses import replace

import pytest

from vmxswitch.sim.model import Model
from vmxswitch.spec.operations import NO_VMCS, Outcome
from vmxswitch.spec.region import LAUNCH_OFFSET, field_offsets

A, B, C, D = (0x40_0000 + 0x1000 * number for number in range(4))
PROFILE = "skylake_x_64"
#: With 'VMCS shadowing'; the bitmaps at 0 let every access through.
SHADOWING = {"SECONDARY_PROC_BASED_CTLS": 0x4002, "VMCS_LINK_POINTER": B,
             "VMREAD_BITMAP_ADDR": 0x27_0000, "VMWRITE_BITMAP_ADDR": 0x27_0000}


@pytest.fixture
def root(machine, machine_on):
    """A function that makes a processor with some slots, in VMX root operation."""
    def make(slots):
        capabilities = machine().capabilities
        where = machine_on(PROFILE, Model(replace(capabilities, resident_vmcss=slots)))
        for region in (A, B, C, D):
            where.region(region)
        where.enter_root()
        return where
    return make


def stored(where, region, field="GUEST_RSP"):
    """A field of a region in memory."""
    return where.port.read_memory(region + field_offsets(where.capabilities)[field], 8)


def filled(where, *regions):
    """Make each current in turn and write a field of it."""
    for region in regions:
        where.succeed("VMPTRLD", pointer=region)
        where.write("GUEST_RSP", region)


def test_a_resident_vmcs_is_neither_read_nor_written(root):
    where = root(2)
    filled(where, A, B)
    before = where.port.memory_words()
    where.port.write_memory(A, 4, 0)  # which software must not do
    for region in (A, B, A):
        where.succeed("VMPTRLD", pointer=region)
        assert where.read("GUEST_RSP") == region
    where.region(A)
    assert where.port.memory_words() == before


def test_the_victim_goes_to_its_region_and_comes_back(root):
    where = root(2)
    filled(where, A, B)
    assert stored(where, A) == 0
    filled(where, C)                            # takes A's slot; B's turn is next
    assert (stored(where, A), stored(where, B)) == (A, 0)
    filled(where, D)
    assert stored(where, B) == B
    for region in (A, B, C, D):
        where.succeed("VMPTRLD", pointer=region)
        assert where.read("GUEST_RSP") == region


def test_the_current_vmcs_is_no_victim(root):
    where = root(2)
    filled(where, A, B)
    where.succeed("VMPTRLD", pointer=A)         # whose turn it is
    filled(where, C)
    assert (stored(where, A), stored(where, B)) == (0, B)


def test_vmclear_frees_a_slot_that_is_not_the_current_ones(root):
    where = root(2)
    filled(where, A, B)
    where.succeed("VMCLEAR", pointer=A)
    assert stored(where, A) == A
    assert where.port.current_vmcs == B
    filled(where, C)
    assert stored(where, B) == 0
    where.succeed("VMCLEAR", pointer=C)
    assert (where.port.current_vmcs, where.port.launched) == (NO_VMCS, False)


def test_the_launch_state_goes_along(root):
    where = root(1)
    where.load(A, "long64_ept_A")
    assert where.do("VMLAUNCH").outcome is Outcome.ENTERED
    where.do("VMCALL")
    assert (where.port.current_vmcs, where.port.launched) == (A, True)
    where.succeed("VMPTRLD", pointer=B)
    assert where.port.read_memory(A + LAUNCH_OFFSET, 8) == 1
    assert (where.port.current_vmcs, where.port.launched) == (B, False)
    where.succeed("VMPTRLD", pointer=A)
    assert (where.port.current_vmcs, where.port.launched) == (A, True)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_guest_reaches_a_shadow_vmcs_wherever_it_is(root, slots):
    where = root(slots)
    where.region(B, 1 << 31)
    filled(where, B)
    where.load(A, "long64_ept_A", **SHADOWING)
    assert where.do("VMLAUNCH").outcome is Outcome.ENTERED
    assert where.read("GUEST_RSP") == B
    where.write("GUEST_RSP", 0x77)
    assert where.do("VMREAD", encoding=0x5FFE).error == 12
    assert stored(where, B) == 0x77
    where.do("VMCALL")
    where.succeed("VMPTRLD", pointer=B)
    assert where.read("GUEST_RSP") == 0x77
    assert where.read("VM_INSTRUCTION_ERROR") == 12


def test_vmxoff_forgets_all_of_them(root):
    where = root(3)
    filled(where, A, B)
    where.succeed("VMXOFF")
    where.enter_root()
    for region in (A, B):
        where.succeed("VMPTRLD", pointer=region)
        assert where.read("GUEST_RSP") == 0

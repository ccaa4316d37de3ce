"""Memory that fails: every transfer of an operation, on model and compiled unit.

Ref: Intel SDM vol. 3C, "VMX Aborts"; what a memory error leaves behind: docs/limits.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from vmxswitch.sim.cases import read_profile
from vmxswitch.sim.memory import Fault
from vmxswitch.sim.model import Model
from vmxswitch.sim.observation import RegisterWrites, observe
from vmxswitch.sim.verilator import VerilatorPort
from vmxswitch.spec.operations import NO_VMCS, Event, Instruction, Mode, Outcome
from vmxswitch.spec.region import ABORT_OFFSET, LAUNCH_OFFSET, field_offsets
from vmxswitch.spec.tables import FIELDS

PROFILE = "skylake_x_32"
CAPABILITIES = read_profile(
    Path(__file__).parents[1] / "cases" / "profiles" / f"{PROFILE}.json").capabilities
VMXON, VMCS = 0x30_0000, 0x30_1000
OTHER, THIRD, SHADOW = VMCS + 0x1000, VMCS + 0x2000, VMCS + 0x3000
ENTRY_LIST, STORE_LIST, LOAD_LIST = 0x24_0000, 0x24_1000, 0x24_2000
PDPT, HOST_PDPT, APIC, BITMAPS, EPTPS = 0x25_0000, 0x25_0020, 0x26_0000, 0x27_0000, 0x28_0000
SYSENTER_CS, NO_MSR = 0x174, 0x800  # the latter is one that no list may name
NONE = {"current_vmcs": NO_VMCS, "launched": 0}
PROC1, SECONDARY = 0x0400_6172, 1 << 31
LISTS = {
    "VM_ENTRY_MSR_LOAD_ADDR": ENTRY_LIST, "VM_ENTRY_MSR_LOAD_COUNT": 3,
    "VM_EXIT_MSR_STORE_ADDR": STORE_LIST, "VM_EXIT_MSR_STORE_COUNT": 3,
    "VM_EXIT_MSR_LOAD_ADDR": LOAD_LIST, "VM_EXIT_MSR_LOAD_COUNT": 3,
    "HOST_CR4": 0x2620, "HOST_CR3": HOST_PDPT}
CHECKED_WORDS = {
    "PRIMARY_PROC_BASED_CTLS": PROC1 | 1 << 21, "VIRTUAL_APIC_ADDR": APIC,
    "VMCS_LINK_POINTER": OTHER}
SHADOWING = {
    "PRIMARY_PROC_BASED_CTLS": PROC1 | SECONDARY, "SECONDARY_PROC_BASED_CTLS": 1 << 14,
    "VMREAD_BITMAP_ADDR": BITMAPS, "VMWRITE_BITMAP_ADDR": BITMAPS + 0x1000,
    "VMCS_LINK_POINTER": SHADOW}
FUNCTIONS = {
    "PRIMARY_PROC_BASED_CTLS": PROC1 | SECONDARY, "VM_FUNCTION_CONTROLS": 1,
    "SECONDARY_PROC_BASED_CTLS": 1 << 1 | 1 << 13, "EPTP_LIST_ADDR": EPTPS}
EVENT_BITMAPS = {
    "PRIMARY_PROC_BASED_CTLS": PROC1 | 1 << 25 | 1 << 28, "MSR_BITMAPS_ADDR": BITMAPS,
    "IO_BITMAP_A_ADDR": BITMAPS + 0x1000, "IO_BITMAP_B_ADDR": BITMAPS + 0x2000}


# --- places ---

def words(address, count):
    return [address + 8 * number for number in range(count)]


def region(pointer):
    """What is loaded and stored of a region."""
    return words(pointer + LAUNCH_OFFSET, 1 + len(CAPABILITIES.fields))


def field(pointer, symbol):
    return pointer + field_offsets(CAPABILITIES)[symbol]


def bit(bitmap, encoding):
    return bitmap + encoding // 64 * 8


# --- worlds ---

@pytest.fixture(scope="module")
def machines(machine_on):
    """The model and the compiled unit of a processor, by its number of resident VMCSs."""
    return {slots: [machine_on(PROFILE, make(replace(CAPABILITIES, resident_vmcss=slots)))
                    for make in (Model, VerilatorPort)] for slots in SCENARIOS}


def off(where):
    """Outside VMX operation, with memory in which everything is in order."""
    where.start()
    for pointer in (VMXON, OTHER, THIRD):
        where.region(pointer)
    where.region(SHADOW, 1 << 31)
    for address in (ENTRY_LIST, STORE_LIST, LOAD_LIST):
        for number in range(3):
            where.port.write_memory(address + 16 * number, 8, SYSENTER_CS + number)
            where.port.write_memory(address + 16 * number + 8, 8, 0x1000 * number)
    for address in words(PDPT, 4) + words(HOST_PDPT, 4):
        where.port.write_memory(address, 8, 1)
    where.port.write_memory(EPTPS, 8, 0x5E)


def loaded(where, others=(), baseline="pae32_A", **fields):
    """VMX root operation; a launchable VMCS is current, and others have been before."""
    off(where)
    where.enter_root()
    for pointer in others:
        where.succeed("VMPTRLD", pointer=pointer)
    where.load(VMCS, baseline, **{"GUEST_CR3": PDPT} | fields)


def launched(where, **fields):
    """Its guest."""
    loaded(where, **fields)
    assert where.do("VMLAUNCH").outcome is Outcome.ENTERED


def carry_out(where, operation):
    if isinstance(operation, Event):
        return where.port.report(operation)
    return where.port.execute(operation)


def picture(where):
    """All that can be seen of a processor."""
    seen, = observe(where.port, [RegisterWrites(())])
    return seen.mode, seen.registers, seen.vmcs, where.port.memory_words()


# --- operations, and every word that they transfer ---

@dataclass(frozen=True)
class Scenario:
    """``prepare`` makes the world in which the operation transfers these words."""
    prepare: Callable
    operation: Instruction | Event
    transfers: list
    outcome: Outcome
    failed: Outcome = Outcome.BUS_ERROR


VMREAD_RIP = Instruction("VMREAD", encoding=FIELDS["GUEST_RIP"].encoding)
VMWRITE_RIP = Instruction("VMWRITE", encoding=FIELDS["GUEST_RIP"].encoding, value=1)
SHADOW_RIP = field(SHADOW, "GUEST_RIP")
MOVE_TO_HOST = words(HOST_PDPT, 4) + words(LOAD_LIST, 6)
SUCCEED, ENTERED, ABORT = Outcome.SUCCEED, Outcome.ENTERED, Outcome.ABORT
EITHER = {
    "VMXON": Scenario(off, Instruction("VMXON", pointer=VMXON), [VMXON], SUCCEED),
    "VMCLEAR of the current VMCS": Scenario(
        loaded, Instruction("VMCLEAR", pointer=VMCS), region(VMCS), SUCCEED),
    "VMCLEAR of a VMCS in memory": Scenario(
        loaded, Instruction("VMCLEAR", pointer=OTHER), [OTHER + LAUNCH_OFFSET], SUCCEED),
    "VMLAUNCH": Scenario(
        partial(loaded, **LISTS), Instruction("VMLAUNCH"), words(PDPT, 4) + words(ENTRY_LIST, 6),
        ENTERED),
    "VMLAUNCH with VTPR and link pointer": Scenario(
        partial(loaded, **CHECKED_WORDS), Instruction("VMLAUNCH"),
        [APIC + 0x80, OTHER, *words(PDPT, 4)], ENTERED),
    "failed VMLAUNCH": Scenario(
        partial(loaded, baseline="prot32_A", GUEST_RFLAGS=0, **LISTS), Instruction("VMLAUNCH"),
        MOVE_TO_HOST, Outcome.ENTRY_FAILURE, ABORT),
    "VMCALL": Scenario(
        partial(launched, **LISTS), Instruction("VMCALL"), words(STORE_LIST, 6) + MOVE_TO_HOST,
        Outcome.EXIT, ABORT),
    "CPUID": Scenario(
        partial(launched, **LISTS), Event(10, length=2), words(STORE_LIST, 6) + MOVE_TO_HOST,
        Outcome.EXIT, ABORT),
    "RDMSR": Scenario(
        partial(launched, **EVENT_BITMAPS), Event(31, number=SYSENTER_CS, length=2),
        [bit(BITMAPS, SYSENTER_CS)], Outcome.NO_EXIT),
    "IN": Scenario(
        partial(launched, **EVENT_BITMAPS), Event(30, 3 | 1 << 3 | 0x3E << 16, length=1),
        words(BITMAPS + 0x1000, 2), Outcome.NO_EXIT),
    "VMREAD": Scenario(
        partial(launched, **SHADOWING), VMREAD_RIP,
        [bit(BITMAPS, VMREAD_RIP.encoding), SHADOW_RIP], SUCCEED),
    "VMWRITE": Scenario(
        partial(launched, **SHADOWING), VMWRITE_RIP,
        [bit(BITMAPS + 0x1000, VMWRITE_RIP.encoding), SHADOW_RIP], SUCCEED),
    "VMREAD that fails": Scenario(
        partial(launched, **SHADOWING), Instruction("VMREAD", encoding=0x5FFE),
        [bit(BITMAPS, 0x5FFE), field(SHADOW, "VM_INSTRUCTION_ERROR")], Outcome.FAIL_VALID),
    "VMFUNC": Scenario(
        partial(launched, baseline="pae32_ept_A", **FUNCTIONS), Instruction("VMFUNC"), [EPTPS],
        Outcome.CONTINUE),
}
SCENARIOS = {
    1: EITHER | {
        "VMPTRLD": Scenario(
            loaded, Instruction("VMPTRLD", pointer=OTHER),
            [OTHER, *region(VMCS), *region(OTHER)], SUCCEED),
    },
    2: EITHER | {
        "VMPTRLD": Scenario(
            loaded, Instruction("VMPTRLD", pointer=OTHER), [OTHER, *region(OTHER)], SUCCEED),
        "VMPTRLD that evicts": Scenario(
            partial(loaded, others=[OTHER]), Instruction("VMPTRLD", pointer=THIRD),
            [THIRD, *region(OTHER), *region(THIRD)], SUCCEED),
        "VMCLEAR of another resident VMCS": Scenario(
            partial(loaded, others=[OTHER]), Instruction("VMCLEAR", pointer=OTHER), region(OTHER),
            SUCCEED),
        "VMWRITE, shadow VMCS resident": Scenario(
            partial(launched, others=[SHADOW], **SHADOWING), VMWRITE_RIP,
            [bit(BITMAPS + 0x1000, VMWRITE_RIP.encoding), *region(SHADOW)], SUCCEED),
    },
}
ALL = [(slots, name) for slots, scenarios in SCENARIOS.items() for name in scenarios]


@pytest.mark.parametrize("slots, name", ALL)
def test_a_fault_at_every_transfer(machines, slots, name):
    """It is answered alike, nothing goes live, and without it the operation succeeds."""
    scenario = SCENARIOS[slots][name]
    undisturbed = undisturbed_picture(machines[slots], scenario)
    for address in scenario.transfers:
        for fault in Fault:
            after = []
            for where in machines[slots]:
                scenario.prepare(where)
                mode, registers, current, _ = picture(where)
                where.port.fail_memory(address, fault)
                answer = replace(carry_out(where, scenario.operation), cycles=0)
                where.port.fail_memory(address, None)
                after.append((answer, picture(where)))
                assert answer.outcome is scenario.failed, (hex(address), fault)
                assert where.port.read_registers() == registers
                if scenario.failed is ABORT:
                    assert (answer.error, where.port.mode) == (5, Mode.ABORT)
                    assert where.port.read_memory(VMCS + ABORT_OFFSET, 4) == 5
                    scenario.prepare(where)  # after a reset
                else:
                    lost = slots == 1 and name == "VMPTRLD" and address in region(OTHER)
                    assert where.port.mode == mode
                    assert picture(where)[2] == (NONE if lost else current)
                answer = carry_out(where, scenario.operation)
                assert (answer.outcome, picture(where)) == (scenario.outcome, undisturbed)
            assert after[0] == after[1], (hex(address), fault)


def undisturbed_picture(machines, scenario):
    """What the operation leaves behind without faults, on both."""
    pictures = []
    for where in machines:
        scenario.prepare(where)
        assert carry_out(where, scenario.operation).outcome is scenario.outcome
        pictures.append(picture(where))
    assert pictures[0] == pictures[1]
    return pictures[0]


@pytest.mark.parametrize("slots, name", ALL)
def test_nothing_else_is_transferred(machines, slots, name):
    """The lists of transfers above are complete: everything else may fail."""
    scenario = SCENARIOS[slots][name]
    undisturbed = undisturbed_picture(machines[slots], scenario)
    pages = {address & ~0xFFF for address in undisturbed[3]} | {BITMAPS, APIC, OTHER, THIRD}
    everything = {address for page in pages for address in words(page, 512)}
    for where in machines[slots]:
        scenario.prepare(where)
        for address in everything - {*scenario.transfers}:
            where.port.fail_memory(address, Fault.HANG)
        assert carry_out(where, scenario.operation).outcome is scenario.outcome
        assert picture(where) == undisturbed


@pytest.mark.parametrize("fault", Fault)
def test_an_abort_that_cannot_be_indicated_is_one_all_the_same(machines, fault):
    for where in machines[1]:
        launched(where, **LISTS)
        where.port.fail_memory(STORE_LIST, Fault.ERROR)
        where.port.fail_memory(VMCS, fault)
        answer = where.do("VMCALL")
        assert (answer.outcome, answer.error, where.port.mode) == (ABORT, 5, Mode.ABORT)
        assert where.port.read_memory(VMCS + ABORT_OFFSET, 4) == 0


@pytest.mark.parametrize("slots", [1, 2])
def test_a_corrupted_revision_is_refused(machines, slots):
    for where in machines[slots]:
        loaded(where)
        _, registers, current, _ = picture(where)
        where.port.write_memory(OTHER, 4, where.capabilities.revision ^ 1)
        answer = where.do("VMPTRLD", pointer=OTHER)
        assert (answer.outcome, answer.error) == (Outcome.FAIL_VALID, 11)
        assert picture(where)[1:3] == (registers, current)
        where.region(OTHER)
        where.succeed("VMPTRLD", pointer=OTHER)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("address, outcome, number", [
    (ENTRY_LIST, Outcome.ENTRY_FAILURE, 34), (STORE_LIST, ABORT, 1), (LOAD_LIST, ABORT, 4)])
def test_a_reserved_msr_at_every_position_of_a_list(
        machines, address, outcome, number, position):
    after = []
    for where in machines[1]:
        (loaded if address == ENTRY_LIST else launched)(where, **LISTS)
        registers = where.port.read_registers()
        where.port.write_memory(address + 16 * position, 4, NO_MSR)
        answer = where.do("VMLAUNCH" if address == ENTRY_LIST else "VMCALL")
        after.append((replace(answer, cycles=0), picture(where)))
        assert (answer.outcome, number) == (outcome, answer.error or answer.reason)
        if outcome is ABORT:
            assert where.port.read_registers() == registers
        else:
            assert answer.qualification == position + 1
    assert after[0] == after[1]


def test_a_region_that_was_half_stored_is_stored_whole_the_next_time(machines):
    """And the VMCS still has every value."""
    for where in machines[1]:
        loaded(where, GUEST_RSP=0x1234)
        where.port.fail_memory(field(VMCS, "GUEST_ES_BASE"), Fault.ERROR)
        for _ in range(2):
            assert where.do("VMPTRLD", pointer=OTHER).outcome is Outcome.BUS_ERROR
            assert where.read("GUEST_RSP") == 0x1234
        where.port.fail_memory(field(VMCS, "GUEST_ES_BASE"), None)
        for pointer in (OTHER, VMCS):
            where.succeed("VMPTRLD", pointer=pointer)
        assert where.read("GUEST_RSP") == 0x1234
        assert where.do("VMLAUNCH").outcome is Outcome.ENTERED

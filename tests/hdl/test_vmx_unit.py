# amaranth: UnusedElaboratable=no
"""The whole unit: latencies, order, what is visible when, regions, memory errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth import Value

from vmxswitch.hdl.interface import Operation
from vmxswitch.sim.memory import Fault
from vmxswitch.sim.pysim import PysimPort
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import NO_VMCS, Event, Instruction, Mode, Outcome
from vmxswitch.spec.region import ABORT_OFFSET, LAUNCH_OFFSET, field_offsets
from vmxswitch.spec.tables import FIELDS

PROFILES = Path(__file__).parents[1] / "cases" / "profiles"
VMXON_REGION, REGION, OTHER_REGION, LIST, BITMAPS = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000
CPUID, RDMSR = 10, 31
LMA_AND_LME = 1 << 10 | 1 << 8


class Machine:
    """A simulated processor with instructions by name."""

    def __init__(self, profile, slots=1):
        self.profile = json.loads((PROFILES / f"{profile}.json").read_text())
        self.port = PysimPort(replace(
            Capabilities.from_profile(PROFILES / f"{profile}.json"), resident_vmcss=slots))
        self.revision = self.port.capabilities.revision

    def start(self, baseline=None, **writes):
        """Reset, load the profile's environment, VMXON; with a baseline also a VMCS with it."""
        self.port.reset()
        registers = self.port.capabilities.registers
        self.port.write_registers({
            name: value for name, value in self.profile["environment"].items()
            if name in registers})
        for region in (VMXON_REGION, REGION, OTHER_REGION):
            self.port.write_memory(region, 4, self.revision)
        assert self("VMXON", pointer=VMXON_REGION).outcome is Outcome.SUCCEED
        if baseline:
            self.load(REGION)
            self.write(**(dict(self.profile["baselines"][baseline]) | writes))
        return self

    def __call__(self, name, **operands):
        return self.port.execute(Instruction(name, **operands))

    def load(self, region):
        for name in ("VMCLEAR", "VMPTRLD"):
            assert self(name, pointer=region).outcome is Outcome.SUCCEED

    def write(self, **fields):
        answers = self.port.execute_many(write(name, value) for name, value in fields.items())
        assert {answer.outcome for answer in answers} <= {Outcome.SUCCEED}

    def read(self, field):
        answer = self("VMREAD", encoding=FIELDS[field].encoding)
        assert answer.outcome is Outcome.SUCCEED
        return answer.value


def write(field, value):
    return Instruction("VMWRITE", encoding=FIELDS[field].encoding, value=value)


@pytest.fixture(scope="module")
def machine():
    return Machine("skylake_x_64")


@pytest.fixture(scope="module")
def with_slots():
    """A processor that holds two VMCSs."""
    return Machine("skylake_x_64", slots=2)


# --- latencies, in cycles from acceptance to the first cycle that shows the result ---

def test_settled_entry_takes_2_cycles_and_exit_2(machine):
    machine.start("long64_A")
    entry = machine("VMLAUNCH")
    assert (entry.outcome, entry.cycles) == (Outcome.ENTERED, 2)
    leave = machine("VMCALL")
    assert (leave.outcome, leave.cycles) == (Outcome.EXIT, 2)


def test_round_trip_takes_4_cycles(machine):
    machine.start("long64_A")
    machine("VMLAUNCH")
    machine("VMCALL")
    answers = [machine("VMRESUME"), machine.port.report(Event(CPUID, length=2))]
    assert [answer.outcome for answer in answers] == [Outcome.ENTERED, Outcome.EXIT]
    assert sum(answer.cycles for answer in answers) == 4


def test_entry_right_after_a_write_takes_3_cycles_and_sees_it(machine):
    machine.start("long64_A")
    *_, entry = machine.port.execute_many([
        write("GUEST_RIP", 0x1234), Instruction("VMLAUNCH")])
    assert (entry.outcome, entry.cycles) == (Outcome.ENTERED, 3)
    assert machine.port.read_registers()["RIP"] == 0x1234


def test_entry_right_after_a_bad_write_is_refused(machine):
    machine.start("long64_A")
    *_, entry = machine.port.execute_many([
        write("GUEST_RFLAGS", 0), Instruction("VMLAUNCH")])
    assert (entry.outcome, entry.failing, entry.cycles) == (Outcome.ENTRY_FAILURE, ("G134",), 3)


def test_entry_accepted_together_with_a_register_write_waits_and_sees_it(machine):
    """No backend offers both in one cycle; `./vmx mutate` therefore relies on this test."""
    machine.start("long64_A")
    port = machine.port
    efer = port.read_registers()["EFER"]

    async def both(ctx):
        updates = port.unit.updates
        ctx.set(Value.cast(updates.payload), port._codec.update("EFER", efer & ~LMA_AND_LME))
        ctx.set(updates.valid, 1)
        assert ctx.get(updates.ready) and ctx.get(port.unit.requests.ready)
        answers = await port._exchange(
            ctx, port.unit.requests, port.unit.responses,
            [port._codec.request(Instruction("VMLAUNCH"))])
        ctx.set(updates.valid, 0)
        return answers[0]

    answer = port._run(both)
    assert answer.outcome is Outcome.FAIL_VALID and answer.failing
    assert answer.cycles == 3


def test_vmread_and_vmwrite_go_one_per_cycle(machine):
    machine.start("long64_A")
    fields = [name for name, row in machine.port.capabilities.fields.items()
              if row.area != "exit-information"]
    for instructions in (
        [write(name, 1) for name in fields],
        [Instruction("VMREAD", encoding=FIELDS[name].encoding) for name in fields],
    ):
        before = machine.port.cycle
        answers = machine.port.execute_many(instructions)
        assert all(answer.outcome is Outcome.SUCCEED for answer in answers)
        assert {answer.cycles for answer in answers} == {2}
        # one cycle each, one until the last answer shows, one in which the clock was idle
        assert machine.port.cycle - before == len(fields) + 2
    assert {answer.value for answer in answers} == {1}


def test_only_the_first_vmread_behind_an_operation_that_had_to_wait_takes_3_cycles(machine):
    machine.start("long64_A")
    read = Instruction("VMREAD", encoding=FIELDS["HOST_RSP"].encoding)
    _, refused, *reads = machine.port.execute_many([
        write("HOST_RSP", 7), write("HOST_TR_SELECTOR", 0), Instruction("VMLAUNCH"), read, read,
    ])[1:]
    assert (refused.outcome, refused.cycles) == (Outcome.FAIL_VALID, 3)
    assert [(answer.value, answer.cycles) for answer in reads] == [(7, 3), (7, 2)]


@pytest.mark.parametrize("name", ["VMXOFF", "VMPTRST", "INVEPT"])
def test_other_instructions_without_memory_take_2_cycles(machine, name):
    machine.start("long64_A")
    assert machine(name, invalidation=2).cycles == 2


def test_vmptrld_of_a_resident_vmcs_takes_2_cycles_and_an_entry_behind_it_3(with_slots):
    machine = with_slots.start("long64_A", GUEST_RIP=0x1111)
    machine.load(OTHER_REGION)
    machine.write(**(dict(machine.profile["baselines"]["long64_A"]) | {"GUEST_RIP": 0x2222}))
    for region, rip in ((REGION, 0x1111), (OTHER_REGION, 0x2222)):
        switch, entry, leave = machine.port.execute_many([
            Instruction("VMPTRLD", pointer=region), Instruction("VMLAUNCH"), Instruction("VMCALL")])
        assert (switch.outcome, switch.cycles) == (Outcome.SUCCEED, 2)
        assert (entry.outcome, entry.cycles) == (Outcome.ENTERED, 3)
        assert (leave.outcome, leave.cycles) == (Outcome.EXIT, 2)
        assert machine.read("GUEST_RIP") == rip
        assert machine("VMPTRLD", pointer=region).cycles == 2  # which is current already


def test_latencies_do_not_depend_on_the_number_of_slots(with_slots):
    test_settled_entry_takes_2_cycles_and_exit_2(with_slots)
    test_round_trip_takes_4_cycles(with_slots)
    test_entry_right_after_a_write_takes_3_cycles_and_sees_it(with_slots)
    test_entry_right_after_a_bad_write_is_refused(with_slots)


@pytest.mark.parametrize("slots", [1, 2])
def test_vmptrld_of_another_vmcs_takes_2_cycles_per_word_and_a_few(request, slots):
    machine = request.getfixturevalue({1: "machine", 2: "with_slots"}[slots])
    machine.start("long64_A")
    words = 1 + len(machine.port.capabilities.fields)  # launch state and fields
    stores = slots == 1                                # else there is a free slot
    answer = machine("VMPTRLD", pointer=OTHER_REGION)
    assert (answer.outcome, answer.cycles) == (
        Outcome.SUCCEED, 10 + 2 * words + stores * (2 * words + 2))


# --- what is visible ---

def watch(machine, operation):
    """All samples of the cycles in which an operation is carried out, and its answer."""
    samples = []
    machine.port.watcher = samples.append
    try:
        answer = operation()
    finally:
        machine.port.watcher = None
    return answer, samples


def test_live_changes_owner_at_one_edge_together_with_the_mode(machine):
    machine.start("long64_A")
    root = machine.port.read_registers()
    _, samples = watch(machine, lambda: machine("VMLAUNCH"))
    guest = machine.port.read_registers()
    assert guest != root
    for sample in samples:
        expected = {Mode.ROOT: root, Mode.NON_ROOT: guest}[sample.mode]
        assert sample.registers == expected


@pytest.mark.parametrize(("field", "value", "outcome"), [
    ("VM_EXIT_CTLS", 0, Outcome.FAIL_VALID), ("HOST_CR3", 1 << 63, Outcome.FAIL_VALID),
])
def test_refused_entry_shows_nothing(machine, field, value, outcome):
    machine.start("long64_A", **{field: value})
    root = machine.port.read_registers()
    answer, samples = watch(machine, lambda: machine("VMLAUNCH"))
    assert answer.outcome is outcome
    assert all(sample.registers == root and sample.mode == Mode.ROOT for sample in samples)
    assert machine.port.read_registers() == root


def test_failed_entry_goes_from_root_to_host_state_without_a_bit_of_the_guest(machine):
    machine.start("long64_A", GUEST_CR4=0, HOST_RIP=0x4444, HOST_RSP=0x5555)
    root = machine.port.read_registers()
    answer, samples = watch(machine, lambda: machine("VMLAUNCH"))
    host = machine.port.read_registers()
    assert (answer.outcome, answer.reason, answer.qualification) == (Outcome.ENTRY_FAILURE, 33, 0)
    assert answer.failing == ("G05", "G10")
    assert (host["RIP"], host["RSP"], host["CR4"]) == (0x4444, 0x5555, root["CR4"])
    assert all(sample.registers in (root, host) for sample in samples)
    assert machine.port.mode == Mode.ROOT
    assert machine.read("VM_EXIT_REASON") == 0x80000021
    assert machine("VMLAUNCH").outcome is Outcome.ENTRY_FAILURE  # launch state is still clear


def test_nothing_comes_between_check_and_commit(machine):
    """A write accepted right behind the entry is carried out after it, in the guest."""
    machine.start("long64_A")
    entry, late = machine.port.execute_many([
        Instruction("VMLAUNCH"), write("GUEST_RIP", 0x9999)])
    assert (entry.outcome, late.outcome, late.reason) == (Outcome.ENTERED, Outcome.EXIT, 25)
    assert machine.read("GUEST_RIP") != 0x9999


def test_exit_loads_the_host_and_saves_the_guest(machine):
    machine.start("long64_A")
    machine("VMLAUNCH")
    machine.port.write_registers({"RIP": 0x7777, "CR3": 0x5000, "RFLAGS": 0x10202})
    machine("VMCALL")
    live = machine.port.read_registers()
    baseline = dict(machine.profile["baselines"]["long64_A"])
    assert live["RIP"] == baseline["HOST_RIP"]
    assert live["TR_LIMIT"] == 0x67
    assert live["GDTR_LIMIT"] == 0xFFFF
    assert machine.read("GUEST_RIP") == 0x7777
    assert machine.read("GUEST_CR3") == 0x5000
    assert machine.read("GUEST_RFLAGS") == 0x202  # RF is 0 after an instruction that always exits
    assert machine.read("VM_EXIT_REASON") == 18
    assert machine.read("VM_EXIT_INSTRUCTION_LENGTH") == 3


def test_event_that_does_not_exit_changes_nothing(machine):
    use_msr_bitmaps = 0x14006172
    machine.start("long64_A", PRIMARY_PROC_BASED_CTLS=use_msr_bitmaps)
    machine("VMLAUNCH")
    before = machine.port.read_registers()
    assert machine.port.report(Event(RDMSR)).outcome is Outcome.NO_EXIT
    assert machine.port.mode == Mode.NON_ROOT
    assert machine.port.read_registers() == before


# --- regions ---

def test_fields_and_launch_state_are_kept_over_several_regions(machine):
    machine.start("long64_A", GUEST_RSP=0xA0)
    machine("VMLAUNCH")
    machine("VMCALL")
    machine.load(OTHER_REGION)
    machine.write(GUEST_RSP=0xB0)
    assert machine("VMPTRLD", pointer=REGION).outcome is Outcome.SUCCEED
    assert machine.read("GUEST_RSP") == 0xA0
    assert machine("VMLAUNCH").error == 4  # still launched
    assert machine("VMPTRLD", pointer=OTHER_REGION).outcome is Outcome.SUCCEED
    assert machine.read("GUEST_RSP") == 0xB0
    assert machine("VMRESUME").error == 5  # still clear
    assert machine("VMPTRST").value == OTHER_REGION


def test_vmclear_writes_the_region_in_our_format(machine):
    machine.start("long64_A", GUEST_RSP=0xA0, TSC_OFFSET=0x1122334455667788)
    machine("VMLAUNCH")
    machine("VMCALL")
    port = machine.port
    assert machine("VMCLEAR", pointer=REGION).outcome is Outcome.SUCCEED
    assert machine("VMPTRST").value == NO_VMCS
    offsets = field_offsets(port.capabilities)
    assert port.read_memory(REGION, 4) == machine.revision
    assert port.read_memory(REGION + ABORT_OFFSET, 4) == 0
    assert port.read_memory(REGION + LAUNCH_OFFSET, 8) == 0
    assert port.read_memory(REGION + offsets["TSC_OFFSET"], 8) == 0x1122334455667788


def test_shadow_vmcs_is_loaded_but_never_launched(machine):
    machine.start()
    machine.port.write_memory(REGION, 4, machine.revision | 1 << 31)
    machine.load(REGION)
    assert machine("VMLAUNCH").row == "VMLAUNCH.4"


# --- VMREAD and VMWRITE in the guest, with VMCS shadowing ---

def in_guest_with_shadow_vmcs(machine):
    """Enter a guest whose shadow VMCS is at OTHER_REGION; bitmaps let every access through."""
    machine.start()
    machine.port.write_memory(OTHER_REGION, 4, machine.revision | 1 << 31)
    machine.load(REGION)
    machine.write(**dict(machine.profile["baselines"]["long64_A"]) | {
        "PRIMARY_PROC_BASED_CTLS": 0x84006172, "SECONDARY_PROC_BASED_CTLS": 1 << 14,
        "VMCS_LINK_POINTER": OTHER_REGION, "VMREAD_BITMAP_ADDR": BITMAPS,
        "VMWRITE_BITMAP_ADDR": BITMAPS + 0x1000, "GUEST_RSP": 0xA0})
    assert machine("VMLAUNCH").outcome is Outcome.ENTERED


def test_guest_reads_and_writes_its_shadow_vmcs(machine):
    in_guest_with_shadow_vmcs(machine)
    machine.write(GUEST_RSP=0xB0, TSC_OFFSET=0x1122334455667788)
    high = FIELDS["TSC_OFFSET"].encoding + 1
    assert machine("VMWRITE", encoding=high, value=0x99).outcome is Outcome.SUCCEED
    assert machine("VMREAD", encoding=high).value == 0x99
    assert machine.read("TSC_OFFSET") == 0x9955667788
    place = OTHER_REGION + field_offsets(machine.port.capabilities)["GUEST_RSP"]
    assert machine.port.read_memory(place, 8) == 0xB0
    assert machine("VMXOFF").outcome is Outcome.EXIT
    assert machine.read("GUEST_RSP") == 0xA0


def test_guest_access_that_the_bitmap_names_exits(machine):
    in_guest_with_shadow_vmcs(machine)
    encoding = FIELDS["GUEST_RSP"].encoding
    machine.port.write_memory(BITMAPS + encoding // 64 * 8, 8, 1 << encoding % 64)
    answer = machine("VMREAD", encoding=encoding)
    assert (answer.outcome, answer.reason) == (Outcome.EXIT, 23)


def test_error_of_a_guest_access_goes_to_the_shadow_vmcs(machine):
    in_guest_with_shadow_vmcs(machine)
    answer = machine("VMREAD", encoding=0x5FFE)
    assert (answer.outcome, answer.error) == (Outcome.FAIL_VALID, 12)
    assert machine.read("VM_INSTRUCTION_ERROR") == 12
    machine("VMXOFF")
    assert machine.read("VM_INSTRUCTION_ERROR") == 0


# --- the VM-entry MSR-load list ---

def with_list(machine, *entries):
    machine.start("long64_A", VM_ENTRY_MSR_LOAD_ADDR=LIST, VM_ENTRY_MSR_LOAD_COUNT=len(entries))
    for number, (index, value) in enumerate(entries):
        machine.port.write_memory(LIST + 16 * number, 8, index)
        machine.port.write_memory(LIST + 16 * number + 8, 8, value)


def test_msr_list_goes_live_with_the_guest(machine):
    with_list(machine, (0xC0000081, 0x1111), (0x174, 0x2222), (0xC0000081, 0x3333))
    _, samples = watch(machine, lambda: machine("VMLAUNCH"))
    live = machine.port.read_registers()
    assert (live["STAR"], live["SYSENTER_CS"]) == (0x3333, 0x2222)
    assert all(sample.registers["STAR"] == 0 for sample in samples if sample.mode == Mode.ROOT)


def test_failing_msr_list_has_changed_nothing(machine):
    with_list(machine, (0xC0000081, 0x1111), (0xC0000100, 0))
    answer = machine("VMLAUNCH")
    assert (answer.outcome, answer.reason, answer.qualification, answer.failing) == (
        Outcome.ENTRY_FAILURE, 34, 2, ("M02", "M06"))
    assert machine.port.read_registers()["STAR"] == 0
    machine.write(VM_ENTRY_MSR_LOAD_COUNT=0)
    assert machine("VMLAUNCH").outcome is Outcome.ENTERED
    assert machine.port.read_registers()["STAR"] == 0


# --- memory that answers with an error ---

def test_bus_error_at_vmxon_leaves_the_processor_outside_vmx_operation(machine):
    machine.start()
    machine("VMXOFF")
    machine.port.fail_memory(VMXON_REGION, Fault.ERROR)
    assert machine("VMXON", pointer=VMXON_REGION).outcome is Outcome.BUS_ERROR
    assert machine.port.mode == Mode.OFF
    machine.port.fail_memory(VMXON_REGION, None)
    assert machine("VMXON", pointer=VMXON_REGION).outcome is Outcome.SUCCEED


def test_bus_error_while_a_region_is_loaded_leaves_no_current_vmcs(machine):
    machine.start("long64_A")
    machine.port.fail_memory(OTHER_REGION + LAUNCH_OFFSET, Fault.ERROR)
    assert machine("VMPTRLD", pointer=OTHER_REGION).outcome is Outcome.BUS_ERROR
    assert machine("VMPTRST").value == NO_VMCS
    assert machine("VMPTRLD", pointer=REGION).outcome is Outcome.SUCCEED
    assert machine("VMLAUNCH").outcome is Outcome.ENTERED


def test_bus_error_while_a_region_is_stored_changes_nothing(machine):
    machine.start("long64_A")
    machine.port.fail_memory(REGION + LAUNCH_OFFSET, Fault.ERROR)
    for name, pointer in (("VMPTRLD", OTHER_REGION), ("VMCLEAR", REGION)):
        assert machine(name, pointer=pointer).outcome is Outcome.BUS_ERROR
        assert machine("VMPTRST").value == REGION
    assert machine("VMLAUNCH").outcome is Outcome.ENTERED


@pytest.mark.parametrize("faulty", [LIST, LIST + 8, LIST + 16])
def test_bus_error_in_the_msr_list_changes_nothing(machine, faulty):
    with_list(machine, (0xC0000081, 0x1111), (0x174, 0x2222))
    root = machine.port.read_registers()
    machine.port.fail_memory(faulty, Fault.ERROR)
    assert machine("VMLAUNCH").outcome is Outcome.BUS_ERROR
    assert machine.port.read_registers() == root
    assert machine.port.mode == Mode.ROOT
    machine.port.fail_memory(faulty, None)
    assert machine("VMLAUNCH").outcome is Outcome.ENTERED
    assert machine.port.read_registers()["STAR"] == 0x1111


# --- retired ---

def test_every_operation_is_told_when_it_retires():
    machine = Machine("skylake_x_64")
    seen = []
    port, retired = machine.port, machine.port.unit.retired

    async def spy(ctx):
        async for values in ctx.tick().sample(retired.valid, retired.operation, retired.mode_before,
                                              retired.commit, retired.checked):
            *_, valid, operation, mode, commit, checked = values
            if valid:
                seen.append((Operation(operation).name, Mode(mode), commit, checked))

    port.simulator.add_testbench(spy, background=True)
    machine.start("long64_A")
    machine("VMLAUNCH")
    machine("VMCALL")
    machine("VMXOFF")
    machine("VMPTRST")
    writes = [event for event in seen if event[0] == "VMWRITE"]
    assert len(writes) == len(machine.profile["baselines"]["long64_A"])
    after = seen[seen.index(writes[-1]) + len(writes):]
    assert after[:3] == [
        ("VMLAUNCH", Mode.ROOT, 1, 1), ("VMCALL", Mode.NON_ROOT, 1, 0), ("VMXOFF", Mode.ROOT, 0, 0)]

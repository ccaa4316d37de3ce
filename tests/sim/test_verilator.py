"""The compiled unit is the one that Amaranth simulates, cycle for cycle."""

import pytest

from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.sim.memory import Fault
from vmxswitch.sim.pysim import PysimPort
from vmxswitch.sim.verilator import VerilatorPort
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Event, Instruction, Mode, Outcome
from vmxswitch.spec.tables import FIELDS

COMPACT = PRESETS["compact"]
PAIR = "linux-6.1-686-pae-idle", "linux-6.1-686-nopae-pentium3-syscall"
CURES = {"HOST_ES_SELECTOR": 0x78, "HOST_DS_SELECTOR": 0x78, "HOST_GS_SELECTOR": 0x30}
PAGE = 0x1000
BARE = {
    "CR0": 0x8000_0031, "CR4": 0x2000, "IA32_FEATURE_CONTROL": 5, "CS_AR": 0xC09B, "SS_AR": 0xC093,
}


@pytest.fixture(scope="module")
def simulated():
    return PysimPort(COMPACT)


@pytest.fixture(scope="module")
def compiled():
    return VerilatorPort(COMPACT)


@pytest.fixture
def ports(simulated, compiled):
    """Both, fresh."""
    for port in (simulated, compiled):
        port.watcher = None
        port.reset()
    return simulated, compiled


def write(field, value=0):
    return Instruction("VMWRITE", encoding=FIELDS[field].encoding, value=value)


def into_root(port):
    """VMX root operation with a VMCS that is current and empty."""
    port.write_registers(BARE)
    for region in (PAGE, 2 * PAGE):
        port.write_memory(region, 4, COMPACT.revision)
    return [port.execute(Instruction(name, pointer=region)) for name, region in (
        ("VMXON", PAGE), ("VMCLEAR", 2 * PAGE), ("VMPTRLD", 2 * PAGE))]


def program(port):
    """Of everything something; all that a port tells meanwhile."""
    told = into_root(port)
    told += port.execute_many([
        write("GUEST_RSP", 5), write("GUEST_RIP"), write("VM_EXIT_REASON"),
        Instruction("VMREAD", encoding=FIELDS["GUEST_RSP"].encoding), Instruction("VMPTRST")])
    told += [port.cycle, port.read_registers(), port.mode]
    told += port.execute_many([write("GUEST_RSP", 6), Instruction("VMLAUNCH")])
    port.write_registers({"SS_AR": 0xC0F3, "RSP": 1})
    told += [port.execute(Instruction("VMREAD", encoding=FIELDS["GUEST_RSP"].encoding)),
             port.execute(Instruction("VMPTRLD", pointer=3))]
    port.write_registers(BARE)
    told += [port.execute(Instruction("VMCLEAR", pointer=2 * PAGE)),
             port.execute(Instruction("VMXOFF")), port.cycle, port.mode, port.read_registers()]
    told += [port.read_memory(address, 8) for address in range(2 * PAGE, 2 * PAGE + 0x400, 8)]
    return told


def test_a_program_is_answered_alike_in_the_same_cycles(ports):
    simulated, compiled = map(program, ports)
    assert compiled == simulated
    outcomes = {getattr(answer, "outcome", None) for answer in simulated}
    assert outcomes >= {Outcome.SUCCEED, Outcome.FAIL_VALID, Outcome.FAULT}
    assert any(getattr(answer, "failing", ()) for answer in simulated)


def test_the_watcher_sees_the_same_samples_of_every_cycle(ports):
    samples = []
    for port in ports:
        seen = []
        port.watcher = seen.append
        program(port)
        samples.append(seen)
    assert samples[0] == samples[1]
    assert [sample.cycle for sample in samples[1]] == list(range(ports[1].cycle + 1))


def test_a_switch_is_the_same_cycle_for_cycle(ports):
    original, target = map(Environment.read, PAIR)
    simulated, compiled = (Vmm(port).switch(original, target, CURES) for port in ports)
    assert compiled.switched
    assert compiled.as_dict() == simulated.as_dict()


def test_guest_events_are_answered_alike(ports):
    """CPUID exits, RDTSC here does not."""
    answers = []
    for port in ports:
        seen = []

        class Guest:
            """Reports events as soon as the guest runs."""

            def __getattr__(self, name, port=port):
                return getattr(port, name)

            def execute(self, instruction, port=port, seen=seen):
                if instruction.name == "VMCALL":
                    seen += [port.report(Event(16, length=2)), port.report(Event(10, length=2)),
                             port.mode, port.cycle, port.execute(Instruction("VMRESUME"))]
                return port.execute(instruction)

        original, target = map(Environment.read, PAIR)
        Vmm(Guest()).switch(original, target, CURES)
        answers.append(seen)
    assert answers[0] == answers[1]
    assert [answer.outcome for answer in answers[1][:2]] == [Outcome.NO_EXIT, Outcome.EXIT]
    assert answers[1][-1].outcome is Outcome.ENTERED


def test_memory_is_read_as_it_was_written(compiled):
    compiled.reset()
    compiled.write_memory(0x100, 8, 0x1122_3344_5566_7788)
    compiled.write_memory(0x104, 4, 0xAABB_CCDD)
    assert compiled.read_memory(0x100, 8) == 0xAABB_CCDD_5566_7788
    assert compiled.read_memory(0x100, 4) == 0x5566_7788
    assert compiled.read_memory(0x104, 4) == 0xAABB_CCDD
    assert compiled.read_memory(0x108, 8) == 0
    assert compiled.memory_words() == {0x100: 0xAABB_CCDD_5566_7788}


@pytest.mark.parametrize("address, size", [(0, 2), (4, 8), (2, 4), (-8, 8), (1 << 64, 8)])
def test_an_access_that_is_not_aligned_is_refused(compiled, address, size):
    with pytest.raises(ValueError, match=f"no access of {size} bytes"):
        compiled.read_memory(address, size)
    with pytest.raises(ValueError, match=f"no access of {size} bytes"):
        compiled.write_memory(address, size, 0)


def test_a_bus_error_is_answered_alike_and_changes_nothing(ports):
    simulated, compiled = ports
    for port in ports:
        port.fail_memory(2 * PAGE + 8, Fault.ERROR)
    answers = [into_root(port)[-1] for port in ports]
    assert answers[0].outcome is Outcome.BUS_ERROR
    assert answers[0] == answers[1]
    none = [port.execute(Instruction("VMPTRST")).value for port in ports]
    assert none[0] == none[1]


def test_a_register_write_that_is_refused_changes_nothing(compiled):
    compiled.reset()
    for values, error in (({"RSP": 1, "NONE": 0}, KeyError),
                          ({"RSP": 1, "RIP": 1 << 32}, ValueError)):
        with pytest.raises(error):
            compiled.write_registers(values)
    assert not any(compiled.read_registers().values())


def test_a_reset_leaves_nothing(compiled):
    compiled.reset()
    into_root(compiled)
    compiled.fail_memory(0x100, Fault.ERROR)
    assert compiled.mode is Mode.ROOT
    compiled.reset()
    assert (compiled.mode, compiled.cycle, compiled.memory_words()) == (Mode.OFF, 0, {})
    assert not any(compiled.read_registers().values())
    assert compiled.execute(Instruction("VMPTRST")).outcome is Outcome.FAULT
    assert into_root(compiled)[-1].outcome is Outcome.SUCCEED


def test_a_reset_in_the_guest_leaves_no_guest(ports):
    original, target = map(Environment.read, PAIR)
    compiled = ports[1]

    class Reset(Exception):
        """Ends the switch in the guest."""

    def watcher(sample):
        if sample.mode is Mode.NON_ROOT:
            raise Reset

    compiled.watcher = watcher
    with pytest.raises(Reset):
        Vmm(compiled).switch(original, target, CURES)
    compiled.watcher = None
    assert compiled.mode is Mode.NON_ROOT
    compiled.reset()
    assert program(compiled) == program(ports[0])

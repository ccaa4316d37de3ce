"""What the processor does beside the VMX instructions."""

import pytest

from vmxswitch.sim.model import Model
from vmxswitch.sim.processor import Fault, Processor
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Instruction, Outcome

CR0_64, CR4_64 = 0x8000_0031, 0x2620
FLAT_32 = {"CS_AR": 0xC09B}  # outside 64-bit mode


@pytest.fixture
def processor(machine):
    """A function that makes a processor in a world, with changed registers."""
    def make(world="off", **registers):
        processor = Processor(machine(world).port)
        processor.set_up(registers)
        return processor
    return make


def refused(operation, *operands):
    """Whether an operation ends in #GP(0)."""
    try:
        operation(*operands)
    except Fault as fault:
        assert (fault.vector, fault.error_code) == (13, 0)
        return True
    return False


def test_an_environment_comes_back_as_it_was_set_up(machine):
    where = machine()
    environment = Processor(where.port).environment()
    assert environment == environment | where.profile.environment


@pytest.mark.parametrize("change, derived", [
    ({"CPL": 3}, {"CPL": 3, "CS_L": 1, "MODE": 64, "SS_AR": 0xC0F3}),
    ({"CS_L": 0}, {"CPL": 0, "CS_L": 0, "MODE": 32, "CS_AR": 0x809B}),
    ({"CS_L": 1, "CS_AR": 0xC09B}, {"CS_L": 1, "CS_AR": 0xE09B}),
    ({"EFER": 0}, {"CS_L": 1, "MODE": 32}),
])
def test_derived_entries_live_in_registers(processor, change, derived):
    environment = processor(**change).environment()
    assert environment == environment | derived


def test_an_environment_for_one_instruction_is_gone_after_it(processor):
    where = processor("loaded")
    before = where.port.read_registers()
    answer = where.execute(Instruction("VMCALL"), {"CPL": 3})
    assert (answer.outcome, answer.vector) == (Outcome.FAULT, 13)
    assert where.port.read_registers() == before


def test_an_environment_that_an_instruction_loads_stays(processor):
    where = processor("loaded")
    assert where.execute(Instruction("VMLAUNCH"), {"RFLAGS": 0x202}).outcome == Outcome.ENTERED
    assert where.port.read_registers()["RFLAGS"] == 2


def test_msrs_are_read(processor):
    where = processor(SYSENTER_CS=0x1234)
    assert where.read_msr(0x480) == where.port.capabilities.msrs[0x480]
    assert where.read_msr(0x3A) == 5
    assert where.read_msr(0x174) == 0x1234
    assert refused(where.read_msr, 0x493)  # not on this processor
    assert refused(where.read_msr, 0x1234)
    where.set_up({"CPL": 3})
    assert refused(where.read_msr, 0x174)


@pytest.mark.parametrize("index, value, read", [
    (0x174, 0x1_0000_0010, 0x10), (0x175, 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_0000),
    (0x277, 0x0706_0504_0100_0606, 0x0706_0504_0100_0606), (0xC000_0081, 1 << 63, 1 << 63)])
def test_msrs_are_written(processor, index, value, read):
    where = processor()
    where.write_msr(index, value)
    assert where.read_msr(index) == read


@pytest.mark.parametrize("index, value", [
    (0x480, 0), (0x1234, 0), (0x175, 1 << 63), (0x277, 2)])
def test_msr_writes_that_fault_change_nothing(processor, index, value):
    where = processor()
    before = where.port.read_registers()
    assert refused(where.write_msr, index, value)
    assert where.port.read_registers() == before


def test_feature_control_is_written_until_it_is_locked(processor):
    where = processor(IA32_FEATURE_CONTROL=0)
    assert refused(where.write_msr, 0x3A, 8)
    where.write_msr(0x3A, 4)
    where.write_msr(0x3A, 7)
    assert where.read_msr(0x3A) == 7
    assert refused(where.write_msr, 0x3A, 7)


@pytest.mark.parametrize("world, number, value, registers", [
    ("off", 0, CR0_64 & ~0x20, {}), ("off", 0, CR0_64 | 0x4000_0000, {}),
    ("off", 4, 0x620, {}), ("off", 4, 0x2628, {}),
    ("off", 4, CR4_64 | 1 << 17, {}),
    ("off", 0, 0x31, FLAT_32), ("off", 0, 0x10, FLAT_32),
    ("root", 0, CR0_64, {}), ("root", 4, CR4_64 | 0x10, {}),
])
def test_control_registers_take(processor, world, number, value, registers):
    where = processor(world, **registers)
    where.move_to_cr(number, value)
    assert where.port.read_registers()[f"CR{number}"] == value


@pytest.mark.parametrize("world, number, value, registers", [
    ("off", 0, CR0_64, {"CPL": 3}),
    ("off", 0, CR0_64 | 1 << 32, {}),               # reserved
    ("off", 0, CR0_64 & ~1, FLAT_32),               # PG without PE
    ("off", 0, CR0_64 | 0x2000_0000, {}),           # NW without CD
    ("off", 0, 0x31, {}),                           # PG cleared in 64-bit mode
    ("off", 0, 0x31, FLAT_32 | {"CR4": 0x2_2620}),  # PG cleared with CR4.PCIDE
    ("off", 0, CR0_64, {"CR0": 0x31}),              # PG set with LME in 64-bit code
    ("off", 0, CR0_64, FLAT_32 | {"CR0": 0x31, "CR4": 0x2600}),  # ... without PAE
    ("off", 4, CR4_64 | 1 << 31, {}),               # reserved
    ("off", 4, 0x2600, {}),                         # PAE cleared in IA-32e mode
    ("off", 4, CR4_64 | 1 << 17, {"CR3": 0x10_0001}),       # PCIDE with a PCID in CR3
    ("off", 4, CR4_64 | 1 << 17, FLAT_32 | {"EFER": 0}),    # PCIDE outside IA-32e mode
    ("root", 0, CR0_64 & ~0x20, {}),                # NE is fixed in VMX operation
    ("root", 0, 0x31, FLAT_32),                     # PG too
    ("root", 4, 0x620, {}),                         # and VMXE
])
def test_control_registers_refuse(processor, world, number, value, registers):
    where = processor(world, **registers)
    before = where.port.read_registers()
    assert refused(where.move_to_cr, number, value)
    assert where.port.read_registers() == before


def test_paging_switches_ia_32e_mode(processor):
    where = processor(**FLAT_32)
    where.move_to_cr(0, 0x31)
    assert where.port.read_registers()["EFER"] == 0x901
    where.move_to_cr(0, CR0_64)
    assert where.port.read_registers()["EFER"] == 0xD01


def test_reserved_bits_of_cr0_are_ignored_and_et_stays(processor):
    where = processor()
    where.move_to_cr(0, CR0_64 & ~0x10 | 0x1FFA_FFC0)
    assert where.port.read_registers()["CR0"] == CR0_64


def test_a_processor_without_efer_pages():
    where = Processor(Model(PRESETS["compact"]))
    where.move_to_cr(0, CR0_64)
    where.move_to_cr(0, 0x31)
    assert where.environment()["CR0"] == 0x31

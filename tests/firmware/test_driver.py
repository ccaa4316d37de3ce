"""Driver: instructions as the port sees them, and a typed error for every way to fail."""

import pytest

from vmxswitch.firmware import driver as drivers
from vmxswitch.firmware.driver import Driver, operand_bits
from vmxswitch.sim.model import Model
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Answer, Instruction, Outcome
from vmxswitch.spec.tables import ERRORS, FIELDS

REGION, OTHER = 0x1000, 0x2000
SUCCEED = Answer(Outcome.SUCCEED)
LONG_MODE = {
    "CR0": 0x8000_0031, "CR4": 0x20A0, "EFER": 0xD01, "CS_AR": 0xA09B, "SS_AR": 0xC093,
    "IA32_FEATURE_CONTROL": 5,
}
PROTECTED_MODE = {**LONG_MODE, "EFER": 0, "CS_AR": 0xC09B}


class Recorder:
    """A port that gives one answer to everything and keeps what it was asked."""
    capabilities = PRESETS["full"]

    def __init__(self, answer=SUCCEED, registers=LONG_MODE):
        self.answer, self.registers, self.seen = answer, registers, []

    def execute(self, instruction):
        self.seen.append(instruction)
        return self.answer

    def read_registers(self):
        return dict.fromkeys(self.capabilities.registers, 0) | self.registers


@pytest.fixture
def model():
    """A processor at CPL 0 in 64-bit mode, with two regions that hold the revision."""
    port = Model(PRESETS["full"])
    port.write_registers(LONG_MODE)
    for region in (REGION, OTHER):
        port.write_memory(region, 4, 1)
    return port


@pytest.fixture
def current(model):
    """Driver of a processor with a current VMCS."""
    driver = Driver(model)
    driver.vmxon(REGION)
    driver.vmclear(OTHER)
    driver.vmptrld(OTHER)
    return driver


def failure(kind, call, *operands):
    with pytest.raises(kind) as caught:
        call(*operands)
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize(("call", "operands", "instruction"), [
    ("vmxon", (REGION,), Instruction("VMXON", pointer=REGION)),
    ("vmxoff", (), Instruction("VMXOFF")),
    ("vmclear", (REGION,), Instruction("VMCLEAR", pointer=REGION)),
    ("vmptrld", (REGION,), Instruction("VMPTRLD", pointer=REGION)),
    ("vmptrst", (), Instruction("VMPTRST")),
    ("vmread", ("GUEST_RIP",), Instruction("VMREAD", encoding=0x681E)),
    ("vmwrite", ("GUEST_RIP", 7), Instruction("VMWRITE", encoding=0x681E, value=7)),
    ("invept", (1, 2), Instruction("INVEPT", invalidation=1, descriptor=2)),
    ("invvpid", (1, 2), Instruction("INVVPID", invalidation=1, descriptor=2)),
])
def test_each_method_is_one_instruction(call, operands, instruction):
    port = Recorder()
    getattr(Driver(port), call)(*operands)
    assert port.seen == [instruction]


@pytest.mark.parametrize(("call", "operands", "outcome"), [
    ("vmlaunch", (), Outcome.ENTERED),
    ("vmresume", (), Outcome.ENTERED),
    ("vmcall", (), Outcome.EXIT),
    ("vmfunc", (0, 5), Outcome.CONTINUE),
])
def test_instructions_that_do_not_end_in_vmsucceed(call, operands, outcome):
    port = Recorder(Answer(outcome))
    assert getattr(Driver(port), call)(*operands) is port.answer


def test_a_64_bit_field_takes_two_accesses_outside_64_bit_mode():
    port, encoding = Recorder(registers=PROTECTED_MODE), FIELDS["VMCS_LINK_POINTER"].encoding
    Driver(port).vmwrite("VMCS_LINK_POINTER", 0x1234_5678_9ABC_DEF0)
    assert port.seen == [Instruction("VMWRITE", encoding=encoding, value=0x9ABC_DEF0),
                         Instruction("VMWRITE", encoding=encoding + 1, value=0x1234_5678)]
    port = Recorder(Answer(Outcome.SUCCEED, value=0x8000_0001), PROTECTED_MODE)
    assert Driver(port).vmread("VMCS_LINK_POINTER") == 0x8000_0001_8000_0001
    assert [instruction.encoding for instruction in port.seen] == [encoding, encoding + 1]


def test_a_natural_field_takes_one_access_in_every_mode():
    port = Recorder(registers=PROTECTED_MODE)
    Driver(port).vmwrite("GUEST_RIP", 7)
    assert len(port.seen) == 1


@pytest.mark.parametrize("registers", [LONG_MODE, PROTECTED_MODE])
def test_what_was_written_is_read(current, model, registers):
    model.write_registers(registers)
    current.vmwrite("VMCS_LINK_POINTER", 0x1234_5678_9ABC_DEF0)
    assert current.vmread("VMCS_LINK_POINTER") == 0x1234_5678_9ABC_DEF0
    assert current.vmptrst() == OTHER


def test_operand_bits_follow_the_mode():
    full, compact = PRESETS["full"], PRESETS["compact"]
    assert operand_bits(full, LONG_MODE) == 64
    assert operand_bits(full, PROTECTED_MODE) == 32
    assert operand_bits(full, {**LONG_MODE, "CS_AR": 0xC09B}) == 32 # compatibility mode
    assert operand_bits(compact, {"CS_AR": 0xA09B}) == 32


def test_vmfail_names_the_error_and_its_row(current):
    error = failure(drivers.VmFail, current.vmclear, REGION)
    assert error.error is ERRORS[3] and error.row.id == "VMCLEAR.7"
    assert str(error).startswith("VMCLEAR: VMfailValid(3) VMCLEAR_VMXON_POINTER: ")
    assert "VMCLEAR.7" in str(error)


def test_vmfail_of_an_entry_names_all_failing_checks(current):
    error = failure(drivers.VmFail, current.vmlaunch)
    assert error.error is ERRORS[7] and "C01" in error.answer.failing
    assert "failing checks: C01 " in str(error)


def test_vmfail_invalid(model):
    error = failure(drivers.VmFailInvalid, Driver(model).vmxon, REGION + 1)
    assert error.row.id == "VMXON.13" and str(error) == "VMXON: VMfailInvalid (row VMXON.13)"


@pytest.mark.parametrize(("registers", "text"), [
    ({"CR4": 0}, "VMXON: #UD (row VMXON.2)"),
    ({"SS_AR": 0xC0F3}, "VMXON: #GP(0) (row VMXON.6)"),
])
def test_fault(model, registers, text):
    model.write_registers(registers)
    assert str(failure(drivers.ProcessorFault, Driver(model).vmxon, REGION)) == text


@pytest.mark.parametrize(("answer", "kind", "text"), [
    (Answer(Outcome.ENTRY_FAILURE, "VMLAUNCH.9", reason=33, qualification=4, failing=("N24",)),
     drivers.EntryFailure,
     "VMLAUNCH: entry failure 33, qualification 4 (row VMLAUNCH.9; failing checks: N24)"),
    (Answer(Outcome.EXIT, "VMLAUNCH.2", reason=20), drivers.VmExit,
     "VMLAUNCH: VM exit 20 from the guest (row VMLAUNCH.2)"),
    (Answer(Outcome.FAULT, "VMLAUNCH.1", vector=17, error_code=0), drivers.ProcessorFault,
     "VMLAUNCH: exception 17(0) (row VMLAUNCH.1)"),
    (Answer(Outcome.ABORT, error=4), drivers.VmxAbort, "VMLAUNCH: VMX abort 4 (row unknown)"),
    (Answer(Outcome.BUS_ERROR), drivers.BusError, "VMLAUNCH: bus error (row unknown)"),
])
def test_other_failures(answer, kind, text):
    error = failure(kind, Driver(Recorder(answer)).vmlaunch)
    assert str(error) == text and error.answer is answer


def test_many_instructions_are_executed_in_one_call(current):
    writes = drivers.field_writes(64, "GUEST_RIP", 7) + drivers.field_writes(64, "GUEST_RSP", 8)
    assert [answer.outcome for answer in current.execute_many(writes)] == [Outcome.SUCCEED] * 2
    answers = current.execute_many(drivers.field_reads(64, "GUEST_RIP"))
    assert [answer.value for answer in answers] == [7]


def test_the_first_of_many_that_fails_is_named(current):
    writes = [Instruction("VMWRITE", encoding=0x1FFE), Instruction("VMPTRLD", pointer=OTHER),
              Instruction("VMLAUNCH")]
    error = failure(drivers.VmFail, current.execute_many, writes, Outcome.ENTERED)
    assert error.instruction is writes[0]

"""Instruction-level driver: one method for each VMX instruction, typed errors for what goes wrong.

Ref: Intel SDM (325462), vol. 3C, "VMX Instruction Reference", "Conventions".
Facts: instructions.csv, instruction_errors.csv, vmcs_fields.csv.
"""

from collections.abc import Sequence

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import to_function
from vmxswitch.spec.operations import Answer, Instruction, Outcome
from vmxswitch.spec.tables import (
    ERRORS,
    FIELDS,
    INSTRUCTIONS,
    InstructionError,
    InstructionRow,
    expression,
)

from .port import Port

__all__ = [
    "BusError", "Driver", "EntryFailure", "ProcessorFault", "VmExit", "VmFail", "VmFailInvalid",
    "VmxAbort", "VmxError", "field_reads", "field_writes", "operand_bits",
]


class VmxError(Exception):
    """An instruction did not do its work.

    Attributes
    ----------
    instruction : Instruction
    answer : Answer
        With the id of the row that decided and the ids of all failing entry checks.
    row : InstructionRow or None
        The row of instructions.csv that decided; None if the backend named none.
    """
    def __init__(self, instruction: Instruction, answer: Answer):
        self.instruction, self.answer = instruction, answer
        rows = INSTRUCTIONS.get(instruction.name, ())
        self.row: InstructionRow | None = next((row for row in rows if row.id == answer.row), None)
        super().__init__(f"{instruction.name}: {self.reason}")

    @property
    def reason(self) -> str:
        """The outcome in words, the row and the failing checks."""
        failing = " ".join(self.answer.failing)
        return (f"{self.outcome} (row {self.answer.row or 'unknown'}"
                f"{failing and f'; failing checks: {failing}'})")

    @property
    def outcome(self) -> str:
        """The outcome in words."""
        return self.answer.outcome.value


class VmFailInvalid(VmxError):
    """VMfailInvalid: there is no current VMCS that could hold an error number."""


class VmFail(VmxError):
    """VMfailValid. ``error`` is the row of instruction_errors.csv."""

    @property
    def error(self) -> InstructionError:
        return ERRORS[self.answer.error]

    @property
    def outcome(self):
        return f"VMfailValid({self.error.number}) {self.error.symbol}: {self.error.meaning}"


class ProcessorFault(VmxError):
    """The instruction raised an exception: ``answer.vector`` and ``answer.error_code``."""

    @property
    def outcome(self):
        code = "" if self.answer.error_code is None else f"({self.answer.error_code})"
        names = {6: "#UD", 13: "#GP", 14: "#PF"}
        return f"{names.get(self.answer.vector, f'exception {self.answer.vector}')}{code}"


class EntryFailure(VmxError):
    """The VM entry failed after its host checks; the host environment is live."""

    @property
    def outcome(self):
        return f"entry failure {self.answer.reason}, qualification {self.answer.qualification}"


class VmExit(VmxError):
    """The instruction was executed in the guest and exited; the host environment is live."""

    @property
    def outcome(self):
        return f"VM exit {self.answer.reason} from the guest"


class VmxAbort(VmxError):
    """VMX abort: the processor has shut down; only a reset helps."""

    @property
    def outcome(self):
        return f"VMX abort {self.answer.error}"


class BusError(VmxError):
    """Memory answered with an error; nothing was changed."""


_ERRORS = {
    Outcome.FAIL_INVALID: VmFailInvalid, Outcome.FAIL_VALID: VmFail, Outcome.FAULT: ProcessorFault,
    Outcome.ENTRY_FAILURE: EntryFailure, Outcome.EXIT: VmExit, Outcome.ABORT: VmxAbort,
    Outcome.BUS_ERROR: BusError,
}


def operand_bits(capabilities: Capabilities, registers: dict[str, int]) -> int:
    """Operand size of VMREAD and VMWRITE in an environment: 64 in 64-bit mode, else 32."""
    mode64 = to_function(capabilities.bind(expression("MODE64")))
    return 64 if mode64({f"LIVE_{name}": value for name, value in registers.items()}) else 32


def field_reads(bits: int, field: str) -> list[Instruction]:
    """The VMREADs of a whole field with operands of ``bits``: one, or one for each half."""
    encoding = FIELDS[field].encoding
    count = _operands(bits, field)
    return [Instruction("VMREAD", encoding=encoding | half) for half in range(count)]


def field_writes(bits: int, field: str, value: int) -> list[Instruction]:
    """The VMWRITEs of a whole field with operands of ``bits``: one, or one for each half."""
    encoding = FIELDS[field].encoding
    if _operands(bits, field) == 1:
        return [Instruction("VMWRITE", encoding=encoding, value=value)]
    return [Instruction("VMWRITE", encoding=encoding, value=value & 0xFFFFFFFF),
            Instruction("VMWRITE", encoding=encoding | 1, value=value >> 32)]


def _operands(bits: int, field: str) -> int:
    """How many operands take a field: two if one is too narrow and the field has two halves."""
    return 2 if bits == 32 and FIELDS[field].width_class == "64" else 1


class Driver:
    """VMX instructions on a port.

    Every method executes one instruction (VMREAD and VMWRITE of a 64-bit field outside 64-bit mode:
    two) and returns the :class:`Answer`, or the value that the instruction reads.

    Raises
    ------
    :exc:`VmxError`
        One of its subclasses, for every outcome that is not the instruction's success.
        :meth:`vmcall` succeeds by exiting to the host.
    """
    def __init__(self, port: Port):
        self._port = port

    def vmxon(self, pointer: int) -> Answer:
        """Enter VMX operation with the VMXON region at ``pointer``."""
        return self._execute("VMXON", pointer=pointer)

    def vmxoff(self) -> Answer:
        """Leave VMX operation."""
        return self._execute("VMXOFF")

    def vmclear(self, pointer: int) -> Answer:
        """Make the VMCS at ``pointer`` clear and not current."""
        return self._execute("VMCLEAR", pointer=pointer)

    def vmptrld(self, pointer: int) -> Answer:
        """Make the VMCS at ``pointer`` current."""
        return self._execute("VMPTRLD", pointer=pointer)

    def vmptrst(self) -> int:
        """The current-VMCS pointer; all ones if there is none."""
        return self._execute("VMPTRST").value

    def vmread(self, field: str) -> int:
        """Value of a field, all of it where the operand is wide enough."""
        answers = [self.execute(read) for read in field_reads(self._bits(field), field)]
        return sum(answer.value << 32 * half for half, answer in enumerate(answers))

    def vmwrite(self, field: str, value: int) -> Answer:
        """Set a field. A value wider than the operand is cut, unless the field has two halves."""
        return [self.execute(write) for write in field_writes(self._bits(field), field, value)][-1]

    def vmlaunch(self) -> Answer:
        """Enter the guest of a VMCS that is clear."""
        return self._execute("VMLAUNCH", Outcome.ENTERED)

    def vmresume(self) -> Answer:
        """Enter the guest of a VMCS that is launched."""
        return self._execute("VMRESUME", Outcome.ENTERED)

    def vmcall(self) -> Answer:
        """Call the VMM from the guest: exit to the host."""
        return self._execute("VMCALL", Outcome.EXIT)

    def vmfunc(self, eax: int, ecx: int = 0) -> Answer:
        """Invoke VM function ``eax`` from the guest."""
        return self._execute("VMFUNC", Outcome.CONTINUE, eax=eax, ecx=ecx)

    def invept(self, invalidation: int, descriptor: int = 0) -> Answer:
        """Drop mappings derived from EPT."""
        return self._execute("INVEPT", invalidation=invalidation, descriptor=descriptor)

    def invvpid(self, invalidation: int, descriptor: int = 0) -> Answer:
        """Drop mappings of a VPID."""
        return self._execute("INVVPID", invalidation=invalidation, descriptor=descriptor)

    def execute(self, instruction: Instruction, success: Outcome = Outcome.SUCCEED) -> Answer:
        """Execute one instruction that must end in ``success``."""
        return self._checked(instruction, self._port.execute(instruction), success)

    def execute_many(self, instructions: Sequence[Instruction],
                     last: Outcome = Outcome.SUCCEED) -> list[Answer]:
        """Execute instructions back to back; the last must end in ``last``, the others succeed."""
        answers = self._port.execute_many(instructions)
        for number, (instruction, answer) in enumerate(zip(instructions, answers, strict=True), 1):
            success = last if number == len(instructions) else Outcome.SUCCEED
            self._checked(instruction, answer, success)
        return answers

    def _bits(self, field: str) -> int:
        """Operand size, as far as it counts for ``field``."""
        if FIELDS[field].width_class != "64":
            return 64
        return operand_bits(self._port.capabilities, self._port.read_registers())

    def _execute(self, name: str, success: Outcome = Outcome.SUCCEED, **operands) -> Answer:
        return self.execute(Instruction(name, **operands), success)

    @staticmethod
    def _checked(instruction: Instruction, answer: Answer, success: Outcome) -> Answer:
        if answer.outcome is success:
            return answer
        raise _ERRORS[answer.outcome](instruction, answer)

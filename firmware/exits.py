"""A VM exit as the VMM reads it from the VMCS, and in words.

Ref: Intel SDM (325462), vol. 3C, "VM-Exit Information Fields" and "Exit Qualification".
Facts: exit_reasons.csv, exit_information.csv.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from vmxswitch.spec.operations import Delivery
from vmxswitch.spec.tables import EXIT_REASONS

__all__ = [
    "ALWAYS_READ", "GENERAL", "HARDWARE_EXCEPTION", "NMI", "TYPE", "VALID", "CrAccess", "Exit",
    "PortAccess", "Reason", "exception",
]

Reason = IntEnum("Reason", {row.symbol: row.number for row in EXIT_REASONS.values()})
Reason.__doc__ = "Basic exit reasons by the symbols of exit_reasons.csv."

VALID, HAS_ERROR_CODE = 1 << 31, 1 << 11
TYPE, NMI, HARDWARE_EXCEPTION = 7 << 8, 2 << 8, 3 << 8  # types; 0 is an external interrupt's
DELIVERED = 0xFFF | VALID  #: bits of the information that go into VM_ENTRY_INTR_INFO

#: Fields that the VMM reads after every exit.
ALWAYS_READ = (
    "VM_EXIT_REASON", "EXIT_QUALIFICATION", "VM_EXIT_INSTRUCTION_LENGTH", "VM_EXIT_INTR_INFO",
    "VM_EXIT_INTR_ERROR_CODE", "IDT_VECTORING_INFO", "IDT_VECTORING_ERROR_CODE",
    "GUEST_RIP", "GUEST_RFLAGS", "GUEST_INTERRUPTIBILITY_STATE", "GUEST_ACTIVITY_STATE",
)

#: Vectors with names and those that push an error code.
EXCEPTIONS = {0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
              10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC",
              18: "#MC", 19: "#XM"}
PUSHING = {8, 10, 11, 12, 13, 14, 17}


def exception(vector: int, error_code: int = 0) -> Delivery:
    """A hardware exception, to be delivered or reported."""
    pushes = HAS_ERROR_CODE if vector in PUSHING else 0
    return Delivery(VALID | HARDWARE_EXCEPTION | pushes | vector, error_code)


@dataclass(frozen=True)
class PortAccess:
    """Qualification of reason 30."""
    port: int
    size: int    # in bytes
    reads: bool

    @property
    def words(self) -> str:
        return f"{'IN' if self.reads else 'OUT'} {self.port:#x}"


@dataclass(frozen=True)
class CrAccess:
    """Qualification of reason 28. ``source`` is the operand of LMSW."""
    number: int
    kind: int      # 0 MOV to CR, 1 MOV from CR, 2 CLTS, 3 LMSW
    register: str  # general register of a MOV
    source: int

    @property
    def words(self) -> str:
        return (f"MOV to CR{self.number}", f"MOV from CR{self.number}", "CLTS", "LMSW")[self.kind]


#: General registers by their number in a qualification.
GENERAL = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
           *(f"R{number}" for number in range(8, 16)))


@dataclass(frozen=True)
class Exit:
    """What the VMM knows of a VM exit: the fields of :data:`ALWAYS_READ`, by name."""
    fields: Mapping[str, int]

    @property
    def reason(self) -> Reason:
        """Basic exit reason."""
        return Reason(self.fields["VM_EXIT_REASON"] & 0xFFFF)

    @property
    def qualification(self) -> int:
        return self.fields["EXIT_QUALIFICATION"]

    @property
    def length(self) -> int:
        """Of the instruction, in bytes."""
        return self.fields["VM_EXIT_INSTRUCTION_LENGTH"]

    @property
    def interruption(self) -> int:
        """Information on the exception, NMI or acknowledged interrupt."""
        return self.fields["VM_EXIT_INTR_INFO"]

    @property
    def vectoring(self) -> int:
        """Information on the event during whose delivery the guest exited."""
        return self.fields["IDT_VECTORING_INFO"]

    @property
    def is_nmi(self) -> bool:
        """Whether an NMI is the cause."""
        return self.reason is Reason.EXCEPTION_NMI and self.interruption & TYPE == NMI

    @property
    def event(self) -> Delivery:
        """The exception that is the cause, as the VMM gives it to the guest."""
        return Delivery(self.interruption & DELIVERED, self.fields["VM_EXIT_INTR_ERROR_CODE"],
                        self.length)

    @property
    def interrupted(self) -> Delivery | None:
        """The event during whose delivery the guest exited, if any, to be delivered again."""
        if not self.vectoring & VALID:
            return None
        return Delivery(self.vectoring & DELIVERED, self.fields["IDT_VECTORING_ERROR_CODE"],
                        self.length)

    @property
    def port(self) -> PortAccess:
        bits = self.qualification
        return PortAccess(bits >> 16 & 0xFFFF, (bits & 7) + 1, bool(bits >> 3 & 1))

    @property
    def control_register(self) -> CrAccess:
        bits = self.qualification
        return CrAccess(bits & 0xF, bits >> 4 & 3, GENERAL[bits >> 8 & 0xF], bits >> 16 & 0xFFFF)

    @property
    def words(self) -> str:
        """Why the guest left."""
        match self.reason:
            case Reason.EXCEPTION_NMI:
                vector = self.interruption & 0xFF
                return "NMI" if self.is_nmi else EXCEPTIONS.get(vector, f"exception {vector}")
            case Reason.IO_INSTRUCTION:
                return self.port.words
            case Reason.CR_ACCESS:
                return self.control_register.words
        return EXIT_REASONS[self.reason].name

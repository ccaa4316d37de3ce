"""The vocabulary between software and a processor with the unit: operations and answers.

A backend (reference model, RTL simulation, a board) takes an :class:`Instruction` or an
:class:`Event` and gives an :class:`Answer`, which says what the processor must do next. Operands
come decoded; a memory operand comes as its content.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

__all__ = [
    "EDGES", "NO_VMCS", "Answer", "Boundary", "Delivery", "Event", "Instruction", "Mode", "Outcome",
    "Sample", "Transition",
]

NO_VMCS = (1 << 64) - 1  #: current-VMCS pointer when there is none


class Mode(IntEnum):
    """Which world the logical processor runs."""
    OFF = 0       # after reset and after VMXOFF
    ROOT = 1      # the VMM
    NON_ROOT = 2  # the guest
    ABORT = 3     # VMX abort: shutdown, which only a reset ends


class Transition(IntEnum):
    """What changes the mode."""
    VMXON = 0
    VMXOFF = 1
    ENTRY = 2     # VM entry that passed every check
    EXIT = 3
    ABORT = 4     # a VM exit or a failed VM entry that cannot load the host state


#: Every mode change that there is.
EDGES = {
    (Mode.OFF, Transition.VMXON): Mode.ROOT,
    (Mode.ROOT, Transition.VMXOFF): Mode.OFF,
    (Mode.ROOT, Transition.ENTRY): Mode.NON_ROOT,
    (Mode.NON_ROOT, Transition.EXIT): Mode.ROOT,
    (Mode.NON_ROOT, Transition.ABORT): Mode.ABORT,
    (Mode.ROOT, Transition.ABORT): Mode.ABORT,
}


@dataclass(frozen=True)
class Instruction:
    """A VMX instruction with decoded operands; unused operands are 0.

    Attributes
    ----------
    name : str
        Key of :data:`vmxswitch.spec.tables.INSTRUCTIONS`, "VMXON" to "INVVPID".
    pointer : int
        VMXON, VMCLEAR, VMPTRLD: content of the 64-bit memory operand.
    encoding, value : int
        VMREAD, VMWRITE: register operand (field encoding, 64 bits); VMWRITE: source operand.
    invalidation, descriptor : int
        INVEPT, INVVPID: type operand (64 bits) and 128-bit descriptor.
    eax, ecx : int
        VMFUNC: the registers, 32 bits.
    register_operand : bool
        An operand that must be memory is encoded as a register.
    operand_fault : tuple of (vector, error code), optional
        Fault that the access to the memory operand ends in.
    mov_ss_blocking : bool
        Events are blocked by MOV SS.
    length, information, displacement : int
        For an exit: instruction length in bytes, VM-exit instruction information (32 bits),
        displacement of the memory operand (the qualification, 64 bits).
    """
    name: str
    pointer: int = 0
    encoding: int = 0
    value: int = 0
    invalidation: int = 0
    descriptor: int = 0
    eax: int = 0
    ecx: int = 0
    register_operand: bool = False
    operand_fault: tuple[int, int] | None = None
    mov_ss_blocking: bool = False
    length: int = 3
    information: int = 0
    displacement: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened in the guest and may exit; VMX instructions are no events.

    It is told in the terms of the exit that it would be. What else decides is in the column
    ``operand`` of exit_reasons.csv.

    Attributes
    ----------
    reason : int
        Basic exit reason that it would exit with, key of
        :data:`vmxswitch.spec.tables.EXIT_REASONS`.
    qualification : int
        Exit qualification, 64 bits, as the core's decoder knows it: the whole operation of accesses
        to control registers, debug registers and ports.
    length, information : int
        Instruction length in bytes and VM-exit instruction information, for instructions.
    linear_address, physical_address : int
        Guest-linear and guest-physical address, for EPT violations and misconfigurations.
    number, value : int
        MSR index or leaf (32 bits) and operand (64 bits) of the guest's instruction.
    interruption, error_code : int
        Of an exception or NMI: interruption information in the layout of VM_EXIT_INTR_INFO, bit 31
        set, bit 12 for NMI unblocking due to IRET; error code. 32 bits each.
    vectoring, vectoring_error_code : int
        Of the event during whose delivery this one arose, 32 bits each; 0 if there was none.
        ``length`` is then that of the event delivered.
    """
    reason: int
    qualification: int = 0
    length: int = 0
    information: int = 0
    linear_address: int = 0
    physical_address: int = 0
    number: int = 0
    value: int = 0
    interruption: int = 0
    error_code: int = 0
    vectoring: int = 0
    vectoring_error_code: int = 0


@dataclass(frozen=True)
class Boundary:
    """The guest is between two instructions; what comes next is decided by ``boundary_events.csv``.

    Attributes
    ----------
    first : bool
        No instruction has retired since the VM entry.
    nmi, interrupt, init, sipi : bool
        What is pending: NMI, external interrupt, INIT, startup IPI.
    vector : int
        Of the external interrupt or startup IPI, 8 bits.
    """
    first: bool = False
    nmi: bool = False
    interrupt: bool = False
    init: bool = False
    sipi: bool = False
    vector: int = 0


@dataclass(frozen=True)
class Delivery:
    """An event that the processor must deliver through the guest's IDT.

    Attributes
    ----------
    information : int
        In the layout of VM_ENTRY_INTR_INFO, 32 bits, bit 31 set.
    error_code : int
        To push, if bit 11 is set, 32 bits.
    length : int
        Of the instruction that it stands for, in bytes (types 4, 5, 6).
    """
    information: int
    error_code: int = 0
    length: int = 0


class Outcome(Enum):
    """What an operation ended in."""
    SUCCEED = "VMsucceed"
    FAIL_INVALID = "VMfailInvalid"
    FAIL_VALID = "VMfailValid"
    FAULT = "fault"                  # raise the exception, the instruction had no effect
    CONTINUE = "continue"            # VMFUNC: done, flags unchanged
    ENTERED = "VM entry"             # the guest's environment is live
    ENTRY_FAILURE = "entry failure"  # the host's environment is live
    EXIT = "VM exit"                 # the host's environment is live
    NO_EXIT = "no VM exit"           # the event is the guest's own business
    BUS_ERROR = "bus error"          # memory gave an error or no answer; environment as before
    ABORT = "VMX abort"              # shutdown; the environment is as before, only a reset helps


@dataclass(frozen=True)
class Answer:
    """What the processor must do after an operation.

    Attributes
    ----------
    outcome : Outcome
    row : str
        Id of the row of instructions.csv that decided, "VMLAUNCH.12"; "" for events and bus
        errors.
    error : int
        VM-instruction error number (``FAIL_VALID``); VMX-abort code (``ABORT``).
    vector, error_code : int, int or None
        Exception to raise (``FAULT``).
    value : int
        VMREAD: the field; VMPTRST: the pointer; events that do not exit: what the access reads, or
        writes to the register.
    reason, qualification : int
        Basic exit reason and qualification (``ENTRY_FAILURE``, ``EXIT``).
    failing : tuple of str
        Ids of *all* failing entry checks, in table order (VMLAUNCH and VMRESUME that came to
        their checks).
    delivery : Delivery, optional
        What the processor must deliver before anything else (``ENTERED``: the injected event;
        ``NO_EXIT`` at a boundary: the pending event).
    cycles : int
        Clock cycles from acceptance to the answer; to the commit edge where one happened. 0 where
        the backend has no clock.
    """
    outcome: Outcome
    row: str = ""
    error: int = 0
    vector: int = 0
    error_code: int | None = None
    value: int = 0
    reason: int = 0
    qualification: int = 0
    failing: tuple[str, ...] = ()
    delivery: Delivery | None = None
    cycles: int = 0


@dataclass(frozen=True)
class Sample:
    """The processor in one clock cycle, as a backend's ``watcher`` sees it."""
    cycle: int
    mode: Mode
    registers: Mapping[str, int]

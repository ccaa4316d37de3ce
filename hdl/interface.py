"""Shapes that the unit's ports and components share, generated from the tables."""

from amaranth.hdl import Shape, Value, unsigned
from amaranth.lib import data, enum

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Outcome
from vmxswitch.spec.tables import INSTRUCTIONS

__all__ = [
    "INSTRUCTION_ROWS", "Code", "Event", "Operation", "Request", "Response", "cause_values",
    "control_layout", "field_layout", "register_layout", "require_capabilities", "symbol_values",
    "update_layout",
]

#: VMX instructions by number, in table order.
Operation = enum.Enum("Operation", {name: number for number, name in enumerate(INSTRUCTIONS)})
#: Outcomes by number; names are those of :class:`vmxswitch.spec.operations.Outcome`.
Code = enum.Enum("Code", {outcome.name: number for number, outcome in enumerate(Outcome)})
#: Rows of instructions.csv by their number in a response or in the trace.
INSTRUCTION_ROWS = tuple(row for rows in INSTRUCTIONS.values() for row in rows)


class Request(data.Struct):
    """A VMX instruction, decoded; see :class:`vmxswitch.spec.operations.Instruction`."""
    operation:        Operation
    operand:          64  # pointer, encoding, invalidation type or EAX
    source:           64  # VMWRITE value, descriptor bits 63:0 or ECX
    source_high:      64  # descriptor bits 127:64
    register_operand: 1
    operand_fault:    1   # the memory operand faults with ``vector`` and ``error_code``
    vector:           8
    error_code:       16
    mov_ss_blocking:  1
    length:           4   # bytes
    information:      32
    displacement:     64


class Pending(data.Struct):
    """What is pending at a boundary; see :class:`vmxswitch.spec.operations.Boundary`."""
    first:     1
    nmi:       1
    interrupt: 1
    init:      1
    sipi:      1
    vector:    8


class Event(data.Struct):
    """A guest event that may exit; see :class:`vmxswitch.spec.operations.Event`."""
    reason:               16
    qualification:        64
    length:               4   # bytes
    information:          32
    linear_address:       64
    physical_address:     64
    number:               32
    value:                64
    interruption:         32
    error_code:           32
    vectoring:            32
    vectoring_error_code: 32
    boundary:             1        # the guest is between two instructions; nothing above counts
    pending:              Pending


class Response(data.Struct):
    """What became of a request or event; see :class:`vmxswitch.spec.operations.Answer`."""
    code:          Code
    row:           range(len(INSTRUCTION_ROWS))  # deciding row; not defined for events
    error:         6   # VM-instruction error, for FAIL_VALID; VMX-abort code, for ABORT
    vector:        8   # exception, for FAULT
    error_code:    32  # of the exception, or of the event to deliver
    has_code:      1   # the exception has an error code
    value:         64  # VMREAD, VMPTRST; what a guest's access reads or writes
    delivery:      32  # event to deliver first, if bit 31; for ENTERED and NO_EXIT
    length:        4   # bytes, of the event to deliver
    reason:        16  # for EXIT and ENTRY_FAILURE
    qualification: 64


def require_capabilities(component, capabilities) -> Capabilities:
    """The constructor's argument, if it is what it must be; else :exc:`TypeError`, by name."""
    if not isinstance(capabilities, Capabilities):
        raise TypeError(f"{type(component).__name__} wants Capabilities, not {capabilities!r}")
    return capabilities


def field_layout(capabilities: Capabilities) -> data.StructLayout:
    """Every VMCS field of the processor, in table order."""
    return data.StructLayout(
        {symbol: capabilities.bits(row) for symbol, row in capabilities.fields.items()})


def control_layout(capabilities: Capabilities) -> data.StructLayout:
    """The VMCS fields of the control area, in table order."""
    return data.StructLayout({
        symbol: capabilities.bits(row) for symbol, row in capabilities.fields.items()
        if row.area == "control"})


def register_layout(capabilities: Capabilities) -> data.StructLayout:
    """Every register of the running environment, in table order."""
    return data.StructLayout(
        {name: capabilities.bits(row) for name, row in capabilities.registers.items()})


def update_layout(capabilities: Capabilities) -> data.StructLayout:
    """One register write by the core: number of the register in table order, and value."""
    return data.StructLayout({
        "register": Shape.cast(range(len(capabilities.registers))), "value": unsigned(64),
    })


def cause_values(cause) -> dict[str, Value]:
    """Values of the symbols that describe what moves the processor to the host."""
    return {"EXIT_REASON": cause.reason} | {f"CAUSE_{name.upper()}": cause[name] for name in (
        "qualification", "length", "information", "linear_address", "physical_address", "number",
        "value", "interruption", "error_code", "vectoring", "vectoring_error_code")}


def symbol_values(capabilities: Capabilities, *, fields=None, live=None) -> dict[str, Value]:
    """Values of the symbols that fields and registers give to expressions."""
    values = {}
    if fields is not None:
        values |= {symbol: Value.cast(fields[symbol]) for symbol in capabilities.fields}
    if live is not None:
        values |= {row.symbol: Value.cast(live[name])
                   for name, row in capabilities.registers.items()}
    return values

"""The architecture's tables, loaded once into frozen rows.

Each CSV file of this folder becomes one mapping of rows; expressions in it are parsed, so an
unknown symbol, a bit that a control word does not have or a width mismatch stops the import with
the row's name. See ``docs/tables.md`` for the columns.

Sources: Intel SDM vol. 3C, chapters "Virtual-Machine Control Structures", "VM Entries", "VM Exits",
"VMX Instruction Reference" and appendix "Capability Reporting"; compared with the implementations
named in ``docs/tables.md``.
"""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from .errors import UsageError
from .expression import Binary, Expression, ExpressionError, Invert, Macro, parse, symbols

__all__ = [
    "ABORTS", "BOUNDARY_EVENTS", "CAPABILITY_MSRS", "CHECKS", "CONTROLS", "CONTROL_WORDS", "ERRORS",
    "EVENT_EXITS", "EVENT_WORDS", "EXIT_INFORMATION", "EXIT_REASONS", "FIELDS", "FIELD_BY_ENCODING",
    "INSTRUCTIONS", "MSRS", "REGISTERS", "REGISTER_BITS", "STAGES", "SYMBOLS", "SYMBOL_WIDTHS",
    "Abort", "BoundaryEvent", "CapabilityMsr", "Check", "Control", "ControlWord", "EventWord",
    "ExitInformation", "ExitReason", "Failure", "Field", "InstructionError", "InstructionRow",
    "Msr", "NamedSymbol", "Register", "RegisterBits", "TableError", "expression",
    "implemented_reason",
]

NATURAL_BITS = 64  # architectural width of a natural-width field or register
WIDTH_BITS = {"16": 16, "32": 32, "64": 64, "natural": NATURAL_BITS}


class TableError(Exception):
    """A table of this package holds a row that does not make sense."""


def _read(name: str) -> Iterator[dict[str, str]]:
    with files(__package__).joinpath(name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@dataclass(frozen=True)
class Field:
    """A VMCS field: row of ``vmcs_fields.csv``."""
    encoding: int
    name: str
    symbol: str
    width_class: str         # "16", "32", "64" or "natural"
    area: str                # "control", "exit-information", "guest-state" or "host-state"
    access: str              # "rw" or "ro"
    feature: Expression      # allowed-1 settings that make the field exist
    notes: str

    @property
    def bits(self) -> int:
        """Width in bits on a 64-bit processor."""
        return WIDTH_BITS[self.width_class]

    @property
    def is_high(self) -> bool:
        """Whether this row is the access to bits 63:32 of the 64-bit field one encoding below."""
        return bool(self.encoding & 1)


@dataclass(frozen=True)
class Control:
    """A bit of a control word: row of ``controls.csv``."""
    word: str
    low: int                 # lowest and highest bit number; equal unless a reserved range
    high: int
    symbol: str
    meaning: str
    default1: bool           # 1 unless a TRUE capability MSR says that it may be 0
    clearable: bool          # default1, and TRUE capability MSRs may allow 0
    dependencies: str


@dataclass(frozen=True)
class ControlWord:
    """A control field and what allows its bits: row of ``control_words.csv``."""
    word: str
    field: str
    capability: str          # capability MSR; the TRUE one counts if IA32_VMX_BASIC[55]
    true_capability: str
    activated_by: str        # control bit without which the word reads as 0; "": always active

    @property
    def allowed_1_low(self) -> int:
        """Lowest bit of the allowed-1 settings in the capability MSR."""
        return 0 if self.bits == 64 else 32

    @property
    def bits(self) -> int:
        return FIELDS[self.field].bits

    @property
    def capability_symbol(self) -> str:
        """Symbol of the capability in force, TRUE or plain."""
        return f"{self.word.upper()}CAP" if self.true_capability else self.capability

    @property
    def allowed_symbol(self) -> str:
        """Symbol of the allowed-1 settings: the bits that may be 1."""
        return f"{self.word.upper()}ALLOWED"


@dataclass(frozen=True)
class CapabilityMsr:
    """A capability-reporting MSR: row of ``capability_msrs.csv``."""
    msr: int
    symbol: str
    feature: Expression      # when the MSR exists


@dataclass(frozen=True)
class NamedSymbol:
    """An input of expressions that no other table names: row of ``symbols.csv``."""
    symbol: str
    source: str              # capability, state, request, lookup, exit, memory or procedure
    width: int
    meaning: str


@dataclass(frozen=True)
class Register:
    """A register of the running environment and how it moves: row of ``registers.csv``.

    ``entry`` is the value loaded by a VM entry, ``save`` the value that a VM exit stores into the
    guest-state field ``field``, ``exit`` the value that the exit loads from the host state.
    """
    register: str
    width_class: str
    msr: int | None          # MSR index under which an MSR-load list may load the register
    field: str               # "" if no field holds it
    feature: Expression      # allowed-1 settings that make the register exist
    entry: Expression
    save: Expression | None
    exit: Expression

    @property
    def bits(self) -> int:
        """Width in bits on a 64-bit processor."""
        return WIDTH_BITS[self.width_class]

    @property
    def symbol(self) -> str:
        """Name of the register's current value in expressions."""
        return f"LIVE_{self.register}"


@dataclass(frozen=True)
class Failure:
    """What a failing check ends in: ``VMfailValid(error)`` or an entry failure."""
    error: int | None = None
    reason: int | None = None
    qualification: int | None = None  # None: index of the failing MSR-list entry


@dataclass(frozen=True)
class Check:
    """A VM-entry check: row of ``entry_checks.csv``.

    ``condition`` must hold whenever the check applies.
    """
    id: str
    stage: str               # one of STAGES
    section: str             # section of the manual (numbers of the 2016 edition)
    fields: tuple[str, ...]  # symbols that a report of this check shows
    condition: Expression
    applies: Expression
    failure: Failure
    demand: str              # what is demanded, and when, in words
    notes: str

    @cached_property
    def symbols(self) -> frozenset[str]:
        """All symbols that the row reads."""
        return symbols(self.condition) | symbols(self.applies)

    @property
    def violated(self) -> Expression:
        """What is 1 if the check fails: it applies and its condition does not hold."""
        return Binary(1, "&", self.applies, Invert(1, self.condition))


@dataclass(frozen=True)
class InstructionRow:
    """One case of a VMX instruction: row of ``instructions.csv``; the first true row wins."""
    instruction: str
    order: int
    condition: Expression
    outcome: str             # "#UD", "#GP(0)", "exit 27", "VMfail(15)", "VMsucceed" ...
    effects: str
    words: str               # the condition in words
    notes: str

    @property
    def id(self) -> str:
        return f"{self.instruction}.{self.order}"

    @property
    def number(self) -> int | None:
        """The number in the outcome: error, exit reason or entry-failure reason."""
        match = re.search(r"\d+", self.outcome)
        return int(match[0]) if match else None

    @property
    def kind(self) -> str:
        """The outcome without its number: "#GP", "exit", "VMfail", "VMfailInvalid" ..."""
        return re.sub(r"\W*\d+\W*", "", self.outcome)


@dataclass(frozen=True)
class ExitReason:
    """A basic exit reason: row of ``exit_reasons.csv``."""
    number: int
    name: str
    symbol: str
    trigger: str
    exit_qualification: str
    instruction_length_saved: str
    enabling_control: str
    instructions: tuple[str, ...]  # guest instructions whose exit needs nothing but ``condition``
    condition: Expression | None   # None: VMX instructions and what is not implemented
    undefined: Expression          # the guest's instruction is #UD, before all else
    protection: Expression         # it is #GP(0), if it does not exit
    value: Expression | None       # what it then reads, or writes to the register
    operand: str                   # what ``CAUSE_NUMBER`` and ``CAUSE_VALUE`` are, in words

    @property
    def by_instruction(self) -> bool:
        """Whether the cause is always an instruction (``EXIT_BY_INSTRUCTION``)."""
        return self.instruction_length_saved == "yes"


@dataclass(frozen=True)
class BoundaryEvent:
    """What may come between two instructions: row of ``boundary_events.csv``, by priority.

    The first row that is pending and either exits, by the condition of its reason, or ``delivers``
    decides.
    """
    order: int
    reason: int
    pending: Expression
    delivers: bool            # if it does not exit, it goes through the guest's IDT
    interruption: Expression  # interruption information
    qualification: Expression
    words: str

    @property
    def id(self) -> str:
        return f"boundary.{self.order}"


@dataclass(frozen=True)
class EventWord:
    """A 64-bit word of memory that decides what an event does: row of ``event_words.csv``."""
    symbol: str
    when: Expression     # it is read; else it counts as 0
    address: Expression  # of the word that holds it, 64 bits
    words: str


@dataclass(frozen=True)
class Abort:
    """What ends a VM exit in a VMX abort: row of ``vmx_aborts.csv``."""
    code: int
    symbol: str
    condition: Expression
    words: str


@dataclass(frozen=True)
class ExitInformation:
    """A field that a move to the host writes: row of ``exit_information.csv``.

    The field takes ``value`` if ``when`` holds. VM exits and entry failures alike: an entry failure
    (``ENTRY_FAILURE``) comes from root operation.
    """
    field: str
    when: Expression
    value: Expression
    notes: str


@dataclass(frozen=True)
class Msr:
    """An MSR, or some that are alike: row of ``msrs.csv``.

    WRMSR faults with data for which ``accepted`` is 0, and on some processors with data for which
    ``doubtful`` is 0; nothing is said about other data.
    """
    first: int
    last: int
    name: str
    accepted: Expression | None
    doubtful: Expression | None


@dataclass(frozen=True)
class RegisterBits:
    """Bits ``low`` to ``high`` of a register or field and their name: row of ``register_bits.csv``.

    ``register`` is the register's name without area, such as CR0, or that of a field or of a kind
    of fields: AR (access rights), SELECTOR, INTR_INFO.
    """
    register: str
    low: int
    high: int
    name: str


@dataclass(frozen=True)
class InstructionError:
    """A VM-instruction error: row of ``instruction_errors.csv``."""
    number: int
    symbol: str
    meaning: str
    raised_by: tuple[str, ...]


def _at(row, what: str, build: Callable):
    """Build one row's object; an expression error names the row."""
    try:
        return build(row)
    except (ExpressionError, ValueError, KeyError) as error:
        raise TableError(f"{what}: {error}") from None


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


CONTROLS: dict[str, Control] = {
    row["symbol"]: Control(
        row["word"], *_range(row["bit"]), row["symbol"], row["meaning"], row["default1"] == "yes",
        row["clearable"] == "yes", row["dependencies"])
    for row in _read("controls.csv")
}
CONTROL_WORDS: dict[str, ControlWord] = {
    row["word"]: ControlWord(**row) for row in _read("control_words.csv")
}
SYMBOLS: dict[str, NamedSymbol] = {
    row["symbol"]: NamedSymbol(row["symbol"], row["source"], int(row["width"]), row["meaning"])
    for row in _read("symbols.csv")
}

_MACROS = {
    (row["name"], len(row["parameters"].split())):
        Macro(tuple(row["parameters"].split()), row["expression"])
    for row in _read("notation.csv")
}
_CAPABILITY_BITS = {row["symbol"]: 64 for row in _read("capability_msrs.csv")} | {
    f"{word.upper()}CAP": 64 for word, row in CONTROL_WORDS.items() if row.true_capability
} | {row.allowed_symbol: 64 for row in CONTROL_WORDS.values()}
#: What decides whether a field, register or MSR exists: capabilities, and control bits, here in
#: the sense "the processor allows the bit to be 1".
_FEATURE_SCOPE = _CAPABILITY_BITS | {control: 1 for control in CONTROLS} | {
    name: row.width for name, row in SYMBOLS.items() if row.source == "capability"
}


def _feature(text: str) -> Expression:
    return parse(text, _FEATURE_SCOPE, {}, 1)


CAPABILITY_MSRS: dict[str, CapabilityMsr] = {
    row["symbol"]: _at(row, f"capability_msrs.csv, {row['symbol']}", lambda row: CapabilityMsr(
        int(row["msr"], 16), row["symbol"], _feature(row["feature"])))
    for row in _read("capability_msrs.csv")
}
FIELDS: dict[str, Field] = {
    row["symbol"]: _at(row, f"vmcs_fields.csv, {row['symbol']}", lambda row: Field(
        int(row["encoding"], 16), row["name"], row["symbol"], row["width_class"], row["area"],
        row["access"], _feature(row["feature"]), row["notes"]))
    for row in _read("vmcs_fields.csv")
}
FIELD_BY_ENCODING: dict[int, Field] = {field.encoding: field for field in FIELDS.values()}


def _control_macros() -> Iterator[tuple[tuple[str, int], Macro]]:
    """Control words and bits as they count: 0 unless activated, and unless the bit is allowed."""
    for word, row in CONTROL_WORDS.items():
        text = f"({row.field} if {row.activated_by} else 0)" if row.activated_by else row.field
        yield (word.upper(), 0), Macro((), text)
    for control in CONTROLS.values():
        if control.low == control.high:
            row = CONTROL_WORDS[control.word]
            allowed = f"{row.allowed_symbol}[{control.low}]"
            text = f"({control.word.upper()}[{control.low}] and {allowed})"
            yield (control.symbol, 0), Macro((), text)


_REGISTER_BITS = {
    f"LIVE_{row['register']}": WIDTH_BITS[row["width_class"]] for row in _read("registers.csv")
}
#: Width in bits of every symbol of the language, except control words and bits, which are macros.
SYMBOL_WIDTHS: dict[str, int] = _CAPABILITY_BITS | _REGISTER_BITS | {
    name: row.width for name, row in SYMBOLS.items()
} | {
    name: field.bits for name, field in FIELDS.items() if not field.is_high
}
_MACROS |= dict(_control_macros())


def expression(text: str, width: int = 1) -> Expression:
    """Parse a text over all symbols and notation of the tables, not yet bound to a processor."""
    return parse(text, SYMBOL_WIDTHS, _MACROS, width)


def _register(row) -> Register:
    bits = WIDTH_BITS[row["width_class"]]
    field = row["field"]
    return Register(
        row["register"], row["width_class"], int(row["msr"], 16) if row["msr"] else None, field,
        _feature(row["feature"]), expression(row["entry"], bits),
        expression(row["save"], FIELDS[field].bits) if field else None,
        expression(row["exit"], bits))


REGISTERS: dict[str, Register] = {
    row["register"]: _at(row, f"registers.csv, {row['register']}", _register)
    for row in _read("registers.csv")
}

_FAILURE = re.compile(
    r"VMfailValid\((?P<error>\d+)\)|entry_failure\((?P<reason>\d+), (?P<q>\d+|k)\)")


def _check(row) -> Check:
    match = _FAILURE.fullmatch(row["failure"])
    if match is None:
        raise ValueError(f"no failure {row['failure']!r}")
    if match["error"]:
        failure = Failure(error=int(match["error"]))
    else:
        qualification = None if match["q"] == "k" else int(match["q"])
        failure = Failure(None, int(match["reason"]), qualification)
    unknown = [name for name in row["fields"].split() if name not in SYMBOL_WIDTHS]
    if unknown:
        raise ValueError(f"no symbol {unknown[0]!r}")
    return Check(
        row["id"], row["stage"], row["section"], tuple(row["fields"].split()),
        expression(row["condition"]), expression(row["applies"]), failure, row["demand"],
        row["notes"])


CHECKS: dict[str, Check] = {
    row["id"]: _at(row, f"entry_checks.csv, {row['id']}", _check)
    for row in _read("entry_checks.csv")
}
#: Stages of the checks in the order in which they decide an entry.
STAGES = ("control", "host", "guest", "guest-nonregister", "msr-load", "machine-check")

INSTRUCTIONS: dict[str, tuple[InstructionRow, ...]] = {}
for _row in _read("instructions.csv"):
    _instruction = _at(_row, f"instructions.csv, {_row['instruction']}.{_row['order']}", lambda row:
        InstructionRow(
            row["instruction"], int(row["order"]), expression(row["condition"]), row["outcome"],
            row["effects"], row["words"], row["notes"]))
    INSTRUCTIONS[_row["instruction"]] = (*INSTRUCTIONS.get(_row["instruction"], ()), _instruction)

EXIT_REASONS: dict[int, ExitReason] = {
    int(row["number"]): _at(row, f"exit_reasons.csv, {row['number']}", lambda row: ExitReason(
        int(row["number"]), row["name"], row["symbol"], row["trigger"], row["exit_qualification"],
        row["instruction_length_saved"], row["enabling_control"],
        tuple(row["instructions"].split()),
        expression(row["condition"]) if row["condition"] else None,
        expression(row["undefined"] or "False"), expression(row["protection"] or "False"),
        expression(row["value"], 64) if row["value"] else None, row["operand"]))
    for row in _read("exit_reasons.csv")
}
#: The reasons of which the unit decides by the row itself whether an event exits.
EVENT_EXITS = {
    number: row for number, row in EXIT_REASONS.items() if row.condition is not None}
BOUNDARY_EVENTS: tuple[BoundaryEvent, ...] = tuple(
    _at(row, f"boundary_events.csv, {row['order']}", lambda row: BoundaryEvent(
        int(row["order"]), int(row["reason"]), expression(row["pending"]),
        row["delivers"] == "yes", expression(row["interruption"], 32),
        expression(row["qualification"], 64), row["words"]))
    for row in _read("boundary_events.csv"))
EVENT_WORDS: dict[str, EventWord] = {
    row["symbol"]: _at(row, f"event_words.csv, {row['symbol']}", lambda row: EventWord(
        row["symbol"], expression(row["when"]), expression(row["address"], 64), row["words"]))
    for row in _read("event_words.csv")
}
ABORTS: dict[int, Abort] = {
    int(row["code"]): _at(row, f"vmx_aborts.csv, {row['code']}", lambda row: Abort(
        int(row["code"]), row["symbol"], expression(row["condition"]), row["words"]))
    for row in _read("vmx_aborts.csv")
}
EXIT_INFORMATION: dict[str, ExitInformation] = {
    row["field"]: _at(row, f"exit_information.csv, {row['field']}", lambda row: ExitInformation(
        row["field"], expression(row["when"]),
        expression(row["value"], FIELDS[row["field"]].bits), row["notes"]))
    for row in _read("exit_information.csv")
}
MSRS: tuple[Msr, ...] = tuple(
    _at(row, f"msrs.csv, {row['first']}", lambda row: Msr(
        int(row["first"], 16), int(row["last"] or row["first"], 16), row["name"],
        *(expression(row[column]) if row[column] else None
          for column in ("accepted", "doubtful"))))
    for row in _read("msrs.csv")
)
REGISTER_BITS: dict[str, tuple[RegisterBits, ...]] = {}
for _row in _read("register_bits.csv"):
    _bits = RegisterBits(_row["register"], int(_row["low"]), int(_row["high"]), _row["name"])
    REGISTER_BITS[_bits.register] = (*REGISTER_BITS.get(_bits.register, ()), _bits)
ERRORS: dict[int, InstructionError] = {
    int(row["number"]): InstructionError(
        int(row["number"]), row["symbol"], row["meaning"], tuple(row["raised_by"].split()))
    for row in _read("instruction_errors.csv")
}


def implemented_reason(number: int) -> ExitReason:
    """The exit reason of a guest event; its rule must be an expression.

    Raises :exc:`UsageError` for an unknown reason and for one whose rule is not implemented.
    """
    reason = EXIT_REASONS.get(number)
    if reason is None:
        raise UsageError(f"no exit reason {number!r}")
    if reason.condition is None:
        raise UsageError(f"events of exit reason {number}, {reason.name}, are not implemented")
    return reason

"""The tables as one processor's Python functions: what the reference model follows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from vmxswitch.spec.capabilities import WRMSR_RULES, BoundCheck, Capabilities
from vmxswitch.spec.expression import Const, Expression, Slice, symbols, to_function
from vmxswitch.spec.tables import (
    ABORTS,
    BOUNDARY_EVENTS,
    EVENT_EXITS,
    EVENT_WORDS,
    EXIT_INFORMATION,
    INSTRUCTIONS,
    BoundaryEvent,
    InstructionRow,
    expression,
)

__all__ = ["Function", "Rules", "rules"]

Function = Callable[[Mapping[str, int]], int]  #: from the values of symbols to a number


@dataclass(frozen=True)
class Rules:
    """What :func:`rules` makes of the tables. Rows that cannot be met are left out."""
    instructions: Mapping[str, tuple[tuple[InstructionRow, Function], ...]]
    checks: tuple[tuple[BoundCheck, Function], ...]       # all but those of list entries
    list_checks: tuple[tuple[BoundCheck, Function], ...]  # of an MSR-load list entry
    entry: Mapping[str, Function]                         # register: value that an entry loads
    save: Mapping[str, Function]                          # field: value that an exit saves
    host: Mapping[str, Function]                          # register: value that an exit loads
    information: Mapping[str, tuple[Function, Function]]  # field: whether written, and value
    events: Mapping[int, "EventRules"]                    # by exit reason
    boundary: tuple["BoundaryRules", ...]                 # by priority
    words: Mapping[str, tuple[Function, Function]]        # symbol: whether read, and address
    checked_words: Mapping[str, Function]                 # symbol: whether entry checks read it
    aborts: Mapping[int, Function]                        # VMX-abort code: whether it comes to it
    wrmsr: Mapping[int, Function]                         # MSR index: whether WRMSR accepts data
    flags: Mapping[str, Function]                         # single bits that effects ask for


@dataclass(frozen=True)
class EventRules:
    """Row of exit_reasons.csv."""
    exits: Function
    undefined: Function
    protection: Function
    value: Function


@dataclass(frozen=True)
class BoundaryRules:
    """Row of boundary_events.csv."""
    row: BoundaryEvent
    pending: Function
    interruption: Function
    qualification: Function


#: Bits of control words and notation that the model asks for by name.
FLAGS = ("MODE64", "PROC2_ENABLE_EPT", "PROC2_EPT_VIOLATION_VE", "HOST_PAE", "VECTORING",
         "TIMER_COUNTS")


#: Symbols of memory that entry checks read.
CHECKED_WORDS = ("VTPR", "LINK_WORD", "PDPTE0", "PDPTE1", "PDPTE2", "PDPTE3")


@cache
def rules(capabilities: Capabilities) -> Rules:
    """Compile the tables for one processor."""

    def compiled(value: Expression, bits: int | None = None) -> Function:
        value = capabilities.bind(value)
        return to_function(value if bits in (None, value.width) else Slice(bits, value, 0))

    checks = [(check, to_function(check.fails)) for check in capabilities.checks.values()]
    registers = capabilities.registers
    widths = {name: capabilities.bits(row) for name, row in registers.items()}
    field_widths = {name: capabilities.bits(row) for name, row in capabilities.fields.items()}
    return Rules(
        instructions={
            name: tuple((row, to_function(condition)) for row, condition in capabilities.met(rows))
            for name, rows in INSTRUCTIONS.items()},
        checks=tuple(pair for pair in checks if pair[0].stage != "msr-load"),
        list_checks=tuple(pair for pair in checks if pair[0].stage == "msr-load"),
        entry={name: compiled(row.entry, widths[name]) for name, row in registers.items()},
        save={row.field: compiled(row.save, field_widths[row.field])
              for row in registers.values() if row.field in field_widths},
        host={name: compiled(row.exit, widths[name]) for name, row in registers.items()},
        information={name: (compiled(row.when), compiled(row.value, field_widths[name]))
                     for name, row in EXIT_INFORMATION.items() if name in field_widths},
        events={number: EventRules(compiled(row.condition), compiled(row.undefined),
                                   compiled(row.protection), compiled(row.value or Const(64, 0)))
                for number, row in EVENT_EXITS.items()},
        boundary=tuple(
            BoundaryRules(row, compiled(row.pending), compiled(row.interruption),
                          compiled(row.qualification)) for row in BOUNDARY_EVENTS),
        words={symbol: (compiled(row.when), compiled(row.address))
               for symbol, row in EVENT_WORDS.items()},
        checked_words={symbol: _any(
            compiled(row.check.applies) for row in capabilities.state_checks
            if symbol in symbols(row.check.condition)) for symbol in CHECKED_WORDS},
        aborts={code: compiled(row.condition) for code, row in ABORTS.items()},
        wrmsr={msr: compiled(expression(WRMSR_RULES[rule]))
               for msr, rule in capabilities.wrmsr_rules.items()},
        flags={name: compiled(expression(name)) for name in FLAGS})


def _any(functions):
    functions = tuple(functions)
    return lambda values: int(any(function(values) for function in functions))

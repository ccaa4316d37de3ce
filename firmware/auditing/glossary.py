"""One entry of the tables in words: a check, instruction row, field, reason, error or control bit.

Facts: every table of ``vmxswitch.spec``.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as attributes

from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import Expression, Slice, Symbol, symbols
from vmxswitch.spec.tables import (
    CHECKS,
    CONTROL_WORDS,
    CONTROLS,
    ERRORS,
    EXIT_REASONS,
    FIELD_BY_ENCODING,
    FIELDS,
    INSTRUCTIONS,
    REGISTER_BITS,
    Check,
    Control,
    ExitReason,
    Field,
    InstructionError,
    InstructionRow,
)

from .audits import FAILURE_BIT
from .hints import hint
from .words import bits_of

__all__ = ["Entry", "entries"]

_ROWS = {row.id: row for rows in INSTRUCTIONS.values() for row in rows}


@dataclass(frozen=True)
class Entry:
    """What there is to say of one entry.

    ``lines`` are pairs of a word and what it says; ``neighbours`` the entries before and behind it
    in its table, each with its meaning.
    """
    title: str
    lines: tuple[tuple[str, str], ...]
    neighbours: tuple[tuple[str, str], ...]


def entries(name: str) -> list[Entry]:
    """Every entry of a name: an id, symbol, name, number or encoding, in any case.

    A number alone may be an exit reason and an error. Raises :exc:`UsageError` if there is none;
    the message names a near one.
    """
    wanted = " ".join(name.split())
    found = [*_by_number(wanted), *_by_name(wanted)]
    if not found:
        names = _names()
        near = difflib.get_close_matches(wanted.lower(), names, 3, cutoff=0.6)
        meant = f"; did you mean {' or '.join(names[word] for word in near)}?" if near else ""
        raise UsageError(f"no check, field, exit reason, error or control {name[:80]!r}{meant}")
    return found


def _by_number(wanted: str) -> Iterator[Entry]:
    match = re.fullmatch(r"(?:(reason|error|field|encoding) ?)?(0x[0-9a-f]+|\d+)", wanted.lower())
    if not match:
        return
    kind, number = match[1], int(match[2], 0)
    if kind in (None, "reason") and number & ~FAILURE_BIT in EXIT_REASONS:
        yield _reason(EXIT_REASONS[number & ~FAILURE_BIT])
    if kind in (None, "error") and number in ERRORS:
        yield _error(ERRORS[number])
    by_encoding = match[2].startswith("0x") and kind is None or kind in ("field", "encoding")
    if by_encoding and number in FIELD_BY_ENCODING:
        yield _field(FIELD_BY_ENCODING[number])


def _by_name(wanted: str) -> Iterator[Entry]:
    for table, names, make in _tables():
        for row in table:
            if wanted.lower() in (name.lower() for name in names(row)):
                yield make(row)


def _tables() -> tuple[tuple[Sequence, Callable, Callable], ...]:
    return (
        (list(CHECKS.values()), lambda row: [row.id], _check),
        (list(_ROWS.values()), lambda row: [row.id], _instruction_row),
        (list(FIELDS.values()), lambda row: [row.symbol, row.name], _field),
        (list(EXIT_REASONS.values()), lambda row: [row.symbol, row.name], _reason),
        (list(ERRORS.values()), lambda row: [row.symbol], _error),
        (list(CONTROLS.values()), lambda row: [row.symbol], _control),
    )


def _names() -> dict[str, str]:
    return {name.lower(): name for table, names, _ in _tables()
            for row in table for name in names(row) if name}


def _check(row: Check) -> Entry:
    failure, place = row.failure, row.failure.qualification
    ends = (f"VMfailValid, VM-instruction error {failure.error}" if failure.error else
            f"VM-entry failure, exit reason {failure.reason}, qualification "
            f"{'the number of the list entry' if place is None else place}")
    return Entry(
        f"{row.id}: check of stage {row.stage}",
        _lines(demands=row.demand, reads=", ".join(_title(name) for name in row.fields),
               fails=ends, section=f"SDM vol. 3C, {row.section}", notes=row.notes,
               hint=hint(row.id)),
        _beside(CHECKS, row.id, lambda other: other.demand))


def _instruction_row(row: InstructionRow) -> Entry:
    return Entry(
        f"{row.id}: case {row.order} of {row.instruction}; the first true one decides",
        _lines(holds=row.words, ends=row.outcome, effects=row.effects, notes=row.notes),
        _beside(_ROWS, row.id, lambda other: f"{other.outcome}: {other.words}"))


def _field(row: Field) -> Entry:
    reading = [check.id for check in CHECKS.values() if row.symbol in check.symbols]
    layout = "; ".join(
        f"{bits.low if bits.low == bits.high else f'{bits.high}:{bits.low}'} {bits.name}"
        for bits in REGISTER_BITS.get(bits_of(row.symbol), ()))
    word = next((word for word in CONTROL_WORDS.values() if word.field == row.symbol), None)
    if word:
        layout = "; ".join(f"{control.low} {control.symbol}" for control in CONTROLS.values()
                           if control.word == word.word and "RESERVED" not in control.symbol)
    needs = ", ".join(sorted(symbols(row.feature)))
    return Entry(
        f"{row.symbol}: {row.name}, VMCS field {row.encoding:#06x}",
        _lines(holds=f"{row.width_class if row.width_class == 'natural' else row.bits} "
                     f"{'width' if row.width_class == 'natural' else 'bits'}, area {row.area}",
               access={"rw": "read and write", "ro": "read only"}[row.access],
               exists=f"on processors with {needs}" if needs else "on every processor",
               bits=layout, checks=" ".join(reading) or "none reads it", notes=row.notes),
        _beside({name: field for name, field in FIELDS.items() if field.is_high == row.is_high},
                row.symbol, lambda other: f"{other.encoding:#06x}, {other.name}"))


def _reason(row: ExitReason) -> Entry:
    checks = [check.id for check in CHECKS.values() if check.failure.reason == row.number]
    return Entry(
        f"exit reason {row.number} ({row.number:#x}): {row.name}",
        _lines(symbol=row.symbol, trigger=row.trigger, qualification=row.exit_qualification,
               length=f"instruction length saved: {row.instruction_length_saved}",
               control=row.enabling_control,
               printed=f"as {row.number | FAILURE_BIT:#x}, with bit 31 (VM-entry failure)"
                       if checks else "",
               checks=_range(checks)),
        _beside(EXIT_REASONS, row.number, lambda other: other.name, "reason "))


def _error(row: InstructionError) -> Entry:
    checks = [check.id for check in CHECKS.values() if check.failure.error == row.number]
    cases = [case.id for case in _ROWS.values()
             if case.kind.startswith("VMfail") and case.number == row.number]
    return Entry(
        f"VM-instruction error {row.number} ({row.symbol})",
        _lines(means=row.meaning, raised=" ".join(row.raised_by), rows=" ".join(cases),
               checks=_range(checks)),
        _beside(ERRORS, row.number, lambda other: other.meaning, "error "))


def _control(row: Control) -> Entry:
    word = CONTROL_WORDS[row.word]
    place = f"bit {row.low}" if row.low == row.high else f"bits {row.high}:{row.low}"
    must = ("1 on every processor" if row.default1 and not row.clearable else
            "1 unless the TRUE capability MSR allows 0" if row.default1 else "")
    capability = word.true_capability or word.capability
    reading = [check.id for check in CHECKS.values() if _reads(check, row)]
    return Entry(
        f"{row.symbol}: {place} of {word.field}",
        _lines(means=row.meaning, must=must, needs=row.dependencies,
               allowed=f"{capability} bit {word.allowed_1_low + row.low} = 1",
               active=f"only with {word.activated_by}" if word.activated_by else "",
               fields=", ".join(field.symbol for field in FIELDS.values()
                                if row.symbol in symbols(field.feature) and not field.is_high),
               checks=" ".join(reading)),
        _beside({name: control for name, control in CONTROLS.items()
                 if control.word == row.word}, row.symbol, lambda other: other.meaning))


def _reads(check: Check, control: Control) -> bool:
    """Whether a check asks for a control bit."""
    allowed = CONTROL_WORDS[control.word].allowed_symbol
    return any(node.width == 1 and node.low == control.low and isinstance(node.value, Symbol)
               and node.value.name == allowed
               for node in (*_slices(check.condition), *_slices(check.applies)))


def _slices(node: Expression) -> Iterator[Slice]:
    if isinstance(node, Slice):
        yield node
    for attribute in attributes(node):
        if isinstance(operand := getattr(node, attribute.name), Expression):
            yield from _slices(operand)


def _title(symbol: str) -> str:
    return f"{symbol} ({FIELDS[symbol].name})" if symbol in FIELDS else symbol


def _range(checks: Sequence[str]) -> str:
    if len(checks) <= 12:
        return " ".join(checks)
    return f"{len(checks)} checks, {' '.join(checks[:4])} ... {checks[-1]}"


def _lines(**words: str) -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for key, value in words.items() if value)


def _beside(table: Mapping, key, meaning: Callable, lead: str = "") -> tuple[tuple[str, str], ...]:
    keys = list(table)
    place = keys.index(key)
    return tuple((f"{lead}{keys[other]}", meaning(table[keys[other]]))
                 for other in (place - 1, place + 1) if 0 <= other < len(keys))

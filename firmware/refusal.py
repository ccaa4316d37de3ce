"""Why a switch was refused: every failing row of the tables, in words, and what would cure it."""

from collections.abc import Sequence
from dataclasses import dataclass

from vmxswitch.spec.expression import symbols
from vmxswitch.spec.tables import CHECKS

from .cures import cure, cure_all
from .driver import VmxError
from .prediction import Situation

__all__ = ["Refusal", "explain", "explain_checks", "together"]

#: Section of the manual (numbers of the 2016 edition) that instructions.csv follows.
INSTRUCTION_SECTION = "30.3 VMX Instructions"


@dataclass(frozen=True)
class Refusal:
    """One row that refuses.

    Attributes
    ----------
    id : str
        Id of the entry check ("H27") or instruction row ("VMXON.6").
    fields, values : tuple
        VMCS fields and registers that the row looks at, and what they hold.
    demand : str
        What the row demands, or what it objects to, in words.
    section : str
        Section of the manual.
    cure : tuple of (field, value), optional
        One VMCS field that would have to be set otherwise, if that is enough for this row and
        hurts no other.
    """
    id: str
    fields: tuple[str, ...]
    values: tuple[int, ...]
    demand: str
    section: str
    cure: tuple[str, int] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What is demanded, what is there instead, where it is written, and the cure if any."""
        values = ", ".join(f"{field} = {value:#x}" for field, value
                           in zip(self.fields, self.values, strict=True))
        cure = () if self.cure is None else (f"cured by --set {self.cure[0]}={self.cure[1]:#x}",)
        return self.demand, values, f"SDM vol. 3C, {self.section}", *cure

    @property
    def text(self) -> str:
        """Everything in one line."""
        return "; ".join(self.parts)

    def as_dict(self) -> dict:
        """The form that JSON outputs use."""
        return {"id": self.id, "fields": list(self.fields), "values": list(self.values),
                "text": self.text}


def explain(error: VmxError, situation: Situation) -> tuple[Refusal, ...]:
    """Every row that made an instruction fail."""
    if error.answer.failing:
        return explain_checks(error.answer.failing, situation)
    return (_instruction_row(error, situation),)


def explain_checks(checks: Sequence[str], situation: Situation,
                   curable: bool = True) -> tuple[Refusal, ...]:
    """Failing entry checks, by id; ``curable`` says whether to look for cures."""
    found = []
    for check in map(CHECKS.__getitem__, checks):
        fields = tuple(field.removeprefix("LIVE_") for field in check.fields)
        values = tuple(situation.values[field] for field in check.fields)
        found.append(Refusal(check.id, fields, values, check.demand, check.section,
                             cure(situation, check.id) if curable else None))
    return tuple(found)


def together(refusals: Sequence[Refusal], situation: Situation) -> dict[str, int] | None:
    """Fields and values that cure all of several refusals, or None if nothing does."""
    checks = [refusal.id for refusal in refusals]
    return cure_all(situation, checks) if all(check in CHECKS for check in checks) else None


def _instruction_row(error: VmxError, situation: Situation) -> Refusal:
    name, row = error.instruction.name, error.row
    if row is None: # memory did not answer, before any row was decided
        return Refusal(name, (), (), str(error), f"{INSTRUCTION_SECTION}, {name}")
    registers = sorted(symbol.removeprefix("LIVE_") for symbol in symbols(row.condition)
                       if symbol.startswith("LIVE_") and symbol in situation.values)
    return Refusal(
        row.id, tuple(registers), tuple(situation.values[f"LIVE_{name}"] for name in registers),
        f"{name} ends in {row.outcome}: {row.words}", f"{INSTRUCTION_SECTION}, {name}")

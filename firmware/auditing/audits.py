"""Audits: what the entry checks say of each VMCS dump in a text, and of what the text reports.

Facts: entry_checks.csv, exit_reasons.csv, instruction_errors.csv.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.tables import CHECKS, STAGES

from ..cures import cure
from ..readers import vmcs_json, vmcs_text
from ..readers.vmcs_text import Problem, VmcsDump
from . import agreement, wholeness
from .hints import hint
from .knowledge import Knowledge
from .rows import ListEntry, Situation
from .words import hexadecimal, shown

__all__ = ["Audit", "Finding", "audit", "audit_lines"]

FAILURE_BIT = 1 << 31    # of the exit reason
FAILED_ENTRIES = (33, 34, 41)
LA57 = 12                # CR4


@dataclass(frozen=True)
class Finding:
    """A check that fails for certain.

    Attributes
    ----------
    id : str
        Row of ``entry_checks.csv``.
    fields, values : tuple
        What the row looks at, and what that holds; None if it is not known.
    demand : str
        What the manual demands, in words.
    section : str
        Section of the manual (numbers of the 2016 edition).
    outcome : str
        What the failure ends in: ``"error 7"``, ``"reason 33, qualification 0"``.
    hint : str
        What usually causes it, or what to do; "" if none is known.
    cure : tuple of (field, value), optional
        One field that would have to be set otherwise, if that is enough for this row and hurts no
        other.
    """
    id: str
    fields: tuple[str, ...]
    values: tuple[int | None, ...]
    demand: str
    section: str
    outcome: str
    hint: str = ""
    cure: tuple[str, int] | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """Each field, its value and that in words."""
        return tuple(shown(*pair) for pair in zip(self.fields, self.values, strict=True))

    @property
    def text(self) -> str:
        """Everything in one line."""
        parts = [self.demand, *self.lines, f"SDM vol. 3C, {self.section}"]
        if self.cure:
            parts.append(f"passes with {self.cure[0]} = {hexadecimal(*self.cure)}")
        return "; ".join(parts + [self.hint] * bool(self.hint))

    def as_dict(self) -> dict:
        """The form that JSON outputs use."""
        return {"id": self.id, "fields": list(self.fields), "values": list(self.values),
                "text": self.text}


@dataclass(frozen=True)
class Audit:
    """What can be said of one dump.

    Attributes
    ----------
    dump : VmcsDump
        What the text states.
    knowledge : Knowledge
        What was taken as known of the processor.
    verdict : str
        ``"error 7"``, ``"error 8"``, ``"reason 33"``, ``"reason 34"``, ``"enters"`` or
        ``"undecided"``.
    qualification : int or None
        Exit qualification that the text reports; None if it reports none, or a stale one.
    failed : tuple of Finding
        Every check that fails whatever is not known, in table order.
    undecided : tuple of str
        Ids of the checks that depend on what is not known.
    printed : str or None
        The verdict as the text tells it.
    agreement : str
        Whether the two verdicts agree; if not, why that may be.
    missing : tuple of str
        What a whole dump has and this one has not; empty if it is whole.
    situation : Situation
        The rows, one by one: ``result``, and ``unknown`` for what an undecided one depends on.
    """
    dump: VmcsDump
    knowledge: Knowledge
    verdict: str
    qualification: int | None
    failed: tuple[Finding, ...]
    undecided: tuple[str, ...]
    printed: str | None
    agreement: str
    missing: tuple[str, ...]
    situation: Situation

    @property
    def complete(self) -> bool:
        """Whether the text shows the whole dump."""
        return not self.missing

    @property
    def problems(self) -> list[Problem]:
        """Words of the dump that could not be read, with their lines."""
        return self.dump.problems

    def as_dict(self) -> dict:
        """The form that JSON outputs use."""
        return {
            "format": self.dump.format, "line": self.dump.line, "vcpu": self.dump.label,
            "complete": self.complete, "verdict": self.verdict,
            "qualification": self.qualification,
            "failed": [finding.as_dict() for finding in self.failed],
            "undecided": list(self.undecided), "printed": self.printed,
            "agreement": self.agreement, "processor": self.knowledge.name,
            "problems": [{"line": line, "text": text} for line, text in self.problems],
        }


def audit(
    text: str, processor: Knowledge | Capabilities | None = None, name: str = "text",
) -> list[Audit]:
    """Audit every VMCS dump in a text, in order; none if there is no dump.

    Parameters
    ----------
    text : str
        A log with dumps of KVM, Xen or HAXM, in any disguise; or our JSON.
    processor : Knowledge or Capabilities, optional
        What is known of the processor; by default :meth:`Knowledge.assumed`.
    name : str
        For messages.

    Raises
    ------
    :exc:`~vmxswitch.spec.errors.UsageError`
        If JSON is malformed, or a field does not fit the processor.
    """
    if vmcs_json.recognises(text):
        knowledge = _knowledge(processor)
        return [_audited(dump, knowledge, name) for dump in vmcs_json.parse(text, name)]
    lines = text.encode("utf-8", "surrogatepass").splitlines(keepends=True)
    return list(audit_lines(lines, processor, name))


def audit_lines(
    lines: Iterable[bytes], processor: Knowledge | Capabilities | None = None, name: str = "text",
) -> Iterator[Audit]:
    """The same for the lines of a log, as they go by; no JSON."""
    knowledge = _knowledge(processor)
    for dump in vmcs_text.scan(lines):
        yield _audited(dump, knowledge, name)


@cache
def _knowledge(processor: Knowledge | Capabilities | None) -> Knowledge:
    """Always the same object for a processor, for it keeps what it has worked out."""
    if processor is None:
        return Knowledge.assumed()
    return Knowledge.of(processor) if isinstance(processor, Capabilities) else processor


def _audited(dump: VmcsDump, knowledge: Knowledge, name: str) -> Audit:
    knowledge.check_widths(dump.fields, f"{name}:{dump.line}")
    la57 = any(dump.fields.get(field, 0) >> LA57 & 1 for field in ("GUEST_CR4", "HOST_CR4"))
    knowledge = knowledge.with_linear_width(57 if la57 else 48)
    printed = _printed(dump)
    qualification = _qualification(dump, printed)
    situation, failed, undecided = _decided(
        knowledge, tuple(dump.fields.items()), _entries(dump, printed, qualification))
    missing = tuple(wholeness.missing(dump))
    verdict = _verdict(failed)
    if verdict == "undecided" and not missing and printed == "enters" and not dump.failed:
        verdict = "enters"
    compared = agreement.compared(verdict, printed, qualification, undecided, missing, dump,
                                  knowledge.measured)
    return Audit(dump, knowledge, verdict, qualification, failed, undecided, printed, compared,
                 missing, situation)


@lru_cache(maxsize=32)
def _decided(
    knowledge: Knowledge, fields: tuple[tuple[str, int], ...], entries: tuple[ListEntry, ...],
) -> tuple[Situation, tuple[Finding, ...], tuple[str, ...]]:
    """The rows of a dump; software that tries again and again prints the same one many times."""
    situation = Situation(knowledge, dict(fields), entries)
    failed = tuple(_finding(check, situation) for check in situation.with_result(False))
    undecided = situation.with_result(None)
    situation.forget_guesses()
    return situation, failed, undecided


def _printed(dump: VmcsDump) -> str | None:
    if dump.error is not None:
        return f"error {dump.error}"
    reason = dump.fields.get("VM_EXIT_REASON")
    for told in (dump.reason, reason):
        if told is not None and told & FAILURE_BIT:
            return f"reason {told & 0xFFFF}"
    if reason is None:
        return None
    number = reason & 0xFFFF  # a failed entry's number without bit 31 is damaged, not a success
    return f"reason {number}" if number in FAILED_ENTRIES else "enters"


def _qualification(dump: VmcsDump, printed: str | None) -> int | None:
    if dump.error is not None:
        return None  # the exit fields are those of an earlier exit
    if dump.qualification is not None:
        return dump.qualification
    if printed is None or "VM_EXIT_REASON" not in dump.fields:
        return None
    return dump.fields.get("EXIT_QUALIFICATION")


def _entries(
    dump: VmcsDump, printed: str | None, qualification: int | None,
) -> tuple[ListEntry, ...]:
    """What is known of the VM-entry MSR-load list."""
    named = qualification if printed == "reason 34" else None
    entries = [ListEntry(index, data, reserved, place, place == named)
               for place, (index, data, reserved) in enumerate(dump.msr_load_list, 1)]
    entries += [ListEntry(index, data, None, place, place == named)
                for place, (index, data) in enumerate(dump.msr_lists.get("guest autoload", ()), 1)]
    if dump.failing_msr:
        entries.append(ListEntry(
            *dump.failing_msr, dump.failing_msr_reserved, dump.qualification, True))
    return tuple(entries)


def _verdict(failed: tuple[Finding, ...]) -> str:
    """The outcome of the stage that decides first."""
    stages = [CHECKS[finding.id].stage for finding in failed]
    if not stages:
        return "undecided"
    first = min(stages, key=STAGES.index)
    decisive = failed[stages.index(first)]
    return decisive.outcome.partition(",")[0]


def _finding(check: str, situation: Situation) -> Finding:
    row = CHECKS[check]
    entry = situation.refused(check)
    values: Mapping[str, int] = situation.values | (entry.values if entry else {})
    if row.failure.error:
        outcome = f"error {row.failure.error}"
    else:
        place = row.failure.qualification
        if entry:
            place = entry.place
        known = "" if place is None else f", qualification {place}"
        outcome = f"reason {row.failure.reason}{known}"
    return Finding(
        check, row.fields, tuple(values.get(field) for field in row.fields), row.demand,
        row.section, outcome, hint(check), None if entry else cure(situation, check))

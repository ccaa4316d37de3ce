"""Whether what a text reports and what the checks say agree, and if not, why that may be.

Facts: entry_checks.csv (``failure``).
"""

from collections.abc import Sequence

from vmxswitch.spec.tables import CHECKS, ERRORS

from ..readers.vmcs_text import VmcsDump

__all__ = ["compared"]

_NESTED = ("a hypervisor below may have refused it by checks of its own, if this one is itself "
           "virtual")


def compared(
    verdict: str, printed: str | None, qualification: int | None, undecided: Sequence[str],
    missing: Sequence[str], dump: VmcsDump, measured: bool,
) -> str:
    """``agrees: ...``, ``does not explain it: ...`` or ``nothing to compare: ...``."""
    if printed is None:
        return "nothing to compare: the text tells no error number and no exit reason"
    if printed == verdict:
        return f"agrees: the text reports {printed} too"
    if printed == "enters":
        words = _after_success(verdict, missing, dump)
    else:
        words = "does not explain it: " + "; ".join(
            _reasons(verdict, printed, qualification, undecided, missing))
    if (number := dump.fields.get("VM_INSTRUCTION_ERROR")) and printed != f"error {number}":
        words += (f"; the field VM_INSTRUCTION_ERROR holds {number}, from this entry or an earlier "
                  "instruction")
    if measured and verdict not in ("undecided", printed):
        words += "; or the capabilities given are not those of this processor"
    return words


def _after_success(verdict: str, missing: Sequence[str], dump: VmcsDump) -> str:
    if verdict == "undecided":
        why = "a head line reports a failed entry" if dump.failed else (
            f"the text lacks {_some(missing)}")
        return f"nothing fails, but no success can be concluded: {why}"
    return ("does not explain it: the exit reason printed is that of a later, ordinary exit; it is "
            "stale if VMLAUNCH or VMRESUME failed, for the instruction error is not in the dump")


def _reasons(verdict, printed, qualification, undecided, missing):
    kind, _, number = printed.partition(" ")
    if verdict != "undecided":
        yield f"the text reports {printed}, the checks that fail would end in {verdict}"
        if kind == "error":
            yield "the fields may have changed between the instruction and the dump"
        elif verdict.startswith("error"):
            yield ("error 7 or 8 would leave the exit reason as it was, so the one printed may be "
                   "stale")
        yield _NESTED
        return
    if printed == "reason 41":
        yield "a machine check ended the entry, no field does"
        return
    rows = _rows(kind, int(number), qualification)
    if not rows:
        yield f"no entry check ends in {printed}"
        if kind == "error" and int(number) in ERRORS:
            yield f"it means: {ERRORS[int(number)].meaning}"
        return
    if qualification and kind == "reason":
        yield f"with qualification {qualification} it is the outcome of {_some(rows)}"
    if open_rows := [row for row in rows if row in undecided]:
        yield f"of the rows that end so {_some(open_rows)} depend on what is not known"
    if missing:
        yield f"the text lacks {_some(missing)}"
    yield _NESTED


def _rows(kind: str, number: int, qualification: int | None) -> list[str]:
    """Checks that end in an error or exit reason, of the qualification if that is not 0."""
    return [check.id for check in CHECKS.values()
            if (kind == "error" and check.failure.error == number)
            or (kind == "reason" and check.failure.reason == number
                and (not qualification
                     or check.failure.qualification in (None, qualification)))]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more

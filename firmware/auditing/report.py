"""An audit as text for a terminal: the cause first."""

import textwrap
from collections import defaultdict

from vmxswitch.spec.tables import CHECKS, ERRORS, EXIT_REASONS

from .audits import Audit
from .suspects import suspects
from .words import hexadecimal

__all__ = ["explained", "heading", "in_words", "row", "text"]

WIDTH = 100
FORMATS = {"kvm": "KVM", "xen": "Xen", "haxm": "HAXM", "json": "JSON"}


def text(audit: Audit, source: str, explain: bool = False) -> str:
    """The report of one dump; with ``explain`` also what is undecided, and why."""
    lines = [heading(audit, source), *row("verdict", in_words(audit.verdict))]
    lines += row("reported", _reported(audit))
    said = ""
    for finding in audit.failed:
        lines += ["", *row(finding.id, finding.demand)]
        for line in finding.lines:
            lines += row("", line)
        if finding.cure:
            field, value = finding.cure
            lines += row("", f"passes with {field} = {hexadecimal(field, value)}")
        if finding.hint != said:  # once for several rows in a row
            lines += row("", finding.hint)
        said = finding.hint
        lines += row("", f"SDM vol. 3C, {finding.section}")
    for check, why in suspects(audit):
        lines += ["", *row(f"{check}?", f"suspect: {CHECKS[check].demand}"), *row("", why)]
    lines += ["", *row("undecided", _undecided(audit, explain))]
    for line, problem in audit.problems:
        lines += row("unread", f"line {line}: {problem}")
    if explain:
        lines += ["", *explained(audit)]
    return "\n".join(lines)


def heading(audit: Audit, source: str) -> str:
    """Where the dump is, and how much of it."""
    dump = audit.dump
    place = "" if dump.format == "json" else f", line {dump.line}"
    label = "" if dump.label == f"line {dump.line}" else f", {dump.label}"
    return (f"{source}{place}: {FORMATS[dump.format]} dump{label}, "
            f"{'whole' if audit.complete else 'an excerpt'}, {len(dump.fields)} fields; "
            f"processor: {audit.knowledge.name}")


def in_words(verdict: str) -> str:
    """A verdict with its meaning."""
    kind, _, number = verdict.partition(" ")
    if kind == "error":
        error = ERRORS.get(int(number))
        return f"VM-instruction error {number}: {error.meaning if error else 'no such error'}"
    if kind == "reason":
        reason = EXIT_REASONS.get(int(number))
        return f"exit reason {number}: {reason.name if reason else 'no such reason'}"
    return {"enters": "enters: no check fails, and the exit reason is that of a later exit",
            "undecided": "undecided: no check fails for certain"}[verdict]


def explained(audit: Audit) -> list[str]:
    """The undecided checks, grouped by what they depend on."""
    groups = defaultdict(list)
    for check in audit.undecided:
        groups[", ".join(audit.situation.unknown(check))].append(check)
    lines = ["undecided checks, and what they depend on:"]
    for names, checks in groups.items():
        lines += textwrap.wrap(f"{' '.join(checks)}: {names}", WIDTH, initial_indent="  ",
                               subsequent_indent="      ", break_on_hyphens=False)
    return lines


def _reported(audit: Audit) -> str:
    told = audit.printed or "nothing"
    if audit.qualification is not None:
        told += f", qualification {audit.qualification:#x}"
    return f"{told}; {audit.agreement}"


def _undecided(audit: Audit, explain: bool) -> str:
    more = "" if explain or not audit.undecided else " (--explain lists them, and why)"
    return (f"{len(audit.undecided)} of {len(CHECKS)} checks, for they depend on fields that are "
            f"not printed or on capabilities that are not known{more}")


def row(head: str, words: str, indent: int = 11) -> list[str]:
    """Words wrapped behind a head."""
    return textwrap.wrap(words, WIDTH, initial_indent=f"{head:<{indent}}",
                         subsequent_indent=" " * indent, break_long_words=False,
                         break_on_hyphens=False)

"""What a run of the fuzzer came to: rows of the tables, edges of the modes, exits."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import ALWAYS, NEVER
from vmxswitch.spec.operations import EDGES, Answer, Boundary, Event, Instruction, Mode, Outcome
from vmxswitch.spec.tables import ABORTS, BOUNDARY_EVENTS, CHECKS, EVENT_EXITS, INSTRUCTIONS

from ..row_cases import unreachable
from ..rules import rules

__all__ = ["Coverage", "Missed", "absent", "edges", "instruction_rows", "missed"]


class Coverage:
    """Counts; the sum of two is that of both runs.

    Attributes
    ----------
    failing : Counter
        By id of an entry check: entries that it was among the failing checks of.
    alone : Counter
        By id: entries that it alone failed.
    neighbour : Counter
        By id: entries that passed, with the VMCS nearest to one that just failed the check alone.
    instructions : Counter
        By id of a row of instructions.csv: how often it decided.
    edges : Counter
        By mode before and after, "ROOT-NON_ROOT": changes of the mode.
    exits, stays : Counter
        By exit reason: guest events that exited, and that did not.
    faults : Counter
        By exit reason: guest events that ended in an exception.
    boundaries : Counter
        What boundaries came to, by exit reason, "exit 52", or by vector, "deliver 2"; "nothing".
    injected : Counter
        By interruption type: events that an entry injected.
    aborts : Counter
        By code: VMX aborts.
    bus_errors : Counter
        By name of the instruction, "event", "boundary": operations that memory failed.
    """
    KINDS = ("failing", "alone", "neighbour", "instructions", "edges", "exits", "stays", "faults",
             "boundaries", "injected", "aborts", "bus_errors")

    def __init__(self):
        for kind in self.KINDS:
            setattr(self, kind, Counter())

    def count(self, operation, answer: Answer, before: Mode, after: Mode) -> None:
        """Take note of an operation."""
        if answer.outcome is Outcome.ABORT and before != Mode.ABORT:
            self.aborts[answer.error] += 1
        elif answer.outcome is Outcome.BUS_ERROR:
            self.bus_errors[_kind(operation)] += 1
        elif isinstance(operation, Boundary):
            self.boundaries[_came_to(answer)] += 1
        elif isinstance(operation, Event):
            counter = {Outcome.EXIT: self.exits, Outcome.FAULT: self.faults}.get(
                answer.outcome, self.stays)
            counter[operation.reason] += 1
        else:
            self.instructions[answer.row] += 1
            if answer.delivery is not None:
                self.injected[answer.delivery.information >> 8 & 7] += 1
        self.failing.update(answer.failing)
        if len(answer.failing) == 1:
            self.alone[answer.failing[0]] += 1
        if before != after:
            self.edges[f"{before.name}-{after.name}"] += 1

    def update(self, other: "Coverage") -> None:
        """Add the counts of another."""
        for kind in self.KINDS:
            getattr(self, kind).update(getattr(other, kind))

    def record(self, capabilities: Capabilities) -> dict:
        """All counts of one processor in table order, those that are 0 too."""
        state = capabilities.checks
        return {
            "checks": {id: {kind: getattr(self, kind)[id] for kind in self.KINDS[:3]}
                       for id in state},
            "instructions": {id: self.instructions[id] for id in instruction_rows(capabilities)},
            "edges": {edge: self.edges[edge] for edge in edges()},
            "events": {str(reason): {"exits": self.exits[reason], "stays": self.stays[reason],
                                     "faults": self.faults[reason]}
                       for reason in EVENT_EXITS},
            "boundaries": {what: self.boundaries[what] for what in boundary_outcomes()},
            "injected": {str(kind): self.injected[kind] for kind in INJECTED_TYPES},
            "aborts": {str(code): self.aborts[code] for code in ABORTS},
            "bus_errors": {
                kind: self.bus_errors[kind] for kind in (*INSTRUCTIONS, "event", "boundary")},
        }


def _kind(operation):
    if isinstance(operation, Instruction):
        return operation.name
    return type(operation).__name__.lower()


def _came_to(answer):
    if answer.outcome is Outcome.EXIT:
        return f"exit {answer.reason}"
    if answer.delivery is None:
        return "nothing"
    vector, kind = answer.delivery.information & 0xFF, answer.delivery.information >> 8 & 7
    return "deliver interrupt" if kind == 0 else f"deliver {vector}"


def boundary_outcomes() -> list[str]:
    """What a boundary may come to."""
    exits = dict.fromkeys(f"exit {row.reason}" for row in BOUNDARY_EVENTS)
    return [*exits, "deliver 1", "deliver 2", "deliver interrupt", "nothing"]


def instruction_rows(capabilities: Capabilities) -> list[str]:
    """Ids of the rows of instructions.csv that the capabilities leave a chance."""
    return [row.id for rows in rules(capabilities).instructions.values() for row, _ in rows]


def edges() -> list[str]:
    """Names of all changes of the mode."""
    return [f"{before.name}-{after.name}" for (before, _), after in EDGES.items()]


INJECTED_TYPES = (0, 2, 3, 4, 5, 6)  #: interruption types that an entry may inject


@dataclass(frozen=True)
class Missed:
    """What was not come to, by id of its row or by name, how far not, and why, if that is known."""
    id: str
    lacks: str
    reason: str


def missed(coverage: Coverage, capabilities: Capabilities) -> Iterator[Missed]:
    """What can be met on a processor but was not: rows, changes of the mode, exits, aborts."""
    reasons = {row.id: row for row in unreachable()
               if not row.subjects or capabilities.name in row.subjects}
    for id in capabilities.checks:
        if not coverage.alone[id]:
            yield Missed(id, "never failed alone", reasons[id].reason if id in reasons else "")
        elif not coverage.neighbour[id]:
            yield Missed(id, "its nearest passing neighbour was never entered", "")
    for id in instruction_rows(capabilities):
        if not coverage.instructions[id]:
            yield Missed(id, "never taken", "")
    for edge in edges():
        if not coverage.edges[edge]:
            yield Missed(edge, "never taken", "")
    yield from _missed_events(coverage, capabilities)
    for code, row in ABORTS.items():
        if not coverage.aborts[code] and capabilities.bind(row.condition) != NEVER:
            yield Missed(f"abort {code}", "never came about", "")
    for kind in INJECTED_TYPES:
        if not coverage.injected[kind]:
            yield Missed(f"type {kind}", "never injected", "")


def _missed_events(coverage, capabilities):
    """Exit reasons whose events could have exited, or gone on, but never did; and boundaries."""
    at_boundaries = {row.reason for row in BOUNDARY_EVENTS}
    for reason, row in EVENT_EXITS.items():
        name = f"exit {reason}"
        condition = capabilities.bind(row.condition)
        if capabilities.bind(row.undefined) == ALWAYS:
            condition = NEVER
        if condition != NEVER and not coverage.exits[reason] + coverage.boundaries[name]:
            yield Missed(name, "never came about", "")
        if (condition not in (NEVER, ALWAYS) and reason not in at_boundaries
                and not coverage.stays[reason] + coverage.faults[reason]):
            yield Missed(name, "always came about", "")
    for what in boundary_outcomes():
        if not what.startswith("exit") and not coverage.boundaries[what]:
            yield Missed(what, "never came about at a boundary", "")


def absent(capabilities: Capabilities) -> list[str]:
    """Ids of the check rows that cannot fail on a processor, by its capabilities."""
    return [id for id in CHECKS if id not in capabilities.checks]

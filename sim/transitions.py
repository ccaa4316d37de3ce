"""Programs of VM entries and exits in which what decides them is put to the test.

For each expression of a row about entries, exits and their causes, and for each decision in it
(:mod:`.decisions`), a VMCS and a cause are looked for with which the expression depends on that
decision (:meth:`.row_cases.Search.reaching`); then every bit that the decision reads is inverted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain, islice

from vmxswitch.spec import proof
from vmxswitch.spec.expression import (
    NEVER,
    Binary,
    Const,
    Expression,
    Invert,
    Symbol,
    bind,
    symbols,
)
from vmxswitch.spec.operations import Boundary, Event, Instruction, Mode
from vmxswitch.spec.proof import Undecided
from vmxswitch.spec.tables import (
    BOUNDARY_EVENTS,
    EVENT_EXITS,
    EVENT_WORDS,
    FIELDS,
    SYMBOL_WIDTHS,
)

from .decisions import decisions
from .fuzz.program import Step, is_64_bit, revision, vmwrites
from .model import Model
from .observation import MemoryWrite, RegisterWrites
from .row_cases import PHASES, VMCS_POINTER, VMXON_POINTER, RowCase, Search, State, Subject
from .rules import rules

__all__ = ["Attempt", "Question", "Transitions", "Way", "script"]

CASES = 2   #: of each goal
#: Width by symbol of what an event tells, in the order of :class:`Event` without the reason.
CAUSE = {name: SYMBOL_WIDTHS[name] for name in (
    f"CAUSE_{field.name.upper()}" for field in fields(Event)[1:])}
#: The same of a boundary, in the order of :class:`Boundary`.
PENDING = {name: SYMBOL_WIDTHS[name] for name in (
    "FIRST_BOUNDARY", "PENDING_NMI", "PENDING_INTERRUPT", "PENDING_INIT", "PENDING_SIPI",
    "PENDING_VECTOR")}
#: Of live registers and words of memory in the guest; LIVE_, or nothing: those at the entry.
GUEST_PREFIX = "NOW_"
#: Causes to try first: an instruction that exits always, and an event that does.
USUAL_REASONS = (10, 2)
WAYS = 2     #: of each goal that does not depend on the cause
PROOF_CASES = 1000  # that an example of a goal may take


@dataclass(frozen=True)
class Question:
    """An expression of a table row.

    Attributes
    ----------
    kind : str
        "entry": an entry computes it; "exit": an exit does; "event": an event does, which exits if
        it is 1.
    expression : Expression
        Bound to the processor.
    reason : int, optional
        Of the event.
    field : str, optional
        That shows the value after an exit.
    """
    kind: str
    expression: Expression
    reason: int | None = None
    field: str | None = None


@dataclass(frozen=True)
class Way:
    """A one-bit expression that is to be 1, and the cause with which it is.

    ``reason`` is None if it is to be 1 at a VM entry. In the guest its live registers are symbols
    of their own.
    """
    goal: Expression
    reason: int | None = None
    at_boundary: bool = False


@dataclass(frozen=True)
class Attempt:
    """A VM entry, what the core changes in the guest and what happens there.

    Attributes
    ----------
    case : RowCase
        The VMCS and its surroundings, which pass every check.
    registers : tuple of (register, value)
    words : tuple of (address, value)
        64-bit words of memory that the event reads.
    happens : Event or Boundary, optional
    """
    case: RowCase
    registers: tuple[tuple[str, int], ...]
    words: tuple[tuple[int, int], ...]
    happens: Event | Boundary | None


class Transitions:
    """Looks for VM entries and exits of a processor.

    Parameters
    ----------
    subject : Subject
    """

    def __init__(self, subject: Subject):
        self._capabilities = subject.capabilities
        registers = {f"LIVE_{name}": subject.capabilities.bits(row)
                     for name, row in subject.capabilities.registers.items()}
        words = {name: SYMBOL_WIDTHS[name] for name in EVENT_WORDS}
        #: By symbol at the entry: the one that holds in the guest.
        self._guest = {name: Symbol(bits, f"{GUEST_PREFIX}{name.removeprefix('LIVE_')}")
                       for name, bits in (registers | words).items()}
        self._search = Search(subject, CAUSE | PENDING | {
            symbol.name: symbol.width for symbol in self._guest.values()})

    def attempts(self, question: Question) -> Iterator[Attempt]:
        """Attempts for each decision of an expression."""
        for goal, part in decisions(question.expression):
            reads = symbols(part)
            ways = self.ways(question, goal)
            for way in ways if "EXIT_REASON" in reads else islice(ways, WAYS):
                near = {self._guest[name].name if way.reason and name in self._guest else name
                        for name in reads}
                for case, state in islice(self._found(way), CASES):
                    for found in chain(
                            [(case, state)], self._search.near(case.baseline, state, near)):
                        yield self._attempt(way, symbols(way.goal) | near, *found)

    def ways(self, question: Question, goal: Expression) -> Iterator[Way]:
        """The causes with which a goal can be reached, the usual ones first."""
        match question.kind:
            case "entry":
                yield Way(goal)
            case "event":
                yield from self._causes(question.reason, goal)
            case "exit":
                for reason in dict.fromkeys((*USUAL_REASONS, *EVENT_EXITS)):
                    condition = self._capabilities.bind(EVENT_EXITS[reason].condition)
                    yield from islice(self._causes(reason, Binary(1, "&", condition, goal)), 1)

    def reaching(self, way: Way) -> Iterator[Attempt]:
        """Attempts in which the goal of a way is 1; none if it is hard to find one."""
        return (self._attempt(way, symbols(way.goal), *found) for found in self._found(way))

    def _found(self, way) -> Iterator[tuple[RowCase, State]]:
        try:
            example = proof.example(way.goal, PROOF_CASES)
        except Undecided:
            return iter(())
        return self._search.reaching(
            way.goal, [] if example is None else [example, {}], PHASES[:2])

    def _causes(self, reason, goal) -> Iterator[Way]:
        """An event with a reason, and the boundaries at which it may be pending."""
        row, bound = EVENT_EXITS[reason], self._capabilities.bind
        goal = Binary(1, "&", goal, Invert(1, bound(row.undefined)))
        known = {"EXIT_REASON": Const(16, reason), "NON_ROOT": 1, "IN_VMX": 1,
                 "EXIT_BY_INSTRUCTION": int(row.by_instruction)} | self._guest
        ways = [Way(bind(goal, known | {"FIRST_BOUNDARY": 0}), reason)]
        for candidate in BOUNDARY_EVENTS:
            if candidate.reason == reason:
                told = known | dict.fromkeys(CAUSE, 0) | {
                    f"CAUSE_{name}": bind(bound(value), known) for name, value in (
                        ("INTERRUPTION", candidate.interruption),
                        ("QUALIFICATION", candidate.qualification))}
                pending = Binary(1, "&", bound(candidate.pending), goal)
                ways.append(Way(bind(pending, told), reason, True))
        return (way for way in ways if way.goal != NEVER)

    def _attempt(self, way, names, case, state) -> Attempt:
        if way.reason is None:
            return Attempt(case, (), (), None)
        happens = Boundary(*map(state.__getitem__, PENDING)) if way.at_boundary else Event(
            way.reason, *map(state.__getitem__, CAUSE))
        return Attempt(
            case,
            tuple((register, state[f"{GUEST_PREFIX}{register}"])
                  for register in self._capabilities.registers
                  if f"{GUEST_PREFIX}{register}" in names),
            tuple(self._words(way, state)), happens)

    def _words(self, way, state):
        values = state | {"EXIT_REASON": way.reason}
        for symbol, (when, address) in rules(self._capabilities).words.items():
            if when(values):
                yield address(values), state[self._guest[symbol].name]


def script(
    subject: Subject, model: Model, attempts: Iterator[Attempt], field: str | None = None,
) -> Iterator[Step]:
    """A program of some attempts, up to a VMX abort; :data:`.fuzz.differential.Script`.

    ``field`` is read after each.
    """
    word = revision(subject.capabilities)
    for region in (VMXON_POINTER, VMCS_POINTER):
        yield MemoryWrite(region, 4, word)
    for name, pointer in (("VMXON", VMXON_POINTER), ("VMPTRLD", VMCS_POINTER)):
        yield Instruction(name, pointer=pointer)
    for attempt in attempts:
        yield from _carried_out(subject, model, attempt)
        if model.mode == Mode.ABORT:
            return
        if field:
            yield from _reads(subject, field)
    yield Instruction("VMCLEAR", pointer=VMCS_POINTER)


def _carried_out(subject, model, attempt):
    case = attempt.case
    writing = subject.writing_environment()
    yield RegisterWrites(tuple(writing.items()))
    halves = not is_64_bit(writing)
    for field, value in (subject.baselines[case.baseline] | dict(case.writes)).items():
        if model.field(field) != value and FIELDS[field].access == "rw":
            yield from vmwrites(field, value, halves=halves)
    for place in case.memory:
        yield MemoryWrite(*place)
    environment = subject.environment | dict(case.registers)
    yield RegisterWrites(tuple(environment.items()))
    yield Instruction("VMRESUME" if model.launched else "VMLAUNCH")
    if model.mode == Mode.NON_ROOT and attempt.happens is not None:
        for address, value in attempt.words:
            yield MemoryWrite(address, 8, value)
        yield RegisterWrites(attempt.registers)
        yield attempt.happens
    if model.mode == Mode.NON_ROOT:
        yield RegisterWrites(tuple(environment.items()))
        yield Instruction("VMCALL")


def _reads(subject, field):
    writing = subject.writing_environment()
    yield RegisterWrites(tuple(writing.items()))
    encoding = FIELDS[field].encoding
    yield Instruction("VMREAD", encoding=encoding)
    if FIELDS[field].width_class == "64" and not is_64_bit(writing):
        yield Instruction("VMREAD", encoding=encoding + 1)

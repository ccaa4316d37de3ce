"""Which witness notices that the hardware is wrong: mutants against row tests, cases and fuzzer.

:func:`hunt` shows the mutants (:mod:`.mutants`) to the witnesses, the cheap ones first; a mutant is
done with once one of them has noticed it. All mutants are in one compiled model
(:class:`MutantPort`).
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from uuid import uuid4

from .cases import Case, disagreements, read_profile
from .counterexamples import counterexamples, question, values_that_differ
from .equivalence import equivalent
from .fuzz.campaign import Worker
from .mutants import KINDS, Mutant, MutantUnit, mutants
from .neighbours import attempt_with, neighbours
from .observation import observe
from .row_cases import Subject, run_pair
from .runner import Runner
from .sweeps import SWEEPS
from .transitions import Transitions, script
from .verilator import Kind, VerilatorPort
from .verilator_build import library
from .watched_model import WatchedModel

__all__ = ["EXPLAINED", "WITNESSES", "Defect", "MutantPort", "Verdict", "hunt"]

#: What may notice a mutant, in the order in which they are asked.
WITNESSES = ("pair", "variants", "neighbours", "fuzz", "recorded", "sweep", "transitions",
             "counterexample")
SEED = 1                   # of the fuzzer
ROUNDS = (10, 90)        # programs of the first rounds of the fuzzer; then all the rest
ATTEMPTS = 200           # of a program of transitions
#: What a wrong unit may end an operation in: no answer, or one that means nothing.
NONSENSE = (RuntimeError, ValueError, LookupError)

#: Why no witness notices a mutant that no proof covers, by id: it does what the unit does, or a
#: test notices it that is no witness.
EXPLAINED: dict[str, str] = {
    "pointer-not-waited":
        "only N28 reads the current-VMCS pointer, and wherever it can fail the word at the link "
        "pointer is read first, which takes longer than the check",
    "register-not-waited":
        "shows only where a register write and a VM entry are accepted in one cycle, which no "
        "backend offers; tests/hdl/test_vmx_unit.py does, and fails with it",
}


class Defect(Exception):
    """The unit without any mutant does not do what a witness wants."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes
    ----------
    mutant : Mutant
    by : str
        The witness that noticed it, of :data:`WITNESSES`; "proof": it does what the unit does;
        "explained": :data:`EXPLAINED` says why; "": nobody noticed it.
    detail : str
        Where it was noticed; why it cannot be.
    """
    mutant: Mutant
    by: str = ""
    detail: str = ""

    @property
    def contradicted(self) -> bool:
        """Whether a witness noticed a mutant that, by :data:`EXPLAINED`, cannot be noticed."""
        return self.by in WITNESSES and self.mutant.id in EXPLAINED


class MutantPort(VerilatorPort):
    """The compiled unit with its mutants."""

    def _build(self, sizes):
        return library(self.capabilities, sizes | {"VMX_MUTANTS": 1}, unit=MutantUnit)

    def choose(self, number: int) -> None:
        """Be the mutant with this number, or the right unit (0), after a reset."""
        self._library.vmx_choose(ctypes.c_void_p(self._handle), number)
        self.reset()

    def _carry_out(self, records):
        self._last = records, super()._carry_out(records)
        return self._last[1]

    def recording(self) -> "Recording":
        """The batch that has just been carried out since a reset."""
        return Recording(self, *self._last)


class Recording:
    """A batch of operations and what became of it, to be compared with what mutants make of it."""

    def __init__(self, port: MutantPort, records: list[bytes], rows: list[bytes]):
        self._port, self._records, self._rows = port, records, rows
        self._memory = port.memory_words()

    def differs(self, number: int) -> bool:
        """Whether a mutant does anything else, but for the number of cycles."""
        port = self._port
        port.choose(number)
        try:
            rows = port._carry_out(self._records)
            return len(rows) < len(self._rows) or any(
                got != right and self._visible(record, right) != self._visible(record, got)
                for record, right, got in zip(self._records, self._rows, rows, strict=True)
            ) or port.memory_words() != self._memory
        except NONSENSE:
            return True

    def _visible(self, record, row):
        """What software sees of a row of results."""
        port = self._port
        match Kind(record[0]):
            case Kind.REQUEST | Kind.EVENT as kind:
                answer = replace(port._answer(row, event=kind is Kind.EVENT), cycles=0)
            case Kind.UPDATE | Kind.LOOK:
                answer = None
            case _:
                return None
        return answer, port._part(row, "MODE"), port._part(row, "LIVE")


# --- One process's part of the work ---

@dataclass(frozen=True)
class Task:
    """Mutants for one witness; it can be pickled.

    Attributes
    ----------
    key : str
        Equal for the tasks of one hunt; a process keeps what it built under it.
    subject : Subject
        The processor.
    witness : str
        "rows" for pair, variants and neighbours; "fuzz", "recorded", "sweep", "transitions",
        "counterexample"; "proof".
    numbers : tuple of int
        The mutants; for "rows" and "transitions" of one expression.
    cases : sequence of Case
    programs : range
        Numbers of the fuzzer's programs.
    """
    key: str
    subject: Subject
    witness: str
    numbers: tuple[int, ...]
    cases: Sequence[Case] = ()
    programs: range = range(0)


Found = list[tuple[int, str, str]]  #: number of a mutant, what noticed it, where

_kept: dict[str, tuple] = {}  # by key of the hunt


def run_task(task: Task) -> Found:
    """The mutants that the witness notices; for "proof": those proved to do what the unit does."""
    if task.key not in _kept:
        _kept.clear()
        port = MutantPort(task.subject.capabilities)
        _kept[task.key] = port, Worker(task.subject, lambda capabilities: port, SEED)
    return _RUN[task.witness](task, *_kept[task.key])


def _by_rows(task, port, worker):
    by_number = _by_number(task.subject.capabilities)
    model = _watched(task, worker)
    row = by_number[task.numbers[0]].row
    alive, found = [*task.numbers], []

    def ask(witness, detail, notices):
        if alive and notices(0):
            raise Defect(f"the unit does not do what {witness} of {row} want")
        noticed = [number for number in alive if notices(number)]
        alive[:] = [number for number in alive if number not in noticed]
        found.extend((number, witness, detail) for number in noticed)

    pairs = worker.pairs(row)
    for position, pair in enumerate(pairs):
        ask("variants" if position else "pair", " ".join(pair.changed),
            lambda number, pair=pair: _notices(pair, task.subject, port, number))
    checks = task.subject.capabilities.checks
    if alive and not pairs:  # the row cannot fail alone
        others = (other for other in checks if checks[other].stage == checks[row].stage)
        pairs = next(filter(None, map(worker.pairs, others)))
    for depth in (1, 2):
        if alive:
            recording = _recorded(
                [*neighbours(task.subject, checks[row], pairs[0], depth)], port, model)
            ask("neighbours", f"depth {depth}", lambda number, seen=recording:
                number in model.differing and seen.differs(number))
    for number in alive:
        values = values_that_differ(task.subject.capabilities, by_number[number])
        if values is not None:
            program = [*attempt_with(task.subject, checks[row], pairs[0], values)]
            if _recorded(program, port, model).differs(number):
                found.append((number, "counterexample", ""))
    return found


def _recorded(program, port, model):
    """The recording of a program that the unit carries out as the model does."""
    port.choose(0)
    model.reset()
    seen = observe(port, program)
    recording = port.recording()
    for operation, got, expected in zip(program, seen, observe(model, program), strict=True):
        if expected is not None and not got.agrees(expected):
            raise Defect(f"the unit and the model differ in {operation}: {expected}")
    return recording


def _notices(pair, subject, port, number):
    """Whether a pair of VMCSs shows that a mutant is wrong."""
    port.choose(number)
    try:
        fails, passes = run_pair(pair, subject, port)
    except NONSENSE:
        return True
    return not (pair.fails.agrees(fails) and pair.passes.agrees(passes))


def _by_cases(task, port, worker):
    alive, found = [*task.numbers], []
    for case in task.cases:
        runner = Runner(read_profile(case.profile), port)
        for number in (0, *alive):
            port.choose(number)
            try:
                noticed = bool(disagreements(case, runner.run(case)))
            except NONSENSE:
                noticed = True
            if noticed and number == 0:
                raise Defect(f"the unit disagrees with case {case.id}")
            if noticed:
                found.append((number, "recorded", case.id))
        alive = [number for number in alive if number not in {number for number, *_ in found}]
        if not alive:
            break
    return found


def _by_sweeps(task, port, worker):
    model = _watched(task, worker)
    return _by_recordings(task, "sweep", model, (
        (name, _recorded([*program(task.subject)], port, model))
        for name, program in SWEEPS.items()))


def _by_programs(task, port, worker):
    return _by_recordings(task, "fuzz", _watched(task, worker), (
        (f"program {program}", _compared(
            port, worker.run, program, f"program {program} of seed {SEED}"))
        for program in task.programs))


def _by_transitions(task, port, worker):
    mutant = _by_number(task.subject.capabilities)[task.numbers[0]]
    asked = question(task.subject.capabilities, mutant)
    attempts = Transitions(task.subject).attempts(asked)
    return _by_attempts(task, "transitions", port, worker, asked, attempts)


def _by_counterexamples(task, port, worker):
    capabilities = task.subject.capabilities
    transitions, by_number = Transitions(task.subject), _by_number(capabilities)
    found = []
    for number in task.numbers:
        mutant = by_number[number]
        found += _by_attempts(
            replace(task, numbers=(number,)), "counterexample", port, worker,
            question(capabilities, mutant), counterexamples(capabilities, transitions, mutant))
    return found


def _by_attempts(task, witness, port, worker, asked, attempts):
    model = _watched(task, worker)

    def recordings():
        while first := [*islice(attempts, 1)]:
            program = script(
                task.subject, model, chain(first, islice(attempts, ATTEMPTS - 1)), asked.field)
            yield "", _compared(port, worker.sides.run_script, program, str(asked))

    return _by_recordings(task, witness, model, recordings())


def _compared(port, run, program, name):
    """The recording of a program in which the unit does what the model does."""
    port.choose(0)
    if run(program).difference is not None:
        raise Defect(f"the unit and the model differ in {name}")
    return port.recording()


def _watched(task, worker):
    """A model for the worker that watches the mutants of a task."""
    by_number = _by_number(task.subject.capabilities)
    worker.sides.model = WatchedModel(
        task.subject.capabilities, [by_number[number] for number in task.numbers])
    return worker.sides.model


def _by_recordings(task, witness, model, recordings):
    """The mutants that one of several programs notices; they come as pairs of detail and recording.
    """
    alive, found = [*task.numbers], []
    for detail, recording in recordings:
        noticed = [number for number in alive
                   if number in model.differing and recording.differs(number)]
        alive = [number for number in alive if number not in noticed]
        found += [(number, witness, detail) for number in noticed]
        if not alive:
            break
    return found


def _by_proof(task, port, worker):
    by_number = _by_number(task.subject.capabilities)
    return [(number, "proof", "does what the unit does, in every state") for number in task.numbers
            if equivalent(task.subject.capabilities, by_number[number])]


_RUN = {
    "rows": _by_rows, "recorded": _by_cases, "counterexample": _by_counterexamples,
    "fuzz": _by_programs, "sweep": _by_sweeps, "transitions": _by_transitions,
    "proof": _by_proof,
}


def _by_number(capabilities):
    return {mutant.number: mutant for mutant in mutants(capabilities)}


# --- The hunt ---

def hunt(
    subject: Subject, chosen: Iterable[Mutant], *, cases: Sequence[Case] = (), programs: int = 0,
    run: Callable[[Callable, Iterable[Task]], Iterable[Found]] = map, jobs: int = 1,
    progress: Callable[[str, int], None] = lambda witness, left: None,
) -> list[Verdict]:
    """Show mutants to the witnesses. The outcome is the same however many processes take part.

    Parameters
    ----------
    subject : Subject
        The processor.
    chosen : iterable of Mutant
    cases : sequence of Case
        Recorded cases of this processor.
    programs : int
        How many programs of the fuzzer each mutant has to bear.
    run : callable
        Runs tasks, as ``map`` does; ``Executor.map`` runs ``jobs`` at a time.
    progress : callable
        Called with a witness and the number of mutants that nobody has noticed so far.

    Raises
    ------
    :exc:`Defect`
        If a witness finds something wrong with the unit without a mutant.
    """
    key, found = uuid4().hex, {}
    capabilities = subject.capabilities
    alive = {mutant.number: mutant for mutant in chosen}
    bare = replace(subject, capabilities=replace(capabilities))  # without cached values

    def ask(witness, shares, **more):
        for noticed in run(run_task, [Task(key, bare, witness, tuple(share), **more)
                                      for share in shares if share]):
            for number, *how in noticed:
                found[number] = Verdict(alive.pop(number), *how)
            progress(witness, len(alive))

    def shares(*kinds):
        numbers = [number for number, mutant in alive.items() if mutant.kind in (kinds or KINDS)]
        return [numbers[job::jobs] for job in range(jobs)]

    def by_expression(*kinds):
        numbers = {}
        for number, mutant in alive.items():
            if mutant.kind in kinds:
                numbers.setdefault((mutant.kind, mutant.row, mutant.part), []).append(number)
        return [*numbers.values()]

    ask("rows", by_expression("check"))
    first = 0
    for count in (*ROUNDS, programs):
        last = min(first + count, programs)
        ask("fuzz", shares(), programs=range(first, last))
        first = last
        if count == ROUNDS[-1]:
            if cases:
                ask("recorded", shares(), cases=cases)
            ask("sweep", shares())
    ask("proof", shares())
    ask("transitions", by_expression("register", "information", "event"))
    ask("counterexample", shares("register", "information", "event"))
    for number, mutant in alive.items():
        reason = EXPLAINED.get(mutant.id, "")
        found[number] = Verdict(mutant, "explained" if reason else "", reason)
    return [found[number] for number in sorted(found)]

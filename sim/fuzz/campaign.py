"""A run of the fuzzer: tasks of some programs each, on any ``concurrent.futures.Executor``."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from dataclasses import dataclass, field, replace
from itertools import count
from uuid import uuid4

from ..row_cases import Search, Subject
from .author import Author, pairs_of
from .coverage import Coverage
from .differential import Differential, Run

__all__ = ["Result", "Task", "Worker", "campaign", "run_task", "tasks"]


@dataclass(frozen=True)
class Task:
    """Some programs in a row. It holds all that a process elsewhere needs to run them.

    Attributes
    ----------
    subject : Subject
        The processor.
    make_port : callable
        Makes the port under test from the capabilities; can be pickled.
    seed : int
    first, count : int
        Numbers of the programs.
    key : str
        Equal for the tasks of one campaign; processes keep what they built under it.
    """
    subject: Subject
    make_port: Callable
    seed: int
    first: int
    count: int
    key: str


@dataclass
class Result:
    """What came of programs; the sum of results is that of all programs.

    ``differing`` holds the numbers of the programs in which the two sides differed.
    """
    programs: int = 0
    operations: int = 0
    differing: list[int] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)

    def update(self, other: "Result") -> None:
        """Add what came of other programs."""
        self.programs += other.programs
        self.operations += other.operations
        self.differing = sorted(self.differing + other.differing)
        self.coverage.update(other.coverage)


class Worker:
    """Makes up and runs the programs of one campaign."""

    def __init__(self, subject: Subject, make_port: Callable, seed: int):
        self.sides = Differential(subject, make_port)
        self._seed = seed
        self._search = Search(subject)
        self._pairs = {}

    def pairs(self, row: str):
        """The pairs of a row that programs are made from."""
        if row not in self._pairs:
            self._pairs[row] = tuple(pairs_of(self._search, row))
        return self._pairs[row]

    def run(self, number: int, coverage: Coverage | None = None) -> Run:
        """Make up and run a program."""
        coverage = coverage or Coverage()
        author = Author(self.sides.subject, self.pairs, self.sides.model, self._seed, number)
        run = self.sides.run_script(author.script(), author.timing, coverage)
        coverage.neighbour.update(author.neighbours)
        return run


_kept = threading.local()  # a thread of a process that runs tasks keeps its worker


def run_task(task: Task) -> Result:
    """Run the programs of a task; up to the first in which the sides differ."""
    if getattr(_kept, "key", None) != task.key:
        _kept.worker = Worker(task.subject, task.make_port, task.seed)
        _kept.key = task.key
    result = Result()
    for number in range(task.first, task.first + task.count):
        try:
            run = _kept.worker.run(number, result.coverage)
        except Exception as error:
            error.add_note(f"in program {number} of seed {task.seed}")
            raise
        result.programs += 1
        result.operations += run.instructions
        if run.difference is not None:
            result.differing.append(number)
            break
    return result


def tasks(
    subject: Subject, make_port: Callable, seed: int, first: int, programs: int | None, size: int,
) -> Iterator[Task]:
    """The tasks of a campaign, of ``size`` programs each; without end if ``programs`` is None."""
    key = uuid4().hex
    bare = replace(subject, capabilities=replace(subject.capabilities))  # without cached values
    for start in count(first, size):
        left = size if programs is None else min(size, first + programs - start)
        if left <= 0:
            return
        yield Task(bare, make_port, seed, start, left, key)


def campaign(
    executor: Executor, tasks: Iterator[Task], width: Callable[[], int], result: Result, *,
    until: float | None = None, progress: Callable[[Result], None] = lambda result: None,
) -> None:
    """Run tasks: up to one that finds a difference, to a time, or until there are no more.

    Tasks are started in order, so the lowest number in ``result.differing`` is the same however
    many run at a time.

    Parameters
    ----------
    executor : Executor
        Runs them.
    tasks : iterator of Task
    width : callable
        How many to have under way.
    result : Result
        Grows with every task that ends; whole after an exception, too.
    until : float, optional
        Time, as of ``time.monotonic()``, from which no task is started.
    progress : callable
        Called with ``result`` whenever it has grown.
    """
    running, more = set(), True
    try:
        while running or more:
            more = more and not result.differing and (until is None or time.monotonic() < until)
            while more and len(running) < width():
                task = next(tasks, None)
                if task is None:
                    more = False
                else:
                    running.add(executor.submit(run_task, task))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result.update(future.result())
            progress(result)
    finally:
        for future in running:
            future.cancel()

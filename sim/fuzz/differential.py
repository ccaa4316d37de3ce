"""Runs a program on the reference model and on another port, and compares them step by step."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmxswitch.spec.operations import Answer, Boundary, Event, Instruction, Mode, Outcome

from ..model import Model
from ..observation import (
    PROMPT,
    MemoryFault,
    MemoryWrite,
    Observation,
    RegisterWrites,
    TimePasses,
    Timing,
    observe,
)
from ..row_cases import Subject
from .coverage import Coverage
from .program import FieldWrites, Program, Step, operations

__all__ = ["Difference", "Differential", "Run", "Script"]

#: A program that is made while it runs: yields steps and is sent the answer to each, or None.
Script = Generator[Step, Answer | None, None]


@dataclass(frozen=True)
class Difference:
    """The first thing in which the two sides differ.

    Attributes
    ----------
    step : int
        Number of the step after which they differ.
    what : str
        "answer", "mode", "registers", "vmcs" (pointer or launch state of the current VMCS);
        "memory": seen after the last step; "silence": the port gave no answer.
    model, port : object
        Both sides: answers, modes, or values of what differs by name or by address.
    """
    step: int
    what: str
    model: Any
    port: Any


@dataclass(frozen=True)
class Run:
    """What came of a program: the steps that were taken and the first difference, if any."""
    program: Program
    answers: tuple[Answer | None, ...]
    instructions: int  # instructions and events that were carried out
    difference: Difference | None


class Differential:
    """The two sides.

    Parameters
    ----------
    subject : Subject
        The processor, and the environment in which programs begin.
    make_port : callable
        Makes the port that is compared with the model, from the capabilities. Beside the members
        of a ``Port`` it needs ``memory_words``, ``fail_memory``, and ``observe`` or what that asks
        for.
    """

    def __init__(self, subject: Subject, make_port: Callable):
        self.subject = subject
        self.model = Model(subject.capabilities)
        self.port = make_port(subject.capabilities)

    def run(self, program: Program) -> Run:
        """Run a program."""
        return self.run_script(_script(program.steps), program.timing)

    def run_script(
        self, script: Script, timing: Timing = PROMPT, coverage: Coverage | None = None,
    ) -> Run:
        """Run a program that is made while the model runs it; then run it on the port.

        ``coverage`` counts what the model comes to.
        """
        self.model.reset()
        self.port.reset()
        trace = _Trace(self.model, coverage)
        trace.do(RegisterWrites(tuple(self.subject.environment.items())), -1)
        steps, answers = [], []
        try:
            step = next(script)
            while True:
                answers.append(self._take(step, len(steps), trace))
                steps.append(step)
                step = script.send(answers[-1])
        except StopIteration:
            pass
        seen = observe(self.port, trace.operations, timing)
        return Run(Program(tuple(steps), timing), tuple(answers), trace.instructions,
                   _first_difference(trace, seen) or self._memory_difference(len(steps) - 1))

    def _take(self, step, number, trace):
        if isinstance(step, Event | Boundary) and self.model.mode != Mode.NON_ROOT:
            return None
        answer = None
        for operation in operations(step, self.subject):
            answer = trace.do(operation, number)
            if isinstance(step, FieldWrites) and answer.outcome is not Outcome.SUCCEED:
                break
        return answer

    def _memory_difference(self, step):
        return _difference(
            step, "memory", self.model.memory_words(), self.port.memory_words())


class _Trace:
    """The operations of a run and what the model makes of them."""

    def __init__(self, model, coverage):
        self._model, self._coverage = model, coverage
        self._registers: Mapping[str, int] = {}
        self.operations, self.expected, self.steps = [], [], []
        self.instructions = 0

    def do(self, operation, step) -> Answer | None:
        """Carry out an operation of a step on the model."""
        model, before, answer = self._model, self._model.mode, None
        match operation:
            case MemoryWrite(address, size, value):
                model.write_memory(address, size, value)
                self._note(operation, None, step)
                return None
            case MemoryFault(address, fault):
                model.fail_memory(address, fault)
                self._note(operation, None, step)
                return None
            case RegisterWrites(values):
                model.write_registers(dict(values))
            case Instruction():
                answer = model.execute(operation)
            case TimePasses(ticks):
                model.pass_time(ticks)
            case Event() | Boundary():
                answer = model.report(operation)
        registers = model.read_registers()
        if registers != self._registers:  # else one object: comparing it then costs nothing
            self._registers = registers
        self._note(operation, Observation(
            answer, model.mode, self._registers, model.current_vmcs, model.launched), step)
        if answer is not None:
            self.instructions += 1
            if self._coverage is not None:
                self._coverage.count(operation, answer, before, model.mode)
        return answer

    def _note(self, operation, observation, step):
        self.operations.append(operation)
        self.expected.append(observation)
        self.steps.append(step)


def _script(steps) -> Script:
    return (step for step in steps)


def _first_difference(trace, seen):
    for step, expected, got in zip(trace.steps, trace.expected, seen, strict=False):
        if expected is None or got.agrees(expected):
            continue
        if not replace(expected, answer=got.answer).agrees(expected):
            return Difference(step, "answer", expected.answer, got.answer)
        if got.mode != expected.mode:
            return Difference(step, "mode", expected.mode, got.mode)
        return (_difference(step, "registers", expected.registers, got.registers)
                or _difference(step, "vmcs", expected.vmcs, got.vmcs))
    if len(seen) < len(trace.operations):
        return Difference(trace.steps[len(seen)], "silence", None, None)
    return None


def _difference(step, what, model, port):
    """What two mappings differ in, if anything; what one of them lacks is 0."""
    names = sorted(name for name in model.keys() | port.keys()
                   if model.get(name, 0) != port.get(name, 0))
    if not names:
        return None
    return Difference(step, what, *(
        {name: side.get(name, 0) for name in names} for side in (model, port)))

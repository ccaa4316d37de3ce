"""Programs of VM entries and exits, on the reference model."""

from collections import Counter
from functools import cache
from itertools import islice

import pytest

from vmxswitch.sim.fuzz.differential import Differential
from vmxswitch.sim.model import Model
from vmxswitch.sim.row_cases import Search
from vmxswitch.sim.transitions import Question, Transitions, Way, script
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.expression import bind
from vmxswitch.spec.operations import Boundary, Event, Instruction, Outcome
from vmxswitch.spec.tables import EXIT_INFORMATION, EXIT_REASONS, expression
from vmxswitch.subjects import subject_of

COMPACT = PRESETS["compact"]
MANY = 300


@cache
def transitions():
    return Transitions(subject_of("compact"))


def event(reason):
    return Question("event", COMPACT.bind(EXIT_REASONS[reason].condition), reason)


def run(question, count=MANY):
    """Pairs of step and answer of a program of attempts, and the attempts."""
    attempts = [*islice(transitions().attempts(question), count)]
    sides = Differential(subject_of("compact"), Model)
    result = sides.run_script(
        script(sides.subject, sides.model, iter(attempts), question.field))
    assert result.difference is None
    return [*zip(result.program.steps, result.answers, strict=True)], attempts


@pytest.mark.parametrize("reason", [0, 7, 12, 28, 30, 32, 37])
def test_every_attempt_enters_and_the_event_exits_in_some_and_not_in_others(reason):
    steps, attempts = run(event(reason))
    entries = [answer.outcome for step, answer in steps
               if isinstance(step, Instruction) and step.name in ("VMLAUNCH", "VMRESUME")]
    assert Counter(entries) == {Outcome.ENTERED: len(attempts)}
    exits = {answer.outcome is Outcome.EXIT and answer.reason == reason for step, answer in steps
             if isinstance(step, Event | Boundary)}
    assert exits == {True, False}


def test_what_may_come_at_a_boundary_is_also_tried_there():
    _, attempts = run(event(37))
    assert {type(attempt.happens) for attempt in attempts} == {Event, Boundary}


def test_words_of_memory_that_an_event_reads_are_written():
    _, attempts = run(event(32))
    addresses = {address for attempt in attempts for address, _ in attempt.words}
    assert {address % 8 for address in addresses} == {0} and len(addresses) > 3


def test_a_word_of_memory_may_be_another_than_at_the_entry():
    """A task priority below the threshold fails the entry, but may come about in the guest."""
    subject = subject_of("full")
    asked = Question("event", subject.capabilities.bind(EXIT_REASONS[43].condition), 43)
    sides = Differential(subject, Model)
    attempts = islice(Transitions(subject).attempts(asked), MANY)
    result = sides.run_script(script(subject, sides.model, attempts))
    assert {answer.outcome for step, answer in
            zip(result.program.steps, result.answers, strict=True) if isinstance(step, Event)
            } == {Outcome.EXIT, Outcome.NO_EXIT}


def test_every_exit_of_a_question_about_exits_exits():
    steps, _ = run(Question("exit", COMPACT.bind(COMPACT.registers["PENDING_DBG"].save)))
    assert {answer.outcome for step, answer in steps if isinstance(step, Event)} == {Outcome.EXIT}


def test_a_field_is_read_after_each_attempt():
    name = "VM_EXIT_INTR_INFO"
    steps, attempts = run(
        Question("exit", COMPACT.bind(EXIT_INFORMATION[name].value), field=name))
    values = [answer.value for step, answer in steps
              if isinstance(step, Instruction) and step.name == "VMREAD"]
    assert len(values) == len(attempts) and len({*values}) > 10


def test_an_entry_is_tried_without_an_event():
    steps, attempts = run(Question("entry", COMPACT.bind(COMPACT.registers["ACTIVITY"].entry)))
    assert {attempt.happens for attempt in attempts} == {None}
    assert {answer.outcome for step, answer in steps if isinstance(step, Instruction)
            and step.name == "VMCALL"} == {Outcome.EXIT}


@pytest.mark.parametrize("goal", [
    "CR3_TARGET_COUNT == 1",  # a check forbids it: this processor has no CR3 targets
    "LIVE_RFLAGS[9] and LIVE_RFLAGS[9:8] == 1"])
def test_where_a_goal_cannot_be_reached_there_is_no_attempt(goal):
    assert [*transitions().reaching(Way(bind(expression(goal), {})))] == []


def test_inverted_bits_keep_every_check_passing():
    subject = subject_of("compact")
    search = Search(subject)
    baseline = next(iter(subject.baselines))
    start = search.start(baseline)
    near = [state for _, state in search.near(baseline, start, ["PIN_BASED_CTLS", "GUEST_RIP"])]
    assert {*(search.failing(state) for state in near)} == {()}
    assert {(name, (start[name] ^ state[name]).bit_count()) for state in near
            for name in start if start[name] != state[name]} == {
        ("PIN_BASED_CTLS", 1), ("GUEST_RIP", 1)}

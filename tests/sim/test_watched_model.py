"""The model that watches mutants: what it notes, against the compiled unit with its mutants."""

from functools import cache

import pytest

from vmxswitch.sim.fuzz.campaign import Worker
from vmxswitch.sim.memory import Fault
from vmxswitch.sim.model import Model
from vmxswitch.sim.mutants import mutants
from vmxswitch.sim.mutation import MutantPort
from vmxswitch.sim.observation import MemoryFault, MemoryWrite, RegisterWrites, observe
from vmxswitch.sim.watched_model import WatchedModel
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Instruction
from vmxswitch.subjects import subject_of

COMPACT = PRESETS["compact"]
SOME = 7  # of so many mutants one is run on the unit


@cache
def worker():
    port = MutantPort(COMPACT)
    return port, Worker(subject_of("compact"), lambda capabilities: port, 1)


def watching(*ids):
    return WatchedModel(COMPACT, [mutant for mutant in mutants(COMPACT) if mutant.id in ids])


def names(model):
    by_number = {mutant.number: mutant.id for mutant in mutants(COMPACT)}
    return {by_number[number] for number in model.differing}


@pytest.mark.parametrize("program", [60, 500, 501])
def test_every_mutant_that_a_program_notices_has_differed(program):
    port, at_work = worker()
    chosen = mutants(COMPACT)[program % SOME::SOME]
    model = at_work.sides.model = WatchedModel(COMPACT, chosen)
    port.choose(0)
    assert at_work.run(program).difference is None
    recording, differing = port.recording(), model.differing
    noticed = {mutant.number for mutant in chosen if recording.differs(mutant.number)}
    assert noticed and noticed <= differing < {mutant.number for mutant in chosen}


def test_it_answers_as_the_model_does():
    at_work = Worker(subject_of("compact"), Model, 1)
    plain = at_work.run(60)
    at_work.sides.model = WatchedModel(COMPACT, mutants(COMPACT))
    watched = at_work.run(60)
    assert (watched.program, watched.answers) == (plain.program, plain.answers)


def test_a_row_that_is_not_come_to_does_not_differ():
    model = watching("VMXON.13-inverted", "VMXOFF.1-inverted", "VMXOFF.1-code", "launched-kept")
    observe(model, [Instruction("VMXON", pointer=1)])
    assert names(model) == {"launched-kept"}


def test_the_outcome_of_the_row_that_decides_differs():
    model = watching("VMXOFF.1-code", "VMXOFF.2-code")
    observe(model, [Instruction("VMXOFF")])
    assert names(model) == {"VMXOFF.1-code"}
    model.reset()
    assert names(model) == set()


def test_a_value_that_needs_memory_may_differ():
    """The model does not read a word for the sake of a mutant, nor one that fails."""
    environment = subject_of("compact").environment
    model = watching("VMXON.14-inverted", "VMXON.14-never")
    observe(model, [
        RegisterWrites(tuple(environment.items())), MemoryWrite(0x1000, 4, COMPACT.revision),
        MemoryFault(0x1000, Fault.ERROR), Instruction("VMXON", pointer=0x1000)])
    assert names(model) == {"VMXON.14-inverted", "VMXON.14-never"}

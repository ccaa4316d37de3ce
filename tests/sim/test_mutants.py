# amaranth: UnusedElaboratable=no
"""Mutants of the unit: what they are, which witness notices them, what proofs say."""

import pickle
from functools import cache

import pytest

from vmxswitch.sim import mutants as module
from vmxswitch.sim import mutation
from vmxswitch.sim.fuzz.campaign import Worker
from vmxswitch.sim.model import Model
from vmxswitch.sim.mutants import KINDS, Control, Mutant, MutantUnit, equivalent, mutants
from vmxswitch.sim.mutation import Defect, MutantPort, hunt
from vmxswitch.sim.neighbours import neighbours
from vmxswitch.sim.observation import observe
from vmxswitch.sim.verilator import VerilatorPort
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.tables import INSTRUCTIONS
from vmxswitch.subjects import subject_of

COMPACT = PRESETS["compact"]
#: Mutants, the witness that notices each, and where.
KNOWN = [
    ("C07-never", "pair", ""), ("G130-inverted", "pair", ""),
    ("G75-off1", "neighbours", ""),        # RFLAGS bit 18 for bit 17: where the row applies
    ("G83-off4", "neighbours", "depth 1"),  # type 12 for 11
    ("P03-off8", "neighbours", "depth 2"),  # bit 32 of an entry that must be present besides
    ("CR0-entry-keeps", "fuzz", ""), ("launched-kept", "fuzz", ""),
    ("diagnosis-shifted", "fuzz", ""), ("VMLAUNCH.7-number", "fuzz", ""),
]


@cache
def subject():
    return subject_of("compact")


@cache
def port():
    return MutantPort(COMPACT)


def named(*ids):
    chosen = {mutant.id: mutant for mutant in mutants(COMPACT)}
    return [chosen[id] for id in ids]


# What they are

@pytest.mark.parametrize("name", PRESETS)
def test_numbers_and_names_are_unique_and_every_kind_is_there(name):
    found = mutants(PRESETS[name])
    assert [mutant.number for mutant in found] == list(range(1, len(found) + 1))
    assert len({mutant.id for mutant in found}) == len(found)
    assert {mutant.kind for mutant in found} == set(KINDS)
    assert all(mutant.words for mutant in found)


@pytest.mark.parametrize("name", PRESETS)
def test_every_check_row_has_mutants(name):
    rows = PRESETS[name].checks
    for suffix in ("never", "inverted"):
        assert {f"{row}-{suffix}" for row in rows} <= {each.id for each in mutants(PRESETS[name])}
    assert {each.row for each in mutants(PRESETS[name]) if each.kind == "check"} == rows.keys()


def test_the_rows_of_the_tables_stay_as_they_are():
    before = repr((COMPACT.checks, INSTRUCTIONS))
    MutantUnit(COMPACT)
    assert repr((COMPACT.checks, INSTRUCTIONS)) == before


def test_an_assignment_that_the_unit_does_not_have_is_named(monkeypatch):
    gone = Control("gone", "instructions", r"nothing\)", lambda assignment, fragment: 0, "gone")
    monkeypatch.setattr(module, "CONTROL", (gone,))
    module._plan.cache_clear()
    try:
        with pytest.raises(LookupError, match=r"gone: the unit has no assignment nothing"):
            MutantUnit(COMPACT).elaborate(None)
    finally:
        module._plan.cache_clear()


# Proofs

def test_a_mutant_that_says_the_same_in_other_words_is_proved_equivalent():
    """No processor here lets the field be written: whatever its value would be does not matter."""
    assert equivalent(COMPACT, *named("VM_ENTRY_CTLS-value-off1"))


def test_a_mutant_that_the_checks_keep_from_mattering_is_proved_equivalent():
    """Type 3 in the activity state is refused, so what it would be loaded as does not matter."""
    assert equivalent(COMPACT, *named("PENDING_DBG-entry-off4"))


@pytest.mark.parametrize("id", [id for id, *_ in KNOWN])
def test_a_mutant_that_is_noticed_is_not_proved_equivalent(id):
    assert not equivalent(COMPACT, *named(id))


# Witnesses, on the compiled unit

def test_without_a_mutant_the_unit_does_what_it_does_without_mutants():
    port().choose(0)
    plain = VerilatorPort(COMPACT)
    row = COMPACT.checks["G83"]
    program = [*neighbours(subject(), row, _pair("G83"))]
    for mine, other in zip(observe(port(), program), observe(plain, program), strict=True):
        if mine is not None:
            assert (mine.answer, mine.mode, mine.registers) == (
                other.answer, other.mode, other.registers)


def _pair(row):
    return Worker(subject(), Model, 1).pairs(row)[0]


def test_neighbours_come_to_both_sides_of_a_row():
    program = [*neighbours(subject(), COMPACT.checks["G75"], _pair("G75"))]
    failing = ["G75" in seen.answer.failing for seen in observe(Model(COMPACT), program)
               if seen is not None and seen.answer is not None]
    assert any(failing) and not all(failing)


def test_known_mutants_are_noticed_by_the_witness_that_is_for_them():
    verdicts = hunt(subject(), named(*(id for id, *_ in KNOWN)), programs=10)
    found = {verdict.mutant.id: verdict for verdict in verdicts}
    for id, by, detail in KNOWN:
        assert found[id].by == by and detail in found[id].detail, found[id]


def test_who_notices_a_mutant_does_not_depend_on_the_number_of_processes():
    chosen = named(*(id for id, *_ in KNOWN[:6]))
    one, three = (hunt(subject(), chosen, programs=6, jobs=jobs) for jobs in (1, 3))
    assert one == three


def test_a_mutant_that_nobody_notices_is_a_survivor_unless_it_is_explained(monkeypatch):
    chosen = named("commit-late")
    assert [verdict.by for verdict in hunt(subject(), chosen)] == [""]
    monkeypatch.setattr(mutation, "EXPLAINED", {"commit-late": "why"})
    verdict, = hunt(subject(), chosen)
    assert (verdict.by, verdict.detail) == ("explained", "why")


def test_an_equivalent_mutant_is_left_to_the_proof():
    programs = sum(mutation.ROUNDS)
    verdict, = hunt(subject(), named("VM_ENTRY_CTLS-value-off1"), programs=20)
    assert verdict.by == "proof" and programs > 20


def test_a_unit_that_is_wrong_without_a_mutant_is_a_defect(monkeypatch):
    monkeypatch.setattr(mutation, "_notices", lambda pair, subject, port, number: True)
    with pytest.raises(Defect, match="C07"):
        hunt(subject(), named("C07-never"))


def test_the_mutants_are_dataclasses_that_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(named("C07-never"))) == named("C07-never")
    assert isinstance(named("C07-never")[0], Mutant)

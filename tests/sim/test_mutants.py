# amaranth: UnusedElaboratable=no
"""Mutants of the unit: what they are, which witness notices them, what proofs say."""

import pickle
import re
from functools import cache
from pathlib import Path

import pytest
from amaranth.hdl import Fragment

from vmxswitch.sim import mutants as module
from vmxswitch.sim import mutation
from vmxswitch.sim.counterexamples import counterexamples, question
from vmxswitch.sim.equivalence import equivalent
from vmxswitch.sim.fuzz.campaign import Worker
from vmxswitch.sim.model import Model
from vmxswitch.sim.mutants import KINDS, Control, Mutant, MutantUnit, mutants
from vmxswitch.sim.mutation import EXPLAINED, WITNESSES, Defect, MutantPort, hunt
from vmxswitch.sim.neighbours import neighbours
from vmxswitch.sim.observation import observe
from vmxswitch.sim.transitions import Transitions
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
    ("C89-off2", "neighbours", "depth 1"),  # entries of 17 bytes for 16
    ("RIP-entry-keeps", "fuzz", ""),
    ("DR7-entry-off3", "transitions", ""),  # one bit in the middle of a register
    ("PENDING_DBG-entry-off2", "transitions", ""),  # an event to inject, and one pending
    ("0-off8", "counterexample", ""),  # a page fault for another vector, by bits in the middle
    ("launched-kept", "fuzz", ""), ("diagnosis-shifted", "fuzz", ""),
    ("VMLAUNCH.7-number", "fuzz", ""),
]
#: Mutants that random programs come to too rarely, and the sweep that comes to them.
SWEPT = [("VMXON.13-off3", "operand bits"), ("exit-reason", "events"), ("N28-off1", "region 0"),
         ("30-off5", "ports"), ("VMPTRLD.8-off3", "operand bits")]


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
def test_the_unit_has_every_assignment_of_the_wrong_control_logic(name):
    """Building it finds them all, or ends in a LookupError."""
    found = mutants(PRESETS[name])
    assert sum(mutant.kind == "control" for mutant in found) >= 30
    Fragment.get(MutantUnit(PRESETS[name]), None)


@pytest.mark.parametrize("name", PRESETS)
def test_every_check_row_has_mutants(name):
    rows = PRESETS[name].checks
    for suffix in ("never", "inverted"):
        assert {f"{row}-{suffix}" for row in rows} <= {each.id for each in mutants(PRESETS[name])}
    assert {each.row for each in mutants(PRESETS[name]) if each.kind == "check"} == rows.keys()


def test_the_rows_of_the_tables_stay_as_they_are():
    before = repr((COMPACT.checks, INSTRUCTIONS))
    Fragment.get(MutantUnit(COMPACT), None)
    assert repr((COMPACT.checks, INSTRUCTIONS)) == before


def test_an_assignment_that_the_unit_does_not_have_is_named(monkeypatch):
    gone = Control("gone", "instructions", r"nothing\)", lambda assignment, fragment: 0, "gone")
    monkeypatch.setattr(module, "CONTROL", (gone,))
    module._plan.cache_clear()
    try:
        with pytest.raises(LookupError, match="gone: 0 assignments of the unit"):
            MutantUnit(COMPACT).elaborate(None)
    finally:
        module._plan.cache_clear()


# Proofs

def test_a_mutant_that_says_the_same_in_other_words_is_proved_equivalent():
    """No processor here lets the field be written: whatever its value would be does not matter."""
    assert equivalent(COMPACT, *named("VM_ENTRY_CTLS-value-off1"))


def test_a_mutant_that_the_checks_keep_from_mattering_is_proved_equivalent():
    """A 32-bit host without a stack segment is refused, so what it would get does not matter."""
    assert equivalent(COMPACT, *named("SS_AR-exit-off1"))


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


@cache
def worker():
    return Worker(subject(), Model, 1)


def _pair(row):
    return worker().pairs(row)[0]


def test_neighbours_come_to_both_sides_of_a_row():
    program = [*neighbours(subject(), COMPACT.checks["G75"], _pair("G75"))]
    failing = ["G75" in seen.answer.failing for seen in observe(Model(COMPACT), program)
               if seen is not None and seen.answer is not None]
    assert any(failing) and not all(failing)


def test_a_counterexample_tells_whatever_decides_about_an_event():
    mutant = next(found for found in mutants(COMPACT) if (found.kind, found.row) == ("event", "0"))
    attempts = counterexamples(COMPACT, Transitions(subject()), mutant)
    event = next(attempts).happens
    assert event.reason == 0 and event.interruption


def test_what_a_mutant_does_that_is_about_nothing_of_a_transition_is_no_question():
    with pytest.raises(ValueError, match="C07-never is not about an entry"):
        question(COMPACT, *named("C07-never"))


def test_known_mutants_are_noticed_by_the_witness_that_is_for_them():
    verdicts = hunt(subject(), named(*(id for id, *_ in KNOWN)), programs=10)
    found = {verdict.mutant.id: verdict for verdict in verdicts}
    for id, by, detail in KNOWN:
        assert found[id].by == by and detail in found[id].detail, found[id]


@pytest.mark.parametrize("id, sweep", SWEPT)
def test_a_sweep_notices_what_random_programs_rarely_come_to(id, sweep):
    mutant, = named(id)
    assert list(mutation._by_sweeps(
        mutation.Task("", subject(), "sweep", (mutant.number,)), port(), worker())) == [
        (mutant.number, "sweep", sweep)]


def test_who_notices_a_mutant_does_not_depend_on_the_number_of_processes():
    chosen = named(*(id for id, *_ in KNOWN[:6]))
    one, three = (hunt(subject(), chosen, programs=2, jobs=jobs) for jobs in (1, 3))
    assert one == three


def test_a_mutant_that_nobody_notices_is_a_survivor_unless_it_is_explained(monkeypatch):
    monkeypatch.setattr(mutation, "SWEEPS", {})
    chosen = named("commit-late")
    assert [verdict.by for verdict in hunt(subject(), chosen)] == [""]
    monkeypatch.setattr(mutation, "EXPLAINED", {"commit-late": "why"})
    verdict, = hunt(subject(), chosen)
    assert (verdict.by, verdict.detail, verdict.contradicted) == ("explained", "why", False)


def test_an_explained_mutant_that_is_noticed_contradicts_its_explanation(monkeypatch):
    monkeypatch.setattr(mutation, "EXPLAINED", {"CR0-entry-keeps": "why"})
    verdict, = hunt(subject(), named("CR0-entry-keeps"))
    assert verdict.by in WITNESSES and verdict.contradicted


def test_the_page_explains_the_same_mutants():
    page = (Path(__file__).parents[2] / "docs" / "mutation.md").read_text()
    table = page.partition("Explained:")[2].partition("## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == EXPLAINED.keys()


def test_explanations_are_of_mutants_that_there_are_and_nobody_notices():
    ids = {mutant.id for name in PRESETS for mutant in mutants(PRESETS[name])}
    assert EXPLAINED.keys() <= ids
    here = {mutant.id for mutant in mutants(COMPACT)}
    verdicts = hunt(subject(), named(*(id for id in EXPLAINED if id in here)), programs=20)
    assert [verdict.by for verdict in verdicts] == ["explained"] * len(verdicts)


def test_an_equivalent_mutant_is_left_to_the_proof():
    verdict, = hunt(subject(), named("VM_ENTRY_CTLS-value-off1"), programs=20)
    assert verdict.by == "proof"


def test_a_unit_that_is_wrong_without_a_mutant_is_a_defect(monkeypatch):
    monkeypatch.setattr(mutation, "_notices", lambda pair, subject, port, number: True)
    with pytest.raises(Defect, match="C07"):
        hunt(subject(), named("C07-never"))


def test_the_mutants_are_dataclasses_that_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(named("C07-never"))) == named("C07-never")
    assert isinstance(named("C07-never")[0], Mutant)

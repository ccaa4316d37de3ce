"""For each entry check a VMCS that fails it and no other, and its nearest neighbour that passes."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from vmxswitch.sim.cases import read_profile
from vmxswitch.sim.model import Model
from vmxswitch.sim.pysim import PysimPort
from vmxswitch.sim.row_cases import (
    SYNTHETIC,
    Search,
    Subject,
    everything,
    run_pair,
    subjects,
    synthetic,
    unreachable,
)
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Answer, Outcome
from vmxswitch.spec.tables import CHECKS, STAGES

PROFILES = Path(__file__).parents[1] / "cases" / "profiles"
RECORDED = ["sandy_bridge_64", "skylake_x_64", "skylake_x_32"]
REAL = [*RECORDED, *PRESETS]

#: Pairs that need more than one bit, or one that decides whether the row applies at all.
FARTHER = {
    "sandy_bridge_64": {"G135"}, "skylake_x_64": {"G135"}, "full": {"G135"},
    "skylake_x_32": {"G135", "H36"},  # H36: LME and LMA of the live IA32_EFER
    "compact": {"N03"},
}
RTL_ROWS = 24  # of each preset


@cache
def subject(name):
    if name in SYNTHETIC:
        return synthetic(name, read_profile(PROFILES / "skylake_x_64.json"))
    return subjects({name: read_profile(PROFILES / f"{name}.json") for name in RECORDED})[name]


@cache
def search(name):
    return Search(subject(name))


@cache
def pairs(name):
    """The pair of every row that can fail alone on a processor."""
    found = {row: search(name).pair(row) for row in subject(name).capabilities.checks}
    return {row: pair for row, pair in found.items() if pair is not None}


def listed(name):
    """Ids of the rows of unreachable.csv that hold for a processor."""
    return {row.id for row in unreachable() if not row.subjects or name in row.subjects}


# Reached, or listed with its reason

@pytest.mark.parametrize("name", REAL)
def test_every_row_of_a_processor_is_reached_or_listed(name):
    unreached = subject(name).capabilities.checks.keys() - pairs(name).keys()
    assert unreached == listed(name) & subject(name).capabilities.checks.keys()


def test_every_row_of_the_table_is_reached_or_listed():
    reached = set().union(*map(pairs, REAL))
    assert reached | listed("") == CHECKS.keys()
    assert not reached & listed("")


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_listed_row_is_reached_where_the_list_says(name):
    said = {row.id for row in unreachable() if row.reached_by == name}
    assert {row for row in said if search(name).pair(row) is not None} == said


@pytest.mark.parametrize("row", [row for row in unreachable() if not row.reached_by],
                         ids=lambda row: row.id)
def test_a_row_that_no_processor_reaches_is_reached_by_no_synthetic_one_either(row):
    if not row.subjects:
        assert all(search(name).pair(row.id) is None for name in SYNTHETIC)


@pytest.mark.parametrize("row", [row for row in unreachable() if row.implied_by],
                         ids=lambda row: row.id)
@pytest.mark.parametrize("name", REAL)
def test_a_row_that_cannot_fail_alone_is_implied_by_the_rows_named(name, row):
    if not row.subjects or name in row.subjects:
        assert search(name).implied(row.id, row.implied_by)


def test_without_intel_64_neither_control_of_a_64_bit_world_fails_h45_alone():
    capabilities = everything(INTEL64=0, LIVE_EFER=0)  # IA32_EFER.LMA does not exist
    assert "H45" in capabilities.checks
    assert Search(Subject("", capabilities, {}, {})).implied("H45", ("H34", "H35"))


def test_rows_that_are_independent_are_not_implied():
    assert not search("full").implied("H41", ("H42", "H03"))


def test_the_list_is_in_order_and_has_reasons():
    rows = unreachable()
    order = list(CHECKS)
    assert rows == sorted(rows, key=lambda row: order.index(row.id))
    assert all(row.reason for row in rows)
    assert {row.reached_by for row in rows} <= {"", *SYNTHETIC}
    assert {name for row in rows for name in row.subjects} <= set(REAL)


# The pairs

@pytest.mark.parametrize("name", [*REAL, "everything"])
def test_a_pair_fails_its_row_alone_and_passes_on_the_model(name):
    port = Model(subject(name).capabilities)
    wrong = []
    for row, pair in pairs(name).items():
        answers = run_pair(pair, subject(name), port)
        for case, answer in zip((pair.fails, pair.passes), answers, strict=True):
            if not case.agrees(answer):
                wrong.append((row, case, answer))
    assert not wrong


@pytest.mark.parametrize("name", REAL)
def test_a_pair_demands_what_the_table_demands(name):
    for row, pair in pairs(name).items():
        failure = CHECKS[row].failure
        expected = pair.fails.expected
        assert expected.failing == (row,)
        if failure.error is not None:
            assert (expected.outcome, expected.error) == (Outcome.FAIL_VALID, failure.error)
        else:
            assert (expected.outcome, expected.reason) == (
                Outcome.ENTRY_FAILURE, failure.reason)
            assert failure.qualification in (expected.qualification, None)
        assert pair.passes.expected == Answer(Outcome.ENTERED)


@pytest.mark.parametrize("name", REAL)
def test_one_bit_of_the_condition_decides(name):
    assert {row for row, pair in pairs(name).items() if not pair.is_nearest} == FARTHER[name]
    assert all(len(pair.changed) == 1 for pair in pairs(name).values())


@pytest.mark.parametrize("name", PRESETS)
def test_variants_of_a_pair_fail_the_same_row_alone(name):
    port = Model(subject(name).capabilities)
    for row in ("C02", "C07", "H20", "G63", "G133", "N20"):
        variants = list(search(name).variants(pairs(name)[row]))
        assert len({variant.fails for variant in variants}) > 1
        for variant in variants:
            assert variant.fails.expected.failing == (row,)
            answers = run_pair(variant, subject(name), port)
            assert variant.fails.agrees(answers[0]) and variant.passes.agrees(answers[1])


def test_variants_try_every_bit_of_a_slice():
    variants = search("full").variants(pairs("full")["G130"])  # bits 31:16 of the IDTR limit
    values = {dict(variant.fails.writes)["GUEST_IDTR_LIMIT"] >> 16 for variant in variants}
    assert values >= {1 << bit for bit in range(16)}


def test_a_case_notices_another_answer():
    pair = pairs("full")["G04"]
    port = Model(subject("full").capabilities)
    fails, passes = run_pair(pair, subject("full"), port)
    assert pair.fails.agrees(fails) and not pair.fails.agrees(passes)
    assert pair.passes.agrees(passes) and not pair.passes.agrees(fails)


def test_the_same_pairs_are_found_whatever_the_order_of_hashes():
    program = (
        "import hashlib, sys; from pathlib import Path; "
        "from vmxswitch.sim.cases import read_profile; "
        "from vmxswitch.sim.row_cases import Search, Subject; "
        "from vmxswitch.spec.capabilities import PRESETS; "
        "compact = PRESETS['compact']; "
        "search = Search(Subject.from_profile(read_profile(Path(sys.argv[1])), compact)); "
        "print(hashlib.sha256(repr([search.pair(row) for row in compact.checks]).encode())"
        ".hexdigest())")
    found = {subprocess.run(
        [sys.executable, "-c", program, str(PROFILES / "skylake_x_32.json")],
        env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True,
    ).stdout for seed in ("1", "2")}
    assert len(found) == 1


# The same cases on the RTL

def rtl_sample(name):
    """Rows spread evenly over the stages, the last of each stage among them; always the same."""
    chosen = []
    by_stage = [[row for row in pairs(name) if CHECKS[row].stage == stage] for stage in STAGES]
    total = sum(map(len, by_stage))
    for rows in filter(None, by_stage):
        count = max(1, round(RTL_ROWS * len(rows) / total))
        chosen += [rows[(number + 1) * len(rows) // count - 1] for number in range(count)]
    return chosen


@pytest.mark.parametrize("name", PRESETS)
def test_a_sample_of_the_pairs_on_the_rtl(name):
    port = PysimPort(subject(name).capabilities)
    rows = rtl_sample(name)
    assert len(rows) >= RTL_ROWS - 2
    for row in rows:
        pair = pairs(name)[row]
        fails, passes = run_pair(pair, subject(name), port)
        assert pair.fails.agrees(fails), (pair.fails, fails)
        assert pair.passes.agrees(passes), (pair.passes, passes)

"""The verb ``mutate``, from the command line to the exit status."""

import json

import pytest

from vmxswitch import cli, mutate
from vmxswitch.sim import mutation
from vmxswitch.sim.mutants import mutants
from vmxswitch.spec.capabilities import PRESETS


@pytest.fixture
def run(capsys):
    """A function that runs the verb on ``compact``; returns status, stdout and stderr."""
    def run(*arguments):
        status = cli.main(["mutate", "--config", "compact", "--jobs", "1", *arguments])
        return status, *capsys.readouterr()
    return run


@pytest.fixture
def only(monkeypatch):
    """A function that leaves some mutants only, by id."""
    def only(*ids):
        monkeypatch.setattr(mutate, "mutants", lambda capabilities: [
            mutant for mutant in mutants(capabilities) if mutant.id in ids])
    return only


def test_list_names_every_mutant(run):
    status, out, err = run("--list")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [
        mutant.id for mutant in mutants(PRESETS["compact"])]


def test_mutants_that_are_noticed_or_proved(run, only):
    only("C07-never", "CR0-exit-keeps", "VM_ENTRY_CTLS-value-off1")
    status, out, _ = run("--programs", "0")
    assert status == 0
    assert "kind=check mutants=1 pair=1 " in out
    assert "  VM_ENTRY_CTLS-value-off1 " in out
    counts = dict(word.split("=") for word in out.splitlines()[-1].split())
    assert (counts["mutants"], counts["equivalent"], counts["killed"], counts["score"]) == (
        "3", "1", "2", "1.0")


def test_a_survivor_in_json(run, only, monkeypatch):
    monkeypatch.setattr(mutation, "SWEEPS", {})
    only("C07-never", "commit-late")
    status, out, _ = run("--programs", "0", "--json")
    result = json.loads(out)
    assert status == 1
    assert (result["survived"], result["score"]) == (1, 0.5)
    assert {row["id"]: row["by"] for row in result["table"]} == {
        "C07-never": "pair", "commit-late": ""}


def test_an_explanation_that_does_not_hold(run, only, monkeypatch):
    monkeypatch.setattr(mutation, "EXPLAINED", {"CR0-exit-keeps": "why"})
    only("CR0-exit-keeps")
    status, out, _ = run("--programs", "0")
    assert status == 1
    assert "Noticed, against their explanation:\n  CR0-exit-keeps " in out


def test_a_defect_of_the_unit_itself(run, only, monkeypatch):
    monkeypatch.setattr(mutation, "_notices", lambda pair, subject, port, number: True)
    only("C07-never")
    status, out, _ = run("--programs", "0")
    assert status == 1
    assert out.startswith("Not a mutant's fault: ")


def test_a_configuration_that_is_not_there(capsys):
    assert cli.main(["mutate", "--config", "huge"]) == 2
    assert "no configuration 'huge'" in capsys.readouterr().err

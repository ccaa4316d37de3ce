"""The verb ``mutate``, from the command line to the exit status."""

import json

import pytest

from vmxswitch import cli, mutate
from vmxswitch.sim import mutation

SAMPLE = ("C07-never", "G75-off1", "launched-kept", "VM_ENTRY_CTLS-value-off1", "commit-late")


@pytest.fixture
def run(capsys, monkeypatch):
    """A function that runs the verb on some mutants of `compact`; status, stdout, stderr."""
    monkeypatch.setattr(mutation, "_kept", {})

    def run(*arguments, only=SAMPLE):
        everything = mutate.mutants
        monkeypatch.setattr(mutate, "mutants", lambda capabilities: [
            mutant for mutant in everything(capabilities) if mutant.id in only])
        status = cli.main(["mutate", "--config", "compact", "--jobs", "1", *arguments])
        return status, *capsys.readouterr()
    return run


def test_the_list(run):
    status, out, err = run("--list", only=("C07-never", "mode-exit"))
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["C07-never", "check"], ["mode-exit", "control"]]


def test_all_noticed(run):
    status, out, _ = run("--programs", "10", only=SAMPLE[:4])
    assert status == 0
    last = out.splitlines()[-1]
    assert last.startswith(
        "config=compact seed=1 programs=10 mutants=4 equivalent=1 explained=0 scored=3 killed=3 "
        "survived=0 score=1.0 seconds=")
    assert "  VM_ENTRY_CTLS-value-off1 " in out and "Not noticed" not in out


def test_a_survivor_is_named_and_the_status_is_1(run, monkeypatch):
    monkeypatch.setattr(mutation, "_sweeps", lambda mutant, subject, worker: ())
    status, out, _ = run("--programs", "0", "--json", only=("commit-late",))
    assert status == 1
    result = json.loads(out)
    assert (result["killed"], result["survived"], result["score"]) == (0, 1, 0.0)
    assert [(row["id"], row["by"]) for row in result["table"]] == [("commit-late", "")]


def test_a_unit_that_is_wrong_without_a_mutant(run, monkeypatch):
    monkeypatch.setattr(mutation, "_notices", lambda pair, subject, port, number: True)
    status, out, _ = run(only=("C07-never",))
    assert status == 1
    assert out == ("Not a mutant's fault: the unit does not do what the witness 'pair' of C07 "
                   "wants\n")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--config", "big"], "no configuration 'big'"),
    (["--programs", "-1"], "'-1' is not a number from 0"),
    (["--jobs", "0"], "'0' is not a number from 1"),
])
def test_bad_arguments(capsys, arguments, message):
    assert cli.main(["mutate", *arguments]) == 2
    assert message in capsys.readouterr().err

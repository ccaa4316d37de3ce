"""The verb ``replay``, from the command line to the exit status."""

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmxswitch import backends, cli, replay
from vmxswitch.sim.model import Model

CASES = Path(__file__).parent / "cases"
ENTERED = {"id": "good", "profile": "skylake_x_64", "base": "long64_A", "ops": [{"op": "vmlaunch"}],
           "expect": [{"result": "entered"}]}
#: It expects what does not come; the answer names three failing checks.
WRONG = ENTERED | {"id": "wrong", "writes": [["GUEST_RFLAGS", 0], ["GUEST_TR_AR", 0]]}


@pytest.fixture
def cases(tmp_path):
    """A function that writes a file of cases with the recorded profiles beside it."""
    (tmp_path / "profiles").symlink_to(CASES / "profiles")

    def write(*records, name="cases.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path
    return write


@pytest.fixture
def run(capsys):
    """A function that runs the verb and returns its status and its lines on stdout and stderr."""
    def run(*arguments):
        status = cli.main(["replay", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()
    return run


def test_cases_that_agree(cases, run):
    status, out, err = run(cases(ENTERED), "--jobs", 1)
    assert status == 0
    assert out[0].endswith("cases.jsonl profile=skylake_x_64 cases=1 compared=1 disagree=0")
    assert out[1].startswith("cases=1 compared=1 disagree=0 seconds=") and len(out) == 2
    assert err == ["replay: 1 of 1 cases"]


def test_every_backend_has_its_measure_of_progress():
    assert set(replay.CHUNK_CASES) == {*backends.BACKENDS, backends.SERIAL}


def test_the_cases_of_one_profile_can_be_chosen(cases, run):
    other = ENTERED | {"id": "other", "profile": "sandy_bridge_64"}
    path = cases(ENTERED, other)
    status, out, _ = run(path, "--jobs", 1, "--profile", "skylake_x_64")
    assert status == 0 and out[-1].startswith("cases=1 compared=1 disagree=0")
    status, out, err = run(path, "--profile", "haswell")
    assert (status, out) == (2, [])
    assert err == ["vmxswitch: --profile haswell: the cases given are of sandy_bridge_64, "
                   "skylake_x_64"]


def test_a_disagreement_is_printed_with_its_rows(cases, run):
    status, out, _ = run(cases(ENTERED, WRONG), "--jobs", 1)
    assert status == 1
    assert out[:4] == [
        "case=wrong profile=skylake_x_64 op=0 (vmlaunch)",
        '  expected {"result": "entered"}',
        '  got      {"result": "entry_failure", "reason": 33, "qualification": 0, '
        '"row": "VMLAUNCH.9", "failing": ["G113", "G115", "G134"]}',
        "  rows     G113 G115 G134 VMLAUNCH.9"]
    assert "cases=2 compared=2 disagree=1" in out[-1]


def test_only_the_first_disagreements_are_printed(cases, run):
    _, out, _ = run(cases(*[WRONG] * 15), "--jobs", 1)
    assert sum(line.startswith("case=") for line in out) == replay.SHOWN == 10
    assert "disagree=15" in out[-1]


def test_cases_without_expect_are_run_but_not_compared(cases, run, tmp_path):
    case = {key: value for key, value in WRONG.items() if key != "expect"}
    status, out, _ = run(cases(case, ENTERED), "--results", tmp_path / "r", "--jobs", 1)
    assert status == 0 and "cases=2 compared=1 disagree=0" in out[-1]
    first, second = map(json.loads, (tmp_path / "r").read_text().splitlines())
    assert first["id"] == "wrong" and first["results"][0]["reason"] == 33
    assert second == {"id": "good", "results": [{"result": "entered", "row": "VMLAUNCH.12"}]}


def test_several_processes_give_the_same_results_in_the_same_order(run, tmp_path):
    files = [CASES / "instructions.jsonl.gz", CASES / "exits.jsonl.gz"]
    one = run(*files, "--jobs", 1, "--results", tmp_path / "one")
    two = run(*files, "--jobs", 2, "--results", tmp_path / "two")
    assert one[0] == two[0] == 0
    assert one[1][:-1] == two[1][:-1]
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()
    assert len((tmp_path / "one").read_text().splitlines()) == 153 + 108


def test_a_sample_is_replayed(run):
    status, out, _ = run(CASES / "entries.jsonl.gz", "--sample", 9, "--jobs", 1)
    assert status == 0
    profiles = ["sandy_bridge_64", "skylake_x_32", "skylake_x_64"]
    assert sorted(line.split()[1:3] for line in out[:-1]) == [
        [f"profile={name}", "cases=3"] for name in profiles]


def test_profiles_may_be_elsewhere(run, tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(ENTERED))
    status, _, err = run(path)
    assert (status, err) == (2, [
        f"vmxswitch: {path}:1: no profile 'skylake_x_64' in {tmp_path / 'profiles'} (there: none)"])
    assert run(path, "--profiles", CASES / "profiles", "--jobs", 1)[0] == 0


def test_results_replace_a_file_only_when_they_are_complete(cases, run, tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.write_text("old")

    def stop(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_run_chunk", stop)
        assert run(cases(ENTERED), "--results", results, "--jobs", 1)[0] == 130
    assert results.read_text() == "old"
    assert run(cases(ENTERED), "--results", results, "--jobs", 1)[0] == 0
    assert json.loads(results.read_text())["id"] == "good"
    assert {path.name for path in tmp_path.iterdir()} == {"cases.jsonl", "profiles", "results"}


def test_results_go_to_a_device_too(cases, run):
    assert run(cases(ENTERED), "--results", "/dev/null", "--jobs", 1)[0] == 0
    assert not Path("/dev/null").is_file()


def test_the_backend_is_built_once_per_profile(cases, run, monkeypatch):
    built = []

    class Port(Model):
        def __init__(self, capabilities):
            built.append(capabilities.name)
            super().__init__(capabilities)
    monkeypatch.setitem(sys.modules, "vmxswitch.sim.pysim", SimpleNamespace(PysimPort=Port))
    other = ENTERED | {"profile": "sandy_bridge_64"}
    path = cases(ENTERED, other, ENTERED, other, ENTERED)
    status, _, err = run(path, "--backend", "pysim", "--jobs", 1)
    assert status == 0
    assert built == ["sandy_bridge_64", "skylake_x_64"]
    assert err[-1] == "replay: 5 of 5 cases"


def test_a_terminal_gets_one_line_of_progress(cases, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(["replay", str(cases(*[ENTERED] * 30)), "--jobs", "1"]) == 0
    assert capsys.readouterr().err == "\rreplay: 25 of 30 cases\rreplay: 30 of 30 cases\n"


@pytest.mark.parametrize("text, message", [
    ("", "cases.jsonl: holds no case"),
    ("{", "cases.jsonl:1: not JSON"),
    ("\n" + json.dumps(ENTERED | {"base": "x"}), "cases.jsonl:2: unknown base"),
])
def test_bad_input_ends_in_one_line(cases, run, text, message):
    path = cases()
    path.write_text(text)
    status, out, err = run(path)
    assert (status, out) == (2, [])
    assert len(err) == 1 and message in err[0]


def test_bad_files_end_in_one_line(cases, run, tmp_path):
    truncated = tmp_path / "truncated.jsonl.gz"
    truncated.write_bytes(gzip.compress(json.dumps(ENTERED).encode() * 99)[:-20])
    for arguments, message in [
        ([tmp_path / "none"], "none: No such file or directory"),
        ([tmp_path], "Is a directory"),
        ([truncated], "damaged gzip file"),
        ([cases(ENTERED), "--results", tmp_path / "no" / "folder"], "No such file or directory"),
        ([cases(ENTERED), "--results", tmp_path], "Is a directory"),
    ]:
        status, out, err = run(*arguments)
        assert (status, out) == (2, [])
        assert len(err) == 1 and message in err[0]


PUBLIC = [CASES / f"{name}.jsonl.gz" for name in ("entries", "exits", "instructions")]


def test_a_sample_of_all_profiles_agrees_on_the_hardware(run):
    status, out, _ = run(*PUBLIC, "--backend", "pysim", "--sample", 150)
    assert status == 0
    assert out[-1].startswith("cases=150 compared=150 disagree=0 ")
    assert {line.split()[1] for line in out if line.startswith("file=")} == {
        f"profile={path.stem}" for path in (CASES / "profiles").glob("*.json")}


def test_every_case_agrees_on_the_compiled_hardware(run):
    status, out, _ = run(*PUBLIC, "--backend", "verilator")
    assert status == 0
    assert out[-1].startswith("cases=1775 compared=1775 disagree=0 ")

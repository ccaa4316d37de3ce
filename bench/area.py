"""Where the area of a unit goes, by component: `python bench/area.py --config full`.

Each component of the serial unit is synthesised for ECP5 on its own, into look-up tables with four
inputs, so the sum is more than a build needs: nothing is shared or simplified across components.
Needs the extras `boards` and `fpga`.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import astuple
from pathlib import Path

from vmxswitch.boards.flow import Size, Tools
from vmxswitch.hdl.serial_unit import SerialUnit
from vmxswitch.hdl.verilog import TOP, to_rtlil
from vmxswitch.spec.capabilities import configuration

CLOCK_HZ = 25_000_000
SCRIPT = f"""
read_rtlil {TOP}.il
synth_ecp5 -top {TOP} -noflatten -run begin:map_luts
abc -lut 4
clean
tee -q -o size.json stat -json
"""


def main():
    """Print look-up tables, flip-flops and memory blocks of each component, the largest first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="NAME[:N]", default="full", help="as for other verbs")
    capabilities = configuration(parser.parse_args().config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{TOP}.il").write_text(to_rtlil(SerialUnit(capabilities, clock_hz=CLOCK_HZ)))
        (folder / "area.ys").write_text(SCRIPT)
        subprocess.run([Tools(native=False).path("yosys"), "-q", "area.ys"], cwd=folder, check=True)
        modules = json.loads((folder / "size.json").read_text())["modules"]
    rows = {}
    for module, size in modules.items():
        row = astuple(Size.of(size["num_cells_by_type"]))
        if any(row):
            rows[module.lstrip("\\")] = row
    rows["sum"] = tuple(map(sum, zip(*rows.values(), strict=True)))
    print("  lut4     ff  bram  component")
    for component, (lut, ff, bram) in sorted(rows.items(), key=lambda item: -item[1][0]):
        print(f"{lut:6} {ff:6} {bram:5}  {component}")


if __name__ == "__main__":
    main()

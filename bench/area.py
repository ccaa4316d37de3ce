"""Where the area of a built unit goes: `python bench/area.py build/ulx3s-25f-full/top.json`.

The netlist is flat and its look-up tables have no names of their own. So each is counted for the
registers that it leads to, by the name of those registers; one that leads to several is shared.
"""

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

LOGIC = {"LUT4", "SB_LUT4", "CCU2C", "SB_CARRY", "PFUMX", "L6MUX21"}
LUTS, FLIP_FLOPS = ("LUT4", "SB_LUT4"), ("TRELLIS_FF", "SB_DFF")
MANY = 3
#: Names that Yosys gives, after the cell that drives or reads a bit.
MADE_BY_TOOL = re.compile(
    r"^\$|_(LUT4|TRELLIS_FF|PFUMX|L6MUX21|CCU2C|SB_[A-Z0-9]+|DO[AB]\d+|AD[AB]\d+)_")


def main(path):
    """Print look-up tables and flip-flops by what they serve, the largest first."""
    module = json.loads(Path(path).read_text())["modules"]["top"]
    names, drivers, inputs, sinks = _names(module), {}, {}, defaultdict(set)
    registers, flip_flops = [], Counter()
    for cell, row in module["cells"].items():
        ends = defaultdict(list)
        for port, bits in row["connections"].items():
            ends[row["port_directions"].get(port)] += [bit for bit in bits if isinstance(bit, int)]
        if row["type"] in LOGIC:
            inputs[cell] = ends["input"]
            drivers |= dict.fromkeys(ends["output"], cell)
        elif row["type"].startswith(FLIP_FLOPS):
            name = names[row["connections"]["Q"][0]]
            flip_flops[name] += 1
            registers.append((name, ends["input"]))
    for name, bits in registers:
        while bits:
            cell = drivers.get(bits.pop())
            if cell and name not in sinks[cell]:
                sinks[cell].add(name)
                bits += inputs[cell]
    luts = Counter(
        " + ".join(sorted(found)) if len(found) <= MANY else "shared by more"
        for cell, found in sinks.items() if module["cells"][cell]["type"] in LUTS)
    print("   lut     ff  registers")
    for name in sorted(luts | flip_flops, key=lambda name: -luts[name] - flip_flops[name])[:25]:
        print(f"{luts[name]:6} {flip_flops[name]:6}  {name}")


def _names(module):
    """For each bit the shortest name of ours, as component and signal; "?" if there is none."""
    names = defaultdict(lambda: "?")
    for name, row in sorted(module["netnames"].items(), key=lambda item: -len(item[0])):
        if not MADE_BY_TOOL.search(name):
            short = ".".join(name.removeprefix("face.").removeprefix("unit.").split(".")[:2])
            names |= dict.fromkeys(row["bits"], short)
    return names


main(*sys.argv[1:])

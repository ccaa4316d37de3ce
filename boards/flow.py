"""From a board and a configuration to a bitstream, by the open tools.

Amaranth writes the netlist, the constraints and the commands; here the commands run one by one, so
that several placements can be tried at a time, and what the tools report is read.
"""

import json
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmxswitch.hdl.verilog import SYNTHESIS
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError

from .room import add_placeholders, free_for
from .table import Board
from .top import BoardTop

__all__ = ["DoesNotFit", "Failure", "Flow", "Placement", "Size", "Tools", "bitstream"]

NAME = "top"
#: How many look-up tables with four inputs a cell takes; `$lut` is one before cells are chosen.
LUTS = {"LUT4": 1, "SB_LUT4": 1, "$lut": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4}
FLIP_FLOPS, MEMORIES = ("TRELLIS_FF", "SB_DFF"), ("DP16KD", "SB_RAM40_4K")
#: Cells that limit what fits, as the tools for placement call them.
LOGIC = ("TRELLIS_COMB", "ICESTORM_LC")
#: Options of placement by family. With this placer wires are 14 % shorter than with the usual one;
#: the other router does not come to an end.
PLACEMENT = {"ecp5": ("--placer", "static", "--router", "router2"), "ice40": ()}


class Failure(Exception):
    """A tool gave up; the message says which, and where to look."""


class DoesNotFit(Failure):
    """The design wants more cells than the device has: ``used`` of ``available``."""

    def __init__(self, cell: str, used: int, available: int):
        super().__init__(f"does not fit: {used} {cell} of {available}; take a larger board or a "
                         "smaller --config")
        self.used, self.available = used, available


class Tools:
    """Where the tools are: the packages of YoWASP, or with ``native`` what is on the path.

    Never a mixture: a tool that is missing is an error, by name.
    """
    def __init__(self, *, native: bool):
        self._native = native

    def path(self, tool: str) -> str:
        """Path of `yosys`, `nextpnr-ice40` and the like; :exc:`UsageError` if there is none."""
        if self._native:
            found = shutil.which(tool)
            advice = "put it on the PATH, or leave out --native"
        else:
            tool = f"yowasp-{tool}"
            found = shutil.which(tool, path=sysconfig.get_path("scripts"))
            advice = "pip install 'vmxswitch[fpga]', or use --native"
        if not found:
            raise UsageError(f"no {tool}; {advice}")
        return found

    def version(self, tool: str) -> str:
        """What the tool says of itself."""
        done = subprocess.run([self.path(tool), "--version"], capture_output=True, text=True)
        found = re.search(r"\d+\.\d[\w.+-]*", done.stdout + done.stderr)
        return found[0] if found else "unknown"


@dataclass(frozen=True)
class Size:
    """What the netlist is made of."""
    lut: int   # look-up tables with four inputs, those of adders and small memories included
    ff: int    # flip-flops
    bram: int  # memory blocks

    @classmethod
    def of(cls, cells: Mapping[str, int]) -> "Size":
        """By how many cells of each type there are."""
        return cls(
            sum(LUTS.get(name, 0) * count for name, count in cells.items()),
            sum(count for name, count in cells.items() if name.startswith(FLIP_FLOPS)),
            sum(count for name, count in cells.items() if name in MEMORIES))


@dataclass(frozen=True)
class Placement:
    """What became of one placement and routing."""
    seed: int
    used: int       # of the cells that limit what fits
    available: int
    fmax_mhz: float


def bitstream(folder: Path) -> Path | None:
    """The bitstream of the last build in a folder, if there is one."""
    return next((path for ending in ("bin", "bit")
                 if (path := folder / f"{NAME}.{ending}").exists()), None)


class Flow:
    """One build, in a folder of its own.

    Parameters
    ----------
    board : Board, capabilities : Capabilities
        What is built, and for which board.
    folder : Path
        Where everything is written: sources, logs, reports and the bitstream.
    tools : Tools
        The tools; all that are needed must be there.
    target_mhz : float or None
        Clock to place for; None is the board's.
    """
    def __init__(self, board: Board, capabilities: Capabilities, folder: Path, tools: Tools,
                 target_mhz: float | None = None):
        self._platform = board.platform()
        self._top = BoardTop(capabilities, frames=board.frames)
        self.folder = folder
        self.target_mhz = target_mhz or self._platform.default_clk_frequency / 1e6
        self._tools = tools
        self._yosys, self._placer, self._packer = self._platform.required_tools[:3]
        for tool in (self._yosys, self._placer, self._packer):
            tools.path(tool)  # all must be there before one begins
        self._family = self._placer.removeprefix("nextpnr-")
        self._placeholders = 0  # look-up tables that are counted as used but are not

    def versions(self) -> tuple[str, str]:
        """What Yosys and nextpnr say of themselves."""
        return self._tools.version(self._yosys), self._tools.version(self._placer)

    def write(self) -> None:
        """The netlist before synthesis, the constraints and the commands."""
        plan = self._platform.prepare(
            self._top, NAME, emit_src=False, synth_opts=SYNTHESIS[self._family],
            script_after_synth="tee -q -o size.json stat -json")
        # The clock to place for is an argument, and may be another one than the board's.
        for name in (f"{NAME}.pcf", f"{NAME}.lpf"):
            if name in plan.files:
                plan.files[name] = re.sub("(?m)^(set_frequency|FREQUENCY) .*$", "",
                                          plan.files[name])
        plan.extract(self.folder)
        script = plan.files[f"build_{NAME}.sh"]
        lines = [shlex.split(line)[1:] for line in script.splitlines() if line.startswith('"$')]
        self._synthesis, self._place, self._pack = lines[:3]

    def synthesize(self) -> Size:
        """The netlist; its size. On an ECP5 it is given room for wires afterwards."""
        self._run(self._yosys, self._synthesis, f"{NAME}.rpt")
        counts = json.loads((self.folder / "size.json").read_text())["design"]
        cells = counts["num_cells_by_type"]
        size = Size.of(cells)
        if self._family == "ecp5":
            path = self.folder / f"{NAME}.json"
            netlist = json.loads(path.read_text())
            self._placeholders = add_placeholders(
                netlist, self._platform.device,
                free_for(self._platform.device, cells, size.lut))
            path.write_text(json.dumps(netlist))
        return size

    def place(self, seed: int) -> Placement:
        """Place and route; :exc:`Failure` if it cannot be done."""
        name = f"seed-{seed}"
        try:
            self._run(self._placer, [
                *self._of_seed(self._place, seed), *PLACEMENT[self._family], "--seed", str(seed),
                "--freq", f"{self.target_mhz:g}", "--timing-allow-fail",
                "--report", f"{name}.json",
            ], f"{name}.tim")
        except Failure:
            for cell, used, available in self._utilisation(name):
                if used > available:
                    raise DoesNotFit(cell, used, available) from None
            raise
        logic, = [(used - self._placeholders, available)
                  for cell, used, available in self._utilisation(name) if cell in LOGIC]
        clocks = json.loads((self.folder / f"{name}.json").read_text())["fmax"]
        return Placement(seed, *logic, min(clock["achieved"] for clock in clocks.values()))

    def pack(self, seed: int) -> Path:
        """The bitstream of a placement."""
        self._run(self._packer, self._of_seed(self._pack, seed), "pack.log")
        return bitstream(self.folder)

    def _of_seed(self, arguments, seed):
        """Arguments of a tool, with the files that each placement has for itself."""
        files = {f"{NAME}.{ending}": f"seed-{seed}.{ending}" for ending in ("tim", "asc", "config")}
        return [files.get(word, word) for word in arguments]

    def _run(self, tool, arguments, log):
        """Run a tool in the folder; what it says goes to ``log``, if it writes none itself."""
        done = subprocess.run([self._tools.path(tool), *arguments], cwd=self.folder, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        path = self.folder / log
        if not path.exists():
            path.write_text(done.stdout)
        if done.returncode:
            said = re.findall(r"ERROR: .*", done.stdout) or done.stdout.splitlines()[-1:]
            error, *_ = said or [f"exit status {done.returncode}"]
            raise Failure(f"{tool} failed: {error}; see {path}")

    def _utilisation(self, name) -> Iterator[tuple[str, int, int]]:
        """Cells used and available, by the log of a placement."""
        log = (self.folder / f"{name}.tim").read_text()
        for cell, used, available in re.findall(r"Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%", log):
            yield cell, int(used), int(available)

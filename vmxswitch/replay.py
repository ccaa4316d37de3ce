"""The verb ``replay``: compares a backend with cases recorded on another implementation.

What the cases are, and what a disagreement can mean: ``tests/cases/README.md``.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache

from vmxswitch import backends
from vmxswitch.sim.cases import disagreements, read_cases, read_profile, sample
from vmxswitch.sim.runner import Runner
from vmxswitch.spec.errors import UsageError

__all__ = ["run"]

SHOWN = 10                             # disagreements that are printed
#: What a process does between two reports of progress.
CHUNK_CASES = {"model": 25, "pysim": 1, "verilator": 25, "netlist": 5, "serial": 1}


def run(arguments):
    """Replays the cases; 0 if all of them agree, else 1."""
    line = backends.line(arguments)
    cases = [case for path in arguments.cases for case in _cases(path, arguments.profiles)]
    if arguments.profile:
        cases = _of_profile(cases, arguments.profile)
    if arguments.sample:
        cases = sample(cases, arguments.sample)
    with _replacing(arguments.results) if arguments.results else nullcontext() as file:
        started = time.monotonic()
        results = _results(cases, arguments.backend, line, 1 if line else arguments.jobs)
        seconds = time.monotonic() - started
        if file:
            for case, result in zip(cases, results, strict=True):
                print(json.dumps({"id": case.id, "results": result}), file=file)
    return _report(cases, results, seconds)


def _cases(path, profiles):
    cases = list(read_cases(path, profiles))
    if not cases:
        raise UsageError(f"{path}: holds no case")
    return cases


def _of_profile(cases, name):
    """The cases of one profile; :exc:`UsageError` if there are none."""
    found = [case for case in cases if case.profile.stem == name]
    if not found:
        others = ", ".join(sorted({case.profile.stem for case in cases}))
        raise UsageError(f"--profile {name}: the cases given are of {others}")
    return found


@contextmanager
def _replacing(path):
    """A file to write, which takes the place of ``path`` once it is complete."""
    path = path.resolve()
    device = path.exists() and not path.is_file()
    written = path if device else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = written.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    try:
        with file:
            yield file
        if not device:
            written.replace(path)
    finally:
        if not device:
            written.unlink(missing_ok=True)


# --- Running: every process has one share of the cases, in an order that makes it build little ---

def _results(cases, backend, line, jobs):
    """The results of each case, in the order of the cases."""
    order = sorted(range(len(cases)), key=lambda position: str(cases[position].profile))
    size = CHUNK_CASES[backend]
    jobs = min(jobs, -(-len(cases) // size))
    results = [None] * len(cases)
    with ExitStack() as stack:
        progress = stack.enter_context(_progress(len(cases)))
        chunks = {}
        for job in range(jobs):
            share = order[len(order) * job // jobs:len(order) * (job + 1) // jobs]
            submit = _pool(stack).submit if jobs > 1 else _Now
            for start in range(0, len(share), size):
                positions = share[start:start + size]
                chunk = submit(_run_chunk, backend, line,
                               [cases[position] for position in positions])
                chunks[chunk] = positions
        for chunk in as_completed(chunks) if jobs > 1 else chunks:
            for position, result in zip(chunks[chunk], chunk.result(), strict=True):
                results[position] = result
            progress(len(chunks[chunk]))
    return results


class _Now:
    """A future of this process: the call is made when its result is asked for."""

    def __init__(self, function, *arguments):
        self.result = lambda: function(*arguments)


def _pool(stack):
    """A process that leaves interrupts to this one and drops its work when the stack unwinds."""
    pool = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool


def _run_chunk(backend, line, cases):
    return [_runner(backend, line, case.profile).run(case) for case in cases]


@lru_cache(maxsize=1)
def _runner(backend, line, profile_path):
    profile = read_profile(profile_path)
    return Runner(profile, backends.port(backend, profile.capabilities, line=line))


@contextmanager
def _progress(total):
    """Function to call with the number of cases just done. It keeps a counter on stderr."""
    done, terminal = 0, sys.stderr.isatty()

    def advance(count):
        nonlocal done
        before, done = done, done + count
        text = f"replay: {done} of {total} cases"
        if terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        elif done * 10 // total > before * 10 // total:
            print(text, file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if terminal:
            print(file=sys.stderr)


# --- Reporting ---

def _report(cases, results, seconds):
    """Prints the first disagreements and the counts; returns the exit status."""
    counts = {(case.file, case.profile): Counter() for case in cases}
    shown = 0
    for case, result in zip(cases, results, strict=True):
        found = disagreements(case, result)
        counts[case.file, case.profile].update(
            cases=1, compared=int(case.expect is not None), disagree=int(bool(found)))
        for disagreement in found[:1]:
            shown += 1
            if shown <= SHOWN:
                _show(case, disagreement, result[disagreement.number])
    for (file, profile), count in counts.items():
        print(f"file={file} profile={profile.stem} cases={count['cases']} "
              f"compared={count['compared']} disagree={count['disagree']}")
    total = sum(counts.values(), Counter())
    print(f"cases={len(cases)} compared={total['compared']} disagree={total['disagree']} "
          f"seconds={seconds:.1f}")
    return 1 if total["disagree"] else 0


def _show(case, disagreement, result):
    op = case.ops[disagreement.number]
    print(f"case={case.id} profile={case.profile.stem} op={disagreement.number} ({op['op']})")
    print(f"  expected {json.dumps(disagreement.expected)}")
    print(f"  got      {json.dumps(disagreement.got)}")
    rows = [*result.get("failing", []), *filter(None, [result.get("row")])]
    if rows:
        print(f"  rows     {' '.join(rows)}")

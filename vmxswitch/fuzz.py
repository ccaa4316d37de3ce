"""The verb ``fuzz``: random programs on the reference model and on the hardware.

What programs are, what is compared and what a disagreement can mean: ``docs/fuzzing.md``.
"""

import json
import multiprocessing
import signal
import sys
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial

from vmxswitch import backends, checkout, extras
from vmxswitch.sim.fuzz.campaign import Result, Worker, campaign, tasks
from vmxswitch.sim.fuzz.case import replays, write_case
from vmxswitch.sim.fuzz.coverage import absent, missed
from vmxswitch.sim.fuzz.shrink import shrink
from vmxswitch.sim.fuzz.words import in_words
from vmxswitch.spec.errors import UsageError
from vmxswitch.subjects import subject_of

__all__ = ["run"]

TASK_PROGRAMS = {"verilator": 25, "netlist": 5, "pysim": 1}  # programs of a task
PROGRESS_S = 10                                # between two lines that are no terminal's
CONNECT_S = 10                                 # for a scheduler to answer


def run(arguments):
    """Fuzzes; 0 if the two sides agreed in everything, else 1; 130 after an interrupt."""
    checkout.require("fuzz")
    if arguments.cluster:
        extras.need("cluster")
    subject = subject_of(arguments.config)
    make_port = partial(backends.port, arguments.backend)
    make_port(subject.capabilities)  # builds what is missing, or says what is needed
    if arguments.coverage:
        _write(arguments.coverage, "")
    until = None if arguments.count else time.monotonic() + 60 * arguments.minutes
    todo = tasks(subject, make_port, arguments.seed, arguments.first, arguments.count,
                 TASK_PROGRAMS[arguments.backend])
    result, started, status = Result(), time.monotonic(), 0
    try:
        with _executor(arguments) as (executor, width), _progress() as progress:
            campaign(executor, todo, width, result, until=until, progress=progress)
    except KeyboardInterrupt:
        status = 130
    except BrokenExecutor as error:
        raise UsageError(f"a process of the fuzzer was ended from outside ({error})") from None
    seconds = time.monotonic() - started
    if result.differing:
        status = 1
        _show_difference(result.differing[0], subject, make_port, arguments)
    _summarise(result, subject, arguments, seconds)
    if status == 0:
        _show_missed(result, subject.capabilities)
    return status


# --- Where programs run ---

@contextmanager
def _executor(arguments):
    """An executor, and a function that says how many tasks it should have at a time."""
    if arguments.cluster:
        with _client(arguments.cluster) as client:
            yield client.get_executor(), lambda: 2 * max(1, sum(client.nthreads().values()))
    elif arguments.jobs == 1:
        yield _Here(), lambda: 1
    else:
        executor = ProcessPoolExecutor(  # which leaves interrupts to this process
            arguments.jobs, multiprocessing.get_context("spawn"), signal.signal,
            (signal.SIGINT, signal.SIG_IGN))
        try:
            yield executor, lambda: 2 * arguments.jobs
        finally:
            executor.shutdown(cancel_futures=True)


def _client(address):
    from distributed import Client  # only there with the extra `cluster`
    try:
        return Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler at {address} ({error})") from None


class _Here(Executor):
    """Runs every task at once in this process."""

    def submit(self, function, /, *arguments, **keywords):
        future = Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _progress():
    """Function to call with the result so far. It keeps a counter on stderr."""
    terminal, shown = sys.stderr.isatty(), time.monotonic()

    def progress(result):
        nonlocal shown
        text = f"fuzz: {result.programs} programs, {result.operations} operations"
        if terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - shown >= PROGRESS_S:
            shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    try:
        yield progress
    finally:
        if terminal:
            print(file=sys.stderr)


# --- Reporting ---

def _show_difference(number, subject, make_port, arguments):
    """Shrinks the program, prints it and writes it as a case."""
    print(f"fuzz: the two sides differ in program {number}; shrinking it", file=sys.stderr)
    again = (f"vmxswitch fuzz --config {arguments.config} --backend {arguments.backend} "
             f"--seed {arguments.seed} --first {number} --count 1")
    worker = Worker(subject, make_port, arguments.seed)
    first = worker.run(number)
    if first.difference is None:
        print(f"program={number} repeated=no again={again!r}")
        return
    small = shrink(first, worker.sides)
    id = f"{subject.capabilities.name}-{arguments.seed}-{number}"
    path = write_case(small.program, small.difference, subject, id, arguments.found)
    print(f"Disagreement in program {number}, shrunk from {len(first.program.steps)} steps to "
          f"{len(small.program.steps)}:")
    print("\n".join(in_words(small, subject.capabilities)))
    replayed = "yes" if replays(path, make_port) else "no"
    print(f"case={path} replays={replayed} again={again!r}")


def _summarise(result, subject, arguments, seconds):
    """Prints the counts; writes the coverage."""
    capabilities = subject.capabilities
    record = result.coverage.record(capabilities)
    print(f"config={capabilities.name} backend={arguments.backend} seed={arguments.seed} "
          f"first={arguments.first} programs={result.programs} operations={result.operations} "
          f"seconds={seconds:.1f} operations_per_s={result.operations / max(seconds, 0.1):.0f} "
          f"disagreements={len(result.differing)}")
    checks = record["checks"].values()
    print(f"checks={len(checks)} failed_alone={sum(bool(row['alone']) for row in checks)} "
          f"neighbour_entered={sum(bool(row['neighbour']) for row in checks)} "
          f"rows={len(record['instructions'])} "
          f"rows_taken={sum(map(bool, record['instructions'].values()))} "
          f"edges={len(record['edges'])} edges_taken={sum(map(bool, record['edges'].values()))}")
    if arguments.coverage:
        head = {"config": capabilities.name, "backend": arguments.backend, "seed": arguments.seed,
                "first": arguments.first, "programs": result.programs,
                "operations": result.operations}
        _write(arguments.coverage, json.dumps(head | record, indent=1) + "\n")


def _show_missed(result, capabilities):
    """Prints the rows that were never hit, with the reason if there is one."""
    rows = [*missed(result.coverage, capabilities)]
    if rows:
        print("Never hit:")
    for row in rows:
        print(f"  {row.id:<12} {row.lacks}{': ' if row.reason else ''}{row.reason}")
    if gone := absent(capabilities):
        print(f"Cannot fail on {capabilities.name}, by its capabilities: {' '.join(gone)}")


def _write(path, text):
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None

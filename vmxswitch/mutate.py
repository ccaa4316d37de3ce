"""The verb ``mutate``: do the tests notice when the hardware is wrong?

What mutants are, which witnesses are asked and what the score means: ``docs/mutation.md``.
"""

import json
import multiprocessing
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from vmxswitch import checkout, extras
from vmxswitch.sim.cases import read_cases
from vmxswitch.sim.mutants import KINDS, mutants
from vmxswitch.sim.mutation import SEED, WITNESSES, Defect, MutantPort, hunt
from vmxswitch.spec.capabilities import PRESETS, split_configuration
from vmxswitch.subjects import subject_of

__all__ = ["run"]

NO_SCORE = ("proof", "explained")
PROGRESS_S = 10     # between two lines that are no terminal's
CASES = ("instructions.jsonl.gz", "entries.jsonl.gz", "exits.jsonl.gz")


def run(arguments):
    """Shows the mutants to the witnesses; 0 if each was noticed, proved equal or explained."""
    checkout.require("mutate")
    subject = subject_of(arguments.config)
    all_mutants = mutants(subject.capabilities)
    if arguments.list:
        for mutant in all_mutants:
            print(f"{mutant.id:<32} {mutant.kind:<12} {mutant.words}")
        return 0
    extras.need("compiled")
    MutantPort(subject.capabilities)  # builds what is missing, or says what is needed
    started = time.monotonic()
    try:
        with _pool(arguments.jobs) as run_tasks, _progress() as progress:
            verdicts = hunt(subject, all_mutants, cases=_cases(arguments.config),
                            programs=arguments.programs, run=run_tasks, jobs=arguments.jobs,
                            progress=progress)
    except Defect as defect:
        print(f"Not a mutant's fault: {defect}")
        return 1
    return _report(verdicts, subject, arguments, time.monotonic() - started)


def _cases(config):
    """The recorded cases of a configuration: none of a preset's, as none was recorded on one."""
    profile, _ = split_configuration(config)
    if profile in PRESETS:
        return []
    folder = checkout.ROOT / "tests" / "cases"
    return [case for name in CASES for case in read_cases(folder / name)
            if case.expect is not None and case.profile.samefile(profile)]


@contextmanager
def _pool(jobs):
    """What runs tasks: this process, or others."""
    if jobs == 1:
        yield map
        return
    executor = ProcessPoolExecutor(  # which leaves interrupts to this process
        jobs, multiprocessing.get_context("spawn"), signal.signal,
        (signal.SIGINT, signal.SIG_IGN))
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _progress():
    """Function to call with the witness at work and the number of mutants left; on stderr."""
    terminal, shown = sys.stderr.isatty(), time.monotonic()

    def progress(witness, left):
        nonlocal shown
        text = f"mutate: {witness}, {left} mutants left "
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


def _report(verdicts, subject, arguments, seconds):
    """Prints a line per kind, what nobody noticed and the score; returns the exit status."""
    counts = Counter((verdict.mutant.kind, verdict.by) for verdict in verdicts)
    total = Counter(verdict.by for verdict in verdicts)
    survivors = [verdict for verdict in verdicts if not verdict.by]
    contradicted = [verdict for verdict in verdicts if verdict.contradicted]
    status = 1 if survivors or contradicted else 0
    scored = len(verdicts) - sum(total[by] for by in NO_SCORE)
    killed = scored - len(survivors)
    head = {
        "config": subject.capabilities.name, "seed": SEED, "programs": arguments.programs,
        "mutants": len(verdicts), "equivalent": total["proof"], "explained": total["explained"],
        "scored": scored, "killed": killed, "survived": len(survivors),
        "contradicted": len(contradicted), "score": round(killed / max(scored, 1), 4),
        "seconds": round(seconds, 1)}
    if arguments.json:
        table = [{"id": verdict.mutant.id, "kind": verdict.mutant.kind, "row": verdict.mutant.row,
                  "words": verdict.mutant.words, "by": verdict.by, "detail": verdict.detail}
                 for verdict in verdicts]
        print(json.dumps(head | {"table": table}, indent=1))
        return status
    for kind in KINDS:
        columns = {by or "survived": counts[kind, by] for by in (*WITNESSES, *NO_SCORE, "")}
        print(f"kind={kind} mutants={sum(columns.values())} "
              + " ".join(f"{name}={count}" for name, count in columns.items()))
    for title, by in (("Equivalent, by proof:", "proof"), ("Explained:", "explained"),
                      ("Not noticed by anyone:", "")):
        _list(title, [verdict for verdict in verdicts if verdict.by == by])
    _list("Noticed, against their explanation:", contradicted)
    print(" ".join(f"{name}={value}" for name, value in head.items()))
    return status


def _list(title, verdicts):
    if verdicts:
        print(title)
    for verdict in verdicts:
        reason = f": {verdict.detail}" if verdict.by == "explained" else ""
        print(f"  {verdict.mutant.id:<28} {verdict.mutant.words}{reason}")

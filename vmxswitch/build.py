"""The verb ``build``: a bitstream for a board, by open tools; its size and speed in one line."""

import os
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from vmxswitch import checkout, extras
from vmxswitch.spec.capabilities import configuration

__all__ = ["folder", "run"]

REPORT_SECONDS = 60  #: how often a long phase says that it goes on


def run(arguments):
    """Builds; 0 if the clock is met, 1 if it is not, or if the unit does not fit."""
    if arguments.record:
        checkout.require("build --record")
    extras.need("boards" if arguments.native else "fpga")
    from vmxswitch.boards.flow import DoesNotFit, Failure, Flow, Tools
    from vmxswitch.boards.table import board

    chosen = board(arguments.board)
    config = arguments.config or chosen.config
    flow = Flow(chosen, configuration(config), arguments.output or folder(chosen.name, config),
                Tools(native=arguments.native), arguments.freq)
    result = {"board": chosen.name, "config": config, "target_mhz": f"{flow.target_mhz:g}"}
    status = 1
    try:
        _phase("netlist before synthesis", flow.write)
        size, = _phase("synthesis", flow.synthesize)
        result |= {"routed": "no", "lut": size.lut, "ff": size.ff, "bram": size.bram}
        if arguments.no_route:
            status = 0
        else:
            status = _place(flow, arguments, result)
    except Failure as failure:
        print(f"vmxswitch: {failure}", file=sys.stderr)
        if isinstance(failure, DoesNotFit):
            result |= {"cells": failure.used, "available": failure.available}
    print(" ".join(f"{key}={value}" for key, value in result.items()))
    if arguments.record:
        _record(flow, result)
    return status


def folder(name: str, config: str) -> Path:
    """Where a build for a board is, if nothing else is said."""
    return Path("build") / f"{name}-{Path(config).stem.replace(':', '-')}"


def _place(flow, arguments, result):
    """Place and route with each seed and pack the best one; the exit status."""
    placements = _phase("place and route", *(
        lambda seed=seed: flow.place(seed)
        for seed in range(arguments.seed, arguments.seed + arguments.seeds)))
    best = max(placements, key=lambda placement: placement.fmax_mhz)
    worst = min(placements, key=lambda placement: placement.fmax_mhz)
    bitstream, = _phase("bitstream", lambda: flow.pack(best.seed))
    met = best.fmax_mhz >= flow.target_mhz
    result |= {
        "routed": "yes", "cells": best.used, "available": best.available,
        "seeds": len(placements), "worst_mhz": f"{worst.fmax_mhz:.1f}",
        "best_mhz": f"{best.fmax_mhz:.1f}", "best_seed": best.seed,
        "met": "yes" if met else "no", "file": bitstream,
    }
    if not met:
        print(f"vmxswitch: {flow.target_mhz:g} MHz are not met; see the critical path in "
              f"{flow.folder / f'seed-{best.seed}.tim'}, try --seeds 8 or a lower --freq",
              file=sys.stderr)
    return 0 if met else 1


def _phase(name, *jobs):
    """What jobs that run at a time return; says on stderr how long they take."""
    started = time.monotonic()

    def say(what):
        print(f"build: {name}{what}", file=sys.stderr, flush=True)

    def elapsed():
        minutes, seconds = divmod(round(time.monotonic() - started), 60)
        return f"{minutes}:{seconds:02}"

    say(" ...")
    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        pending = [pool.submit(job) for job in jobs]
        try:
            while wait(pending, REPORT_SECONDS, FIRST_EXCEPTION).not_done and not any(
                    job.done() and job.exception() for job in pending):
                say(f" ... {elapsed()}")
            results = [job.result() for job in pending]
        finally:
            pool.shutdown(cancel_futures=True)
    say(f": {elapsed()}")
    return results


def _record(flow, result):
    from vmxswitch.boards.measured import Measurement, record

    yosys, nextpnr = flow.versions()
    result |= {"yosys": yosys, "nextpnr": nextpnr, "date": datetime.now(UTC).date().isoformat()}
    record(Measurement(**{
        field.name: str(result.get(field.name, "")) for field in fields(Measurement)}))

"""Compares the unit after synthesis with witnesses: `python bench/netlist.py`.

All recorded cases of the 32-bit profile and a sample of those of each 64-bit profile are replayed
on a netlist built for the profile; programs of the fuzzer run on the netlists of the presets and on
the model. Each netlist takes minutes to build, once. The exit status is 0 if all agree.
"""

import sys
from pathlib import Path

from vmxswitch import cli
from vmxswitch.spec.capabilities import PRESETS

CASES = Path(__file__).parents[1] / "tests" / "cases"
#: How many cases of each profile; None is all of them.
SAMPLES = {"skylake_x_32": None, "skylake_x_64": 150, "sandy_bridge_64": 150}
PROGRAMS = 2000


def main():
    """0 if every comparison ends with 0, else 1."""
    files = [*map(str, sorted(CASES.glob("*.jsonl.gz")))]
    comparisons = [
        ["replay", *files, "--profile", profile, *(["--sample", str(sample)] if sample else [])]
        for profile, sample in SAMPLES.items()]
    comparisons += [
        ["fuzz", "--config", preset, "--count", str(PROGRAMS), "--seed", "7"] for preset in PRESETS]
    statuses = [cli.main([*words, "--jobs", "1", "--backend", "netlist"]) for words in comparisons]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())

"""What usually makes a check fail, in a sentence: ``hints.csv``."""

import csv
from functools import cache
from importlib.resources import files

from vmxswitch.spec.tables import CHECKS

__all__ = ["hint"]


def hint(check: str) -> str:
    """The sentence for a check; "" if none is known."""
    return _hints().get(check, "")


@cache
def _hints() -> dict[str, str]:
    with files(__package__).joinpath("hints.csv").open(encoding="utf-8", newline="") as file:
        hints = {check: row["hint"] for row in csv.DictReader(file) for check in row["ids"].split()}
    assert hints.keys() <= CHECKS.keys()
    return hints

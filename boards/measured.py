"""The table of measured builds, `measured.csv`. Only `vmxswitch build --record` writes it."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

__all__ = ["PATH", "Measurement", "read", "record"]

PATH = Path(__file__).with_name("measured.csv")


@dataclass(frozen=True)
class Measurement:
    """One build: its size, and the worst and the best speed among its seeds.

    ``cells`` is counted in what limits the device, ``lut`` and ``ff`` in the netlist; a number is
    empty where the build did not come that far.
    """
    board: str
    config: str
    target_mhz: str
    routed: str        # yes or no
    lut: str
    ff: str
    bram: str
    cells: str
    available: str
    seeds: str         # as many as were routed
    worst_mhz: str
    best_mhz: str
    best_seed: str
    yosys: str
    nextpnr: str
    date: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What a later measurement replaces an earlier one by."""
        return self.board, self.config, self.target_mhz


def read() -> list[Measurement]:
    """All rows, in order."""
    if not PATH.exists():
        return []
    with PATH.open(encoding="utf-8", newline="") as file:
        return [Measurement(**row) for row in csv.DictReader(file)]


def record(measurement: Measurement) -> None:
    """Add a row, in place of the one for the same board, configuration and clock."""
    rows = [row for row in read() if row.key != measurement.key] + [measurement]
    with PATH.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Measurement)],
                                lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.key))

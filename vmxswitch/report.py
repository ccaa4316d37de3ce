"""Parts of the text that several verbs print."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.refusal import Refusal

__all__ = ["describe", "refusal_lines", "table"]


def describe(environment: Environment) -> str:
    """Where an environment comes from, and what kind it is."""
    return (f"{environment.source}: {environment.mode} mode, CPL {environment.cpl}, "
            f"{environment.paging if environment.paging != 'none' else 'no'} paging")


def refusal_lines(refusals: Iterable[Refusal]) -> Iterator[str]:
    """Every row that refuses, with what it demands and what is there instead."""
    for refusal in refusals:
        for name, part in zip_longest([refusal.id], refusal.parts, fillvalue=""):
            yield f"  {name:<9} {part}"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> str:
    """Aligned columns under a title; ``right`` has an ``r`` for each column to align right."""
    rows = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = right.ljust(len(widths))
    lines = ("  ".join(cell.rjust(width) if side == "r" else cell.ljust(width)
                       for cell, width, side in zip(row, widths, aligned, strict=True)).rstrip()
             for row in rows)
    return "\n".join([title, *(f"  {line}" for line in lines)])

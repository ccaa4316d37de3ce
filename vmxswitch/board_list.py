"""The verb ``boards``: every board, what fits it and what was last measured."""

from vmxswitch import extras

__all__ = ["run"]

COLUMNS = ("board", "device", "configuration", "clock", "cells", "speed", "measured")


def run(_):
    """Prints the table."""
    extras.need("boards")
    from vmxswitch.boards.measured import read
    from vmxswitch.boards.table import BOARDS

    builds, rows = read(), [COLUMNS]
    for board in BOARDS.values():
        platform = board.platform()
        measured = [row for row in builds if (row.board, row.config) == (board.name, board.config)]
        last = max(measured, key=lambda row: row.date, default=None)
        rows.append((
            board.name, platform.device, board.config,
            f"{platform.default_clk_frequency / 1e6:g} MHz",
            *(_measured(last) if last else ("-", "-", "-"))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return 0


def _measured(row):
    """Cells, speed and date in words."""
    cells = f"{row.cells} of {row.available}" if row.cells else f"{row.lut} LUT"
    if row.routed == "yes":
        return cells, f"{row.worst_mhz} to {row.best_mhz} MHz", row.date
    fits = not row.cells or int(row.cells) <= int(row.available)
    return cells, "not routed" if fits else "does not fit", row.date

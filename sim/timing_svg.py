"""A timing picture: what a unit shows in the few cycles around an edge.

Drawn here, not by WaveDrom: its Python port is no longer maintained, and the other wrappers bring a
JavaScript engine.
"""

from collections.abc import Sequence
from itertools import groupby

from .svg import add, document, text_of
from .vcd_file import VcdFile

__all__ = ["timing_svg"]

BEFORE_CYC, AFTER_CYC = 7, 5  #: cycles shown before and after the edge
LABEL, CYCLE, ROW, TOP = 100, 84, 34, 56  #: pixels: labels, one cycle, one row, above the rows
CAPTION = 520  #: room for it
HIGH, LOW, SLOPE = 7, 27, 4   #: pixels: levels in a row, and half the width of a transition
STYLE = """
text { font: 13px sans-serif; fill: #1f2328; }
.value { font: 11px monospace; text-anchor: middle; }
.cycle { font-size: 11px; fill: #59636e; text-anchor: middle; }
path { fill: none; stroke: #1f2328; }
.through { fill: #f6f8fa; }
.before { fill: #ddf4ff; }
.after { fill: #fff1e5; }
.grid { stroke: #d1d9e0; stroke-dasharray: 2 3; }
.edge { stroke: #cf222e; stroke-width: 2; }
.caption { fill: #cf222e; text-anchor: middle; }
"""
#: Registers shown if the processor has them.
REGISTERS = ("RIP", "RSP", "CR3", "GDTR_BASE", "TR_BASE")


def timing_svg(vcd: VcdFile, edge: int, period: int) -> str:
    """The SVG text; ``edge`` and ``period`` in fs.

    Cycles are numbered as in ``bench.cycle``; a cycle begins at a rising edge of the clock.
    """
    middle, last = ((time + period // 2) // period for time in (edge, vcd.end))
    cycles = range(max(0, middle - BEFORE_CYC), min(middle + AFTER_CYC, last + 1))
    times = [cycle * period for cycle in cycles]  # in the middle of each

    def values(name):
        return [vcd.at(name, time) for time in times]

    def either(*names):
        return [int(any(shown)) for shown in zip(*map(values, names), strict=True)]

    rows = [
        ("mode", _boxes, values("bench.top.mode")),
        ("instruction", _boxes, values("bench.instruction")),
        ("commit", _bit, either("bench.top.sequencer.enter", "bench.top.sequencer.leave")),
        ("outcome", _boxes, values("bench.outcome")),
        ("owner", _boxes, values("bench.owner")),
        *((name, _boxes, [f"{value:x}" for value in values(f"bench.top.live.{name}")])
          for name in REGISTERS if f"bench.top.live.{name}" in vcd.variables),
    ]
    owners = [vcd.at("bench.owner", time) for time in (edge - 1, edge)]
    changed = sum(any(time == edge for time, _ in vcd.changes[name])
                  for name in vcd.variables if name.startswith("bench.top.live."))
    caption = f"cycle {middle}: " + (
        f"{owners[0]} to {owners[1]}, {changed} registers of live at one edge"
        if owners[0] != owners[1] else "live keeps its owner")
    return _document(rows, cycles, middle, caption)


def _document(rows, cycles: Sequence[int], middle: int, caption: str) -> str:
    width = max(LABEL + CYCLE * len(cycles) + 10, CAPTION)
    height = TOP + ROW * (len(rows) + 1) + 10
    edge_x = LABEL + CYCLE * (middle - cycles[0])
    svg = document(width, height, caption, STYLE)
    for number, cycle in enumerate(cycles):
        x = LABEL + CYCLE * number
        add(svg, "text", str(cycle), x=x + CYCLE / 2, y=TOP - 8, **{"class": "cycle"})
        add(svg, "path", d=f"M{x} {TOP} V{height - 10}", **{"class": "grid"})
    _row(svg, 0, "clk", _clock, [0] * len(cycles), None)
    for number, (label, draw, values) in enumerate(rows, 1):
        _row(svg, number, label, draw, values, middle - cycles[0])
    add(svg, "path", d=f"M{edge_x} {TOP - 26} V{height - 10}", **{"class": "edge"})
    add(svg, "text", caption, x=min(max(edge_x, CAPTION // 2), width - CAPTION // 2), y=TOP - 34,
         **{"class": "caption"})
    return text_of(svg)


def _row(svg, number, label, draw, values, edge):
    group = add(svg, "g", id=label, transform=f"translate({LABEL} {TOP + ROW * number})")
    add(group, "text", label, x=10 - LABEL, y=22)
    draw(group, values, edge)


def _clock(group, values, _):
    wave = f"V{HIGH} h{CYCLE / 2:g} V{LOW} h{CYCLE / 2:g} "
    add(group, "path", d=f"M0 {LOW} {wave * len(values)}".rstrip())


def _bit(group, values, _):
    levels = [HIGH if value else LOW for value in values]
    add(group, "path", d=f"M0 {levels[0]} " + " ".join(
        f"V{level} h{CYCLE}" for level in levels))


def _boxes(group, values, edge):
    """A hexagon for each value, as wide as its cycles; a value that is ``-`` is a line."""
    start = 0
    for value, run in groupby(values):
        end = start + len(list(run))
        left, right = CYCLE * start, CYCLE * end
        middle = (HIGH + LOW) / 2
        if value == "-":
            add(group, "path", d=f"M{left} {middle:g} H{right}")
        else:
            side = "before" if end <= edge else "after" if start >= edge else "through"
            add(group, "path", d=f"M{left} {middle:g} l{SLOPE} {HIGH - middle:g} "
                 f"H{right - SLOPE} L{right} {middle:g} L{right - SLOPE} {LOW} "
                 f"H{left + SLOPE} Z", **{"class": side})
            add(group, "text", str(value), x=(left + right) / 2, y=21, **{"class": "value"})
        start = end

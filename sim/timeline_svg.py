"""A timeline: which guest ran when, and why it left."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .svg import add, document, text_of

__all__ = ["Stay", "timeline_svg"]

LABEL, WIDTH, LANE, TOP, MARGIN = 220, 1100, 44, 60, 12  #: pixels
RIGHT = 40           #: room for the last time
BAR_TOP, BAR_HEIGHT = 14, 22
LEAST = 1.5          #: a short stay is still seen
LETTER = 6.5         #: room for a letter of a label
TICKS = 8
LEGEND, LEGEND_COLUMN = 24, 210
STYLE = """
text { font: 13px sans-serif; fill: #1f2328; }
.small { font-size: 11px; fill: #59636e; }
.middle { text-anchor: middle; }
.why { font-size: 10px; fill: #ffffff; pointer-events: none; }
.grid { stroke: #d1d9e0; stroke-dasharray: 2 3; }
.lane { stroke: #d1d9e0; }
.event { fill: #cf222e; }
"""
#: For the most frequent reasons, in this order; the others are grey.
COLOURS = ("#0969da", "#1a7f37", "#9a6700", "#8250df", "#bc4c00", "#0e7490", "#bf3989", "#4d7c0f")
OTHERS = "#6e7781"


class Stay(NamedTuple):
    """One stay in a guest; times in cycles. ``delivered`` is the vector of an injected event."""
    guest: str
    start: int
    cycles: int
    reason: str
    why: str
    delivered: int | None


def timeline_svg(stays: Sequence[Stay], guests: Sequence[str], caption: str) -> str:
    """The SVG text: a lane for each guest, a bar for each stay, coloured by what ended it.

    A red mark is an event that the VM entry injected. The title of a bar says all of it.
    """
    reasons = [reason for reason, _ in Counter(stay.reason for stay in stays).most_common()]
    colours = dict.fromkeys(reasons, OTHERS) | dict(zip(reasons, COLOURS, strict=False))
    begin = min((stay.start for stay in stays), default=0)
    end = max((stay.start + stay.cycles for stay in stays), default=1)
    scale = (WIDTH - RIGHT) / max(end - begin, 1)
    columns = (LABEL + WIDTH) // LEGEND_COLUMN
    legend_rows = -(-len(reasons) // columns)
    bottom = TOP + LANE * len(guests)
    svg = document(LABEL + WIDTH, bottom + LEGEND * (legend_rows + 1) + MARGIN, caption, STYLE)
    add(svg, "text", caption, x=MARGIN, y=22)
    for number in range(TICKS + 1):
        time = begin + (end - begin) * number // TICKS
        x = LABEL + (time - begin) * scale
        add(svg, "path", d=f"M{x:g} {TOP} V{bottom}", **{"class": "grid"})
        add(svg, "text", f"{time:,}", x=x, y=TOP - 8, **{"class": "small middle"})
    for number, guest in enumerate(guests):
        y = TOP + LANE * number
        lane = add(svg, "g", id=guest)
        add(lane, "text", guest, x=MARGIN, y=y + 30)
        add(lane, "path", d=f"M{MARGIN} {y + LANE} H{LABEL + WIDTH - MARGIN}",
            **{"class": "lane"})
        for stay in stays:
            if stay.guest == guest:
                _bar(lane, stay, LABEL + (stay.start - begin) * scale, y, scale,
                     colours[stay.reason])
    for number, reason in enumerate(reasons):
        x = MARGIN + LEGEND_COLUMN * (number % columns)
        y = bottom + LEGEND * (number // columns + 1)
        add(svg, "rect", x=x, y=y - 11, width=12, height=12, fill=colours[reason])
        add(svg, "text", reason, x=x + 18, y=y, **{"class": "small"})
    return text_of(svg)


def _bar(lane, stay, x, y, scale, colour):
    width = max(stay.cycles * scale, LEAST)
    bar = add(lane, "rect", x=round(x, 2), y=y + BAR_TOP, width=round(width, 2),
              height=BAR_HEIGHT, fill=colour)
    event = "" if stay.delivered is None else f", vector {stay.delivered:#x} delivered"
    add(bar, "title", f"{stay.why} after {stay.cycles:,} cycles, from {stay.start:,}{event}")
    if len(stay.why) * LETTER < width:
        add(lane, "text", stay.why, x=round(x + 3, 2), y=y + BAR_TOP + 15, **{"class": "why"})
    if stay.delivered is not None:
        add(lane, "path", d=f"M{x:.2f} {y + BAR_TOP} l-3 -6 h6 Z", **{"class": "event"})

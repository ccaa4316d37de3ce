"""Damaged logs: an audit never raises, never hangs, and never says ``enters`` where it must not.

Every damage is read; what decides ``enters`` is looked at every time, and the rows of some. To
audit all of them whole: ``VMXSWITCH_WHOLE_AUDITS=1`` (many minutes).
"""

import json
import os
import random
import time
from pathlib import Path

import pytest

from vmxswitch.firmware import audit
from vmxswitch.firmware.auditing import wholeness
from vmxswitch.firmware.readers import vmcs_text

DUMPS = Path(__file__).parent / "dumps"
NAMES = sorted(path.stem for path in DUMPS.glob("*.txt"))
DAMAGES = 500  # of each kind and dump
WHOLE = 1 if os.environ.get("VMXSWITCH_WHOLE_AUDITS") else 100  # audited whole: one in so many


def read(name):
    text = (DUMPS / f"{name}.txt").read_bytes().decode()
    expected = json.loads((DUMPS / f"{name}.expect.json").read_text())
    return text, expected if isinstance(expected, list) else [expected]


def may_enter(text):
    """For each dump, whether everything but the rows lets an audit say ``enters``."""
    return [not wholeness.missing(dump) and not dump.failed and dump.error is None
            and not dump.fields["VM_EXIT_REASON"] >> 31
            for dump in vmcs_text.scan(text.encode("utf-8", "surrogatepass").splitlines(True))]


def entering(text, number, allowed):
    """How many dumps are said to enter: at most so many, if that is no more than is allowed."""
    most = sum(may_enter(text))
    if number % WHOLE and most <= allowed:
        return most
    return [item.verdict for item in audit(text)].count("enters")


@pytest.mark.parametrize("name", NAMES)
def test_truncated(name):
    text, expected = read(name)
    healthy = sum(item["audit_verdict"] == "enters" for item in expected)
    source = random.Random(name)
    for number in range(DAMAGES):
        at = source.randrange(len(text))
        allowed = max(healthy - (at < last_value(text)), 0)
        assert entering(text[:at], number, allowed) <= allowed, at


def last_value(text):
    """Where the last digit of a dump's text stands."""
    lines = [line for line in text.rstrip().splitlines() if not line.endswith("****")]
    return text.index(lines[-1], text.rindex(lines[-2])) + len(lines[-1])


def corrupted(text, source):
    """Characters, pieces or lines changed, taken away, doubled or moved."""
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        kind, at = source.randrange(7), source.randrange(len(text))
        other = source.randrange(len(text))
        if kind == 0:
            text = text[:at] + source.choice('\0 =#x0f9\n{"\ud7ff*>()[]:1\x85') + text[at + 1:]
        elif kind == 1:
            text = text[:at] + text[at + source.randrange(1, 80):]
        elif kind == 2:
            text = text[:at] + text[other:other + source.randrange(1, 120)] + text[at:]
        elif kind == 3:
            lines = text.split("\n")
            source.shuffle(lines)
            text = "\n".join(lines)
        elif kind == 4:
            lines = text.split("\n")
            del lines[source.randrange(len(lines))]
            text = "\n".join(lines)
        elif kind == 5:
            text = text[:at] + text[at:].swapcase()
        else:
            text = text[:at] + chr(source.randrange(1, 0x500)) + text[at:]
        text = text or " "
    return text


@pytest.mark.parametrize("name", NAMES)
def test_corrupted(name):
    text, expected = read(name)
    entered = any(item["audit_verdict"] == "enters" for item in expected)
    source, start = random.Random(name), time.monotonic()
    for number in range(DAMAGES):
        damaged = corrupted(text, source)
        allowed = damaged.count("Guest State") if entered else 0
        assert entering(damaged, number, allowed) <= allowed, damaged
    assert time.monotonic() - start < 60 * (100 if WHOLE == 1 else 1)

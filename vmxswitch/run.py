"""The verb ``run``: several guests in turn on one processor."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vmxswitch import backends
from vmxswitch.firmware.core import Shutdown
from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.guest import Refused, Turn
from vmxswitch.firmware.programs import PROGRAMS, default_program
from vmxswitch.firmware.readers.vmcs_area import SECTIONS
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.report import describe, refusal_lines, table
from vmxswitch.sim.timeline_svg import Stay, timeline_svg
from vmxswitch.sources import read_environments
from vmxswitch.spec.capabilities import configuration
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.tables import EXIT_REASONS

__all__ = ["run"]

#: What runs without guests on the command line, by whether the processor has a 64-bit mode.
SHIPPED = {
    True: ("linux-6.1-amd64-idle", "linux-6.1-686-pae-idle", "ovmf-x64-shell", "xen-4.17-panic"),
    False: ("linux-6.1-686-pae-idle", "linux-6.1-686-nopae-pentium3-user",
            "linux-6.1-686-nopae-pentium3-syscall", "debian-installer-i386-user"),
}
FIRST, LAST = 60, 20     # turns that a long timeline shows
PROGRESS_S = 1.0
PICTURE = "timeline.svg"


def run(arguments):
    """Runs guests and reports; 0 if each found all as it left it, 1 if not or if one is refused."""
    capabilities = configuration(arguments.config)
    texts = arguments.guests or SHIPPED[capabilities.intel64]
    sources, programs = zip(*map(_split, texts), strict=True)
    environments = read_environments(sources, arguments.cpu)
    port = backends.port(arguments.backend, capabilities, waves=arguments.waves is not None,
                         line=backends.line(arguments))
    vmm = Vmm(port, quantum=arguments.quantum, msr_lists=not arguments.shared_msrs)
    turns, ended, kept = [], "", {}
    with backends.recording(port, arguments.waves):
        try:
            chosen = _create(vmm, environments, programs)
            for turn in _progress(vmm.run(arguments.turns), arguments.turns):
                turns.append(turn)
            kept = {name: vmm.check(guest) for name, guest in vmm.guests.items()}
        except Refused as refused:
            print("\n".join([f"{refused.guest}: refused by",
                             *refusal_lines(refused.refusals)]))
            return 1
        except Shutdown as shutdown:
            ended = f"after turn {len(turns)}: {shutdown}"
    if arguments.waves is not None:
        _draw(arguments.waves / PICTURE, turns, vmm)
    if arguments.svg is not None:
        _draw(arguments.svg, turns, vmm)
    results = _results(arguments, vmm, chosen, turns, kept)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print("\n\n".join(_report(arguments, vmm, results, turns, kept)))
    if ended:
        print(f"vmxswitch: {ended}", file=sys.stderr)
    return 0 if results["intact"] and not ended else 1


def _split(text) -> tuple[str, str]:
    """Source of an environment, and the name of its program or nothing."""
    source, _, name = text.rpartition(":")
    if not source or name in SECTIONS or Path(text).exists():
        return text, ""
    if name not in PROGRAMS:
        raise UsageError(f"{text}: no program {name!r}; there are {', '.join(PROGRAMS)}")
    return source, name


def _create(vmm, environments, programs) -> dict[str, str]:
    """Make the guests; the name of each one's program, by guest."""
    chosen: dict[str, str] = {}
    for environment, name in zip(environments, programs, strict=True):
        program = PROGRAMS[name] if name else default_program(environment)
        guest = _unused(environment, chosen)
        vmm.create(environment, program, guest)
        chosen[guest] = program.__name__
    return chosen


def _unused(environment: Environment, names) -> str:
    """A short name for a guest."""
    base = Path(environment.source.partition(" ")[0]).name
    others = sum(name == base or name.startswith(f"{base}#") for name in names)
    return f"{base}#{others + 1}" if others else base


def _progress(turns: Iterator[Turn], wanted: int) -> Iterator[Turn]:
    """Say on stderr how far it is, if it takes long."""
    then = time.monotonic()
    for turn in turns:
        if time.monotonic() - then > PROGRESS_S:
            then = time.monotonic()
            print(f"run: {turn.number:,} of {wanted:,} turns", file=sys.stderr, flush=True)
        yield turn


def _draw(path, turns, vmm):
    stays = [Stay(turn.guest, turn.start, turn.cycles_in, EXIT_REASONS[turn.reason].name,
                  turn.why, turn.delivered) for turn in turns[:FIRST + LAST]]
    caption = f"{len(stays)} of {len(turns)} turns" if len(stays) < len(turns) else (
        f"{len(turns)} turns")
    try:
        path.write_text(timeline_svg(stays, list(vmm.guests), caption), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


# --- Results, and the report: parts of text, in order ---

def _results(arguments, vmm, programs, turns, kept):
    """The object that ``--json`` prints."""
    switches = [turn.switch_cycles for turn in turns if turn.switch_cycles]
    loads = [turn.load_cycles for turn in turns if turn.load_cycles]
    guests = {}
    for name, guest in vmm.guests.items():
        mine = [turn for turn in turns if turn.guest == name]
        guests[name] = {
            "source": guest.environment.source, "program": programs[name], "turns": len(mine),
            "cycles_in": sum(turn.cycles_in for turn in mine),
            "intact": all(turn.intact for turn in mine) and not kept.get(name),
            "kept_differences": [difference._asdict() for difference in kept.get(name, ())],
            "exits": {EXIT_REASONS[reason].symbol: count for reason, count
                      in Counter(turn.reason for turn in mine).most_common()},
            "stopped": guest.stopped, "console": "".join(guest.console)}
    return {
        "config": arguments.config, "backend": arguments.backend, "quantum": arguments.quantum,
        "preemption_timer": vmm.has_timer, "guests": guests,
        "turns": [turn.as_dict() for turn in turns],
        "intact": all(found["intact"] for found in guests.values()),
        "shared_msrs": list(vmm.msrs.shared.values()),
        "cycles": {"world_switch": _spread(switches), "vmptrld": _spread(loads)},
    }


def _spread(cycles):
    """Least, mean and most; None where the backend has no clock."""
    if not cycles:
        return None
    return {"least": min(cycles), "mean": sum(cycles) / len(cycles), "most": max(cycles)}


def _report(arguments, vmm, results, turns, kept):
    yield "\n".join([f"processor  {arguments.config}, {arguments.backend}",
                     f"slices     {_slices(arguments, vmm)}",
                     *(f"{'' if number else 'guests':<10} {describe(guest.environment)}; program "
                       f"{results['guests'][guest.name]['program']}"
                       for number, guest in enumerate(vmm.guests.values()))])
    if turns:
        yield table(
            "Timeline, in cycles",
            ["turn", "start", "guest", "injected", "in", "why it left", "what the VMM did",
             "switch", "VMPTRLD"], _turn_rows(turns), "rr  r  rr")
    yield table(
        "Guests", ["", "turns", "cycles in", "exits", ""],
        [(name, f"{found['turns']:,}", f"{found['cycles_in']:,}",
          ", ".join(f"{symbol} {count}" for symbol, count in found["exits"].items()),
          found["stopped"] and f"stopped: {found['stopped']}")
         for name, found in results["guests"].items()], " rr")
    if len(turns) < arguments.turns:
        yield f"No guest will ever run again after turn {len(turns)}."
    yield _verdict(results, turns, kept)


def _slices(arguments, vmm):
    if vmm.has_timer:
        return f"{arguments.quantum:,} cycles, by the VMX-preemption timer"
    return ("not kept: this processor offers no VMX-preemption timer; a guest runs until it idles "
            f"or exits more than {arguments.quantum:,} cycles after it began")


def _turn_rows(turns):
    shown = turns if len(turns) <= FIRST + LAST else [*turns[:FIRST], None, *turns[-LAST:]]
    for turn in shown:
        if turn is None:
            yield ("...", "", f"{len(turns) - FIRST - LAST:,} turns more: --json has all", "", "",
                   "", "", "", "")
            continue
        yield (str(turn.number), f"{turn.start:,}", turn.guest,
               "" if turn.delivered is None else f"{turn.delivered:#x}",
               f"{turn.cycles_in:,}", turn.why, turn.done, str(turn.switch_cycles or "-"),
               str(turn.load_cycles or "-"))


def _verdict(results, turns, kept):
    """What the comparisons came to, and what a world switch takes."""
    lines = []
    for turn in turns:
        for owner, differences in ((turn.guest, turn.differences),
                                   ("the VMM", turn.host_differences)):
            lines += [f"BROKEN: turn {turn.number}: {owner} left {name} = {left:#x} and found "
                      f"{found:#x}" for name, left, found in differences]
    for guest, differences in kept.items():
        lines += [f"BROKEN: in the end {guest} had left {name} = {left:#x} and its VMCS holds "
                  f"{found:#x}" for name, left, found in differences]
    if not lines:
        lines.append(f"At each of {len(turns):,} VM entries the guest found every register as it "
                     "had left it, and\nafter each VM exit so did the VMM. In the end each VMCS "
                     "held what its guest left.")
        if results["shared_msrs"]:
            lines.append("MSRs that are not switched, so not compared: "
                         f"{', '.join(results['shared_msrs'])}.")
    for words, spread in (("A world switch (VM entry and VM exit)",
                           results["cycles"]["world_switch"]),
                          ("VMPTRLD", results["cycles"]["vmptrld"])):
        if spread:
            lines.append(f"{words} took {spread['mean']:.4g} cycles (from {spread['least']} to "
                         f"{spread['most']}).")
    return "\n".join(lines)

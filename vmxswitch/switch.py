"""The verb ``switch``: moves a processor from one real environment to another."""

import json
from itertools import groupby

from vmxswitch import backends
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.firmware.watch import TARGET
from vmxswitch.report import describe, refusal_lines, table
from vmxswitch.sources import read_environments
from vmxswitch.spec.capabilities import configuration

__all__ = ["run"]

#: What is switched without files, by the preset of the word size. The 32-bit pair is refused at
#: first: real 32-bit systems have user selectors in their data segments, and the refusal says how
#: to go on.
SHIPPED_PAIRS = {
    "full": ("linux-6.1-amd64-idle", "xen-4.17-panic"),
    "compact": ("linux-6.1-686-pae-idle", "linux-6.1-686-nopae-pentium3-syscall"),
}


def run(arguments):
    """Switches and reports; 0 if the target was reached and no cycle was mixed, else 1."""
    capabilities = configuration(arguments.config)
    pair = SHIPPED_PAIRS["full" if capabilities.intel64 else "compact"]
    if arguments.original:
        pair = (str(arguments.original), str(arguments.target))
    original, target = read_environments(pair, arguments.cpu)
    port = backends.port(arguments.backend, capabilities, waves=arguments.waves is not None,
                         line=backends.line(arguments))
    with backends.recording(port, arguments.waves):
        result = Vmm(port).switch(original, target, dict(arguments.set))
    if arguments.json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        print(f"from       {describe(original)}\nto         {describe(target)}\n"
              f"processor  {arguments.config}, {arguments.backend}\n")
        print("\n\n".join(_report(result, original, target, arguments.backend)))
    return 0 if result.switched and result.whole else 1


# --- The report: parts of text, in order ---

def _report(result, original, target, backend):
    if result.steps:
        yield table("Steps", ["cycle", "mode", "live", "instruction", ""],
                    _step_rows(result.steps))
        yield table("Registers that changed", ["register", "before", "after"], [
            (name, f"{result.start[name]:#x}", f"{value:#x}")
            for name, value in result.final.items() if value != result.start[name]])
    if result.adjusted:
        yield table("Adjusted, for the processor holds it differently from the dump",
                    ["register", "dump", "processor", ""], [
            (item.register, f"{item.before:#x}", f"{item.after:#x}",
             "(likewise)" if number and item.why == result.adjusted[number - 1].why else item.why)
            for number, item in enumerate(result.adjusted)])
    assumed = [(owner, name, why)
               for owner, environment in (("original", original), ("target", target))
               for name, why in environment.assumed.items()]
    if assumed:
        yield table("Assumed, for the dump does not say", ["", "registers", ""], [
            (owner, ", ".join(name for _, name, _ in group), why)
            for (owner, why), group in groupby(assumed, key=lambda row: (row[0], row[2]))])
    if result.not_carried:
        yield table("Not carried by a host area; to restore after VMXOFF",
                    ["register", "wanted", "actual", "restore"], [
            (item.register, f"{item.wanted:#x}", f"{item.actual:#x}", item.restore)
            for item in result.not_carried])
    yield _watched(result, backend) if result.switched else _refused(result, backend)


def _step_rows(steps):
    """One row for each step; one for a run of VMWRITEs about which there is nothing to say."""
    def plain(step):
        return step.instruction.startswith("VMWRITE") and ", " not in step.note

    for alike, group in groupby(steps, key=plain):
        group = list(group)
        joined = alike and len(group) > 1
        for step in group[-1:] if joined else group:
            mode = step.mode_after.name
            if step.mode_before != step.mode_after:
                mode = f"{step.mode_before.name} -> {mode}"
            instruction = f"VMWRITE, {len(group)} fields" if joined else step.instruction
            yield str(step.cycle), mode, step.owner, instruction, "" if joined else step.note


def _watched(result, backend):
    """The verdict on the cycles."""
    if not result.whole:
        edges = ", ".join(f"{owner} from cycle {cycle}" for cycle, owner in result.changes)
        mixed = ", ".join(map(str, result.mixed_cycles))
        return (f"BROKEN: `live` must change owner at one edge and never be mixed, but it had\n"
                f"  changes of owner: {edges or 'none'}\n  mixed cycles: {mixed or 'none'}")
    latency = ""
    if result.entry_cycles:
        where = ", counted on the board" if backend == backends.SERIAL else ""
        latency = (f"\nVM entry {result.entry_cycles} cycles, VM exit {result.exit_cycles} "
                   f"cycles{where}.")
    if backend == backends.SERIAL:
        return (f"Switched: `live` changed owner once, by cycle {result.changes[0].cycle} of the "
                f"board.\nIt was read after each of {result.checked_cycles} operations since the "
                "original was loaded and compared\nwith the two environments; each time it was "
                f"exactly one of them, whole.{latency}")
    return (f"Switched: `live` changed owner at one edge, the one before cycle "
            f"{result.changes[0].cycle}.\nAll {result.checked_cycles} cycles since the original "
            f"was loaded were compared with the two environments;\neach showed exactly one of "
            f"them, whole.{latency}")


def _refused(result, backend):
    lines = ["Refused by", *refusal_lines(result.refused_by)]
    if result.misfits:
        lines.append("Not tried: the processor lacks registers of the original, or has them "
                     f"narrower ({', '.join(result.misfits)}).")
    elif result.changes and result.changes[-1].owner == TARGET:
        lines.append("The entry failed after its host checks, so the target is live, as the "
                     "architecture has it.")
    if result.cures:
        settings = " ".join(f"--set {field}={value:#x}" for field, value in result.cures.items())
        lines.append(f"All entry checks pass with {settings}")
    if not result.whole:
        lines.append(_watched(result, backend))
    return "\n".join(lines)

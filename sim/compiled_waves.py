"""The VCD file of the compiled unit, made to say what Amaranth's simulator writes.

Names of signals come through Verilog and Verilator as they are. Other than there are the place of
the unit, enumerations (numbers), times, and what :mod:`.narrator` tells, which is not there at all.
"""

from collections import defaultdict
from collections.abc import Iterator

from vmxswitch.hdl import interface
from vmxswitch.hdl.codec import Layout
from vmxswitch.hdl.memory_unit import Command
from vmxswitch.hdl.sequencer import Retired
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode

from .narrator import NONE, Owner, executing, failing, outcome, owner, row
from .vcd_file import VcdFile

__all__ = ["in_words"]

TOP = "TOP.vmx_unit"  #: where Verilator puts the unit; ours are SCOPES
SCOPES = {"TOP": "bench", "vmx_unit": "top"}
REPEATED = "$rootio"  #: scope that holds the ports a second time
ENUMERATIONS = {"mode": Mode, "command": Command}  #: by name of the signal
NARRATED = ("instruction", "outcome", "row", "failing", "owner")
CYCLE_BITS = 32


def in_words(text: str, capabilities: Capabilities, half_cycle: int) -> str:
    """The VCD file for ``text``, one of Verilator whose times are half cycles.

    ``half_cycle`` is the length of one in fs.
    """
    vcd = VcdFile(text)
    header, body = text.split("$enddefinitions $end\n", 1)
    numbers: set[str] = set()    # codes of the variables that are kept as they are
    words: dict[str, type] = {}  # and of those that are shown in words
    lines = [*_header(header, numbers, words), "$enddefinitions $end"]
    told = _told(vcd, capabilities)
    for line in body.splitlines():
        if line.startswith("#"):
            time = int(line[1:])
            lines += [f"#{time * half_cycle}", *told[time]]
        elif line:
            number, _, code = line[1:].partition(" ") if line[0] == "b" else (line[0], "", line[1:])
            if code in numbers:
                lines.append(line)
            if code in words:
                lines.append(f"s{words[code](int(number, 2)).name} {_words_code(code)}")
    return "\n".join([*lines, ""])


def _told_code(name):
    """Code of a variable that is added; Verilator's are shorter."""
    return f"~told~{name}"


def _words_code(code):
    return f"~words~{code}"


def _header(header, numbers, words) -> Iterator[str]:
    """Lines of the header; adds to ``numbers`` and ``words``."""
    yield "$timescale 1 fs $end"
    scopes = []
    for line in header.splitlines():
        match line.split():
            case ["$scope", _, name, "$end"]:
                scopes.append(name)
                if REPEATED not in scopes:
                    yield f"$scope module {SCOPES.get(name, name)} $end"
                if name == "TOP":
                    yield f"$var wire {CYCLE_BITS} {_told_code('cycle')} cycle $end"
                    for told in NARRATED:
                        yield f"$var string 1 {_told_code(told)} {told} $end"
            case ["$upscope", "$end"]:
                if REPEATED not in scopes:
                    yield line.strip()
                scopes.pop()
            case ["$var", kind, bits, code, name, *_, "$end"] if REPEATED not in scopes:
                if "." in name:
                    name = "\\" + name.removeprefix("\\")
                if enumeration := ENUMERATIONS.get(name.split("$")[0]):
                    words[code] = enumeration
                    yield f"$var string 1 {_words_code(code)} {name} $end"
                else:
                    numbers.add(code)
                    yield f"$var {kind} {bits} {code} {name} $end"


def _told(vcd, capabilities):
    """By time, the changes of what is added."""
    changes = defaultdict(list)
    before = {}

    def tell(time, **values):
        for name, value in values.items():
            if before.get(name) != value:
                before[name] = value
                shown = f"b{value:b}" if name == "cycle" else f"s{value}"
                changes[time].append(f"{shown} {_told_code(name)}")

    def at(name, time):
        return vcd.at(f"{TOP}.{name}", time)

    ids = [check.id for check in (*capabilities.state_checks, *capabilities.list_checks)]
    request, ended = Layout(interface.Request), Layout(Retired)
    tell(0, instruction=NONE, owner=Owner.SOFTWARE.name)
    for cycle in range((vcd.end + 1) // 2 + 1):
        start = max(2 * cycle - 1, 0)
        if cycle and at("events_ready", start - 1):  # the operation at hand, if any, has ended
            tell(start, instruction=executing(
                at("events_valid", start - 1), at("requests_valid", start - 1),
                request.unpack(at("requests_payload", start - 1))["operation"]))
        retired = ended.unpack(at("retired", start))
        tell(start, cycle=cycle, outcome=outcome(retired["valid"], retired["code"]),
             row=row(retired["valid"], retired["event"], retired["row"]),
             failing=failing(at("diagnosis", start), ids))
        if retired["commit"]:
            tell(start, owner=owner(at("mode", start)).name)
    return changes

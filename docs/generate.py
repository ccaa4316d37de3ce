# amaranth: UnusedElaboratable=no
"""Writes the generated parts of the documentation: tables that the code already knows.

    python docs/generate.py           writes them anew, in place
    python docs/generate.py --check   names the pages that are stale; exit status 1

A generated part stands between ``<!-- generated: WHAT ARGUMENT -->`` and ``<!-- end -->``; ``WHAT``
is a function in :data:`PARTS`. ``tests/test_docs.py`` fails while a page is stale.
"""

import importlib
import inspect
import re
import sys
from pathlib import Path

from amaranth.hdl import Shape
from amaranth.lib import data, stream, wiring

from vmxswitch.boards.measured import read as read_measured
from vmxswitch.hdl import interface, register_map
from vmxswitch.sim.mutation import EXPLAINED
from vmxswitch.spec import operations, tables
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.expression import Const

__all__ = ["pages", "render"]

DOCS = Path(__file__).parent
MARKED = re.compile(r"(<!-- generated: ([\w-]+)(?: ([\w.]+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages():
    """Every page of the documentation, the README of the project included."""
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def render(text):
    """The text of a page with its generated parts written anew."""
    def part(match):
        begin, what, argument, _, end = match.groups()
        made = PARTS[what](argument) if argument else PARTS[what]()
        return f"{begin}{made}\n{end}"
    return MARKED.sub(part, text)


# --- Components: what a docstring and a signature say ---

def about(name):
    """The docstring of a component, without its sections."""
    text = inspect.getdoc(_named(name)).split("\n\nParameters\n---")[0]
    return _markdown(text.split("\n\nMembers\n---")[0])


def parameters(name):
    """The parameters of a component's constructor."""
    rows = [(f"`{names}`", meaning)
            for names, _, meaning in _section(_named(name), "Parameters")]
    return _table(["parameter", "meaning"], rows) if rows else "None."


def ports(name):
    """The ports of a component: direction and width from the signature, the rest from words."""
    component = _named(name)
    units = _instances(component)
    documented, ditto = {}, {}
    for names, _, meaning in _section(component, "Members"):
        first, *others = re.findall(r"\w+", names)
        documented[first] = meaning
        ditto |= dict.fromkeys(others, '"')
    documented |= ditto
    rows = []
    for port, member in units[0].signature.members.items():
        bits = " / ".join(dict.fromkeys(
            str(_bits(unit.signature.members[port])) for unit in units))
        rows.append((f"`{port}`", "in" if member.flow is wiring.In else "out", _kind(member),
                     bits, documented[port]))
    return _table(["port", "direction", "shape", "bits", "meaning"], rows)


#: How the components are built here that are not built from capabilities alone.
ARGUMENTS = {
    "RegisterFile": [((register_map.board_registers().values(),), {"address_bits": 9})],
    "SerialUnit": [((PRESETS["full"],), {"clock_hz": 12_000_000})],
    "SparseMemory": [((40,), {"frames": 32, "frame_words": 128})],
    "UartBridge": [((100,), {})], "UartReceiver": [((4,), {})], "UartTransmitter": [((4,), {})],
}


def _instances(component):
    """The component as each preset builds it; once if it has no parameters."""
    if component.__name__ in ARGUMENTS:
        return [component(*arguments, **options)
                for arguments, options in ARGUMENTS[component.__name__]]
    if _section(component, "Parameters"):
        return [component(capabilities) for capabilities in PRESETS.values()]
    return [component()]


def _bits(member):
    """Width of a port; of a stream, that of its payload; of an interface, that of all members."""
    if member.is_port:
        return Shape.cast(member.shape).width
    if isinstance(member.signature, stream.Signature):
        return Shape.cast(member.signature.members["payload"].shape).width
    return sum(_bits(inner) for inner in member.signature.members.values())


def _kind(member):
    """Shape of a port in words."""
    if not member.is_port:
        if isinstance(member.signature, stream.Signature):
            return "stream of " + _shape(member.signature.members["payload"].shape)
        target = isinstance(member.signature, wiring.FlippedSignature)
        signature = member.signature.flip() if target else member.signature
        return f"`{type(signature).__name__}`"
    return _shape(member.shape)


def _shape(shape):
    if isinstance(shape, type):
        return f"`{shape.__name__}`"
    if not isinstance(shape, data.StructLayout):
        return "unsigned"
    for capabilities in PRESETS.values():
        for layout, words in ((interface.field_layout, "every VMCS field"),
                              (interface.register_layout, "every register"),
                              (interface.update_layout, "`register`, `value`")):
            if shape == layout(capabilities):
                return words
    return ", ".join(f"`{name}`" for name, _ in shape)


def struct(name):
    """The members of a payload, with their place in it."""
    shape = _named(name)
    comments = dict(re.findall(r"^ +(\w+): .*?# (.*)$", inspect.getsource(shape), re.MULTILINE))
    for source in (operations.Instruction, operations.Event, operations.Answer):
        if source.__name__ in inspect.getdoc(shape):
            for names, _, meaning in _section(source, "Attributes"):
                for word in re.findall(r"\w+", names):
                    comments.setdefault(word, meaning)
    rows, before = [], None
    for member, field in data.Layout.cast(shape):
        width = Shape.cast(field.shape).width
        place = f"{field.offset + width - 1}:{field.offset}" if width > 1 else str(field.offset)
        kind = f"`{field.shape.__name__}`" if isinstance(field.shape, type) else ""
        meaning = _markdown(comments.get(member, ""))
        rows.append((f"`{member}`", place, str(width),
                     '"' if meaning and meaning == before else f"{kind} {meaning}".strip()))
        before = meaning
    return _table(["member", "place", "bits", "meaning"], rows)


def enumeration(name):
    """The members of an enumeration by number."""
    return ", ".join(f"{member.value} `{member.name}`" for member in _named(name)) + "."


# --- Tables and presets ---

def csv_files():
    """Every table of ``spec/`` with its columns."""
    rows = []
    for path in sorted((DOCS.parent / "spec").glob("*.csv")):
        read = list(tables.csv.reader(path.read_text(encoding="utf-8").splitlines()))
        rows.append((f"`{path.name}`", str(len(read) - 1),
                     " ".join(f"`{column}`" for column in read[0])))
    return _table(["file", "rows", "columns"], rows)


def presets():
    """Size of what each preset has."""
    def row(quantity, count):
        return (quantity, *(str(count(capabilities)) for capabilities in PRESETS.values()))
    return _table(["", *(f"`{name}`" for name in PRESETS)], [
        row("VMCS fields", lambda one: len(one.fields)),
        row("bits of all fields", lambda one: sum(map(one.bits, one.fields.values()))),
        row("registers in `live`", lambda one: len(one.registers)),
        row("bits of `live`", lambda one: sum(map(one.bits, one.registers.values()))),
        row("checks of a VM entry", lambda one: len(one.state_checks)),
        row("checks of an MSR-list entry", lambda one: len(one.list_checks)),
        row("MSRs that an MSR-load list may load", lambda one: len(one.wrmsr_rules)),
        row("physical-address width", lambda one: one.physical_address_width),
        row("linear-address width", lambda one: one.linear_address_width),
    ])


def offered():
    """Control bits that a preset lets software choose: 0 and 1 both allowed."""
    rows = []
    for word, row in tables.CONTROL_WORDS.items():
        mine = {symbol: bit for symbol, bit in tables.CONTROLS.items() if bit.word == word}
        rows.append((f"`{row.field}`", *(
            " ".join(f"`{symbol}`" for symbol, bit in mine.items()
                     if one.allows(symbol) and not _must_be_1(one, row, bit)) or "-"
            for one in PRESETS.values())))
    return _table(["control word", *(f"`{name}`" for name in PRESETS)], rows)


def _must_be_1(capabilities, word, bit):
    settings = capabilities.constants[word.capability_symbol]
    return bool(word.true_capability and settings >> bit.low & 1)


def not_offered():
    """Control bits that no preset offers, reserved ones left out."""
    rows = []
    for word, row in tables.CONTROL_WORDS.items():
        missing = [symbol for symbol, bit in tables.CONTROLS.items()
                   if bit.word == word and "_RESERVED" not in symbol
                   and not any(one.allows(symbol) for one in PRESETS.values())]
        if missing:
            rows.append((f"`{row.field}`", " ".join(f"`{symbol}`" for symbol in missing)))
    return _table(["control word", "bits"], rows)


def exits():
    """Exit reasons that an event may have, and those that it may not."""
    def listed(rows):
        return "; ".join(f"{row.number} {row.name}" for row in rows)
    reasons = tables.EXIT_REASONS.values()
    operated = {row.number for rows in tables.INSTRUCTIONS.values() for row in rows
                if row.kind in ("exit", "entry failure")
                and PRESETS["full"].bind(row.condition) != Const(1, 0)}
    return _table(["exit reasons", "what the unit does"], [
        (listed(row for row in reasons if row.condition),
         "decides when the core reports the event"),
        (listed(row for row in reasons if not row.condition and row.number in operated),
         "arrives at them itself, from an instruction"),
        (listed(row for row in reasons if not row.condition and row.number not in operated),
         "not implemented"),
    ])


def explained():
    """The mutants that nobody can notice, with the reason."""
    return _table(["mutant", "why it does what the unit does"],
                  [(f"`{id}`", reason) for id, reason in EXPLAINED.items()])


# --- Registers ---

def registers(whose):
    """The register map of the unit, as each preset has it, or of what a board adds."""
    maps = {"board": [register_map.board_registers()],
            "unit": [*map(register_map.unit_registers, PRESETS.values())]}[whose]
    rows = []
    for name, register in maps[0].items():
        bits, resets = ([*dict.fromkeys(getattr(one[name], what) for one in maps)]
                        for what in ("bits", "reset"))
        reset = "-" if register.access == "w" or None in resets else " / ".join(
            f"{value:#x}" for value in resets)
        rows.append((f"`{name}`", f"{register.address:#05x}", " / ".join(map(str, bits)),
                     register.access, reset, register.meaning))
    return _table(["register", "address", "bits", "access", "reset", "meaning"], rows)


def measured():
    """The builds that `build --record` has measured."""
    return _table(
        ["board", "configuration", "for MHz", "LUT4", "flip-flops", "RAM blocks", "cells of device",
         "routed", "MHz, worst and best seed", "Yosys, nextpnr", "date"],
        [(f"`{row.board}`", f"`{row.config}`", row.target_mhz, row.lut, row.ff, row.bram,
          f"{row.cells} of {row.available}" if row.cells else "-", row.routed,
          f"{row.worst_mhz}, {row.best_mhz} ({row.seeds})" if row.seeds else "-",
          f"{row.yosys}, {row.nextpnr}", row.date) for row in read_measured()])


# --- Text ---

def _named(name):
    """``module.Class`` of ``hdl`` or ``spec``."""
    module, attribute = name.split(".")
    for folder in ("hdl", "spec"):
        if (DOCS.parent / folder / f"{module}.py").exists():
            return getattr(importlib.import_module(f"vmxswitch.{folder}.{module}"), attribute)
    raise ValueError(f"no module {module!r}")


def _section(documented, title):
    """Entries of a docstring's section: names, what follows the colon, words."""
    text = inspect.getdoc(documented)
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^(\S.*)\n((?:(?: +.*)?\n?)*)", found[1] if found else "", re.MULTILINE)
    return [(_names(heading), heading.partition(" : ")[2], _markdown(" ".join(words.split())))
            for heading, words in entries]


def _names(heading):
    """The names of ``a : In(1), b, c : Out(2)``, without shapes."""
    return ", ".join(re.findall(
        r"(?:^|[,;] )((?:\w+, )*\w+)(?= : |$)", heading)) or heading.partition(" : ")[0]


def _markdown(text):
    """A docstring's text with its markup as Markdown has it."""
    text = re.sub(r":\w+:`~?([\w.]+)`", lambda match: f"`{match[1].split('.')[-1]}`", text)
    return text.replace("``", "`")


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
                     for line in lines)


PARTS = {
    "about": about, "parameters": parameters, "ports": ports, "struct": struct,
    "enumeration": enumeration, "csv-files": csv_files, "presets": presets, "offered": offered,
    "not-offered": not_offered, "exits": exits, "explained": explained,
    "registers": registers, "measured": measured,
}


def main(arguments):
    """Writes the pages, or with ``--check`` names those that are stale."""
    stale = [page for page in pages() if render(page.read_text()) != page.read_text()]
    for page in stale:
        print(page.relative_to(DOCS.parent))
        if "--check" not in arguments:
            page.write_text(render(page.read_text()))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

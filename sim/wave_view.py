"""What of a unit's waves a viewer shows: grouped, in the right radix, around one edge.

Save files of GTKWave are written with pyvcd. No library writes Surfer's state files; ours hold what
its types ``UserState`` and ``WaveData`` require (see ``docs/waves.md`` for what was tried).
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import log2

from vcd.gtkw import GTKWSave

from vmxswitch.spec.capabilities import Capabilities

from .vcd_file import VcdFile

__all__ = ["Group", "Radix", "Trace", "gtkwave_save", "surfer_state", "view"]

SHOWN_CYC = 12        #: cycles of the first screen, the edge in their middle
SCREEN_PIXELS = 900  #: of it, in GTKWave's window of WINDOW_PIXELS
WINDOW_PIXELS = 1400, 1000
SIGNALS_PIXELS = 400
GTKWAVE_ZOOM_PIXELS = 200  #: GTKWave's zoom is the binary logarithm of their time


class Radix(Enum):
    """How a trace is shown: GTKWave's format and Surfer's (none: Surfer's own choice)."""
    NAME = "ascii", None
    BIN = "bin", None
    DEC = "dec", "Unsigned"
    HEX = "hex", "Hexadecimal"


@dataclass(frozen=True)
class Trace:
    """One line: a variable by its full name in :class:`VcdFile`."""
    name: str
    radix: Radix
    label: str


@dataclass(frozen=True)
class Group:
    """Traces and groups under a title."""
    title: str
    items: tuple
    is_open: bool = True


def view(capabilities: Capabilities) -> tuple[Group, ...]:
    """Everything that is shown of a unit, in order."""
    return (
        Group("mode and owner", _traces("bench.", ("mode", "top.mode", Radix.NAME),
                                        ("owner", "owner", Radix.NAME),
                                        ("cycle", "cycle", Radix.DEC),
                                        ("clk", "top.clk", Radix.BIN))),
        Group("instruction", _traces(
            "bench.", ("in execution", "instruction", Radix.NAME),
            ("outcome", "outcome", Radix.NAME), ("deciding row", "row", Radix.NAME))),
        Group("commit", _traces(
            "bench.top.sequencer.", ("enter", "enter", Radix.BIN),
            ("leave", "leave", Radix.BIN), ("save guest state", "save", Radix.BIN))),
        Group("live", _live(capabilities)),
        Group("checks", (
            *_traces("bench.top.checker.", *((name, name, Radix.BIN) for name in (
                "settled", "controls_fail", "host_fails", "guest_fails"))),
            Trace("bench.failing", Radix.NAME, "failing rows"))),
        Group("request", _traces(
            "bench.top.", ("valid", "requests__valid", Radix.BIN),
            ("ready", "requests__ready", Radix.BIN),
            *_members("requests__payload", "operand", "source", "source_high", "information",
                      "displacement"),
            *_members("requests__payload", "register_operand", "operand_fault", "mov_ss_blocking",
                      radix=Radix.BIN)), is_open=False),
        Group("response", _traces(
            "bench.top.", ("valid", "responses__valid", Radix.BIN),
            *_members("responses__payload", "value", "reason", "qualification", "error_code"),
            *_members("responses__payload", "error", "vector", radix=Radix.DEC)), is_open=False),
        Group("guest event", _traces(
            "bench.top.", ("valid", "events__valid", Radix.BIN),
            ("ready", "events__ready", Radix.BIN),
            *_members("events__payload", "reason", "qualification", "length", "information",
                      "linear_address", "physical_address"),
            ("verdict valid", "verdicts__valid", Radix.BIN)), is_open=False),
        Group("register write", _traces(
            "bench.top.", ("valid", "updates__valid", Radix.BIN),
            ("ready", "updates__ready", Radix.BIN),
            *_members("updates__payload", "register", radix=Radix.DEC),
            *_members("updates__payload", "value")), is_open=False),
        Group("VMCS", _vmcs(capabilities), is_open=False),
        Group("memory bus", _traces(
            "bench.top.", ("command", "memory_unit.command", Radix.NAME),
            ("start", "memory_unit.start", Radix.BIN),
            ("done", "memory_unit.done", Radix.BIN)) + _traces(
            "bench.top.memory__", *((name, name, Radix.BIN) for name in (
                "cyc", "stb", "we", "ack", "err")),
            *((name, name, Radix.HEX) for name in ("adr", "dat_w", "dat_r"))), is_open=False),
    )


def _traces(prefix, *rows):
    return tuple(Trace(prefix + name, radix, label) for label, name, radix in rows)


def _members(port, *names, radix=Radix.HEX):
    """Rows for members of a port's payload."""
    return ((name, f"{port}.{name}", radix) for name in names)


SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
PARTS = ("SELECTOR", "BASE", "LIMIT", "AR")
TABLES = ("GDTR", "IDTR")


def _live(capabilities):
    """The running environment: every register, in groups."""
    registers = list(capabilities.registers)
    tables = [f"{table}_{part}" for table in TABLES for part in ("BASE", "LIMIT")]
    segments = {segment: [f"{segment}_{part}" for part in PARTS] for segment in SEGMENTS}
    pointers = ["RIP", "RSP", "RFLAGS"]
    control = ["CR0", "CR3", "CR4", "DR7"]
    others = ["INTERRUPTIBILITY", "ACTIVITY", "PENDING_DBG", "PREEMPTION_TIMER", "INTERRUPT_STATUS",
              "PML_INDEX", *(name for name in registers if name.startswith("PDPTE"))]
    elsewhere = {*tables, *sum(segments.values(), []), *pointers, *control, *others}

    def traces(names):
        return tuple(Trace(f"bench.top.live.{name}", Radix.HEX, name)
                     for name in names if name in capabilities.registers)

    return (
        *traces(pointers),
        Group("control registers", traces(control)),
        Group("segments", tuple(
            Group(segment, traces(parts), is_open=False) for segment, parts in segments.items())),
        Group("descriptor tables", traces(tables)),
        Group("MSRs", traces(name for name in registers if name not in elsewhere), is_open=False),
        Group("other state", traces(others), is_open=False),
    )


def _vmcs(capabilities):
    """The current VMCS: pointers, launch state, and every field by area."""
    areas = {}
    for symbol, row in capabilities.fields.items():
        areas.setdefault(row.area, []).append(
            Trace(f"bench.top.bank.fields.{symbol}", Radix.HEX, symbol))
    return (
        *_traces("bench.top.pointers.", ("current VMCS", "current_vmcs", Radix.HEX),
                 ("VMXON pointer", "vmxon_pointer", Radix.HEX),
                 ("launched", "launched", Radix.BIN)),
        *(Group(area, tuple(traces), is_open=False) for area, traces in areas.items()),
    )


# --- GTKWave ---

def gtkwave_save(groups: Sequence[Group], vcd: VcdFile, edge: int, period: int) -> str:
    """A save file for ``switch.vcd`` beside it, with the marker on time ``edge``; times in fs."""
    text = io.StringIO()
    save = GTKWSave(text)
    save.dumpfile("switch.vcd", abspath=False)
    zoom = log2(GTKWAVE_ZOOM_PIXELS * SHOWN_CYC * period / SCREEN_PIXELS)
    save.zoom_markers(-zoom, marker=edge)
    latest = vcd.end - (SHOWN_CYC + 1) * period  # GTKWave ignores a later start
    save.timestart(max(0, min(edge - SHOWN_CYC // 2 * period, latest)))
    save.size(*WINDOW_PIXELS)
    save.signals_width(SIGNALS_PIXELS)
    save.sst_expanded(False)
    _gtkwave_groups(save, groups, vcd)
    return text.getvalue()


def _gtkwave_groups(save, items, vcd):
    for item in items:
        if isinstance(item, Group):
            with save.group(item.title, closed=not item.is_open):
                _gtkwave_groups(save, item.items, vcd)
        else:
            variable = vcd.variables[item.name]
            bits = f"[{variable.bits - 1}:0]" if variable.bits > 1 else ""
            save.trace(".".join([*variable.scope, variable.name]) + bits, alias=item.label,
                       datafmt=item.radix.value[0])


# --- Surfer ---

def surfer_state(groups: Sequence[Group], vcd: VcdFile, edge: int, period: int) -> str:
    """A state file for ``switch.vcd`` beside it, with the cursor on time ``edge``; times in fs."""
    nodes, items = [], []
    _surfer_items(groups, 0, vcd, nodes, items)
    left, right = ((edge + sign * SHOWN_CYC // 2 * period) / max(vcd.end, 1) for sign in (-1, 1))
    digits = ", ".join(str(edge >> shift & 0xFFFF_FFFF)
                       for shift in range(0, max(edge.bit_length(), 1), 32))
    return SURFER.format(
        nodes=_lines(nodes), items=_lines(items), count=len(items), left=left, right=right,
        cursor=f"({int(edge > 0)}, [{digits}])")


def _lines(entries: Iterable[str]):
    return "".join(f"            {entry},\n" for entry in entries)


def _surfer_items(group, level, vcd, nodes, items):
    """Append the tree's nodes and the items that they refer to by number."""
    for item in group:
        number = len(items) + 1
        is_group = isinstance(item, Group)
        unfolded = _ron(not is_group or item.is_open)
        nodes.append(
            f"(item_ref: ({number}), level: {level}, unfolded: {unfolded}, selected: false)")
        if is_group:
            items.append(f"({number}): Group((name: {_ron(item.title)}, color: None, "
                         f"background_color: None, content: [], is_open: {unfolded}))")
            _surfer_items(item.items, level + 1, vcd, nodes, items)
        else:
            items.append(f"({number}): {_surfer_variable(item, vcd.variables[item.name])}")


def _surfer_variable(trace, variable):
    scope = ", ".join(map(_ron, variable.scope))
    label = _ron(trace.label)
    radix = trace.radix.value[1]
    return (f"Variable((variable_ref: (path: (strs: [{scope}], id: None), "
            f"name: {_ron(variable.name)}, id: None), color: None, background_color: None, "
            f"display_name: {label}, display_name_type: Unique, manual_name: Some({label}), "
            f"format: {f'Some({_ron(radix)})' if radix else 'None'}, field_formats: [], "
            "height_scaling_factor: None))")


def _ron(value: str | bool) -> str:
    """A text or truth value in Rusty Object Notation, which writes both as JSON does."""
    return json.dumps(value)


#: Fields that a release requires; those that it does not know are ignored by it.
SURFER = """\
(
    waves: Some((
        source: File("switch.vcd"),
        format: Vcd,
        active_scope: None,
        items_tree: (items: [
{nodes}        ]),
        displayed_items: {{
{items}        }},
        display_item_ref_counter: {count},
        viewports: [(
            curr_left: ({left}), curr_right: ({right}),
            target_left: ({left}), target_right: ({right}),
            move_start_left: ({left}), move_start_right: ({right}),
            move_duration: None, move_strategy: Instant,
        )],
        cursor: Some({cursor}),
        markers: {{}},
        annotation_groups: [],
        annotation_list_visible: false,
        last_active_viewport_idx: 0,
        focused_item: None,
        focused_transaction: (None, None),
        default_variable_name_type: Unique,
        scroll_offset: 0.0,
        display_variable_indices: false,
        graphics: {{}},
    )),
    drag_started: false,
    blacklisted_translators: [],
    show_about: false,
    show_keys: false,
    show_gestures: false,
    show_quick_start: false,
    show_license: false,
    show_performance: false,
    show_logs: false,
    show_cursor_window: false,
    wanted_timeunit: NanoSeconds,
    show_url_entry: false,
    variable_name_filter_focused: false,
    variable_filter: (
        name_filter_type: Contain, name_filter_str: "", name_filter_case_insensitive: true,
        include_inputs: true, include_outputs: true, include_inouts: true, include_others: true,
        group_by_direction: false,
    ),
)
"""

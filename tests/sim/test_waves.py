"""Waves: what the files say is what happened, and they are there whole or not at all."""

import re
from functools import partial
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from vcd.gtkw import GTKWFlag

from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.sim import waves
from vmxswitch.sim.pysim import PysimPort
from vmxswitch.sim.timing_svg import CYCLE, LABEL
from vmxswitch.sim.vcd_file import VcdFile
from vmxswitch.sim.verilator import VerilatorPort
from vmxswitch.sim.wave_view import Group, view
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Instruction

FILES = {"switch.vcd", "switch.gtkw", "switch.surf.ron", "switch.svg"}
#: By preset: two shipped environments, and VMCS fields without which the switch is refused.
SWITCHES = {
    "full": ("linux-6.1-amd64-idle", "gnumach-amd64-kernel", {}),
    "compact": ("linux-6.1-686-pae-idle", "linux-6.1-686-nopae-pentium3-syscall", {
        "HOST_ES_SELECTOR": 0x78, "HOST_DS_SELECTOR": 0x78, "HOST_GS_SELECTOR": 0x30}),
}
SVG = "{http://www.w3.org/2000/svg}"


PORTS = {"pysim": PysimPort, "verilator": partial(VerilatorPort, waves=True)}


def record(folder, preset, backend="pysim", **settings):
    """A recorded switch: its result, its files' texts and its VCD file, read."""
    port = PORTS[backend](PRESETS[preset])
    original, target, needed = SWITCHES[preset]
    with waves.recording(port, folder):
        result = Vmm(port).switch(
            Environment.read(original), Environment.read(target), needed | settings)
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    return SimpleNamespace(
        port=port, result=result, texts=texts, vcd=VcdFile(texts["switch.vcd"]),
        svg=ElementTree.fromstring(texts["switch.svg"]))


@pytest.fixture(scope="module", params=[
    ("full", "pysim"), ("compact", "pysim"), ("compact", "verilator")], ids="-".join)
def recorded(request, tmp_path_factory):
    return record(tmp_path_factory.mktemp("waves") / "switch", *request.param)


@pytest.fixture(scope="module", params=["pysim", "verilator"])
def refused(request, tmp_path_factory):
    """A switch whose VM entry two host checks refuse."""
    folder = tmp_path_factory.mktemp("waves") / "refused"
    return record(folder, "compact", request.param, HOST_CR4=0, HOST_TR_SELECTOR=0)


def start_of(cycle):
    """Time of the clock edge that begins a cycle."""
    return cycle * waves.PERIOD_FS - waves.PERIOD_FS // 2


def names(groups):
    """Variables of all traces below some groups."""
    for item in groups:
        yield from names(item.items) if isinstance(item, Group) else [item.name]


# --- the VCD file ---

def test_all_files_are_written(recorded):
    assert recorded.texts.keys() == FILES


def test_mode_is_shown_by_name_and_changes_with_the_owner(recorded):
    changes = recorded.vcd.changes["bench.top.mode"]
    assert [mode for _, mode in changes] == ["OFF", "ROOT", "NON_ROOT", "ROOT", "OFF"]
    (change,) = recorded.result.changes
    assert changes[3][0] == start_of(change.cycle)
    assert recorded.vcd.changes["bench.owner"] == [
        (0, "SOFTWARE"), (changes[2][0], "GUEST_AREA"), (changes[3][0], "HOST_AREA")]


def test_live_holds_what_the_processor_reports(recorded):
    end = recorded.vcd.end
    assert recorded.result.final == {
        name: recorded.vcd.at(f"bench.top.live.{name}", end) for name in recorded.result.final}


def test_cycles_are_numbered_as_the_port_does(recorded):
    cycles = recorded.vcd.changes["bench.cycle"]
    assert cycles[-1] == (start_of(recorded.port.cycle), recorded.port.cycle)


def test_each_instruction_is_named_while_it_is_executed(recorded):
    vcd = recorded.vcd
    shown = [name for _, name in vcd.changes["bench.instruction"] if name != waves.NONE]
    assert shown[:3] == ["VMXON", "VMCLEAR", "VMPTRLD"]
    assert shown[-3:] == ["VMLAUNCH", "VMCALL", "VMXOFF"]
    assert set(shown[3:-3]) == {"VMWRITE"}
    rows = [row for _, row in vcd.changes["bench.row"] if row != waves.NONE]
    assert [row.split(".")[0] for row in rows] == shown


def test_an_instruction_ends_where_its_outcome_is_shown(recorded):
    vcd = recorded.vcd
    shown = [time for time, name in vcd.changes["bench.outcome"] if name != waves.NONE]
    ends = [time for time, name in vcd.changes["bench.instruction"] if name == waves.NONE]
    assert shown == ends[1:]


def test_commit_is_high_in_the_cycle_before_the_edge(recorded):
    (change,) = recorded.result.changes
    assert recorded.vcd.changes["bench.top.sequencer.leave"] == [
        (0, 0), (start_of(change.cycle - 1), 1), (start_of(change.cycle), 0)]


def test_failing_rows_are_named(refused):
    assert refused.result.changes == ()
    assert refused.vcd.changes["bench.owner"] == [(0, "SOFTWARE")]
    ids = {refusal.id for refusal in refused.result.refused_by}
    assert len(ids) > 1
    assert set(refused.vcd.at("bench.failing", refused.vcd.end).split(",")) == ids


def test_what_is_shown_of_the_compiled_unit_is_what_pysim_shows(tmp_path):
    simulated, compiled = (record(tmp_path / backend, "compact", backend) for backend in PORTS)
    assert compiled.texts == simulated.texts | {"switch.vcd": compiled.texts["switch.vcd"]}
    assert compiled.vcd.end == simulated.vcd.end
    middles = range(0, simulated.vcd.end, waves.PERIOD_FS)
    for name in names(view(PRESETS["compact"])):
        assert ([compiled.vcd.at(name, time) for time in middles]
                == [simulated.vcd.at(name, time) for time in middles]), name


# --- the views ---

def test_the_view_shows_every_register_and_field(recorded):
    capabilities = recorded.port.capabilities
    shown = list(names(view(capabilities)))
    assert len(set(shown)) == len(shown)
    assert {f"bench.top.live.{name}" for name in capabilities.registers} <= set(shown)
    assert {f"bench.top.bank.fields.{name}" for name in capabilities.fields} <= set(shown)


def test_gtkwave_shows_variables_that_exist(recorded):
    variables = {
        ".".join([*variable.scope, variable.name])
        + (f"[{variable.bits - 1}:0]" if variable.bits > 1 else "")
        for variable in recorded.vcd.variables.values()}
    shown = re.findall(r"^\+\{.*\} (.*)$", recorded.texts["switch.gtkw"], re.MULTILINE)
    assert len(shown) == len(list(names(view(recorded.port.capabilities))))
    assert set(shown) <= variables


def test_gtkwave_groups_are_closed_in_order(recorded):
    opened, flags = [], 0
    for line in recorded.texts["switch.gtkw"].splitlines():
        if line.startswith("@"):
            flags = int(line[1:], 16)
        elif line.startswith("-") and flags & GTKWFlag.grp_begin.value:
            opened.append(line)
        elif line.startswith("-"):
            assert opened.pop() == line
    assert flags
    assert not opened


def test_gtkwave_has_its_marker_on_the_edge(recorded):
    (change,) = recorded.result.changes
    marker = re.search(r"^\*-?[\d.]+ (\d+) ", recorded.texts["switch.gtkw"], re.MULTILINE)
    assert int(marker[1]) == start_of(change.cycle)


def test_surfer_shows_variables_that_exist(recorded):
    shown = re.findall(r'strs: \[(.*?)\], id: None\), name: "(.*?)"',
                       recorded.texts["switch.surf.ron"])
    variables = {(variable.scope, variable.name) for variable in recorded.vcd.variables.values()}
    assert len(shown) == len(list(names(view(recorded.port.capabilities))))
    assert {(tuple(re.findall(r'"(.*?)"', scope)), name.replace("\\\\", "\\"))
            for scope, name in shown} <= variables


def test_surfers_tree_refers_to_each_item_once(recorded):
    text = recorded.texts["switch.surf.ron"]
    nodes = [int(number) for number in re.findall(r"item_ref: \((\d+)\)", text)]
    items = [int(number) for number in re.findall(r"\((\d+)\): (?:Group|Variable)\(", text)]
    assert nodes == items == list(range(1, len(items) + 1))
    assert f"display_item_ref_counter: {len(items)}," in text


def test_surfer_has_its_cursor_on_the_edge(recorded):
    (change,) = recorded.result.changes
    digits = re.search(r"cursor: Some\(\(1, \[(.*?)\]\)\)", recorded.texts["switch.surf.ron"])[1]
    time = sum(int(digit) << 32 * place for place, digit in enumerate(digits.split(", ")))
    assert time == start_of(change.cycle)


# --- the timing picture ---

def edge_of(svg):
    """Cycle that begins at the red line."""
    line = svg.find(f"{SVG}path[@class='edge']").get("d")
    x = int(line.split()[0].removeprefix("M"))
    (cycle,) = (text.text for text in svg.iterfind(f"{SVG}text[@class='cycle']")
                if float(text.get("x")) == x + CYCLE / 2)
    return int(cycle), x - LABEL


def boxes(svg, row):
    """Values of a row with the pixels that they begin at."""
    group = svg.find(f"{SVG}g[@id='{row}']")
    lefts = [int(path.get("d").split()[0].removeprefix("M")) for path in group.iter(f"{SVG}path")
             if path.get("class")]
    values = [text.text for text in group.iterfind(f"{SVG}text[@class='value']")]
    return list(zip(lefts, values, strict=True))


def test_the_picture_shows_the_edge_in_the_cycle_that_was_sampled(recorded):
    (change,) = recorded.result.changes
    cycle, edge = edge_of(recorded.svg)
    assert cycle == change.cycle
    assert (edge, "HOST_AREA") in boxes(recorded.svg, "owner")
    assert (edge, "ROOT") in boxes(recorded.svg, "mode")
    for register in ("RIP", "CR3"):
        before, after = boxes(recorded.svg, register)[:2]
        assert before == (0, f"{recorded.result.start[register]:x}")
        assert after[0] == edge


def test_the_picture_of_a_refusal_says_that_live_kept_its_owner(refused):
    assert "live keeps its owner" in refused.svg.find(f"{SVG}title").text
    assert [value for _, value in boxes(refused.svg, "owner")] == ["SOFTWARE"]
    _, edge = edge_of(refused.svg)
    assert (edge, "FAIL_VALID") in boxes(refused.svg, "outcome")


# --- whole or not at all ---

def test_a_run_that_fails_leaves_nothing(tmp_path):
    port = PysimPort(PRESETS["compact"])
    with pytest.raises(ZeroDivisionError), waves.recording(port, tmp_path / "waves"):
        port.execute(Instruction("VMXOFF"))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_operations_is_recorded_too(tmp_path):
    with waves.recording(PysimPort(PRESETS["compact"]), tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "notes").touch()
    (tmp_path / "switch.vcd").write_text("old", encoding="utf-8")
    port = PysimPort(PRESETS["compact"])
    with waves.recording(port, tmp_path):
        port.execute(Instruction("VMXOFF"))
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes"}
    assert "FAULT" in (tmp_path / "switch.vcd").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder, reason", [
    ("file", "Not a directory"), ("file/waves", "Not a directory"),
    ("missing/waves", "No such file or directory"),
])
def test_a_folder_that_cannot_be_written_is_named_before_the_run(tmp_path, folder, reason):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as error, waves.recording(None, tmp_path / folder):
        pytest.fail("the run has begun")
    assert str(error.value) == f"cannot write waves to {tmp_path / folder}: {reason}"

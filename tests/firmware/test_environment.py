"""Environment: every shipped one, derived facts, adjustments, JSON."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from vmxswitch.firmware import readers
from vmxswitch.firmware.environment import REGISTERS, Environment
from vmxswitch.spec.errors import UsageError

README = Path(__file__).parents[2] / "firmware" / "environments" / "README.md"


def shipped_table():
    """Rows of the README: (name, cpu, mode, paging, CPL)."""
    readme = README.read_text("utf-8")
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[4].isdigit():
            name, _, cpu = cells[0].partition(" CPU#")
            yield name, int(cpu) if cpu else None, cells[2], cells[3], int(cells[4])


TABLE = list(shipped_table())


def real_mode(**changes):
    registers = Environment.read("reset-vector").registers
    return Environment({**registers, **changes}, "test", emulated=True)


def test_readme_lists_every_shipped_environment():
    assert sorted({row[0] for row in TABLE}) == list(readers.shipped())
    assert len(readers.shipped()) == 46


@pytest.mark.parametrize(("name", "cpu", "mode", "paging", "cpl"), TABLE)
def test_shipped_environment_reads_as_the_readme_says(name, cpu, mode, paging, cpl):
    environment = Environment.read(name, cpu)
    assert (environment.mode, environment.paging, environment.cpl) == (mode, paging, cpl)
    assert environment.long_mode == (mode in {"64-bit", "compatibility"})
    assert environment.smm == (name == "ovmf-x64-smm")
    assert environment.emulated and environment.a20 and not environment.adjustments
    assert {"PAT", "DEBUGCTL", "SYSENTER_EIP", "PENDING_DBG"} <= environment.assumed.keys()


@pytest.mark.parametrize(("name", "cpu"), [row[:2] for row in TABLE])
def test_adjusting_reaches_what_a_processor_holds(name, cpu):
    environment = Environment.read(name, cpu)
    adjusted = environment.adjusted()
    registers = adjusted.registers
    assert registers["TR_AR"] & 0xF == 0xB  # no 16-bit task among them
    assert registers["CS_AR"] & 1
    for segment in ("SS", "DS", "ES", "FS", "GS"):
        assert registers[f"{segment}_AR"] in {0x10000} or registers[f"{segment}_AR"] & 0x91 == 0x91
    changed = {
        register for register in REGISTERS if registers[register] != environment.registers[register]
    }
    assert changed == {adjustment.register for adjustment in adjusted.adjustments}
    assert adjusted.adjusted() is adjusted
    assert adjusted.assumed == environment.assumed


@pytest.mark.parametrize(("name", "cpu"), [row[:2] for row in TABLE])
def test_json_round_trip_is_exact(name, cpu):
    for environment in (Environment.read(name, cpu), Environment.read(name, cpu).adjusted()):
        assert Environment.from_json(environment.to_json()) == environment


def test_exact_values_of_a_64_bit_kernel():
    registers = Environment.read("linux-6.1-amd64-idle").registers
    with (
        files("vmxswitch.firmware").joinpath("environments", "linux-6.1-amd64-idle.txt")
    ).open() as file:
        text = file.read()
    assert f"RIP={registers['RIP']:016x} RFL={registers['RFLAGS']:08x}" in text
    assert f"RSP={registers['RSP']:016x}" in text
    assert f"GS ={registers['GS_SELECTOR']:04x} {registers['GS_BASE']:016x}" in text
    assert f"CR3={registers['CR3']:016x} CR4={registers['CR4']:08x}" in text
    assert (registers["CS_AR"], registers["SS_AR"], registers["TR_AR"]) == (0xA09B, 0xC093, 0x89)
    assert registers["ACTIVITY"] == 1
    assert registers["PAT"] == 0x0007040600070406


def test_adjustments_of_a_64_bit_kernel():
    adjusted = Environment.read("linux-6.1-amd64-idle").adjusted()
    changes = {change.register: (change.before, change.after) for change in adjusted.adjustments}
    null = (0, 0x10000)
    assert changes == {
        "TR_AR": (0x89, 0x8B),
        "LDTR_AR": (0x82, 0x10082),
        "DS_AR": null,
        "ES_AR": null,
        "FS_AR": null,
        "GS_AR": null,
    }
    assert adjusted.adjustments[0].as_dict() == {
        "register": "TR_AR",
        "from": 0x89,
        "to": 0x8B,
        "why": adjusted.adjustments[0].why,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"CS_AR": 0x9E}, {"CS_AR": 0x9F}),  # accessed bit
        ({"SS_AR": 0x92}, {"SS_AR": 0x93}),
        ({"DS_AR": 0x00}, {}),  # real mode has no null selectors
        ({"CR0": 0x11, "DS_AR": 0x00}, {"DS_AR": 0x10000}),
        ({"CR0": 0x11, "DS_AR": 0x93, "DS_SELECTOR": 0}, {}),  # selector 0 alone says nothing
        (
            {"CR0": 0x11, "RFLAGS": 0x20002, "FS_AR": 0x00},
            {},
        ),  # nor is there any in virtual-8086 mode
        ({"TR_AR": 0x81}, {"TR_AR": 0x83}),  # 16-bit task
        ({"TR_AR": 0x9B}, {}),
        ({"LDTR_AR": 0x00}, {"LDTR_AR": 0x10000}),
        ({"LDTR_LIMIT": 0}, {"LDTR_AR": 0x10082}),
        ({"LDTR_LIMIT": 0, "LDTR_SELECTOR": 0x18}, {}),
        ({"RFLAGS": 0x8028}, {"RFLAGS": 0x2}),
        ({"DR7": 0xF602}, {"DR7": 0x2602}),
        ({"CR0": 0x60000000}, {"CR0": 0x60000010}),
    ],
)
def test_each_rule_of_adjusting(changes, expected):
    environment = real_mode(**changes)
    adjusted = environment.adjusted()
    assert {change.register: change.after for change in adjusted.adjustments} == expected
    assert adjusted.registers == {**environment.registers, **expected}


def test_stated_registers_are_never_adjusted():
    environment = replace(real_mode(TR_AR=0x89), emulated=False)
    assert environment.adjusted() is environment


def test_compatibility_mode_says_what_is_cut_and_does_not_guess():
    environment = Environment.read("linux-6.1-amd64-compat-user")
    assert environment.registers["TR_BASE"] == 0x3000
    assert "upper half is unknown" in environment.adjusted().assumed["TR_BASE"]
    assert "TR_BASE" not in Environment.read("linux-6.1-amd64-user").assumed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AX": 1}, "test: unknown register 'AX'"),
        ({"RIP": True}, "test: RIP must be an integer, not True"),
        ({"RIP": "1"}, "test: RIP must be an integer, not '1'"),
        ({"RIP": -1}, "test: RIP = -0x1 does not fit 64 bits"),
        ({"CS_SELECTOR": 0x10000}, "test: CS_SELECTOR = 0x10000 does not fit 16 bits"),
    ],
)
def test_bad_register_is_refused(changes, message):
    with pytest.raises(UsageError) as error:
        real_mode(**changes)
    assert str(error.value) == message


def test_missing_registers_are_named():
    with pytest.raises(
        UsageError, match="test: no value for RIP, RSP, RFLAGS, CR0, CR3, CR4 and 46 more"
    ):
        Environment({}, "test")


def test_registers_cannot_be_changed():
    with pytest.raises(TypeError):
        real_mode().registers["RIP"] = 0


def edited(edit):
    content = json.loads(real_mode().adjusted().to_json())
    edit(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "f:1: not JSON"),
        ("[]", "f: must be an object"),
        ('{"registers": ' + "[" * 100_000, "f: a number or the nesting"),
        ('{"format": 1' + "0" * 5000 + "}", "f: a number or the nesting"),
        ('{"a20": true, "a20": true}', "f: 'a20' is given twice"),
        (
            edited(lambda c: c.update(format="v0")),
            "f: the format must be 'vmxswitch-environment v1', not 'v0'",
        ),
        (
            edited(lambda c: c.pop("format")),
            "f: the format must be 'vmxswitch-environment v1', not None",
        ),
        (edited(lambda c: c.pop("registers")), "f: no key 'registers'"),
        (edited(lambda c: c.update(cpu=1)), "f: unknown key 'cpu'; known: format"),
        (edited(lambda c: c.update(a20=1)), "f: 'a20' must be true or false, not '1'"),
        (edited(lambda c: c.update(registers=[])), "f: 'registers' must be an object"),
        (edited(lambda c: c["registers"].pop("CR3")), "f: no value for CR3"),
        (edited(lambda c: c["registers"].update(R8=1)), "f: unknown register 'R8'"),
        (edited(lambda c: c["registers"].update(CR3=1.5)), "f: CR3 must be an integer, not 1.5"),
        (
            edited(lambda c: c["registers"].update(CR3=1 << 64)),
            "f: CR3 = 0x10000000000000000 does not fit",
        ),
        (edited(lambda c: c["assumed"].update(CR3=1)), "f: assumed: 'CR3' must be a string"),
        (edited(lambda c: c["assumed"].update(R8="")), "f: assumed: unknown key 'R8'"),
        (edited(lambda c: c["adjustments"].append([])), "f: adjustments[0]: must be an object"),
        (
            edited(lambda c: c["adjustments"].append({"from": 1})),
            "f: adjustments[0]: no key register, to, why",
        ),
    ],
)
def test_bad_json_is_refused(text, message):
    with pytest.raises(UsageError) as error:
        Environment.from_json(text, "f")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_short_json_by_hand_is_enough():
    text = json.dumps(
        {"format": "vmxswitch-environment v1", "registers": dict(real_mode().registers)}
    )
    environment = Environment.from_json(text, "f")
    assert environment == replace(real_mode(), source="f", emulated=False)
    assert environment.adjustments == ()

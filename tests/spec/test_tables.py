"""The tables: complete, consistent with each other, and strict about their rows."""

import json
import re
from pathlib import Path

import pytest

from vmxswitch.spec import tables
from vmxswitch.spec.capabilities import PRESETS, Capabilities, configuration
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import Const
from vmxswitch.spec.region import ABORT_OFFSET, LAUNCH_OFFSET, field_offsets
from vmxswitch.spec.tables import (
    CAPABILITY_MSRS,
    CHECKS,
    CONTROL_WORDS,
    CONTROLS,
    ERRORS,
    EXIT_REASONS,
    FIELD_BY_ENCODING,
    FIELDS,
    INSTRUCTIONS,
    MSRS,
    REGISTER_BITS,
    STAGES,
    TableError,
)

PROFILES = sorted((Path(__file__).parents[1] / "cases" / "profiles").glob("*.json"))
ROWS = [row for rows in INSTRUCTIONS.values() for row in rows]
#: Every preset and every recorded processor, as test parameters.
PROCESSORS = [
    *(pytest.param(preset, id=name) for name, preset in PRESETS.items()),
    *(pytest.param(Capabilities.from_profile(path), id=path.stem) for path in PROFILES),
]


@pytest.mark.parametrize("table, count", [
    (CHECKS, 321), (FIELDS, 284), (CONTROLS, 146), (ROWS, 121), (EXIT_REASONS, 80), (ERRORS, 28),
    (MSRS, 30), (REGISTER_BITS, 12),
])
def test_a_table_has_all_its_rows(table, count):
    assert len(table) == count


def test_ranges_do_not_overlap():
    ranges = [(msr.first, msr.last) for msr in MSRS]
    for bits in [ranges, *([(bit.low, bit.high) for bit in bits]
                           for bits in REGISTER_BITS.values())]:
        assert all(low <= high < after for (low, high), (after, _) in zip(
            bits, [*bits[1:], (1 << 64, 0)], strict=True))


@pytest.mark.parametrize("name, key", [
    ("capability_msrs.csv", ["msr"]), ("capability_msrs.csv", ["symbol"]),
    ("control_words.csv", ["word"]), ("control_words.csv", ["field"]),
    ("controls.csv", ["symbol"]), ("controls.csv", ["word", "bit"]),
    ("entry_checks.csv", ["id"]), ("entry_checks.csv", ["condition", "applies"]),
    ("entry_checks.csv", ["demand"]),
    ("exit_reasons.csv", ["number"]), ("exit_reasons.csv", ["symbol"]),
    ("instruction_errors.csv", ["number"]), ("instruction_errors.csv", ["symbol"]),
    ("instructions.csv", ["instruction", "order"]),
    ("msrs.csv", ["first"]), ("msrs.csv", ["name"]),
    ("notation.csv", ["name", "parameters"]),
    ("register_bits.csv", ["register", "low"]), ("register_bits.csv", ["register", "name"]),
    ("registers.csv", ["register"]), ("symbols.csv", ["symbol"]),
    ("vmcs_fields.csv", ["encoding"]), ("vmcs_fields.csv", ["symbol"]),
    ("vmcs_fields.csv", ["name"]),
])
def test_no_row_is_there_twice(name, key):
    keys = [tuple(row[column] for column in key) for row in tables._read(name)]
    assert len(keys) == len(set(keys))


# Fields

AREAS = ["control", "exit-information", "guest-state", "host-state"]
WIDTHS = ["16", "64", "32", "natural"]


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.symbol)
def test_an_encoding_says_area_and_width(field):
    assert AREAS[field.encoding >> 10 & 3] == field.area
    assert WIDTHS[field.encoding >> 13 & 3] == field.width_class
    assert field.encoding >> 15 == 0 and not field.encoding >> 12 & 1
    assert (field.access == "ro") == (field.area == "exit-information")
    assert FIELD_BY_ENCODING[field.encoding] is field


def test_every_64_bit_field_has_a_high_half_and_no_other():
    low = {field.symbol for field in FIELDS.values()
           if field.width_class == "64" and not field.is_high}
    high = [field for field in FIELDS.values() if field.is_high]
    assert {field.symbol for field in high} == {f"{symbol}_HIGH" for symbol in low}
    for field in high:
        full = FIELDS[field.symbol.removesuffix("_HIGH")]
        assert (field.encoding, field.area, field.access, field.feature) == (
            full.encoding | 1, full.area, full.access, full.feature)


# Controls

@pytest.mark.parametrize("word", CONTROL_WORDS.values(), ids=lambda word: word.word)
def test_the_controls_cover_their_word_once(word):
    bits = [bit for control in CONTROLS.values() if control.word == word.word
            for bit in range(control.low, control.high + 1)]
    assert sorted(bits) == list(range(word.bits))


@pytest.mark.parametrize("word, default1", [
    ("pin", 0x0000_0016), ("proc1", 0x0401_E172), ("exit", 0x0003_6DFF), ("entry", 0x0000_11FF),
    ("proc2", 0), ("proc3", 0), ("exit2", 0),
])
def test_the_default1_bits_are_the_architectural_ones(word, default1):
    assert default1 == sum(1 << control.low for control in CONTROLS.values()
                           if control.word == word and control.default1)


# Entry checks

#: Fields that a report shows although the expression does not read them: where its input lay.
SHOWN_ONLY = {
    "PDPTE":      {"GUEST_CR3"},               # lookup of PDPTE0 to PDPTE3 without EPT
    "LIST_":      {"VM_ENTRY_MSR_LOAD_ADDR"},  # the entry under test
    "WRMSR_ACCE": {"VM_ENTRY_MSR_LOAD_ADDR", "LIST_INDEX", "LIST_DATA"},  # what WRMSR is given
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.id)
def test_a_check_shows_fields_that_it_reads(check):
    read = set(check.symbols)
    for start, shown in SHOWN_ONLY.items():
        if any(symbol.startswith(start) for symbol in check.symbols):
            read |= shown
    assert set(check.fields) <= read


def test_only_a_check_without_inputs_shows_no_field():
    assert [check.id for check in CHECKS.values() if not check.fields] == ["X01"]


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.id)
def test_a_check_says_what_it_demands(check):
    assert re.match(r"'?[A-Z0-9]", check.demand)
    assert check.demand == check.demand.strip() and not check.demand.endswith(".")
    assert check.demand.count("'") % 2 == check.demand.count("'s ") % 2, "unbalanced quotes"
    assert len(check.demand) <= 165


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.id)
def test_a_demand_names_the_segments_of_its_fields(check):
    for field in check.fields:
        if match := re.fullmatch(r"(?:GUEST|HOST)_([CSDEFG]S|TR|LDTR|GDTR|IDTR)_\w+", field):
            assert re.search(rf"\b{match[1]}\b", check.demand)


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.id)
def test_a_failure_fits_the_stage(check):
    failure = check.failure
    if check.stage in ("control", "host"):
        assert failure.error in ERRORS and failure.reason is None
        assert check.stage == "control" or failure.error == 8
    elif check.id == "X01":
        assert failure.reason == 41
    else:
        assert failure.error is None
        assert failure.reason == (34 if check.stage == "msr-load" else 33)
        assert (failure.qualification is None) == (check.stage == "msr-load")
        assert failure.qualification in (None, 0, 2, 3, 4)


def test_the_stages_come_in_order():
    stages = [check.stage for check in CHECKS.values() if check.id != "X01"]
    assert stages == sorted(stages, key=STAGES.index)


# Instructions

@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_an_outcome_names_a_number_that_exists(row):
    match row.outcome.rstrip(")").replace("(", " ").split():
        case ["VMfail", number]:
            assert row.instruction in ERRORS[int(number)].raised_by
        case ["exit", number]:
            assert EXIT_REASONS[int(number)].symbol == row.instruction
        case ["entry", "failure", number]:
            assert int(number) in (33, 34, 41)
            assert int(number) in EXIT_REASONS
        case _:
            assert row.outcome in (
                "#UD", "#GP(0)", "operand fault", "VMfailInvalid", "VMsucceed", "VM entry",
                "continue", "SMM VM exit", "activate dual-monitor treatment")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_says_its_condition_in_words(row):
    assert re.match(r"'?[A-Z0-9]", row.words)
    assert not row.words.endswith(".") and "otherwise" not in row.words
    assert not re.search(r"&&|\|\||!=|\bptr\b", row.words), "notation, not words"


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_the_rows_of_an_instruction_leave_no_gap(instruction):
    rows = INSTRUCTIONS[instruction]
    assert [row.order for row in rows] == list(range(1, len(rows) + 1))
    assert [row.condition == Const(1, 1) for row in rows] == [False] * (len(rows) - 1) + [True]


# Rows that do not make sense

def changed(name, key, **columns):
    """The first row of a table whose first column is ``key``, with some columns changed."""
    row = next(row for row in tables._read(name) if next(iter(row.values())) == key)
    return row | columns


@pytest.mark.parametrize("columns, message", [
    ({"condition": "GUEST_CR9 == 0"}, "'GUEST_CR9' in 'GUEST_CR9 == 0': unknown symbol"),
    ({"condition": "GUEST_CR0[64]"},  "'GUEST_CR0[64]': no bit 64 in 64 bits"),
    ({"condition": "GUEST_CR0"},      "'GUEST_CR0': 64 bits meet 1 bits"),
    ({"condition": "GUEST_CR0 == VPID"}, "'GUEST_CR0 == VPID': 16 bits meet 64 bits"),
    ({"applies": "PROC2_NOTHING"},    "'PROC2_NOTHING': unknown symbol"),
    ({"applies": "PIN[32]"},          "'PIN[32]': no bit 32 in 32 bits"),
    ({"applies": "always ="},         "'always =': invalid syntax"),
    ({"fields": "GUEST_CR0 CR0"},     "no symbol 'CR0'"),
    ({"failure": "VMfail(7)"},        "no failure 'VMfail(7)'"),
    ({"failure": "entry_failure(33, x)"}, "no failure 'entry_failure(33, x)'"),
])
def test_a_bad_check_is_refused_by_name(columns, message):
    with pytest.raises(TableError) as error:
        tables._at(changed("entry_checks.csv", "G01", **columns), "entry_checks.csv, G01",
                   tables._check)
    assert str(error.value) == f"entry_checks.csv, G01: {message}"


@pytest.mark.parametrize("columns, message", [
    ({"entry": "GUEST_CS_AR"},       "'GUEST_CS_AR': 32 bits meet 64 bits"),
    ({"exit": "1 << 64"},            "'1 << 64': 0x10000000000000000 does not fit 64 bits"),
    ({"save": "LIVE_RAX"},           "'LIVE_RAX': unknown symbol"),
    ({"feature": "GUEST_CR0[0]"},    "'GUEST_CR0' in 'GUEST_CR0[0]': unknown symbol"),
    ({"field": "GUEST_RAX"},         "'GUEST_RAX'"),
    ({"width_class": "48"},          "'48'"),
])
def test_a_bad_register_is_refused_by_name(columns, message):
    with pytest.raises(TableError) as error:
        tables._at(changed("registers.csv", "RIP", **columns), "registers.csv, RIP",
                   tables._register)
    assert str(error.value) == f"registers.csv, RIP: {message}"


def test_a_good_row_is_not_refused():
    assert tables._at(changed("entry_checks.csv", "G01"), "", tables._check) == CHECKS["G01"]


# Capabilities

def test_the_recorded_processors_are_there():
    assert PROFILES, "tests/cases/profiles holds no *.json"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_fields_follow_from_the_capability_msrs(path):
    profile = json.loads(path.read_text())
    capabilities = Capabilities.from_profile(path)
    assert capabilities.encodings == set(profile["fields"])
    assert capabilities.name == profile["name"]
    low = {FIELDS[symbol].encoding for symbol in capabilities.fields}
    assert low == {encoding for encoding in profile["fields"] if not encoding & 1}


@pytest.mark.parametrize("capabilities", PROCESSORS)
def test_a_capability_msr_exists_when_its_feature_does(capabilities):
    expected = {row.msr for row in CAPABILITY_MSRS.values() if capabilities._exists(row.feature)}
    assert set(capabilities.msrs) == expected


@pytest.mark.parametrize("capabilities", PROCESSORS)
def test_no_control_bit_must_be_both_0_and_1(capabilities):
    for word in CONTROL_WORDS.values():
        for msr in filter(None, (word.capability, word.true_capability)):
            value = capabilities.msr(msr)
            if word.allowed_1_low:
                assert value & 0xFFFF_FFFF & ~(value >> 32) == 0, msr
        if word.true_capability:
            plain = capabilities.msr(word.capability)
            true = capabilities.msr(word.true_capability)
            assert true >> 32 == plain >> 32, "the TRUE MSRs allow the same bits to be 1"
            assert true & ~plain & 0xFFFF_FFFF == 0, "and demand no further bit"
    for register in ("CR0", "CR4"):
        fixed0, fixed1 = (capabilities.msr(f"{register}_FIXED{n}") for n in (0, 1))
        assert fixed0 & ~fixed1 == 0


@pytest.mark.parametrize("capabilities", PRESETS.values(), ids=PRESETS)
def test_a_preset_demands_the_default1_bits(capabilities):
    demanded = {symbol: value & 0xFFFF_FFFF for symbol in CAPABILITY_MSRS
                if re.search("(PINBASED|PROCBASED|EXIT|ENTRY)_CTLS2?$", symbol)
                for value in [capabilities.msr(symbol)]}
    assert demanded == {
        "IA32_VMX_PINBASED_CTLS":       0x0000_0016,
        "IA32_VMX_PROCBASED_CTLS":      0x0401_E172,
        "IA32_VMX_EXIT_CTLS":           0x0003_6DFF,
        "IA32_VMX_ENTRY_CTLS":          0x0000_11FF,
        "IA32_VMX_TRUE_PINBASED_CTLS":  0x0000_0016,
        "IA32_VMX_TRUE_PROCBASED_CTLS": 0x0400_6172,
        "IA32_VMX_TRUE_EXIT_CTLS":      0x0003_6DFB,
        "IA32_VMX_TRUE_ENTRY_CTLS":     0x0000_11FB,
        "IA32_VMX_PROCBASED_CTLS2":     0,
        "IA32_VMX_EXIT_CTLS2":          0,
    }


@pytest.mark.parametrize("capabilities", PRESETS.values(), ids=PRESETS)
def test_a_preset_offers_no_reserved_bit(capabilities):
    offered = [name for name in CONTROLS if capabilities.allows(name)]
    assert [name for name in offered if "RESERVED" in name and not CONTROLS[name].default1] == []


@pytest.mark.parametrize("capabilities", PROCESSORS)
def test_a_region_holds_every_field(capabilities):
    offsets = field_offsets(capabilities)
    assert list(offsets) == list(capabilities.fields)
    assert len(set(offsets.values())) == len(offsets)
    assert all(offset % 8 == 0 for offset in offsets.values())
    assert max(ABORT_OFFSET, LAUNCH_OFFSET + 7) < min(offsets.values())
    assert max(offsets.values()) + 8 <= (capabilities.msr("IA32_VMX_BASIC") >> 32 & 0x1FFF) <= 4096


@pytest.mark.parametrize("capabilities", PROCESSORS)
def test_a_bound_check_reads_no_capability_and_no_absent_field(capabilities):
    known = set(capabilities.constants)
    absent = set(FIELDS) - set(capabilities.fields)
    for check in capabilities.checks.values():
        read = tables.symbols(check.fails)
        assert not read & (known | absent), check.id


def test_a_32_bit_processor_has_32_bit_natural_fields():
    full, compact = PRESETS["full"], PRESETS["compact"]
    assert [full.bits(FIELDS["GUEST_RIP"]), compact.bits(FIELDS["GUEST_RIP"])] == [64, 32]
    assert [full.bits(FIELDS["TSC_OFFSET"]), compact.bits(FIELDS["GUEST_CS_AR"])] == [64, 32]
    assert full.intel64 and not compact.intel64


ARGUMENTS = {"name": "odd", "msrs": {}, "physical_address_width": 40, "linear_address_width": 48,
             "efer_bits": 0, "wrmsr_rules": {}}


@pytest.mark.parametrize("arguments, message", [
    ({"physical_address_width": 31}, "odd: physical-address width 31 is not 32 to 52"),
    ({"physical_address_width": 53}, "odd: physical-address width 53 is not 32 to 52"),
    ({"resident_vmcss": 0},  "odd: 0 resident VMCSs; there can be 1 to 16"),
    ({"resident_vmcss": 17}, "odd: 17 resident VMCSs; there can be 1 to 16"),
    ({"linear_address_width": 47},   "odd: linear-address width 47 is not 32, 48 or 57"),
    ({"wrmsr_rules": {0x277: "sometimes"}},
     "odd: no WRMSR rule 'sometimes' (MSR 0x277); there are any, canonical, pat"),
])
def test_a_bad_capability_is_refused(arguments, message):
    Capabilities(**ARGUMENTS)
    with pytest.raises(UsageError) as error:
        Capabilities(**ARGUMENTS | arguments)
    assert str(error.value) == message


def profile_of(preset):
    return {
        "format": "vmx-profile v1", "name": preset.name,
        "msrs": {hex(index): value for index, value in preset.msrs.items()},
        "physical_address_width": preset.physical_address_width,
        "linear_address_width": preset.linear_address_width, "efer_bits": preset.efer_bits,
        "wrmsr_rules": {hex(index): rule for index, rule in preset.wrmsr_rules.items()},
        "fields": sorted(preset.encodings),
    }


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_profile_is_read_back(preset, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile_of(preset)))
    capabilities = Capabilities.from_profile(path)
    assert capabilities.constants == preset.constants
    assert list(capabilities.checks) == list(preset.checks)


def without(profile, key):
    return {name: value for name, value in profile.items() if name != key}


COMPACT = profile_of(PRESETS["compact"])


@pytest.mark.parametrize("content, message", [
    ("{",                                 "not a vmx-profile v1 (JSONDecodeError("),
    ("[]",                                "not a vmx-profile v1 (TypeError("),
    (without(COMPACT, "format"),          "not a vmx-profile v1 (KeyError('format'))"),
    (without(COMPACT, "efer_bits"),       "not a vmx-profile v1 (KeyError('efer_bits'))"),
    (COMPACT | {"msrs": {"basic": 1}},    "not a vmx-profile v1 (ValueError("),
    (COMPACT | {"format": "v2"},          "format 'v2' is not 'vmx-profile v1'"),
    (COMPACT | {"fields": COMPACT["fields"] + [0x201A]},
     "field 0x201a does not follow from the capability MSRs"),
    (COMPACT | {"fields": [encoding for encoding in COMPACT["fields"] if encoding != 0x6800]},
     "field 0x6800 does not follow from the capability MSRs"),
], ids=lambda part: part[:30] if isinstance(part, str) else "profile")
def test_a_bad_profile_is_refused(content, message, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UsageError) as error:
        Capabilities.from_profile(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_missing_profile_is_refused(tmp_path):
    with pytest.raises(UsageError) as error:
        Capabilities.from_profile(tmp_path / "gone.json")
    assert str(error.value) == f"{tmp_path / 'gone.json'}: No such file or directory"


# --- configurations ---

@pytest.mark.parametrize("name, base, slots", [
    ("full", "full", 1), ("full:16", "full", 16), ("compact:1", "compact", 1)])
def test_a_configuration_is_a_preset_with_a_number_of_slots(name, base, slots):
    found = configuration(name)
    assert (found.name, found.resident_vmcss) == (name, slots)
    assert found.msrs == PRESETS[base].msrs


def test_a_configuration_may_be_the_file_of_a_profile(tmp_path):
    profile = PROFILES[0]
    assert configuration(str(profile)).resident_vmcss == 1
    found = configuration(f"{profile}:3")
    assert (found.name, found.resident_vmcss) == (f"{profile.stem}:3", 3)
    path = tmp_path / "four.json"
    path.write_text(json.dumps(json.loads(profile.read_text()) | {"resident_vmcss": 4}))
    assert configuration(str(path)).resident_vmcss == 4


@pytest.mark.parametrize("name, message", [
    ("small", "no configuration 'small': full, compact, or the file of a profile; NAME:N has N "
              "resident VMCSs"),
    ("small:2", "no configuration 'small:2': full, compact, or the file of"),
    ("full:", "no configuration 'full:'"),
    ("full:many", "'full:many': 'many' is not a number of resident VMCSs"),
    ("full:0", "full:0: 0 resident VMCSs; there can be 1 to 16"),
    ("compact:17", "compact:17: 17 resident VMCSs; there can be 1 to 16"),
])
def test_a_configuration_that_cannot_be_is_refused(name, message):
    with pytest.raises(UsageError) as error:
        configuration(name)
    assert message in str(error.value)

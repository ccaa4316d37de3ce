"""Audits: dumps of real systems, three-valued rows, known public mistakes, capabilities."""

import json
import random
from pathlib import Path

import pytest

from vmxswitch.firmware import audit
from vmxswitch.firmware.auditing import Knowledge, capability_files, hints, words
from vmxswitch.firmware.auditing.rows import ListEntry, Situation
from vmxswitch.firmware.prediction import Situation as KnownSituation
from vmxswitch.spec.capabilities import PRESETS, Capabilities
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import Const, bind, symbols
from vmxswitch.spec.tables import (
    CHECKS,
    CONTROL_WORDS,
    CONTROLS,
    FIELDS,
    INSTRUCTIONS,
    REGISTERS,
)

DUMPS = Path(__file__).parent / "dumps"
PROFILES = Path(__file__).parents[1] / "cases" / "profiles"
SKYLAKE = Capabilities.from_profile(PROFILES / "skylake_x_64.json")
ASSUMED, KNOWN = Knowledge.assumed().with_linear_width(48), Knowledge.of(SKYLAKE)


def dump_text(name):
    return (DUMPS / f"{name}.txt").read_bytes().decode()


# Dumps of real systems


@pytest.mark.parametrize("name", sorted(path.stem for path in DUMPS.glob("*.txt")))
def test_dumps_of_real_systems(name):
    expected = json.loads((DUMPS / f"{name}.expect.json").read_text())
    found = [item.as_dict() for item in audit(dump_text(name))]
    assert [
        {key: item[key] for key in ("format", "complete", "qualification", "printed")}
        | {"audit_verdict": item["verdict"],
           "failed_checks": sorted(finding["id"] for finding in item["failed"])}
        for item in found
    ] == [
        {key: item[key] for key in ("format", "complete", "qualification", "printed",
                                    "audit_verdict", "failed_checks")}
        for item in (expected if isinstance(expected, list) else [expected])
    ]
    for item in found:
        decided = {finding["id"] for finding in item["failed"]}
        assert not decided & set(item["undecided"])
        assert item["agreement"].startswith(("agrees", "does not explain it", "nothing"))


def test_what_is_said_of_a_failing_row():
    [item] = audit(dump_text("kvm-2021-ds-not-accessed"))
    finding = item.failed[0]
    assert finding.as_dict() | {"text": ""} == {
        "id": "G64", "fields": ["GUEST_DS_AR"], "values": [0xC0F2], "text": ""}
    assert finding.lines == (
        "GUEST_DS_AR = 0x0000c0f2: type 2 (read/write data), S=1, DPL=3, P=1, D/B, G",)
    assert finding.cure == ("GUEST_DS_AR", 0xC0F3)
    assert finding.outcome == "reason 33, qualification 0"
    for part in (finding.demand, finding.section, finding.hint, "0x0000c0f3"):
        assert part in finding.text


def test_a_list_has_nothing_to_do_with_other_rows():
    text = dump_text("kvm-2021-ds-not-accessed").replace(
        "> *** Host State ***", "> MSR guest autoload:\n"
        ">    0: msr=0x00000174 value=0x0000000000001000\n"
        ">    1: msr=0xc0000101 value=0x0000000000001000\n> *** Host State ***")
    [item] = audit(text)
    assert [(finding.id, finding.outcome, finding.cure) for finding in item.failed] == [
        ("G64", "reason 33, qualification 0", ("GUEST_DS_AR", 0xC0F3)),
        ("G66", "reason 33, qualification 0", ("GUEST_ES_AR", 0xC0F3)),
        ("M02", "reason 34, qualification 2", None)]


def test_a_reason_that_is_not_explained_says_why():
    [tail] = audit(dump_text("kvm-2018-nmi-sti-tail"))
    assert "qualification 3 it is the outcome of N16" in tail.agreement
    assert "lacks Guest section" in tail.agreement
    [nested] = audit(dump_text("kvm-2017-cr4-smxe"))
    assert "itself virtual" in nested.agreement
    text = dump_text("xen-2019-error7").replace("VMLAUNCH error: 0x7", "VMLAUNCH error: 0x8")
    [other] = audit(text)
    assert other.printed == "error 8" and "reports error 8" in other.agreement
    [other] = audit(text.replace("VMLAUNCH error: 0x8", "VMLAUNCH error: 0x1a")
                    .replace("intr_info=8000030d", "intr_info=00000000"))
    assert "no entry check ends in error 26" in other.agreement and "MOV SS" in other.agreement
    [haxm] = audit("haxm_error: 4400 VMX_INSTRUCTION_ERROR_CODE: 7\nhaxm_error: 4402 X: 1e\n")
    assert haxm.printed == "enters" and "VM_INSTRUCTION_ERROR holds 7" in haxm.agreement
    text = dump_text("kvm-2020-ept-exit").replace("Virtual processor ID = 0x0001",
                                                  "Virtual processor ID = 0x0000")
    [stale] = audit(text)
    assert stale.verdict == "error 7" and "stale" in stale.agreement


@pytest.mark.parametrize(("old", "new"), [
    ("Virtual processor ID = 0x0001", ""),
    ("*** Host State ***", ""),
    ("Interruptibility = 00000000  ActivityState = 00000000", ""),
    ("reason=00000030", "reason=80000021"),
    ("reason=00000030", "reason=00000021"),
    ("EPT pointer = 0x000000105a27005e", "EPT pointer = 0x000000105a27g05e"),
])
def test_nothing_enters_that_is_not_whole_and_successful(old, new):
    text = dump_text("kvm-2020-ept-exit")
    assert old in text and audit(text)[0].verdict == "enters"
    assert [item.verdict for item in audit(text.replace(old, new))] == ["undecided"]


def test_a_head_line_that_cannot_be_read_still_reports_a_failure():
    text = dump_text("xen-2020-two-vcpus")
    damaged = text.replace("\tVCPU 1", "d1v1 vmentry failure (reason 0x8000")
    assert [item.verdict for item in audit(damaged)] == ["enters", "undecided"]
    assert "head line reports a failed entry" in audit(damaged)[1].agreement


def test_a_line_that_cannot_be_read_is_named_and_the_rest_audited():
    text = dump_text("kvm-2021-ds-not-accessed").replace("CR3 = 0x0", "CR3 = 0xg")
    [item] = audit(text)
    assert item.problems[0].line == 4 and "CR3 = 0xg" in item.problems[0].text
    assert [finding.id for finding in item.failed] == ["G64", "G66"]


def test_a_log_without_a_dump_has_no_audit():
    assert audit("") == audit("nothing here\n") == []


# Three values


def test_a_row_that_fails_or_passes_does_so_whatever_the_unknown_values_are():
    """Fields are taken away: what is still decided must be what it was with them."""
    source, decided = random.Random(5), 0
    for number in range(60):
        fields = random_vmcs(source)
        known = KnownSituation(SKYLAKE, fields, {"EFER": 0x500}, {
            f"PDPTE{n}": fields[f"GUEST_PDPTE{n}"] if ept(fields) else 0 for n in range(4)})
        hidden = set(source.sample(sorted(fields), source.choice([0, 3, 30, 100])))
        shown = {name: value for name, value in fields.items() if name not in hidden}
        knowledge = KNOWN if number % 2 else ASSUMED
        situation = Situation(knowledge, shown)
        for check in CHECKS:
            if CHECKS[check].stage == "msr-load":
                continue
            result = situation.result(check)
            if result is not None:
                decided += 1
                assert result is not known.fails(check), (number, check)
    assert decided > 5000


def ept(fields):
    return (fields["PRIMARY_PROC_BASED_CTLS"] >> 31 & fields["SECONDARY_PROC_BASED_CTLS"] >> 1) & 1


def random_vmcs(source):
    """A VMCS of the recorded processor whose control words it allows."""
    profile = json.loads((PROFILES / "skylake_x_64.json").read_text())
    base = dict(profile["baselines"]["default" if "default" in profile["baselines"] else
                                     next(iter(profile["baselines"]))])
    fields = {name: 0 for name in SKYLAKE.fields}
    for key, value in base.items():
        name = next((field.symbol for field in FIELDS.values()
                     if key in (field.symbol, f"{field.encoding:#x}", field.encoding)), None)
        if name in fields:
            fields[name] = value
    for name in source.sample(sorted(fields), source.randrange(12)):
        bits = FIELDS[name].bits
        fields[name] = source.choice([
            source.getrandbits(bits), fields[name] ^ 1 << source.randrange(bits), 0])
    for word in CONTROL_WORDS.values():
        if word.field in fields:
            allowed = SKYLAKE.constants[word.allowed_symbol]
            must = 0 if word.bits == 64 else SKYLAKE.constants[word.capability_symbol] & 0xFFFFFFFF
            fields[word.field] = fields[word.field] & allowed | must
    return fields


@pytest.mark.parametrize(("fields", "check", "result"), [
    ({"GUEST_CR3": 1 << 63}, "G13", False),
    ({"GUEST_CR3": 1 << 52}, "G13", False),
    ({"GUEST_CR3": 1 << 51}, "G13", None),
    ({"GUEST_CR3": 0xFFFFFFFF}, "G13", True),
    ({"GUEST_CR4": 1 << 14}, "G06", None),
    ({"PIN_BASED_CTLS": 0x16}, "C01", None),
    ({"PIN_BASED_CTLS": 0x14}, "C01", False),
    ({"PRIMARY_PROC_BASED_CTLS": 0x0401E172 & ~(1 << 15)}, "C03", None),
    ({"PRIMARY_PROC_BASED_CTLS": 0x0401E172 & ~(1 << 26)}, "C03", False),
    ({"VM_EXIT_CTLS": 0x36DFF & ~1}, "C64", False),
    ({"VM_ENTRY_CTLS": 0x11FF & ~(1 << 12)}, "C74", False),
    ({"VM_ENTRY_CTLS": 0x11FF}, "C74", None),
    ({"GUEST_DR7": 1 << 62}, "G14", None),
    ({"GUEST_DR7": 1 << 62, "VM_ENTRY_CTLS": 0x11FF}, "G14", False),
    ({"GUEST_DR7": 1 << 62, "VM_ENTRY_CTLS": 0x11FB}, "G14", True),
    ({"VPID": 0}, "C33", None),
    ({"VPID": 0, "PRIMARY_PROC_BASED_CTLS": 0}, "C33", True),
    ({"VPID": 0, "PRIMARY_PROC_BASED_CTLS": 1 << 31, "SECONDARY_PROC_BASED_CTLS": 32}, "C33",
     False),
    ({"HOST_RIP": 1 << 50, "VM_EXIT_CTLS": 1 << 9}, "H42", False),
    ({"VM_ENTRY_INTR_INFO": 1 << 10}, "N14", None),
    ({"GUEST_INTERRUPTIBILITY_STATE": 4}, "N14", False),
])
def test_without_capabilities(fields, check, result):
    assert Situation(ASSUMED, fields).result(check) is result


def test_the_linear_width_follows_a_printed_cr4():
    text = dump_text("kvm-2021-ds-not-accessed").replace(
        "TRBase=fffffe0000102000", "TRBase=ff11000000102000")
    assert "H33" in [finding.id for finding in audit(text)[0].failed]
    text = text.replace("CR4=00000000001626e0", "CR4=00000000001636e0")
    assert "H33" not in [finding.id for finding in audit(text)[0].failed]


@pytest.mark.parametrize(("entry", "check", "result"), [
    (ListEntry(0x1DD, 0x1FFFF80676F52BE5, 0), "M06", False),
    (ListEntry(0x1DD, 0xFFFFF80676F52BE5, 0), "M06", None),
    (ListEntry(0x680, 0x1FFFF80676F52BE5, 0), "M06", None),
    (ListEntry(0x680, 0x1FFFF80676F52BE5, 0, 3, True), "M06", False),
    (ListEntry(0x680, 0x0FFF780676F52BE5, 0), "M06", False),
    (ListEntry(0x277, 2, 0), "M06", False),
    (ListEntry(0x12345, 2, 0), "M06", None),
    (ListEntry(0x174, 0, 1), "M01", False),
    (ListEntry(0x174, 0), "M01", None),
    (ListEntry(0xC0000100, 0, 0), "M02", False),
    (ListEntry(0x808, 0, 0), "M03", False),
])
def test_entries_of_the_msr_load_list(entry, check, result):
    assert Situation(ASSUMED, {}, (entry,)).result(check) is result
    if result is None:
        whole = Situation(ASSUMED, {"VM_ENTRY_MSR_LOAD_COUNT": 0})
        assert whole.result(check) is True


# Known public mistakes, from their descriptions


def failing(**changes):
    """Rows that fail when fields of a healthy VMCS (64-bit, unrestricted guest) are changed."""
    fields = audit(dump_text("xen-2020-two-vcpus"))[0].dump.fields | changes
    [item] = audit(json.dumps({"format": "vmxswitch-vmcs v1", "fields": fields}), SKYLAKE)
    return {finding.id for finding in item.failed}


@pytest.mark.parametrize(("mistake", "changes", "rows"), [
    ("none", {}, set()),
    ("guest CR0: NE cleared", {"GUEST_CR0": 0x80000013}, {"G02"}),
    ("guest CR0: PG cleared, not unrestricted", {
        "GUEST_CR0": 0x33, "VM_ENTRY_CTLS": 0x51FF, "SECONDARY_PROC_BASED_CTLS": 0x146B,
        "GUEST_CS_AR": 0xC09B, "GUEST_RIP": 0x1000}, {"G01"}),
    ("host CR0: NE cleared", {"HOST_CR0": 0x80050033 & ~0x20}, {"H01"}),
    ("guest CR4: VMXE cleared", {"GUEST_CR4": 0x660}, {"G05"}),
    ("host CR4: VMXE cleared", {"HOST_CR4": 0x3506E0}, {"H03"}),
    ("guest CR4: reserved bit 15", {"GUEST_CR4": 0x2660 | 1 << 15}, {"G06"}),
    ("host CR4: reserved bit 24", {"HOST_CR4": 0x3526E0 | 1 << 24}, {"H04"}),
    ("preemption timer saved without its pin control", {
        "VM_EXIT_CTLS": 0xFEFFF | 1 << 22, "PIN_BASED_CTLS": 0x3F}, {"C67"}),
    ("CS.DPL of non-conforming code, type 11, differs from SS.DPL", {
        "GUEST_CS_AR": 0xA0FB, "GUEST_SS_AR": 0xC093, "GUEST_CS_SELECTOR": 0x10}, {"G79"}),
    ("CS.DPL of type 9 differs from SS.DPL", {
        "GUEST_CS_AR": 0xA0F9, "GUEST_SS_AR": 0xC093}, {"G79"}),
    ("CS.DPL of conforming code is above SS.DPL", {
        "GUEST_CS_AR": 0xA0FF, "GUEST_SS_AR": 0xC093}, {"G80"}),
    ("TR: available 64-bit TSS instead of type 11", {"GUEST_TR_AR": 0x89}, {"G113"}),
    ("single-step under blocking by STI, BS clear", {
        "GUEST_RFLAGS": 0x302, "GUEST_INTERRUPTIBILITY_STATE": 1}, {"N21"}),
    ("single-step under blocking by MOV SS, BS clear", {
        "GUEST_RFLAGS": 0x302, "GUEST_INTERRUPTIBILITY_STATE": 2}, {"N21"}),
    ("BS set without single-step", {
        "GUEST_RFLAGS": 0x202, "GUEST_INTERRUPTIBILITY_STATE": 1,
        "GUEST_PENDING_DBG_EXCEPTIONS": 1 << 14}, {"N22"}),
])
def test_known_mistakes(mistake, changes, rows):
    assert failing(**changes) == rows, mistake


def test_type_11_with_equal_privilege_is_no_mistake():
    assert failing(GUEST_CS_AR=0xA09B, GUEST_SS_AR=0xC093) == set()


def test_the_save_timer_bit_is_one_of_the_exit_controls():
    """A source took it from another word: bit 22 there must not count."""
    for word in ("VM_ENTRY_CTLS", "PIN_BASED_CTLS", "PRIMARY_PROC_BASED_CTLS"):
        situation = Situation(ASSUMED, {
            "VM_EXIT_CTLS": 0xBEFFF, "PIN_BASED_CTLS": 0x3F, "VM_ENTRY_CTLS": 0x53FF}
            | {word: 0x3F | 1 << 22})
        assert situation.result("C67") is True


@pytest.mark.parametrize("register", ["CR0", "CR4"])
def test_vmxon_needs_the_fixed_bits(register):
    """A source tests PE, NE and A20 only."""
    rows = [row for row in INSTRUCTIONS["VMXON"]
            if {f"LIVE_{register}", f"{register}_FIXED0"} <= symbols(row.condition)]
    assert rows and all(row.outcome == "#GP(0)" for row in rows)
    good = {"CR0": 0x80050033, "CR4": 0x26F0}
    for bit in ({"CR0": 5, "CR4": 13}[register],):
        values = {**SKYLAKE.constants, "LIVE_CR0": good["CR0"], "LIVE_CR4": good["CR4"],
                  "A20M": 0, "IN_SMX": 0, "LIVE_IA32_FEATURE_CONTROL": 5}
        assert not any(bind(row.condition, values).value for row in rows)
        values[f"LIVE_{register}"] &= ~(1 << bit)
        assert any(bind(row.condition, values).value for row in rows)


@pytest.mark.parametrize("instruction", [
    name for name in INSTRUCTIONS if name not in ("VMCALL", "VMFUNC")])
def test_vmx_instructions_need_cpl_0(instruction):
    """A source lets some of them run at any CPL."""
    rows = [row for row in INSTRUCTIONS[instruction] if row.outcome == "#GP(0)"
            and "LIVE_SS_AR" in symbols(row.condition)]
    assert rows, "no row faults above CPL 0"
    user = {"LIVE_SS_AR": 0xF3, "IN_VMX": 1, "NON_ROOT": 0}
    assert any(bind(row.condition, user) == Const(1, 1) for row in rows)


def test_the_gdt_limit_after_an_exit_is_ffff():
    """A source restores the host's own limit."""
    for register in ("GDTR_LIMIT", "IDTR_LIMIT"):
        assert REGISTERS[register].exit.value == 0xFFFF


# Capabilities


MSRS = {0x480: 0x00DA040000000004, 0x489: 0x3727FF, 0x48D: 0x7F00000016}


@pytest.mark.parametrize("line", [
    "{m:#x}: {v:016x}", "{m:x} {v:x}", "{m:#x} = {v:#x}", "MSR {m:#010x}: {h:#010x} {l:#010x}",
    "CPU0: RDMSR( {m:#x} ) = {v:016X} (EAX={l:08X}, EDX={h:08X})", "msr[{m:x}] = {h:08x}`{l:08x}",
    "[CHIPSEC] CPU0: RDMSR( 0x{m:x} ) = {v:016X}", "$ rdmsr {m:#x}\n{v:x}",
    "rdmsr -0 -p 0 {m:#x}\n{v:016x}", "IA32_{m:x} ({m:#x}): 0x{h:08x}_{l:08x}",
])
def test_output_of_rdmsr(tmp_path, line):
    path = tmp_path / "msrs"
    path.write_text("".join(
        line.format(m=msr, v=value, h=value >> 32, l=value & 0xFFFFFFFF) + "\n"
        for msr, value in MSRS.items()) + "address sizes\t: 46 bits physical, 48 bits virtual\n")
    knowledge = capability_files.read(path)
    assert knowledge.numbers["IA32_VMX_BASIC"] == MSRS[0x480]
    assert knowledge.numbers["CR4_FIXED1"] == MSRS[0x489]
    assert knowledge.numbers["PINCAP"] == MSRS[0x48D]
    assert knowledge.numbers["PINALLOWED"] == 0x7F
    assert knowledge.numbers["PHYSICAL_WIDTH"] == 46
    [item] = audit(dump_text("kvm-2017-cr4-smxe"), knowledge)
    assert [finding.id for finding in item.failed] == ["G06"]
    assert item.verdict == "reason 33" and item.agreement.startswith("agrees")


def test_names_of_msrs_and_the_output_of_vmxcap(tmp_path):
    path = tmp_path / "msrs"
    path.write_text("MSR_IA32_VMX_BASIC 0xda040000000004\nIA32_VMX_CR4_FIXED1 = 3727ff\n"
                    "Miscellaneous data\n  Hex: 0x300481e5\n  VMX-preemption timer scale  5\n")
    numbers = capability_files.read(path).numbers
    assert (numbers["IA32_VMX_BASIC"], numbers["CR4_FIXED1"], numbers["IA32_VMX_MISC"]) == (
        MSRS[0x480], MSRS[0x489], 0x300481E5)


def test_capabilities_in_json(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"msrs": {"0x489": "0x3727ff", "0x486": 0x80000021},
                                "physical_address_width": 39, "efer_bits": 0xD01}))
    numbers = capability_files.read(path).numbers
    assert (numbers["CR4_FIXED1"], numbers["PHYSICAL_WIDTH"], numbers["EFER_BITS"]) == (
        0x3727FF, 39, 0xD01)
    assert "LINEAR_WIDTH" not in numbers
    profile = capability_files.read(PROFILES / "skylake_x_64.json")
    assert profile.capabilities.name == "skylake_x_64"


@pytest.mark.parametrize(("content", "message"), [
    ("", "no preset or profile, and no capability MSR in it; write lines such as"),
    ("hello", "no preset or profile, and no capability MSR"),
    ("0x480: 0", "MSR 0x480 = 0x0 is no IA32_VMX_BASIC"),
    ("0x480: 6136389421986611", "MSR 0x480 = 0x6136389421986611 is no IA32_VMX_BASIC"),
    ("0x489: 1\n0x489: 2", ":2: MSR 0x489 is 0x2 here and 0x1 before; give the MSRs of one"),
    ("0x489: 11112222333344445", ":1: '11112222333344445' has more than 64 bits"),
    ("{", "no capabilities (JSONDecodeError"),
    ("{\"msrs\": {}}", "no capability MSR (0x480 to 0x493) in 'msrs'"),
    ("{\"msrs\": {\"0x489\": true, \"x\": 1}}", "no capabilities (ValueError"),
    ("{\"msrs\": {\"0x489\": 1}, \"linear_address_width\": 50}", "linear_address_width 50 is not"),
    ("{\"msrs\": {\"0x489\": 1}, \"physical_address_width\": 60}", "a physical-address width is"),
    ("[" * 100000, "no preset or profile"),
])
def test_bad_capabilities(tmp_path, content, message):
    path = tmp_path / "c"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        capability_files.read(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_dump_that_the_processor_cannot_hold_is_refused():
    with pytest.raises(UsageError, match="does not fit the 32 bits that it has on compact"):
        audit(dump_text("kvm-linux-guest"), PRESETS["compact"])


# Words and JSON


def test_every_hint_and_word_is_about_something():
    assert hints.hint("G64") and not hints.hint("X01")
    source = random.Random(1)
    for name, row in FIELDS.items():
        for value in (0, (1 << row.bits) - 1, source.getrandbits(row.bits)):
            assert "\n" not in words.decoded(name, value)


@pytest.mark.parametrize(("symbol", "value", "expected"), [
    ("GUEST_CS_AR", 0xA09B, "type 11 (execute/read code, accessed), S=1, DPL=0, P=1, L, G"),
    ("GUEST_TR_AR", 0x8B, "type 11 (busy 32-bit or 64-bit TSS), S=0, DPL=0, P=1"),
    ("GUEST_LDTR_AR", 0x1C000, "unusable, type 0 (system segment), S=0, DPL=0, P=0, D/B, G"),
    ("PIN_BASED_CTLS", 0x3F, "PIN_EXT_INTR_EXITING PIN_NMI_EXITING PIN_VIRTUAL_NMIS"),
    ("PIN_BASED_CTLS", 0x101, "PIN_EXT_INTR_EXITING reserved bit 8 "
                              "(must-be-1 bits that are 0: 1, 2, 4)"),
    ("GUEST_CR0", 0x80000011, "PE ET PG"),
    ("HOST_IA32_EFER", 0xD01, "SCE LME LMA NXE"),
    ("VM_EXIT_REASON", 0x80000021, "33 VM-entry failure: invalid guest state, VM-entry failure"),
    ("VM_ENTRY_INTR_INFO", 0x80000B0E, "hardware exception, vector 14 (#PF), with error code"),
    ("VM_ENTRY_INTR_INFO", 0x30E, "no event (valid bit 31 is 0)"),
    ("GUEST_ACTIVITY_STATE", 1, "HLT"),
    ("GUEST_INTERRUPTIBILITY_STATE", 9, "blocking by STI, blocking by NMI"),
    ("GUEST_CS_SELECTOR", 0x33, "index 6, TI=0, RPL=3"),
    ("EPT_POINTER", 0x105A27005E, "memory type 6 (WB), walk length 4, table at 0x105a270000, "
                                  "accessed and dirty flags"),
    ("GUEST_RIP", 0x1000, ""),
])
def test_values_in_words(symbol, value, expected):
    assert words.decoded(symbol, value) == expected


def test_our_json():
    fields = {"GUEST_CR3": "0x8000000000000000", "VM_EXIT_REASON": 0x80000021,
              "EXIT_QUALIFICATION": 0}
    one = {"format": "vmxswitch-vmcs v1", "fields": fields}
    two = {"format": "vmxswitch-vmcs v1", "error": 7,
           "msr_load_list": [{"index": 0x174, "data": 0}, {"index": 0xC0000101, "data": "0x1"}]}
    first, second = audit(json.dumps([one, two]))
    assert (first.verdict, first.printed, first.qualification) == ("reason 33", "reason 33", 0)
    assert (second.verdict, second.printed, second.failed[0].id) == ("reason 34", "error 7", "M02")
    assert second.failed[0].outcome == "reason 34, qualification 2"


@pytest.mark.parametrize(("content", "message"), [
    ('{"format": "other"}', "text: the format must be 'vmxswitch-vmcs v1', not 'other'"),
    ('[{"format": 1}]', "text[0]: the format must be"),
    ('{"format": "vmxswitch-vmcs v1", "field": {}}', "text: unknown key 'field'; known: format"),
    ('{"format": "vmxswitch-vmcs v1", "fields": []}', "text: 'fields' must be dict, not []"),
    ('{"format": "vmxswitch-vmcs v1", "fields": {"GUEST_CR9": 1}}',
     "text: no VMCS field 'GUEST_CR9'; did you mean 'GUEST_CR"),
    ('{"format": "vmxswitch-vmcs v1", "fields": {"VPID": 65536}}',
     "text: VPID: 0x10000 does not fit 16 bits"),
    ('{"format": "vmxswitch-vmcs v1", "fields": {"VPID": "x"}}', "text: VPID: 'x' is no number"),
    ('{"format": "vmxswitch-vmcs v1", "fields": {"VPID": true}}', "text: VPID: True is no number"),
    ('{"format": "vmxswitch-vmcs v1", "msr_load_list": [{}]}', "text: msr_load_list[0]: must have"),
    ('{"format": "vmxswitch-vmcs v1", ', "text:1: not JSON"),
    ('{"format": ' + "[" * 100000, "text: a number or the nesting"),
])
def test_bad_json(content, message):
    with pytest.raises(UsageError) as error:
        audit(content)
    assert str(error.value).startswith(message), str(error.value)


def test_must_be_1_bits_are_those_of_the_table():
    knowledge = Knowledge.assumed()
    for word, row in CONTROL_WORDS.items():
        must = sum(1 << control.low for control in CONTROLS.values() if control.word == word
                   and control.default1 and not control.clearable)
        if must:
            assert knowledge.bits[row.capability_symbol].bits == must

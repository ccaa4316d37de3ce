"""Recorded cases: reading, running, comparing; and the recorded cases themselves, on the model."""

import gzip
import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from vmxswitch.sim.cases import agrees, disagreements, read_cases, read_profile, sample
from vmxswitch.sim.model import Model
from vmxswitch.sim.runner import Runner
from vmxswitch.spec.errors import UsageError

CASES = Path(__file__).parents[1] / "cases"
COUNTS = {"entries": 1514, "instructions": 153, "exits": 108}
PROFILES = ["sandy_bridge_64", "skylake_x_32", "skylake_x_64"]


@cache
def recorded(name):
    return list(read_cases(CASES / f"{name}.jsonl.gz"))


def runner(profile):
    profile = read_profile(CASES / "profiles" / f"{profile}.json")
    return Runner(profile, Model(profile.capabilities))


@pytest.mark.parametrize("name", COUNTS)
def test_the_files_are_complete(name):
    assert len(recorded(name)) == COUNTS[name]
    assert sorted({case.profile.stem for case in recorded(name)}) == PROFILES


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["entries", "instructions"])
def test_the_model_agrees_with_what_was_recorded(name, profile):
    mine = runner(profile)
    found = [(case.id, *found) for case in recorded(name) if case.profile.stem == profile
             if (found := disagreements(case, mine.run(case)))]
    assert not found


def test_exits_agree_as_far_as_events_are_supported():
    """Bitmaps, MSR lists at exits and exceptions are not implemented; the rest has to agree."""
    runners = {profile: runner(profile) for profile in PROFILES}
    agreed = 0
    for case in recorded("exits"):
        results = runners[case.profile.stem].run(case)
        events = [op["event"].get("insn") for op in case.ops if op["op"] == "guest"]
        if {"result": "unsupported"} in results or {"RDMSR", "WRMSR"} & {*events}:
            continue
        if any(field in ("VM_EXIT_MSR_STORE_COUNT", "VM_EXIT_MSR_LOAD_COUNT")
               for field, _ in case.writes):
            continue
        assert not disagreements(case, results), case.id
        agreed += 1
    assert agreed >= 25


# --- Running ---

@pytest.fixture
def run(tmp_path):
    """A function that runs one case on the model and returns its results."""
    def run(*ops, profile="skylake_x_64", **entries):
        path = tmp_path / "one.jsonl"
        path.write_text(json.dumps({"id": "one", "profile": profile, "ops": ops} | entries))
        case, = read_cases(path, CASES / "profiles")
        return runner(profile).run(case)
    return run


VMLAUNCH = {"op": "vmlaunch"}


def guest(event, **state):
    return {"op": "guest", "event": event} | ({"state": state} if state else {})


def insn(name):
    return {"kind": "insn", "insn": name, "length": 3}


def test_a_result_says_which_rows_decided(run):
    writes = [["GUEST_RFLAGS", 0], ["GUEST_TR_AR", 0]]
    assert run(VMLAUNCH, base="long64_A", writes=writes) == [{
        "result": "entry_failure", "reason": 33, "qualification": 0, "row": "VMLAUNCH.9",
        "failing": ["G113", "G115", "G134"]}]


def test_memory_is_written_and_read(run):
    assert run(
        {"op": "w64", "addr": 0x1000, "value": 0x1122334455667788},
        {"op": "w32", "addr": 0x1004, "value": 7}, {"op": "r64", "addr": 0x1000},
        {"op": "r32", "addr": 0x1000},
    ) == [{"result": "ok"}, {"result": "ok"}, {"result": "ok", "value": 0x755667788},
          {"result": "ok", "value": 0x55667788}]


def test_a_pair_on_a_32_bit_profile_is_two_writes(run):
    writes = [["TSC_OFFSET", 0x1122334455667788], ["GUEST_CR3", 0x1234]]
    results = run(
        {"op": "vmread", "field": "TSC_OFFSET"}, {"op": "vmread", "field": "TSC_OFFSET_HIGH"},
        {"op": "apply", "base": "prot32_A", "writes": [["TSC_OFFSET_HIGH", 5]]},
        {"op": "vmread", "field": 0x2011}, {"op": "vmreads", "fields": ["GUEST_CR3"]},
        profile="skylake_x_32", base="prot32_A", writes=writes)
    values = [result.get("value", result.get("values")) for result in results]
    assert values[0] == 0x55667788 and values[1] == 0x11223344 and values[3] == 5
    assert results[4] == {"result": "succeed", "values": {"GUEST_CR3": 0x118000}}


def test_state_is_applied_before_the_event(run):
    results = run(
        VMLAUNCH, guest(insn("INVD"), RIP=0x4321), {"op": "vmread", "field": "GUEST_RIP"},
        base="long64_A")
    assert results[1] == {"result": "exit", "reason": 13, "qualification": 0}
    assert results[2]["value"] == 0x4321


@pytest.mark.parametrize("event, result", [
    (insn("VMCALL"), {"result": "exit", "reason": 18, "qualification": 0, "row": "VMCALL.2"}),
    (insn("HLT"), {"result": "no_exit", "value": 0}),
    (insn("INVLPG") | {"linear": 0x5000}, {"result": "no_exit", "value": 0}),
    ({"kind": "triple_fault"}, {"result": "exit", "reason": 2, "qualification": 0}),
    ({"kind": "boundary"}, {"result": "no_exit", "value": 0}),
    ({"kind": "boundary", "nmi": 1},
     {"result": "no_exit", "value": 0, "delivery": 0x8000_0202}),
    (insn("MOV_TO_CR") | {"cr": 4, "gpr": 0, "value": 0}, {
        "result": "exception", "vector": 13, "errcode": 0}),
    (insn("UD2"), {"result": "unsupported"}),
])
def test_guest_events(run, event, result):
    assert run(VMLAUNCH, guest(event), base="long64_A")[1] == result


def test_everything_after_an_unsupported_event_is_unsupported(run):
    results = run(VMLAUNCH, guest(insn("UD2")), {"op": "dump"}, base="long64_A")
    assert results[1:] == [{"result": "unsupported"}] * 2


def test_a_guest_event_without_guest_is_unsupported(run):
    assert run(guest(insn("CPUID"))) == [{"result": "unsupported"}]


def test_a_case_that_cannot_be_prepared_says_why(run):
    writes = [["HLAT_PREFIX_SIZE", 0]]
    assert run(VMLAUNCH, {"op": "dump"}, base="long64_A", writes=writes) == [{
        "result": "not_prepared",
        "got": {"result": "failValid", "error": 12, "row": "VMWRITE.6",
                "field": "HLAT_PREFIX_SIZE"}}] * 2


def test_a_setup_that_fails_is_the_reason_too(run):
    result, = run(VMLAUNCH, base="long64_A", env={"IA32_FEATURE_CONTROL": 0})
    assert result["result"] == "not_prepared"
    assert result["got"] == {"result": "exception", "vector": 13, "errcode": 0, "row": "VMXON.9",
                             "op": "vmxon"}


def test_lists_of_fields_end_at_the_first_failure(run):
    results = run(
        {"op": "vmreads", "fields": ["GUEST_RIP", "HLAT_PREFIX_SIZE"]},
        {"op": "apply", "base": "long64_A", "writes": [["HLAT_PREFIX_SIZE", 0], ["GUEST_RIP", 0]]},
        base="long64_A")
    assert [result["error"] for result in results] == [12, 12]


# --- Comparing ---

@pytest.mark.parametrize("expected, got, agree", [
    ({"result": "ok"}, {"result": "ok", "row": "VMREAD.7"}, True),
    ({"result": "ok", "value": 1}, {"result": "ok"}, False),
    ({"value": [5, {"value": 0x20, "mask": 0xF0}]}, {"value": 0x2F}, True),
    ({"value": [5, {"value": 0x20, "mask": 0xF0}]}, {"value": 0x3F}, False),
    ([{"result": "a"}, {"result": "b"}], {"result": "b"}, True),
    ({"value": 1, "result": "ok"}, {"value": 1, "result": "ok"}, True),
    ({"values": {"A": 1}}, {"values": {"A": 1, "B": 2}}, True),
    ({"values": {"A": 1}}, {"values": 1}, False),
    ({"value": 2, "mask": 3}, None, False),
    (5, 6, False),
])
def test_agreement(expected, got, agree):
    assert agrees(expected, got) == agree


def test_a_disagreement_holds_only_what_differs(run, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({
        "id": "one", "profile": "skylake_x_64", "ops": [{"op": "dump"}, {"op": "dump"}],
        "expect": [None, {"result": "ok", "state": {"CPL": 0, "RFLAGS": [3, 7]}}]}))
    case, = read_cases(path, CASES / "profiles")
    found, = disagreements(case, runner("skylake_x_64").run(case))
    assert (found.number, found.expected, found.got) == (
        1, {"result": "ok", "state": {"RFLAGS": [3, 7]}}, {"result": "ok", "state": {"RFLAGS": 2}})


# --- A sample ---

@pytest.mark.parametrize("count", [1, 2, 3, 100, 150, 700, 5000])
def test_a_sample_is_spread_over_profiles_and_files(count):
    cases = [*recorded("entries"), *recorded("instructions")]
    chosen = sample(cases, count)
    assert chosen == sample(cases, count)
    assert len({id(case) for case in chosen}) == len(chosen) == min(count, len(cases))
    shares = Counter(case.profile.stem for case in chosen)
    if 3 <= count <= 600:
        assert max(shares.values()) - min(shares.values()) <= 1
    if count == 150:
        files = Counter(case.file.name for case in chosen)
        assert files["instructions.jsonl.gz"] >= 10
        positions = [cases.index(case) for case in chosen]
        assert positions == sorted(positions)


# --- Mistakes in files ---

GOOD = {"id": "x", "profile": "skylake_x_64", "ops": []}


def operation(**op):
    return {"ops": [op]}


@pytest.mark.parametrize("change, message", [
    ({"id": None}, "'id' is None, not of type str"),
    ({"profile": "z80"}, "no profile 'z80' in "),
    ({"profile": "../profiles/skylake_x_64"}, "no profile '../profiles/skylake_x_64' in "),
    ({"base": "real64"}, "unknown base 'real64' (there: long64_A, "),
    ({"writes": [["GUEST_RIP", 0]]}, "writes without base"),
    ({"base": "long64_A", "writes": [["GUEST_RIP"]]}, "['GUEST_RIP'] is not [field, value]"),
    ({"base": "long64_A", "writes": [["RIP", 0]]}, "unknown field 'RIP'"),
    ({"base": "long64_A", "writes": [["GUEST_RIP", 1 << 64]]}, "not a number of 64 bits"),
    ({"env": {"RIX": 0}}, "unknown register 'RIX'"),
    ({"env": {"CPL": 4}}, "'CPL' is 4, none of (0, 1, 2, 3)"),
    ({"env": {"CS_SELECTOR": 1 << 16}}, "'CS_SELECTOR' is 65536, not a number of 16 bits"),
    ({"env": []}, "'env' is [], not of type dict"),
    ({"expect": [None]}, "1 results expected of 0 operations"),
    ({"ops": [5]}, "5 is not an object"),
    ({"ops": [{}]}, "no 'op'"),
    (operation(op="vmrun"), "unknown op 'vmrun'"),
    (operation(op="_guest"), "unknown op '_guest'"),
    (operation(op="w32", addr=0), "no 'value'"),
    (operation(op="w32", addr=0, value=1 << 32), "'value' is 4294967296, not a number of 32 bits"),
    (operation(op="w32", addr=0, value=-1), "'value' is -1, not a number of 32 bits"),
    (operation(op="w32", addr=2, value=0), "w32 at 0x2, which is not aligned"),
    (operation(op="w64", addr=4, value=0), "w64 at 0x4, which is not aligned"),
    (operation(op="vmxon", addr="0"), "'addr' is '0', not of type int"),
    (operation(op="vmxon", addr=True), "'addr' is True, not of type int"),
    (operation(op="vmxon", addr=1.5), "'addr' is 1.5, not of type int"),
    (operation(op="vmread"), "'field' is None, not a number of 64 bits"),
    (operation(op="vmread", field="RIP"), "unknown field 'RIP'"),
    (operation(op="vmreads", fields=["RIP"]), "unknown field 'RIP'"),
    (operation(op="apply", base="x"), "unknown base 'x'"),
    (operation(op="movcr", reg=3, value=0), "movcr of CR3, not CR0 or CR4"),
    (operation(op="vmcall", env={"CPL": 9}), "'CPL' is 9"),
    (operation(op="guest"), "no 'event'"),
    (operation(op="guest", event={"kind": "insn", "length": 3}), "no 'insn'"),
    (operation(op="guest", event=insn("OUT")), "guest event without 'size'"),
    (operation(op="guest", event={"kind": "exception", "vector": 6}), "without 'type'"),
    (operation(op="guest", event={"kind": "boundary", "vector": 256}), "'vector' is 256"),
    (operation(op="time", ticks=1 << 32), "'ticks' is 4294967296"),
    (operation(op="fault", addr=8, kind="late"), "'late' is none of none, error, hang"),
    (operation(op="guest", event=insn("CPUID") | {"length": 16}), "instruction of 16 bytes"),
    (operation(op="guest", event=insn("CPUID"), state={"RIP": 1 << 64}), "'RIP' is"),
])
def test_a_mistake_in_a_case_is_named_with_its_line(tmp_path, change, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(UsageError) as error:
        list(read_cases(path, CASES / "profiles"))
    assert str(error.value).startswith(f"{path}:3: ") and message in str(error.value)


@pytest.mark.parametrize("data, message", [
    (b"{", ":1: not JSON"),
    (b"[" * 100_000, ":1: not JSON"),
    (b"[]", ":1: [] is not an object"),
    (b"\xff\xfe\x00", ": neither text nor a gzip file"),
    (gzip.compress(b"{}" * 999, mtime=0)[:-9], ": damaged gzip file"),
    (b"\x1f\x8b\x08nonsense", ": damaged gzip file"),
    (None, ": No such file or directory"),
])
def test_a_file_that_cannot_be_read_is_named(tmp_path, data, message):
    path = tmp_path / "bad.jsonl.gz"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError) as error:
        list(read_cases(path))
    assert str(error.value).startswith(f"{path}{message}")


@pytest.mark.parametrize("change, message", [
    ({"format": "v2"}, "format 'v2' is not"),
    ({"environment": {}}, "no 'MODE'"),
    ({"environment": 5}, "'environment' is 5"),
    ({"setup": [{"op": "boot"}]}, "unknown op 'boot'"),
    ({"baselines": {"long64_A": [["X", 1]]}}, "unknown field 'X'"),
    ({"baselines": {"long64_A": 5}}, "5 is not a list of pairs"),
    ({"fields": []}, "does not follow from the capability MSRs"),
    ({"fields": [None]}, "'fields' is None, not a number of 64 bits"),
    ({"msrs": {"0x480": "1"}}, "'0x480' is '1', not a number of 64 bits"),
    ({"msrs": {"BASIC": 1}}, "not a vmx-profile v1"),
    ({"efer_bits": 1.5}, "'efer_bits' is 1.5, not of type int"),
    ({"wrmsr_rules": {"0x10": []}}, "not a vmx-profile v1"),
])
def test_a_mistake_in_a_profile_is_named(tmp_path, change, message):
    text = (CASES / "profiles" / "skylake_x_64.json").read_text()
    path = tmp_path / "skylake_x_64.json"
    path.write_text(json.dumps(json.loads(text) | change))
    with pytest.raises(UsageError) as error:
        read_profile(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_a_profile_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(UsageError, match="x.json: not JSON"):
        read_profile(path)

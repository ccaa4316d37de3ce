"""World switches: every pair of the shipped environments, what refuses, what is watched."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from vmxswitch.firmware import readers
from vmxswitch.firmware.cures import cure
from vmxswitch.firmware.environment import REGISTERS, Environment
from vmxswitch.firmware.plan import Plan
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.firmware.watch import MIXED, ORIGINAL, TARGET
from vmxswitch.sim.model import Model
from vmxswitch.sim.pysim import PysimPort
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.tables import CHECKS

FULL, COMPACT = PRESETS["full"], PRESETS["compact"]
LINUX, XEN = "linux-6.1-amd64-idle", "xen-4.17-panic"
PAE, NOPAE = "linux-6.1-686-pae-idle", "linux-6.1-686-nopae-pentium3-syscall"
#: What makes the 32-bit pair go: user selectors without their RPL.
SELECTORS = {"HOST_ES_SELECTOR": 0x78, "HOST_DS_SELECTOR": 0x78, "HOST_GS_SELECTOR": 0x30}


def shipped():
    """All 47 processors of the shipped environments, by name and number."""
    for name in readers.shipped():
        for cpu in (0, 1) if name.endswith("smp2") else (None,):
            yield (name, cpu), Environment.read(name, cpu)


ENVIRONMENTS = dict(shipped())


def read(name, **changes):
    environment = Environment.read(name)
    return replace(environment, registers={**environment.registers, **changes})


def switch(original=LINUX, target=XEN, settings=None, port=None):
    original, target = (
        Environment.read(source) if isinstance(source, str) else source
        for source in (original, target))
    return Vmm(port or Model(FULL)).switch(original, target, settings)


def ids(result):
    return {refusal.id for refusal in result.refused_by}


# --- Every pair ---

def expected_refusals(original, target):
    """Rows that refuse a pair on `full`, from what the environments are."""
    registers = target.registers
    if original.mode in ("real", "virtual-8086", "compatibility"):
        return {"VMXON.2"}
    if original.cpl:
        return {"VMXON.6"}
    if original.paging == "none":
        return {"VMXON.8"}
    rows = {
        "H01": target.paging == "none",
        "H11": registers["EFER"] & 1 << 12, # SVME
        "H27": registers["TR_SELECTOR"] == 0,
        "H28": registers["SS_SELECTOR"] == 0 and not target.long_mode,
        "H35": target.long_mode and not original.long_mode,
        "H36": original.long_mode and not target.long_mode,
        "H37": original.long_mode and not target.long_mode,
        "N14": original.smm,
    }
    for row, segment in enumerate(("ES", "CS", "SS", "DS", "FS", "GS", "TR"), 19):
        rows[f"H{row}"] = registers[f"{segment}_SELECTOR"] & 7
    return {row for row, refuses in rows.items() if refuses}


def test_every_pair_of_environments_is_switched_or_refused_for_its_reasons():
    vmm, table = Vmm(Model(FULL)), Counter()
    for original in ENVIRONMENTS.values():
        for target in ENVIRONMENTS.values():
            result = vmm.switch(original, target)
            pair = original.source, target.source
            assert ids(result) == expected_refusals(original, target), pair
            assert result.whole and not result.mixed_cycles, pair
            if result.switched:
                assert [change.owner for change in result.changes] == [TARGET], pair
                assert result.final["RIP"] == target.registers["RIP"], pair
            elif ids(result) != {"N14"}: # beyond the host checks, an entry fails into the host
                assert not result.changes, pair
            assert result.checked_cycles == result.total_cycles, pair
            table["+".join(sorted(ids(result))) or "switched"] += 1
    for reasons, pairs in table.most_common():
        print(f"{pairs:5}  {reasons}") # seen with `pytest -s`
    assert table.total() == 47 * 47
    assert table["switched"] == 143
    assert (table["VMXON.2"], table["VMXON.6"], table["VMXON.8"]) == (470, 470, 423)


SWITCHING = sorted({pair for pair, environment in ENVIRONMENTS.items()
                    if not expected_refusals(environment, ENVIRONMENTS[LINUX, None])})
REACHABLE = sorted({pair for pair, environment in ENVIRONMENTS.items()
                    if not expected_refusals(ENVIRONMENTS[LINUX, None], environment)})
HARDWARE_PAIRS = [(original, REACHABLE[number % len(REACHABLE)])
                  for number, original in enumerate(SWITCHING, 3)]


@pytest.fixture(scope="module")
def hardware():
    """Simulated units, made once for each configuration."""
    ports = {}

    def port(capabilities):
        if capabilities.name not in ports:
            ports[capabilities.name] = PysimPort(capabilities)
        return ports[capabilities.name]
    return port


@pytest.mark.parametrize(("original", "target"), HARDWARE_PAIRS)
def test_hardware_does_what_the_model_does(hardware, original, target):
    original, target = ENVIRONMENTS[original], ENVIRONMENTS[target]
    result, model = switch(original, target, port=hardware(FULL)), switch(original, target)
    assert result.switched and result.whole and len(result.changes) == 1
    assert result.checked_cycles == result.total_cycles
    assert result.final == model.final and result.not_carried == model.not_carried
    assert 0 < result.entry_cycles <= 3 and 0 < result.exit_cycles <= 3


def test_there_are_enough_pairs_on_hardware():
    assert len(set(HARDWARE_PAIRS)) >= 12


def test_hardware_switches_32_bit_systems(hardware):
    result = switch(PAE, NOPAE, SELECTORS, hardware(COMPACT))
    assert result.switched and result.whole and len(result.changes) == 1
    assert result.final == switch(PAE, NOPAE, SELECTORS, Model(COMPACT)).final


@pytest.mark.parametrize(("original", "target"), [
    ("linux-6.1-amd64-user", XEN),          # VMXON faults
    (LINUX, "memtest86+-x64"),              # VMfailValid(8)
    ("ovmf-x64-smm", XEN),                  # entry failure: the host is live
])
def test_hardware_refuses_as_the_model_does(hardware, original, target):
    result, model = switch(original, target, port=hardware(FULL)), switch(original, target)
    assert result.refused_by == model.refused_by and result.refused_by
    assert result.final == model.final and result.whole
    assert [change.owner for change in result.changes] == [change.owner for change in model.changes]


# --- One switch, looked at closely ---

def test_steps_are_the_canonical_sequence():
    result = switch()
    steps = [step.instruction.split()[0] for step in result.steps]
    assert steps[:5] == ["MOV", "WRMSR", "VMXON", "VMCLEAR", "VMPTRLD"]
    assert steps[-4:] == ["VMLAUNCH", "VMCALL", "VMXOFF", "JMP"]
    assert set(steps[5:-4]) == {"VMWRITE"}
    written = [step.instruction.split()[1] for step in result.steps[5:-4]]
    assert sorted(written) == sorted(
        name for name, row in FULL.fields.items() if row.area != "exit-information")
    assert [(step.mode_before, step.mode_after) for step in result.steps[-4:]] == [
        (Mode.ROOT, Mode.NON_ROOT), (Mode.NON_ROOT, Mode.ROOT), (Mode.ROOT, Mode.OFF),
        (Mode.OFF, Mode.OFF)]
    owners = [step.owner for step in result.steps]
    assert owners == [ORIGINAL] * (len(owners) - 3) + [TARGET] * 3


def test_live_is_constant_between_the_preparations_and_the_edge():
    result = switch()
    changing = [step.instruction for step in result.steps if step.changed]
    assert changing == ["MOV CR4", "WRMSR IA32_FEATURE_CONTROL", "VMCALL", "JMP"]
    assert dict(result.steps[-1].changed) == {
        "RIP": (result.final["RIP"] - 3, result.final["RIP"])}


def test_preparations_are_steps_with_before_and_after():
    result = switch("memtest86+-x64", LINUX)
    notes = {step.instruction: step.note for step in result.steps}
    assert notes["MOV CR0"] == "preparation: 0x80000011 to 0x80000031"
    assert notes["MOV CR4"] == "preparation: 0x20 to 0x2020"
    assert notes["WRMSR IA32_FEATURE_CONTROL"] == "preparation: 0x0 to 0x5"
    assert notes["VMWRITE HOST_CR4"] == ("0x26f0, preparation: the target's 0x6f0 with what VMX "
                                         "operation needs")
    assert ", " not in notes["VMWRITE HOST_CR0"] # the target has NE


def test_a_halted_original_is_woken_and_reported():
    result = switch()
    woken = next(item for item in result.adjusted if item.register == "ACTIVITY")
    assert (woken.before, woken.after) == (1, 0) and woken.why.startswith("original: ")


def test_adjustments_name_their_environment():
    owners = Counter(item.why.partition(": ")[0] for item in switch().adjusted)
    assert set(owners) == {"original", "target"}


def test_what_is_not_carried_is_every_difference_between_target_and_final():
    result = switch(LINUX, "gnumach-amd64-kernel")
    target = Environment.read("gnumach-amd64-kernel").adjusted().registers
    assert {item.register: (item.wanted, item.actual) for item in result.not_carried} == {
        name: (target[name], result.final[name])
        for name in REGISTERS if target[name] != result.final[name]}
    restore = {item.register: item.restore for item in result.not_carried}
    assert restore["GDTR_LIMIT"] == "LGDT with limit 0x5f, base 0x41087f00"
    assert restore["RFLAGS"] == "POPFQ of 0x206"
    assert restore["LDTR_SELECTOR"] == "LLDT 0x18"
    assert restore["TR_LIMIT"] == "mark the TSS of 0x40 available in the GDT, then LTR 0x40"
    assert restore["CR4"] == "MOV CR4, 0x2a0"
    assert restore["SS_AR"] == "MOV SS, 0x10"
    assert restore["CS_LIMIT"] == "far return to 0x8:0x410139d0"


@pytest.mark.parametrize(("target", "settings", "register", "restore"), [
    (XEN, {}, "ACTIVITY", "HLT"),
    (XEN, {}, "DS_LIMIT", "nothing: DS is unusable, so this does not count"),
    (XEN, {}, "SS_AR", "nothing: 64-bit code does not see whether a null SS is usable"),
    ("ovmf-x64-smm", {}, "INTERRUPTIBILITY",
     "no instruction does: only an SMI enters system management mode"),
    ("memtest86+-x64", {"HOST_TR_SELECTOR": 8}, "TR_SELECTOR",
     "nothing: TR is as after reset, and no instruction loads that"),
    ("linux-6.1-amd64-user", {"HOST_CS_SELECTOR": 0x30, "HOST_SS_SELECTOR": 0x28}, "SS_AR",
     "IRET to CPL 3, with SS 0x2b and CS:RIP 0x33:0x52b4ce"),
    ("linux-6.1-amd64-hwbreak-user", {"HOST_CS_SELECTOR": 0x30, "HOST_SS_SELECTOR": 0x28}, "DR7",
     "MOV DR7, 0xf0602"),
    (read(LINUX, DEBUGCTL=1), {}, "DEBUGCTL", "WRMSR IA32_DEBUGCTL, 0x1"),
    (read(LINUX, PENDING_DBG=0x1000), {}, "PENDING_DBG",
     "no instruction does: pending debug exceptions are lost"),
])
def test_how_to_restore(target, settings, register, restore):
    result = switch(LINUX, target, settings)
    assert {item.register: item.restore for item in result.not_carried}[register] == restore


def test_pat_is_not_carried_by_a_unit_that_does_not_switch_it():
    target = read(NOPAE, PAT=0x0606060606060606)
    result = switch(PAE, target, SELECTORS, Model(COMPACT))
    item = next(item for item in result.not_carried if item.register == "PAT")
    assert item.actual == Environment.read(PAE).registers["PAT"]
    assert item.restore == "WRMSR IA32_PAT, 0x606060606060606"


def test_original_and_target_may_be_the_same():
    result = switch(LINUX, LINUX)
    assert result.switched and len(result.changes) == 1


def test_regions_stay_clear_of_both_page_tables():
    original, target = read(LINUX, CR3=0x1000), read(XEN, CR3=0x2FFF)
    plan = Plan(FULL, original, target, {})
    assert (plan.vmxon_region, plan.vmcs_region) == (0x3000, 0x4000)


def test_a_32_bit_original_writes_64_bit_fields_in_halves():
    assert switch("grub-efi-ia32", PAE, SELECTORS | {"VMCS_LINK_POINTER": (1 << 64) - 1}).switched


def test_the_result_as_an_object_has_the_keys_of_the_command():
    content = switch().as_dict()
    assert list(content) == [
        "result", "refused_by", "owner_changes", "mixed_cycles", "checked_cycles", "cycles",
        "steps", "adjusted", "final", "not_carried"]
    assert content["result"] == "switched" and content["owner_changes"] == 1
    assert list(content["cycles"]) == ["total", "entry", "exit"]
    assert list(content["adjusted"][0]) == ["register", "from", "to", "why"]
    assert list(content["not_carried"][0]) == ["register", "wanted", "actual", "restore"]


# --- Settings and cures ---

def test_a_setting_is_written_last_and_counts():
    result = switch(LINUX, "memtest86+-x64", {"HOST_TR_SELECTOR": 0x40})
    assert result.switched and result.final["TR_SELECTOR"] == 0x40
    assert result.steps[-5].instruction == "VMWRITE HOST_TR_SELECTOR"
    assert result.steps[-5].note == "0x40, as set by the user"


@pytest.mark.parametrize("field", ["GUEST_RIP", "HOST_RIP"])
def test_entry_points_can_be_set(field):
    result = switch(settings={field: 0x7000})
    assert result.switched and result.whole and len(result.changes) == 1
    assert result.final["RIP"] == Environment.read(XEN).registers["RIP"]


@pytest.mark.parametrize(("settings", "text"), [
    ({"CR4": 1}, "the full processor has no VMCS field 'CR4'; did you mean GUEST_CR4 or HOST_CR4?"),
    ({"HOST_RP": 1}, "the full processor has no VMCS field 'HOST_RP'; did you mean HOST_RSP?"),
    ({"EFER": 1}, "the full processor has no VMCS field 'EFER'; did you mean GUEST_IA32_EFER or "
                  "HOST_IA32_EFER?"),
    ({"x": 1}, "the full processor has no VMCS field 'x'"),
    ({"HOST_TR_SELECTOR": 1 << 16}, "HOST_TR_SELECTOR=0x10000 does not fit the field's 16 bits"),
    ({"HOST_TR_SELECTOR": -1}, "HOST_TR_SELECTOR=-0x1 does not fit the field's 16 bits"),
])
def test_settings_that_cannot_be(settings, text):
    with pytest.raises(UsageError) as caught:
        switch(settings=settings)
    assert str(caught.value) == text


@pytest.mark.parametrize(("settings", "row", "cured"), [
    ({"HOST_TR_SELECTOR": 0}, "H27", ("HOST_TR_SELECTOR", 0x8)),
    ({"HOST_GS_SELECTOR": 0x33}, "H24", ("HOST_GS_SELECTOR", 0x30)),
    ({"HOST_FS_BASE": 0x0400_0000_0000_0000}, "H29", ("HOST_FS_BASE", 0)),
    ({"HOST_IA32_EFER": 0x1D01}, "H11", ("HOST_IA32_EFER", 0xD01)),
    ({"HOST_CR3": 1 << 50}, "H06", ("HOST_CR3", 0)),
    ({"VMCS_LINK_POINTER": 0x5001}, "N24", ("VMCS_LINK_POINTER", (1 << 64) - 1)),
    ({"GUEST_CS_AR": 0xA093}, "G61", ("GUEST_CS_AR", 0xA09B)),
    ({"HOST_CR4": 0x2000}, "H41", None),          # PAE is a mode
])
def test_one_failing_row_is_named_with_its_cure(settings, row, cured):
    result = switch(settings=settings)
    refusal = next(refusal for refusal in result.refused_by if refusal.id == row)
    check = CHECKS[row]
    assert refusal.cure == cured
    assert check.demand in refusal.text and check.section in refusal.text
    field, value = next(iter(settings.items()))
    assert field in refusal.fields and f"{field} = {value:#x}" in refusal.text
    assert refusal.values[refusal.fields.index(field)] == value
    if cured:
        assert f"--set {cured[0]}={cured[1]:#x}" in refusal.text
        assert row not in ids(switch(settings=settings | dict([cured])))


@pytest.mark.parametrize(("original", "target"), [
    (LINUX, "linux-6.1-amd64-compat-user"), (LINUX, "xen-4.17-dom0-pv-user"),
    ("ovmf-x64-smm", "ovmf-x64-shell"), ("grub-efi-ia32", PAE),
])
def test_all_cures_together_make_the_switch_go(original, target):
    result = switch(original, target)
    assert len(result.refused_by) > 1
    assert switch(original, target, result.cures).switched


def test_a_check_that_passes_everywhere_has_no_cure():
    plan = Plan(COMPACT, Environment.read(PAE).adjusted(), Environment.read(PAE).adjusted(), {})
    assert cure(plan.situation, "H06") is None # of Intel 64 processors only


def test_an_instruction_row_is_explained():
    (refusal,) = switch("linux-6.1-amd64-user").refused_by
    assert refusal.as_dict() == {
        "id": "VMXON.6", "fields": ["SS_AR"], "values": [0xC0F3],
        "text": "VMXON ends in #GP(0): The processor is at CPL > 0; SS_AR = 0xc0f3; "
                "SDM vol. 3C, 30.3 VMX Instructions, VMXON"}


# --- Processors that cannot hold an environment ---

def test_a_64_bit_original_is_refused_by_a_32_bit_processor_without_a_try():
    result = switch(LINUX, XEN, port=Model(COMPACT))
    assert {"C65", "C75"} <= ids(result) and not result.steps
    assert "EFER" in result.misfits and result.cures is None
    assert not any(refusal.cure for refusal in result.refused_by)


def test_a_64_bit_target_is_refused_by_a_32_bit_processor():
    result = switch(PAE, LINUX, port=Model(COMPACT))
    assert "C65" in ids(result) and result.steps[-1].instruction == "VMLAUNCH"


def test_other_registers_that_do_not_fit_are_bad_input():
    with pytest.raises(UsageError) as caught:
        switch("grub-efi-ia32", NOPAE, port=Model(COMPACT))
    assert str(caught.value) == ("grub-efi-ia32 CPU#0: the compact processor lacks EFER, or has it "
                                 "narrower; choose another processor")


def test_an_original_that_executes_nothing_is_bad_input():
    with pytest.raises(UsageError, match="activity state 2"):
        switch(read(LINUX, ACTIVITY=2))


# --- The watch notices what must not be ---

class Tampering(Model):
    """A model that shows its watcher something else than what is."""

    def __init__(self, tamper):
        self._tamper = tamper
        super().__init__(FULL)

    @property
    def watcher(self):
        return self._watcher

    @watcher.setter
    def watcher(self, watcher):
        self._watcher = watcher and (lambda sample: watcher(self._tamper(sample)))


def shown_at(cycle, registers, sample):
    if sample.cycle != cycle:
        return sample
    return replace(sample, registers={**sample.registers, **registers})


@pytest.mark.parametrize("register", ["CR3", "RSP", "GDTR_LIMIT", "IA32_FEATURE_CONTROL"])
@pytest.mark.parametrize("cycle", [1, 50, 121, 122, 123])
def test_one_register_of_another_environment_for_one_cycle_is_noticed(register, cycle):
    result = switch(port=Tampering(partial(shown_at, cycle, {register: 0x1234})))
    assert cycle in result.mixed_cycles and set(result.mixed_cycles) == {cycle}
    assert len(result.changes) == 1 and not result.whole


def test_a_field_that_comes_a_cycle_late_is_noticed():
    clean = switch()
    edge, late = clean.changes[0].cycle, {"CR3": clean.start["CR3"]}
    result = switch(port=Tampering(partial(shown_at, edge, late)))
    assert result.mixed_cycles == (edge,) and result.changes[0].cycle == edge + 1
    assert result.as_dict()["mixed_cycles"] == 1 and not result.whole


def test_an_owner_that_changes_more_than_once_is_noticed():
    clean = switch()
    host = clean.final | {"RIP": clean.final["RIP"] - 3}
    result = switch(port=Tampering(partial(shown_at, 60, host)))
    assert [change.owner for change in result.changes] == [TARGET, ORIGINAL, TARGET]
    assert not result.mixed_cycles and not result.whole


def test_a_target_that_is_lost_again_is_noticed():
    clean = switch()
    prepared = clean.start | {"CR4": clean.start["CR4"] | 0x2000, "IA32_FEATURE_CONTROL": 5}
    result = switch(port=Tampering(partial(shown_at, clean.changes[0].cycle + 1, prepared)))
    assert [change.owner for change in result.changes][:2] == [TARGET, ORIGINAL]
    assert not result.whole


class Defective(Model):
    """A model whose instruction of a name leaves some registers wrong."""

    def __init__(self, name, registers):
        super().__init__(FULL)
        self._name, self._wrong = name, registers

    def execute(self, instruction):
        answer = super().execute(instruction)
        if instruction.name == self._name:
            self.write_registers(self._wrong)
        return answer


@pytest.mark.parametrize("name", ["VMXON", "VMPTRLD", "VMLAUNCH", "VMCALL", "VMXOFF"])
def test_an_instruction_that_leaves_a_register_wrong_is_noticed(name):
    result = switch(port=Defective(name, {"CR3": 0x77000})) # as if from the other area
    assert not result.whole and MIXED in [step.owner for step in result.steps]


def test_an_entry_that_fails_ends_in_the_target():
    result = switch("ovmf-x64-smm")
    assert ids(result) == {"N14"} and result.whole
    assert [change.owner for change in result.changes] == [TARGET]
    assert result.steps[-1].owner == TARGET and "entry failure 33" in result.steps[-1].note
    assert not result.not_carried

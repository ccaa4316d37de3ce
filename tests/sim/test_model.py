"""The reference model: every row of the instruction tables, and what each effect leaves behind."""

import pytest

from vmxswitch.sim.model import Model
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import Const
from vmxswitch.spec.operations import NO_VMCS, Event, Instruction, Mode, Outcome
from vmxswitch.spec.tables import EVENT_WORDS, EXIT_REASONS, FIELDS, INSTRUCTIONS, SYMBOLS

ALL_ONES = (1 << 64) - 1
MISALIGNED = 0x30_1008
BEYOND = 1 << 45             # above every profile's physical-address width
NO_REVISION = 0x30_F000      # a region of zeros
VMXON, VMCS, OTHER, SHADOW = 0x30_0000, 0x30_1000, 0x30_2000, 0x30_3000
EPTP = 0x11_001E             # what the baselines have
EPTP_LIST = 0x21_0000
VMREAD_BITMAP, VMWRITE_BITMAP = 0x20_C000, 0x20_D000
MSR_LIST = 0x20_5000

CPL3 = {"SS_AR": 0xC0F3}
NOT_PROTECTED = {"CR0": 0x8000_0030}
FAULT = {"operand_fault": (14, 2)}
SHADOWING = {"SECONDARY_PROC_BASED_CTLS": 0x4002, "VMCS_LINK_POINTER": SHADOW}
FUNCTIONS = {"SECONDARY_PROC_BASED_CTLS": 0x2002, "VM_FUNCTION_CONTROLS": 1}

ROWS = {row.id: row for rows in INSTRUCTIONS.values() for row in rows}

NO_SMM = "no system-management mode and no dual-monitor treatment"
#: Rows that no processor of ours can come to.
UNREACHABLE = {
    "VMXON.7": "no A20M pin",
    "VMXON.10": "no SMX operation",
    "VMXOFF.4": NO_SMM,
    "VMLAUNCH.11": "no source of machine checks",
    "VMRESUME.11": "no source of machine checks",
    **{f"VMCALL.{order}": NO_SMM for order in range(6, 13)},
}


def case(world, live=None, fields=None, profile="skylake_x_64", **operands):
    """How a row is met: world, changed registers, changed fields, operands of the instruction."""
    return world, live or {}, fields or {}, profile, operands


def pointer_cases(name):
    """Rows that VMCLEAR, VMPTRLD and VMPTRST share."""
    return {
        f"{name}.1": case("root", register_operand=True),
        f"{name}.2": case("off"),
        f"{name}.3": case("guest"),
        f"{name}.4": case("root", CPL3),
        f"{name}.5": case("root", **FAULT),
    }


def field_cases(name, order, field="GUEST_RIP"):
    """Rows that VMREAD and VMWRITE share; ``order`` is that of the encoding check."""
    encoding = FIELDS[field].encoding
    return {
        f"{name}.1": case("off", encoding=encoding),
        f"{name}.2": case("guest", encoding=encoding),
        f"{name}.3": case("loaded", CPL3, encoding=encoding),
        f"{name}.4": case("root", encoding=encoding),
        f"{name}.{order}": case("loaded", encoding=0x5FFE),
        f"{name}.{11 - order}": case("loaded", encoding=encoding, **FAULT),
        f"{name}.{len(INSTRUCTIONS[name])}": case("loaded", encoding=encoding),
    }


def entry_cases(name):
    """Rows of VMLAUNCH, which VMRESUME shares but for the launch state."""
    launch = name == "VMLAUNCH"
    world = "loaded" if launch else "exited"
    return {
        f"{name}.1": case("off"),
        f"{name}.2": case("guest"),
        f"{name}.3": case(world, CPL3),
        f"{name}.4": case("root"),
        f"{name}.5": case(world, mov_ss_blocking=True),
        f"{name}.6": case("exited" if launch else "loaded"),
        f"{name}.7": case(world, fields={"VM_ENTRY_CTLS": 0}),
        f"{name}.8": case(world, fields={"HOST_CR4": 0}),
        f"{name}.9": case(world, fields={"GUEST_RFLAGS": 0}),
        f"{name}.10": case(world, fields={"VM_ENTRY_MSR_LOAD_COUNT": 1}),
        f"{name}.12": case(world),
    }


#: For every other row a way to meet it.
CASES = {
    "VMXON.1": case("off", register_operand=True),
    "VMXON.2": case("off", {"CR4": 0x620}),
    "VMXON.3": case("guest"),
    "VMXON.4": case("root", CPL3),
    "VMXON.5": case("loaded"),
    "VMXON.6": case("off", CPL3),
    "VMXON.8": case("off", {"CR0": 0x8000_0011}),
    "VMXON.9": case("off", {"IA32_FEATURE_CONTROL": 4}),
    "VMXON.11": case("off", {"IA32_FEATURE_CONTROL": 1}),
    "VMXON.12": case("off", **FAULT),
    "VMXON.13": case("off", pointer=MISALIGNED),
    "VMXON.14": case("off", pointer=NO_REVISION),
    "VMXON.15": case("off", pointer=VMXON),
    "VMXOFF.1": case("off"),
    "VMXOFF.2": case("guest"),
    "VMXOFF.3": case("root", CPL3),
    "VMXOFF.5": case("root"),
    **pointer_cases("VMCLEAR"),
    "VMCLEAR.6": case("loaded", pointer=MISALIGNED),
    "VMCLEAR.7": case("loaded", pointer=VMXON),
    "VMCLEAR.8": case("loaded", pointer=VMCS),
    **pointer_cases("VMPTRLD"),
    "VMPTRLD.6": case("loaded", pointer=BEYOND),
    "VMPTRLD.7": case("loaded", pointer=VMXON),
    "VMPTRLD.8": case("loaded", pointer=NO_REVISION),
    "VMPTRLD.9": case("loaded", pointer=VMCS),
    **pointer_cases("VMPTRST"),
    "VMPTRST.6": case("root"),
    **field_cases("VMREAD", 5),
    **field_cases("VMWRITE", 6),
    "VMWRITE.7": case(
        "loaded", profile="sandy_bridge_64", encoding=FIELDS["VM_EXIT_REASON"].encoding),
    **entry_cases("VMLAUNCH"),
    **entry_cases("VMRESUME"),
    "VMCALL.1": case("off"),
    "VMCALL.2": case("guest", CPL3),
    "VMCALL.3": case("root", {"CS_AR": 0xC09B}),
    "VMCALL.4": case("root", CPL3),
    "VMCALL.5": case("loaded"),
    "VMFUNC.1": case("root"),
    "VMFUNC.2": case("guest"),
    "VMFUNC.3": case("guest", fields=FUNCTIONS, eax=64),
    "VMFUNC.4": case("guest", fields=FUNCTIONS, eax=1),
    "VMFUNC.5": case("guest", fields=FUNCTIONS, ecx=512),
    "VMFUNC.6": case("guest", fields=FUNCTIONS, ecx=4),
    "VMFUNC.7": case("guest", fields=FUNCTIONS, ecx=3),
    "INVEPT.1": case("simple"),
    "INVEPT.2": case("root", register_operand=True),
    "INVEPT.3": case("root", NOT_PROTECTED),
    "INVEPT.4": case("guest"),
    "INVEPT.5": case("root", CPL3),
    "INVEPT.6": case("loaded", invalidation=3),
    "INVEPT.7": case("root", invalidation=1, **FAULT),
    "INVEPT.8": case("loaded", invalidation=1, descriptor=EPTP | 1 << 11),
    "INVEPT.9": case("root", invalidation=1, descriptor=EPTP),
    "INVVPID.1": case("simple"),
    "INVVPID.2": case("root", register_operand=True),
    "INVVPID.3": case("off"),
    "INVVPID.4": case("guest"),
    "INVVPID.5": case("root", CPL3),
    "INVVPID.6": case("loaded", invalidation=4),
    "INVVPID.7": case("root", invalidation=1, **FAULT),
    "INVVPID.8": case("loaded", invalidation=1, descriptor=0x1_0001),
    "INVVPID.9": case("loaded", invalidation=1),
    "INVVPID.10": case("loaded", invalidation=0, descriptor=1 | 1 << 63 << 64),
    "INVVPID.11": case("root", invalidation=2),
}


@pytest.fixture
def at_row(machine):
    """A function that brings a machine before the instruction of a row."""
    def prepare(row_id):
        world, live, fields, profile, operands = CASES[row_id]
        started = {"exited": "guest", "simple": "off"}.get(world, world)
        where = machine(started, profile, **(fields if world in ("loaded", "guest") else {}))
        if world == "exited":
            assert where.do("VMCALL").outcome == Outcome.EXIT
            for field, value in fields.items():
                where.write(field, value)
        if world == "simple":
            where.port = Model(PRESETS["compact"])
        for address in (VMXON, VMCS):
            where.region(address)
        where.port.write_memory(EPTP_LIST + 8 * 3, 8, EPTP + 0x1000)
        where.port.write_registers(live)
        return where, operands
    return prepare


def test_every_row_is_met_or_listed():
    assert CASES.keys() | UNREACHABLE.keys() == ROWS.keys()
    assert not CASES.keys() & UNREACHABLE.keys()


@pytest.mark.parametrize("row_id", UNREACHABLE)
def test_an_unreachable_row_is_out_of_reach_on_every_processor(row_id, machine):
    processors = [*PRESETS.values(), *(
        machine(profile=name).profile.capabilities
        for name in ("sandy_bridge_64", "skylake_x_32", "skylake_x_64"))]
    row = ROWS[row_id]
    for capabilities in processors:
        before = [capabilities.bind(other.condition) for other in INSTRUCTIONS[row.instruction]
                  if other.order < row.order]
        assert capabilities.bind(row.condition) == Const(1, 0) or Const(1, 1) in before


@pytest.mark.parametrize("row_id", CASES)
def test_a_row_ends_in_its_outcome(row_id, at_row):
    where, operands = at_row(row_id)
    row = ROWS[row_id]
    answer = where.do(row.instruction, **operands)
    assert answer.row == row_id
    found = {
        Outcome.SUCCEED: "VMsucceed", Outcome.CONTINUE: "continue",
        Outcome.FAIL_INVALID: "VMfailInvalid", Outcome.FAIL_VALID: f"VMfail({answer.error})",
        Outcome.ENTERED: "VM entry", Outcome.ENTRY_FAILURE: f"entry failure {answer.reason}",
        Outcome.EXIT: f"exit {answer.reason}",
        Outcome.FAULT: {(6, None): "#UD", (13, 0): "#GP(0)", (14, 2): "operand fault"}.get(
            (answer.vector, answer.error_code)),
    }
    assert found[answer.outcome] == row.outcome


@pytest.mark.parametrize("row_id", [
    row_id for row_id in CASES if ROWS[row_id].kind in (
        "#UD", "#GP", "operand fault", "VMfail", "VMfailInvalid")])
def test_a_refused_instruction_changes_nothing_but_the_error(row_id, at_row):
    where, operands = at_row(row_id)
    before = where.state()
    answer = where.do(ROWS[row_id].instruction, **operands)
    if answer.outcome == Outcome.FAIL_VALID:
        *_, current = before["_residents"]
        current.fields["VM_INSTRUCTION_ERROR"] = ROWS[row_id].number
    assert where.state() == before


def test_without_current_vmcs_a_failure_is_invalid(machine):
    answer = machine("root").do("VMCLEAR", pointer=MISALIGNED)
    assert (answer.outcome, answer.row) == (Outcome.FAIL_INVALID, "VMCLEAR.6")


def test_success_keeps_the_error_of_the_last_failure(machine):
    where = machine("loaded")
    where.do("VMRESUME")
    where.write("GUEST_RIP", 0)
    assert where.read("VM_INSTRUCTION_ERROR") == 5


def test_every_symbol_has_a_value_and_every_value_a_symbol():
    given = {"LIST_INDEX", "LIST_RESERVED", "LIST_DATA"} | {
        name for name, row in SYMBOLS.items() if row.source in ("capability", "exit")
    } | EVENT_WORDS.keys() - {"VTPR"}
    assert Model._SYMBOLS.keys() == SYMBOLS.keys() - given


# --- VMXON, VMXOFF ---

def test_vmxon_and_vmxoff_change_the_mode_and_leave_no_current_vmcs(machine):
    where = machine("loaded")
    assert where.port.mode == Mode.ROOT
    where.succeed("VMXOFF")
    assert where.port.mode == Mode.OFF
    where.succeed("VMXON", pointer=VMXON)
    assert where.port.mode == Mode.ROOT
    assert where.succeed("VMPTRST") == NO_VMCS


def test_the_last_vmxon_sets_the_vmxon_pointer(machine):
    where = machine("root")
    where.succeed("VMXOFF")
    where.region(OTHER)
    where.succeed("VMXON", pointer=OTHER)
    where.succeed("VMCLEAR", pointer=VMXON)
    assert where.do("VMCLEAR", pointer=OTHER).row == "VMCLEAR.7"


# --- VMCS regions ---

def test_vmptrst_stores_the_current_pointer(machine):
    where = machine("loaded")
    assert where.succeed("VMPTRST") == VMCS
    where.succeed("VMCLEAR", pointer=OTHER)
    assert where.succeed("VMPTRST") == VMCS
    where.succeed("VMCLEAR", pointer=VMCS)
    assert where.succeed("VMPTRST") == NO_VMCS


@pytest.mark.parametrize("clear", [False, True])
def test_regions_keep_their_fields(machine, clear):
    where = machine("root")
    contents = {}
    for number, address in enumerate((VMCS, OTHER, SHADOW)):
        where.load(address)
        for field, row in where.capabilities.fields.items():
            where.write(field, (number + 1) * 0x0123_4567_89AB_CDEF & (1 << row.bits) - 1)
        contents[address] = where.fields()
        if clear:
            where.succeed("VMCLEAR", pointer=address)
    for address in (SHADOW, VMCS, OTHER):
        where.succeed("VMPTRLD", pointer=address)
        assert where.fields() == contents[address]


def test_a_region_holds_its_fields_in_table_order_and_keeps_its_first_words(machine):
    where = machine("loaded")
    where.port.write_memory(VMCS + 4, 4, 0xAB0)
    first = where.port.read_memory(VMCS, 8)
    fields = where.fields()
    where.do("VMLAUNCH")
    where.do("VMCALL")
    expected = where.fields()
    where.succeed("VMPTRLD", pointer=where.region(OTHER) or OTHER)  # evicts it
    words = [where.port.read_memory(VMCS + 8 * n, 8) for n in range(len(fields) + 2)]
    assert words == [first, 1, *expected.values()]


@pytest.mark.parametrize("current", [True, False])
def test_vmclear_clears_the_launch_state(machine, current):
    where = machine("guest")
    where.do("VMCALL")
    if not current:
        where.load(OTHER)
    fields = None if not current else where.fields()
    where.succeed("VMCLEAR", pointer=VMCS)
    where.succeed("VMPTRLD", pointer=VMCS)
    assert fields in (None, where.fields())
    assert where.do("VMRESUME").row == "VMRESUME.6"
    assert where.do("VMLAUNCH").outcome == Outcome.ENTERED


def test_vmptrld_of_the_current_vmcs_changes_nothing(machine):
    where = machine("loaded")
    before = where.state()
    where.succeed("VMPTRLD", pointer=VMCS)
    assert where.state() == before


def test_launch_state_follows_its_vmcs(machine):
    where = machine("guest")
    where.do("VMCALL")
    where.load(OTHER, "long64_ept_A")
    assert where.do("VMRESUME").row == "VMRESUME.6"
    where.succeed("VMPTRLD", pointer=VMCS)
    assert where.do("VMLAUNCH").row == "VMLAUNCH.6"
    assert where.do("VMRESUME").outcome == Outcome.ENTERED


def test_a_shadow_vmcs_is_read_and_written_but_not_entered(machine):
    where = machine("loaded")
    where.region(VMCS, 1 << 31)
    where.succeed("VMPTRLD", pointer=VMCS)
    assert where.do("VMLAUNCH").outcome == Outcome.ENTERED  # not seen while it is resident
    where.do("VMCALL")
    where.succeed("VMCLEAR", pointer=VMCS)
    where.succeed("VMPTRLD", pointer=VMCS)
    where.write("GUEST_RIP", 0x1234)
    assert where.read("GUEST_RIP") == 0x1234
    for name in ("VMLAUNCH", "VMRESUME"):
        answer = where.do(name)
        assert (answer.outcome, answer.row) == (Outcome.FAIL_INVALID, f"{name}.4")


def test_without_shadowing_no_shadow_vmcs_is_loaded(machine):
    where = machine("loaded", "sandy_bridge_64", "long64_A")
    where.region(OTHER, 1 << 31)
    assert where.do("VMPTRLD", pointer=OTHER).error == 11


# --- VMREAD, VMWRITE ---

@pytest.mark.parametrize("field", FIELDS)
def test_a_field_holds_its_width(machine, field):
    where = machine("loaded", baseline=None)
    row = FIELDS[field]
    if row.encoding not in where.capabilities.encodings:
        assert where.do("VMREAD", encoding=row.encoding).error == 12
        return
    where.write(field, ALL_ONES)
    ones = (1 << (32 if row.is_high else row.bits)) - 1
    assert where.read(field) == ones
    if row.is_high:
        assert where.read(field.removesuffix("_HIGH")) == ones << 32
        where.write(field.removesuffix("_HIGH"), 0x1111_1111_2222_2222)
        where.write(field, 0x3333_3333)
        assert where.read(field.removesuffix("_HIGH")) == 0x3333_3333_2222_2222


@pytest.mark.parametrize("field, whole", [("IO_BITMAP_A_ADDR", 64), ("GUEST_CR3", 64)])
def test_outside_64_bit_mode_registers_are_32_bits(machine, field, whole):
    where = machine("loaded", baseline=None)
    where.write(field, ALL_ONES)
    registers = where.port.read_registers()
    prot32 = {"EFER": 0, "CS_AR": 0xC09B}
    where.port.write_registers(prot32)
    assert where.read(field) == 0xFFFF_FFFF
    assert where.succeed("VMREAD", encoding=FIELDS[field].encoding | 1 << 32) == 0xFFFF_FFFF
    where.write(field, 0xAAAA_AAAA_5555_5555)
    where.port.write_registers({name: registers[name] for name in prot32})
    assert where.read(field) == 0x5555_5555
    assert where.do("VMREAD", encoding=FIELDS[field].encoding | 1 << 32).error == 12


def test_natural_width_fields_of_a_32_bit_processor_have_32_bits():
    port = Model(PRESETS["compact"])
    port.write_registers({
        "CR0": 0x8000_0031, "CR4": 0x2000, "CS_AR": 0xC09B, "IA32_FEATURE_CONTROL": 5})
    for address in (VMXON, VMCS):
        port.write_memory(address, 4, 1)
    for name, address in (("VMXON", VMXON), ("VMCLEAR", VMCS), ("VMPTRLD", VMCS)):
        assert port.execute(Instruction(name, pointer=address)).outcome == Outcome.SUCCEED
    port.execute(Instruction("VMWRITE", encoding=FIELDS["GUEST_RIP"].encoding, value=ALL_ONES))
    port.execute(Instruction("VMCLEAR", pointer=VMCS))
    words = {port.read_memory(VMCS + 16 + 8 * n, 8) for n in range(len(PRESETS["compact"].fields))}
    assert words == {0, 0xFFFF_FFFF}


# --- VMCS shadowing ---

@pytest.fixture
def shadowed(machine):
    """A guest whose VMREAD and VMWRITE go to a shadow VMCS in which GUEST_RIP is 0x5678."""
    where = machine("root")
    where.region(SHADOW, 1 << 31)
    where.succeed("VMPTRLD", pointer=SHADOW)
    where.write("GUEST_RIP", 0x5678)
    where.succeed("VMCLEAR", pointer=SHADOW)
    where.load(VMCS, "long64_ept_A", **SHADOWING)
    assert where.do("VMLAUNCH").outcome == Outcome.ENTERED
    return where


def test_the_guest_reads_and_writes_its_shadow_vmcs(shadowed):
    assert shadowed.read("GUEST_RIP") == 0x5678
    shadowed.write("IO_BITMAP_A_ADDR", 0x1_2345_6789)
    shadowed.write("IO_BITMAP_A_ADDR_HIGH", 0x22)
    assert shadowed.read("IO_BITMAP_A_ADDR") == 0x22_2345_6789
    assert shadowed.port.mode == Mode.NON_ROOT
    shadowed.do("VMCALL")
    assert shadowed.read("IO_BITMAP_A_ADDR") == 0x20_3000  # the baseline's
    shadowed.succeed("VMPTRLD", pointer=SHADOW)
    assert shadowed.read("IO_BITMAP_A_ADDR") == 0x22_2345_6789


def test_an_error_of_the_guest_goes_to_its_shadow_vmcs(shadowed):
    assert shadowed.do("VMREAD", encoding=0x5FFE).error == 12
    shadowed.do("VMCALL")
    assert shadowed.read("VM_INSTRUCTION_ERROR") == 0
    shadowed.succeed("VMPTRLD", pointer=SHADOW)
    assert shadowed.read("VM_INSTRUCTION_ERROR") == 12


@pytest.mark.parametrize("name, bitmap, reason", [
    ("VMREAD", VMREAD_BITMAP, 23), ("VMWRITE", VMWRITE_BITMAP, 25)])
def test_a_bit_in_the_bitmap_makes_the_access_exit(shadowed, name, bitmap, reason):
    encoding = FIELDS["GUEST_RFLAGS"].encoding
    shadowed.port.write_memory(bitmap + encoding // 64 * 8, 8, ALL_ONES ^ 1 << encoding % 64)
    assert shadowed.do(name, encoding=encoding).outcome == Outcome.SUCCEED
    shadowed.port.write_memory(bitmap + encoding // 64 * 8, 8, 1 << encoding % 64)
    answer = shadowed.do(name, encoding=encoding)
    assert (answer.outcome, answer.reason) == (Outcome.EXIT, reason)


def test_a_wide_encoding_exits(shadowed):
    assert shadowed.do("VMREAD", encoding=FIELDS["GUEST_RIP"].encoding | 1 << 15).reason == 23


def test_without_link_pointer_the_access_fails(machine):
    where = machine("guest", SECONDARY_PROC_BASED_CTLS=0x4002)
    assert where.do("VMREAD", encoding=0x681E).row == "VMREAD.4"


# --- VMFUNC ---

@pytest.mark.parametrize("virtualization_exceptions", [False, True])
def test_vmfunc_switches_the_ept_pointer(machine, virtualization_exceptions):
    controls = FUNCTIONS["SECONDARY_PROC_BASED_CTLS"] | virtualization_exceptions << 18
    where = machine("guest", **FUNCTIONS | {"SECONDARY_PROC_BASED_CTLS": controls}, EPTP_INDEX=9)
    where.port.write_memory(EPTP_LIST + 8 * 511, 8, EPTP + 0x5000)
    before = where.port.read_registers()
    assert where.do("VMFUNC", ecx=511).outcome == Outcome.CONTINUE
    assert where.port.read_registers() == before
    where.do("VMCALL")
    assert where.read("EPT_POINTER") == EPTP + 0x5000
    assert where.read("EPTP_INDEX") == (511 if virtualization_exceptions else 9)


# --- VM entry ---

@pytest.fixture
def entering(machine):
    """A function that launches a guest with changed fields and returns the registers."""
    def enter(live=None, **fields):
        where = machine("loaded", **fields)
        where.port.write_registers(live or {})
        answer = where.do("VMLAUNCH")
        assert answer.outcome == Outcome.ENTERED, answer.failing
        assert where.port.mode == Mode.NON_ROOT
        return where.port.read_registers()
    return enter


#: Guest-state fields that hold a register as it is, and a value that passes the checks.
PLAIN = {
    "RIP": ("GUEST_RIP", 0x7FFF_1234_5678), "RSP": ("GUEST_RSP", 0xFEDC_BA98_7654_3210),
    "RFLAGS": ("GUEST_RFLAGS", 0x246), "CR3": ("GUEST_CR3", 0xFF_1234_5000),
    "CR4": ("GUEST_CR4", 0x2660),
    "SYSENTER_CS": ("GUEST_IA32_SYSENTER_CS", 0x1_0010),
    "SYSENTER_ESP": ("GUEST_IA32_SYSENTER_ESP", 0x7000_0000_1000),
    "SYSENTER_EIP": ("GUEST_IA32_SYSENTER_EIP", 0xFFFF_8000_0000_2000),
    "GDTR_BASE": ("GUEST_GDTR_BASE", 0xFFFF_8000_0000_3000),
    "GDTR_LIMIT": ("GUEST_GDTR_LIMIT", 0x1FFF),
    "IDTR_BASE": ("GUEST_IDTR_BASE", 0xFFFF_8000_0000_4000),
    "IDTR_LIMIT": ("GUEST_IDTR_LIMIT", 0xFFE),
    **{f"{name}_SELECTOR": (f"GUEST_{name}_SELECTOR", 0x50 + 8 * number)
       for number, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"))},
    **{f"{name}_BASE": (f"GUEST_{name}_BASE", 0x1234_5000)
       for name in ("ES", "CS", "SS", "DS")},
    **{f"{name}_BASE": (f"GUEST_{name}_BASE", 0xFFFF_9234_5678_9ABC)
       for name in ("FS", "GS", "TR")},
    **{f"{name}_LIMIT": (f"GUEST_{name}_LIMIT", 0x12FFF)
       for name in ("ES", "CS", "SS", "DS", "FS", "GS")},
    "ES_LIMIT": ("GUEST_ES_LIMIT", 0x7FF_FFFF),
    "LDTR_LIMIT": ("GUEST_LDTR_LIMIT", 0x77),
    "TR_LIMIT": ("GUEST_TR_LIMIT", 0x1FFF),
    "ES_AR": ("GUEST_ES_AR", 0xC0F1), "DS_AR": ("GUEST_DS_AR", 0xC0F3),
    "FS_AR": ("GUEST_FS_AR", 0x1_0000), "GS_AR": ("GUEST_GS_AR", 0xC0F7),
    "SS_AR": ("GUEST_SS_AR", 0xC097), "CS_AR": ("GUEST_CS_AR", 0xA09F),
    "LDTR_AR": ("GUEST_LDTR_AR", 0x1_0000), "TR_AR": ("GUEST_TR_AR", 0x808B),
    "INTERRUPTIBILITY": ("GUEST_INTERRUPTIBILITY_STATE", 0x8),
    "ACTIVITY": ("GUEST_ACTIVITY_STATE", 1),
    "PENDING_DBG": ("GUEST_PENDING_DBG_EXCEPTIONS", 0x1001),
    "PREEMPTION_TIMER": ("VMX_PREEMPTION_TIMER_VALUE", 0x1_0000),
}


@pytest.mark.parametrize("register", PLAIN)
def test_an_entry_loads(entering, register):
    field, value = PLAIN[register]
    extra = {"GUEST_TR_LIMIT": 0x1FFF} if register == "TR_AR" else {}
    assert entering(**{field: value}, **extra)[register] == value


@pytest.mark.parametrize("register, live, fields, value", [
    # bits that an entry keeps: ET, CD, NW, 28:19, 17, 15:6
    ("CR0", {"CR0": 0xE000_0031}, {"GUEST_CR0": 0x8005_0033}, 0xE005_0033),
    ("DR7", {"DR7": 0x455}, {"VM_ENTRY_CTLS": 0x13FB}, 0x455),
    ("DR7", {}, {"VM_ENTRY_CTLS": 0x13FF, "GUEST_DR7": 0xD0AA}, 0x4AA),
    ("DEBUGCTL", {"DEBUGCTL": 2}, {"VM_ENTRY_CTLS": 0x13FB}, 2),
    ("DEBUGCTL", {"DEBUGCTL": 2}, {"VM_ENTRY_CTLS": 0x13FF, "GUEST_IA32_DEBUGCTL": 1}, 1),
    ("PAT", {"PAT": 0x0606}, {"GUEST_IA32_PAT": 0x0505}, 0x0606),
    ("PAT", {"PAT": 0x0606}, {"VM_ENTRY_CTLS": 0x53FB, "GUEST_IA32_PAT": 0x0505}, 0x0505),
    ("EFER", {"EFER": 0xD01}, {"GUEST_IA32_EFER": 0x500}, 0xD01),
    ("EFER", {"EFER": 0xD01}, {"VM_ENTRY_CTLS": 0x93FB, "GUEST_IA32_EFER": 0x500}, 0x500),
    ("SS_BASE", {}, {"GUEST_SS_AR": 0x1_0000, "GUEST_SS_BASE": ALL_ONES}, 0xFFFF_FFFF),
    ("LDTR_BASE", {}, {"GUEST_LDTR_BASE": 0x8000_0000_0000}, 0),
    ("INTERRUPTIBILITY", {}, {"VM_ENTRY_INTR_INFO": 0x8000_0202}, 8),  # NMI injected
    ("ACTIVITY", {}, {"VM_ENTRY_INTR_INFO": 0x8000_0202, "GUEST_ACTIVITY_STATE": 1}, 0),
    ("PENDING_DBG", {}, {"VM_ENTRY_INTR_INFO": 0x8000_0202,
                         "GUEST_PENDING_DBG_EXCEPTIONS": 0x1000}, 0),
    ("PDPTE2", {"PDPTE2": 7}, {}, 7),  # no PAE paging in a 64-bit guest
    ("STAR", {"STAR": 0x77}, {}, 0x77),
])
def test_an_entry_loads_by_rule(entering, register, live, fields, value):
    assert entering(live, **fields)[register] == value


@pytest.mark.parametrize("ept, fields", [(False, {}), (True, {"GUEST_PDPTE3": 0x7001})])
def test_pae_paging_takes_its_entries_from_the_vmcs_or_memory(machine, ept, fields):
    where = machine("loaded", baseline="pae32_ept_A" if ept else "pae32_A", **fields,
                    GUEST_CR3=0x12_3478)  # bits 4:0 are no part of the address
    where.port.write_memory(0x12_3460 + 24, 8, 0x9001)
    assert where.do("VMLAUNCH").outcome == Outcome.ENTERED
    assert where.port.read_registers()["PDPTE3"] == (0x7001 if ept else 0x9001)


def test_a_bad_entry_of_pae_paging_fails_with_qualification_2(machine):
    where = machine("loaded", baseline="pae32_A")
    where.port.write_memory((where.read("GUEST_CR3") & 0xFFFF_FFE0) + 8, 8, 0x9003)
    answer = where.do("VMLAUNCH")
    assert (answer.reason, answer.qualification, answer.failing) == (33, 2, ("P02",))


# --- Entries that do not happen ---

def test_all_failing_checks_are_reported_and_controls_decide(machine):
    where = machine("loaded", CR3_TARGET_COUNT=5, HOST_CR3=BEYOND, GUEST_TR_AR=0)
    answer = where.do("VMLAUNCH")
    assert (answer.outcome, answer.error) == (Outcome.FAIL_VALID, 7)
    assert answer.failing == ("C07", "H06", "G113", "G115")
    where.write("CR3_TARGET_COUNT", 0)
    assert where.do("VMLAUNCH").error == 8
    where.write("HOST_CR3", 0)
    answer = where.do("VMLAUNCH")
    assert (answer.outcome, answer.failing) == (Outcome.ENTRY_FAILURE, ("G113", "G115"))


@pytest.mark.parametrize("fields, qualification, failing", [
    ({"GUEST_RFLAGS": 0}, 0, ("G134",)),
    ({"VMCS_LINK_POINTER": MISALIGNED}, 4, ("N24",)),
    ({"VMCS_LINK_POINTER": NO_REVISION}, 4, ("N26",)),
    ({"VMCS_LINK_POINTER": MISALIGNED, "GUEST_RFLAGS": 0}, 0, ("G134", "N24")),
])
def test_an_entry_failure_names_the_first_failing_row(machine, fields, qualification, failing):
    answer = machine("loaded", **fields).do("VMLAUNCH")
    assert (answer.reason, answer.qualification) == (33, qualification)
    assert answer.failing == failing


FAILURES = {
    33: {"GUEST_RFLAGS": 0, "VM_ENTRY_INTR_INFO": 0x8000_0202},
    34: {"VM_ENTRY_MSR_LOAD_COUNT": 3, "VM_ENTRY_INTR_INFO": 0x8000_0202},
}


@pytest.mark.parametrize("reason", FAILURES)
def test_an_entry_failure_changes_two_fields_and_loads_the_host(machine, reason):
    where = machine("loaded", **FAILURES[reason])
    for number in range(2):
        where.port.write_memory(MSR_LIST + 16 * number, 8, 0x174)
        where.port.write_memory(MSR_LIST + 16 * number + 8, 8, 0x7777)
    before, fields = where.state(), where.fields()
    answer = where.do("VMLAUNCH")
    qualification = 3 if reason == 34 else 0
    assert (answer.outcome, answer.reason) == (Outcome.ENTRY_FAILURE, reason)
    assert answer.qualification == qualification
    assert where.state()["_memory"] == before["_memory"]
    assert where.port.mode == Mode.ROOT
    registers = where.port.read_registers()
    assert (registers["RIP"], registers["RFLAGS"], registers["SYSENTER_CS"]) == (0xAB90, 2, 8)
    assert where.fields() == fields | {
        "VM_EXIT_REASON": 0x8000_0000 | reason, "EXIT_QUALIFICATION": qualification}
    assert where.do("VMRESUME").row == "VMRESUME.6"  # not launched


# --- The MSR-load list ---

def list_of(where, *entries):
    for number, (index, data) in enumerate(entries):
        where.port.write_memory(MSR_LIST + 16 * number, 8, index)
        where.port.write_memory(MSR_LIST + 16 * number + 8, 8, data)
    where.write("VM_ENTRY_MSR_LOAD_COUNT", len(entries))


def test_the_list_is_loaded_after_the_guest_state_and_in_order(machine):
    where = machine("loaded", GUEST_IA32_SYSENTER_CS=1)
    list_of(where, (0x174, 2), (0xC000_0081, 3), (0x174, 0x5_0000_0004))
    assert where.do("VMLAUNCH").outcome == Outcome.ENTERED
    registers = where.port.read_registers()
    assert (registers["SYSENTER_CS"], registers["STAR"]) == (4, 3)


@pytest.mark.parametrize("entry, failing", [
    ((0x174 | 1 << 32, 0), ("M01",)),
    ((0xC000_0100, 0), ("M02", "M06")),
    ((0x808, 0), ("M03", "M06")),
    ((0x9B, 0), ("M04", "M06")),
    ((0x79, 0), ("M05", "M06")),
    ((0x175, 1 << 63), ("M06",)),
    ((0x277, 0x0200), ("M06",)),
    ((0x1234, 0), ("M06",)),
])
def test_a_bad_list_entry_is_named(machine, entry, failing):
    where = machine("loaded")
    list_of(where, (0x174, 0), entry, (0x1234, 0))
    before = where.port.read_registers()
    answer = where.do("VMLAUNCH")
    assert (answer.reason, answer.qualification, answer.failing) == (34, 2, failing)
    assert where.port.read_registers()["STAR"] == before["STAR"]


# --- VM exit ---

#: Host registers after an exit that fields do not name.
FIXED = {
    "RFLAGS": 2, "DR7": 0x400, "DEBUGCTL": 0, "GDTR_LIMIT": 0xFFFF, "IDTR_LIMIT": 0xFFFF,
    "CS_BASE": 0, "CS_LIMIT": 0xFFFF_FFFF, "CS_AR": 0xA09B, "TR_LIMIT": 0x67, "TR_AR": 0x8B,
    "LDTR_SELECTOR": 0, "LDTR_AR": 0x1_0000, "ACTIVITY": 0, "PENDING_DBG": 0,
    **{f"{name}_LIMIT": 0xFFFF_FFFF for name in ("ES", "SS", "DS", "FS", "GS")},
    **{f"{name}_AR": 0xC093 for name in ("ES", "SS", "DS", "FS", "GS")},
    **{f"{name}_BASE": 0 for name in ("ES", "SS", "DS")},
}
#: Host-state fields that hold a register as it is, and a value that passes the checks.
HOST = {
    "RIP": ("HOST_RIP", 0x7FFF_1234_5678), "RSP": ("HOST_RSP", ALL_ONES),
    "CR3": ("HOST_CR3", 0xFF_1234_5000), "CR4": ("HOST_CR4", 0x2670),
    "SYSENTER_CS": ("HOST_IA32_SYSENTER_CS", 0x1_0018),
    "SYSENTER_ESP": ("HOST_IA32_SYSENTER_ESP", 0x7000_0000_1000),
    "SYSENTER_EIP": ("HOST_IA32_SYSENTER_EIP", 0xFFFF_8000_0000_2000),
    **{f"{name}_BASE": (f"HOST_{name}_BASE", 0xFFFF_9234_5678_9ABC)
       for name in ("FS", "GS", "TR", "GDTR", "IDTR")},
    **{f"{name}_SELECTOR": (f"HOST_{name}_SELECTOR", 0x50 + 8 * number)
       for number, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS", "TR"))},
}


@pytest.mark.parametrize("register", HOST)
def test_an_exit_loads_a_host_field(machine, register):
    field, value = HOST[register]
    where = machine("guest", **{field: value})
    assert where.do("VMCALL").outcome == Outcome.EXIT
    assert where.port.read_registers()[register] == value


def test_an_exit_loads_what_no_field_holds(machine):
    where = machine("guest", GUEST_ACTIVITY_STATE=1, GUEST_PENDING_DBG_EXCEPTIONS=0x1001)
    where.port.write_registers({
        name: value ^ 0x11 for name, value in FIXED.items()})
    where.do("VMCALL")
    registers = where.port.read_registers()
    assert {name: registers[name] for name in FIXED} == FIXED


@pytest.mark.parametrize("register, live, fields, value", [
    ("CR0", {"CR0": 0xE000_0033}, {"HOST_CR0": 0x8001_0031}, 0xE001_0031),
    ("EFER", {"EFER": 0x801}, {}, 0xD01),
    ("EFER", {"EFER": 0x801}, {"VM_EXIT_CTLS": 0x23_6FFB, "HOST_IA32_EFER": 0x500}, 0x500),
    ("PAT", {"PAT": 0x0606}, {"HOST_IA32_PAT": 0x0505}, 0x0606),
    ("PAT", {"PAT": 0x0606}, {"VM_EXIT_CTLS": 0xB_6FFB, "HOST_IA32_PAT": 0x0505}, 0x0505),
    ("FS_AR", {}, {"HOST_FS_SELECTOR": 0}, 0x1_0000),
    ("INTERRUPTIBILITY", {"INTERRUPTIBILITY": 0xB}, {}, 8),
    ("INTERRUPTIBILITY", {"INTERRUPTIBILITY": 8}, {"PIN_BASED_CTLS": 0x7E}, 0),
    ("STAR", {"STAR": 0x77}, {}, 0x77),
])
def test_an_exit_loads_by_rule(machine, register, live, fields, value):
    where = machine("guest", **fields)
    where.port.write_registers(live)
    assert where.do("VMCALL").outcome == Outcome.EXIT
    assert where.port.read_registers()[register] == value


@pytest.mark.parametrize("register", PLAIN)
def test_an_exit_saves(machine, register):
    where = machine("guest", PIN_BASED_CTLS=0x56 | 1 << 6, VM_EXIT_CTLS=0x43_6FFB)
    field, value = PLAIN[register]
    if register == "PENDING_DBG":  # kept under blocking by MOV SS only
        where.port.write_registers({"INTERRUPTIBILITY": 2})
    where.port.write_registers({register: value})
    where.do("VMCALL")
    assert where.read(field) == value


@pytest.mark.parametrize("live, fields, saved", [
    ({"CR0": 0x8005_0033}, {}, {"GUEST_CR0": 0x8005_0033}),
    ({"RFLAGS": 0x1_0002}, {}, {"GUEST_RFLAGS": 2}),  # RF: an instruction exits
    ({"DR7": 0x455}, {}, {"GUEST_DR7": 0x400}),
    ({"DR7": 0x455}, {"VM_EXIT_CTLS": 0x3_6FFF}, {"GUEST_DR7": 0x455}),
    ({"DEBUGCTL": 1}, {}, {"GUEST_IA32_DEBUGCTL": 0}),
    ({"DEBUGCTL": 1}, {"VM_EXIT_CTLS": 0x3_6FFF}, {"GUEST_IA32_DEBUGCTL": 1}),
    ({"PAT": 0x0505}, {"VM_EXIT_CTLS": 0x7_6FFB}, {"GUEST_IA32_PAT": 0x0505}),
    ({"EFER": 0xD01}, {"GUEST_IA32_EFER": 0x500}, {"GUEST_IA32_EFER": 0x500}),
    ({"EFER": 0xD01}, {"VM_EXIT_CTLS": 0x13_6FFB}, {"GUEST_IA32_EFER": 0xD01}),
    ({"ES_AR": 0x1_FFFF}, {}, {"GUEST_ES_AR": 0x1_F0FF}),
    ({"INTERRUPTIBILITY": 0xC}, {}, {"GUEST_INTERRUPTIBILITY_STATE": 8}),
    ({"PENDING_DBG": 0x1001}, {}, {"GUEST_PENDING_DBG_EXCEPTIONS": 0}),
    ({"PREEMPTION_TIMER": 5}, {}, {"VMX_PREEMPTION_TIMER_VALUE": 0x4E20}),
])
def test_an_exit_saves_by_rule(machine, live, fields, saved):
    where = machine("guest", **fields)
    where.port.write_registers(live)
    where.do("VMCALL")
    assert {field: where.read(field) for field in saved} == saved


def test_an_exit_writes_its_information(machine):
    where = machine("guest", VM_ENTRY_INTR_INFO=0x8000_0202)
    answer = where.do("VMPTRLD", length=5, information=0x1234, displacement=0x5678)
    assert (answer.outcome, answer.reason, answer.qualification) == (Outcome.EXIT, 21, 0x5678)
    information = {
        "VM_EXIT_REASON": 21, "EXIT_QUALIFICATION": 0x5678, "VM_EXIT_INSTRUCTION_LENGTH": 5,
        "VM_EXIT_INSTRUCTION_INFO": 0x1234, "VM_EXIT_INTR_INFO": 0, "IDT_VECTORING_INFO": 0,
        "VM_ENTRY_INTR_INFO": 0x0000_0202, "VM_ENTRY_CTLS": 0x13FB}
    assert {field: where.read(field) for field in information} == information


@pytest.mark.parametrize("efer, controls", [(0xD01, 0x13FB), (0x901, 0x11FB)])
def test_an_exit_stores_lma_as_entry_control(machine, efer, controls):
    where = machine("guest")
    where.port.write_registers({"EFER": efer})
    where.do("VMCALL")
    assert where.read("VM_ENTRY_CTLS") == controls


# --- Guest events ---

def test_events_exit_by_their_condition(machine):
    where = machine("guest", PRIMARY_PROC_BASED_CTLS=0x8400_6172 | 1 << 7)
    assert where.port.report(Event(12, length=1)).outcome == Outcome.EXIT
    where.write("PRIMARY_PROC_BASED_CTLS", 0x8400_6172)
    assert where.do("VMRESUME").outcome == Outcome.ENTERED
    before = where.state()
    assert where.port.report(Event(12, length=1)).outcome == Outcome.NO_EXIT
    assert where.state() == before


def test_a_triple_fault_keeps_the_resume_flag(machine):
    where = machine("guest")
    where.port.write_registers({"RFLAGS": 0x1_0002})
    answer = where.port.report(Event(2))
    assert (answer.outcome, answer.reason) == (Outcome.EXIT, 2)
    assert where.read("GUEST_RFLAGS") == 0x1_0002


@pytest.mark.parametrize("reason, activity", [(3, 0), (4, 3)])
def test_init_and_sipi_depend_on_the_activity_state(machine, reason, activity):
    where = machine("guest")
    where.port.write_registers({"ACTIVITY": 3 - activity})
    assert where.port.report(Event(reason)).outcome == Outcome.NO_EXIT
    where.port.write_registers({"ACTIVITY": activity})
    assert where.port.report(Event(reason, qualification=0x9A)).qualification == 0x9A
    assert where.read("GUEST_ACTIVITY_STATE") == activity


def test_an_ept_violation_writes_its_addresses(machine):
    where = machine("guest")
    where.port.report(Event(48, 0x181, linear_address=0x1234_5678, physical_address=0x9ABC_D000))
    assert where.read("EXIT_QUALIFICATION") == 0x181
    assert where.read("GUEST_LINEAR_ADDRESS") == 0x1234_5678
    assert where.read("GUEST_PHYSICAL_ADDRESS") == 0x9ABC_D000


@pytest.mark.parametrize("reason", [n for n, row in EXIT_REASONS.items() if row.condition is None])
def test_an_event_without_condition_is_refused(machine, reason):
    with pytest.raises(UsageError, match=f"exit reason {reason},.*not implemented"):
        machine("guest").port.report(Event(reason))


def test_an_event_wants_a_guest_and_a_known_reason(machine):
    with pytest.raises(UsageError, match="no guest is running"):
        machine("loaded").port.report(Event(10))
    with pytest.raises(UsageError, match="no exit reason 35"):
        machine("guest").port.report(Event(35))


# --- The port ---

def test_the_watcher_sees_every_operation_whole(machine):
    where = machine("loaded")
    seen = []
    where.port.watcher = seen.append
    start = where.port.cycle
    original = where.port.read_registers()
    where.do("VMRESUME")
    where.do("VMLAUNCH")
    guest = where.port.read_registers()
    where.port.report(Event(10, length=2))
    assert [sample.cycle - start for sample in seen] == [1, 2, 3]
    assert [sample.mode for sample in seen] == [Mode.ROOT, Mode.NON_ROOT, Mode.ROOT]
    assert [sample.registers for sample in seen] == [original, guest, where.port.read_registers()]


def test_registers_are_written_all_or_none(machine):
    port = machine().port
    before = port.read_registers()
    with pytest.raises(KeyError):
        port.write_registers({"RIP": 1, "SSP": 1})
    with pytest.raises(ValueError, match="0x10000 does not fit the 16 bits of CS_SELECTOR"):
        port.write_registers({"RIP": 1, "CS_SELECTOR": 0x10000})
    assert port.read_registers() == before


def test_reset_forgets_everything(machine):
    where = machine("guest")
    where.port.reset()
    assert (where.port.mode, where.port.cycle) == (Mode.OFF, 0)
    assert set(where.port.read_registers().values()) == {0}
    assert where.port.read_memory(VMCS, 8) == 0

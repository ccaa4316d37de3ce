"""Readers: what each format says, how a log mangles it, and the one line that refuses a bad one."""

import json
import random
import textwrap
from importlib.resources import files
from pathlib import Path

import pytest

from vmxswitch.firmware import readers
from vmxswitch.firmware.environment import REGISTERS, Environment
from vmxswitch.firmware.readers import vmcs_templates, vmcs_text
from vmxswitch.spec import tables
from vmxswitch.spec.errors import UsageError

DUMPS = Path(__file__).parent / "dumps"
LONG64, COMPAT, SMP = "linux-6.1-amd64-idle", "linux-6.1-amd64-compat-user", "linux-6.1-amd64-smp2"


def shipped_text(name):
    return files("vmxswitch.firmware").joinpath("environments", f"{name}.txt").read_text("ascii")


def dump_text(name):
    return (DUMPS / f"{name}.txt").read_bytes().decode()


@pytest.fixture
def read(tmp_path):
    """Read a text as if it were the file ``f``, from its folder."""

    def read(text, *args, **kwargs):
        path = tmp_path / "f"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            return Environment.read(str(path), *args, **kwargs)
        except UsageError as error:
            message = str(error).replace(str(path), "f")
            assert "\n" not in message
            raise UsageError(message) from None

    return read


def refused(read, message, *args, **kwargs):
    with pytest.raises(UsageError) as error:
        read(*args, **kwargs)
    assert str(error.value).startswith(message), str(error.value)


# QEMU


def test_the_processor_is_chosen_by_its_number(read):
    assert Environment.read(SMP, 0).cpl == 0
    assert Environment.read(SMP, 1).cpl == 3
    assert Environment.read(SMP, 1).source == f"{SMP} CPU#1"
    refused(
        read, "f holds 2 processors (CPU#0 and CPU#1); give --cpu 0 or --cpu 1", shipped_text(SMP)
    )
    refused(read, "f has no CPU#2; it holds CPU#0 and CPU#1", shipped_text(SMP), cpu=2)
    refused(
        read, "f:44: a second block of CPU#0", shipped_text(SMP).replace("CPU#1", "CPU#0"), cpu=0
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "(qemu) info registers\n" + text + "\n(qemu) ",
        lambda text: "KVM: entry failed, hardware error 0x80000021\n" + text.replace("CPU#0\n", ""),
        lambda text: text[: text.index("FCW=")],
        lambda text: text[: text.index("FPR4=") + 9],
        lambda text: "\ufeff" + text,
    ],
)
def test_text_around_the_registers_does_not_matter(read, change):
    assert read(change(shipped_text(LONG64))).registers == Environment.read(LONG64).registers


def test_interruptibility_tells_sti_from_mov_ss_where_it_can(read):
    text = shipped_text(LONG64).replace("II=0", "II=1").replace("HLT=1", "HLT=0")
    environment = read(text)
    assert (environment.registers["INTERRUPTIBILITY"], environment.registers["ACTIVITY"]) == (1, 0)
    assert "STI or MOV SS" in environment.assumed["INTERRUPTIBILITY"]
    assert Environment.read("grub-pc-bios-call").registers["INTERRUPTIBILITY"] == 2
    assert not read(text.replace("A20=1", "A20=0")).a20


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (LONG64, "RBX=0", "RBX=g", "f:3: expected 'RBX=' and 16 hexadecimal digits, found 'RBX=g"),
        (LONG64, "RDI=", "RDX=", "f:4: expected 'RDI=' and 16 hexadecimal digits, found 'RDX="),
        (LONG64, "II=0", "II=2", "f:7: expected 'II=' and one of 01, found 'II=2'"),
        (LONG64, " HLT=1", "", "f:7: expected 'HLT=' and one of 01, found the end of the line"),
        (LONG64, "CR0=", "CR0=0", "f:18: expected 'CR0=' and 8 hexadecimal digits, found 'CR0=0"),
        (
            LONG64,
            "EFER=0",
            "EFER=0 0",
            "f:21: expected 'EFER=' and 16 hexadecimal digits, found 'EFER=0'",
        ),
        (LONG64, "00af9b00", "ffaf9b00", "f:9: expected flags '00xxxx00', found 'ffaf9b00'"),
        (LONG64, "DPL=0 CS64", "CS64", "f:9: expected 'DPL=' or the end of the line, found 'CS64'"),
        (LONG64, "\nIDT=", " 1\nIDT=", "f:16: '1' is left over at the end of the line"),
        (LONG64, "\nCR0=", "\nwarning\nCR0=", "f:18: expected the line 'CR0=', found 'warning'"),
        (LONG64, "\nEFER=", "\nEFER-", "f:21: expected the line 'EFER=', found 'EFER-"),
        (LONG64, "\nGDT=", "\nTR =0000 0 0 0\nGDT=", "f:16: a second line 'TR ='; keep one dump"),
        (LONG64, "\nRIP=", "\nEIP=", "f:7: a line 'EIP=' among registers of the other size"),
        (
            LONG64,
            "00af9b00",
            "00cf9b00",
            "f CPU#0 contradicts itself: 64-bit register lines, but EFER and the CS",
        ),
        (LONG64, "GDT=     ffff", "GDT=     ", "f:16: expected 8 or 16 hexadecimal digits, found"),
        (
            LONG64,
            "[---Z-P-]",
            "[---Z---]",
            "f CPU#0 contradicts itself: the flags are [---Z---], but",
        ),
        (LONG64, "CPL=0", "CPL=3", "f CPU#0 contradicts itself: CPL=3, but SS has DPL 0"),
        (LONG64, "DR7=00000000", "DR7=", "f CPU#0 contradicts itself: DR0 to DR7 differ in digits"),
        (LONG64, "0000007f\n", "0001007f\n", "f CPU#0: GDTR_LIMIT = 0x1007f does not fit 16 bits"),
        (
            COMPAT,
            "CR3=00000000",
            "CR3=",
            "f CPU#0 contradicts itself: GDT, IDT, CR2 and CR3 must have 16 digits",
        ),
    ],
)
def test_a_damaged_block_is_refused_by_line_and_word(read, name, old, new, message):
    text = shipped_text(name)
    assert old in text
    refused(read, message, text.replace(old, new, 1))


def test_a_block_must_be_whole(read):
    text = shipped_text(LONG64)
    lines = text.splitlines(keepends=True)
    last = next(index for index, line in enumerate(lines) if line.startswith("EFER="))
    for index in range(2, last + 1):
        with pytest.raises(UsageError):
            read("".join(lines[:index] + lines[index + 1 :]))
        with pytest.raises(UsageError):
            read("".join(lines[:index]))
    refused(
        read,
        "f: CPU#0 is cut off: no line CR0=, DR0=, DR6=, EFER=; a whole block",
        text[: text.index("CR0=")],
    )
    refused(
        read,
        "f:17: no line GDT=, IDT= before 'CR0='; give",
        "".join(line for line in lines if not line.startswith(("GDT", "IDT"))).replace(
            "LDT=", "\nLDT=", 1
        ),
    )
    refused(read, "f: CPU#0 is cut off", "CPU#0\n")


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "f: the file is empty; give QEMU"),
        (b" \n", "f: the file is empty"),
        (b"\x7fELF\0\0", "f: not a text"),
        (b"hello\n", "f: no register dump in it; give QEMU"),
        (b"\xff\xfe\xfd", "f: no register dump in it"),
        (b"x" * (readers.MAX_BYTES + 1), "f: longer than 16 MiB; cut out the dump"),
    ],
)
def test_what_is_no_dump_is_refused(read, content, message):
    refused(read, message, content)


def test_sections_belong_to_vmcs_dumps(read):
    refused(read, "f is no VMCS dump and has no host section", shipped_text(LONG64), section="host")
    refused(
        read,
        "no section 'control' in a VMCS dump; there are guest and host",
        dump_text("kvm-linux-guest"),
        section="control",
    )
    refused(
        read,
        "f holds one processor only; leave --cpu 1 out",
        Environment.read(LONG64).to_json(),
        cpu=1,
    )


def test_what_cannot_be_opened_is_refused(tmp_path):
    for source, message in (
        (str(tmp_path), f"cannot read '{tmp_path}': Is a directory"),
        (
            "linux-6.1-amd64-idel",
            "no file 'linux-6.1-amd64-idel' and no shipped environment of that name; "
            "did you mean 'linux-6.1-amd64-idle'?",
        ),
        (
            "q",
            "no file 'q' and no shipped environment of that name; firmware/environments/README.md",
        ),
        ("a\0b", "cannot read 'a\\x00b': "),
        ("x" * 5000, "cannot read 'xxx"),
    ):
        with pytest.raises(UsageError) as error:
            Environment.read(source)
        assert str(error.value).startswith(message)


def test_a_file_goes_before_a_shipped_name_and_before_a_section(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(LONG64).write_text(shipped_text(COMPAT))
    assert Environment.read(LONG64).mode == "compatibility"
    assert Environment.read(f"{LONG64}.txt").mode == "64-bit"
    Path("f").write_text(dump_text("kvm-2021-ds-not-accessed"))
    assert Environment.read("f:host").mode == "64-bit"
    Path("f:host").write_text(shipped_text(COMPAT))
    assert Environment.read("f:host").mode == "compatibility"
    with pytest.raises(UsageError, match="asks for the guest section and for the host section"):
        Environment.read("f:guest", section="host")


def test_json_file_is_read(read):
    environment = Environment.read(SMP, 1).adjusted()
    assert read(environment.to_json()) == environment


# VMCS dumps


#: Number of fields in each dump, mode of the guest and of the host; None: too little of it.
@pytest.mark.parametrize(
    ("name", "fields", "guest", "host"),
    [
        ("haxm-invalid-guest-state", [24], None, None),
        ("kvm-2016-smm-inject-if0", [17], None, None),
        ("kvm-2017-cr4-smxe", [98], "protected", "64-bit"),
        ("kvm-2018-nmi-sti-tail", [8], None, None),
        ("kvm-2020-ept-exit", [106], "real", "64-bit"),
        ("kvm-2020-v86", [30], None, None),
        ("kvm-2021-ds-not-accessed", [101], "protected", "64-bit"),
        ("kvm-2022-smm-sti", [110], "real", "64-bit"),
        ("kvm-linux-guest", [109], "64-bit", "64-bit"),
        ("xen-2018-control-registers", [6], None, None),
        ("xen-2019-error7", [107], "protected", "64-bit"),
        ("xen-2020-two-vcpus", [108, 108], "64-bit", "64-bit"),
        ("xen-2023-dr7-high", [2], None, None),
        ("xen-4.8-msr-load", [108], "64-bit", "64-bit"),
    ],
)
def test_dumps_of_real_systems(name, fields, guest, host):
    path = str(DUMPS / f"{name}.txt")
    dumps = readers.dumps(path)
    expected = json.loads((DUMPS / f"{name}.expect.json").read_text())
    expected = expected if isinstance(expected, list) else [expected]
    assert [dump.format for dump in dumps] == [dump["format"] for dump in expected]
    assert [len(dump.fields) for dump in dumps] == fields
    for section, mode in (("guest", guest), ("host", host)):
        if mode:
            environment = Environment.read(f"{path}:{section}", 0)
            assert environment.mode == mode
            assert environment.adjusted() is environment
        else:
            with pytest.raises(
                UsageError, match="cannot be an environment, for it has no (GUEST|HOST)_"
            ):
                Environment.read(path, 0, section)


def test_every_template_names_fields_of_the_table():
    names = {
        name
        for section in vmcs_templates.SECTIONS.values()
        for template in section.templates
        for name in template.names
    }
    assert {name.removeprefix("*") for name in names} - {"SVI", "RVI", ""} <= tables.FIELDS.keys()


def test_facts_beside_the_fields():
    [msr_load] = readers.dumps(str(DUMPS / "xen-4.8-msr-load.txt"))
    assert (msr_load.reason, msr_load.qualification, msr_load.failing_msr) == (
        0x80000022,
        2,
        (0x1DD, 0x1FFFF80676F52BE5),
    )
    [error7] = readers.dumps(str(DUMPS / "xen-2019-error7.txt"))
    assert (error7.error, error7.reason, error7.closed, error7.label) == (
        7,
        None,
        True,
        "domain 1 vCPU 0",
    )
    assert error7.effective == {"GUEST_IA32_EFER": 0} and "GUEST_IA32_EFER" not in error7.fields
    [smm] = readers.dumps(str(DUMPS / "kvm-2016-smm-inject-if0.txt"))
    assert (smm.reason, smm.sections) == (0x80000021, ["Guest", "Control"])
    assert smm.fields["VM_ENTRY_INTR_INFO"] == 0x800000D1


def test_guest_section_is_the_fields(read):
    registers = read(dump_text("kvm-linux-guest")).registers
    expected = {
        "RIP": 0xFFFFFFFF828E3A0C,
        "RSP": 0xFFFFC90000017418,
        "RFLAGS": 0x286,
        "DR7": 0x60A,
        "CR4": 0x752EF0,
        "EFER": 0xD01,
        "PAT": 0x0407050600070106,
        "SYSENTER_CS": 0x10,
        "DS_AR": 0x1C001,
        "GS_BASE": 0xFFFF888236E00000,
        "TR_LIMIT": 0x4087,
        "IDTR_LIMIT": 0xFFF,
    }
    assert {register: registers[register] for register in expected} == expected


def test_host_section_is_what_a_vm_exit_loads(read):
    environment = read(dump_text("xen-2019-error7"), section="host")
    expected = {
        "RIP": 0xFFFF82D08030F8B0,
        "RSP": 0xFFFF8320259BFF70,
        "RFLAGS": 2,
        "DR7": 0x400,
        "CR0": 0x80050033,
        "EFER": 0xD01,
        "PAT": 0x0000050100070406,
        "CS_SELECTOR": 0xE008,
        "CS_AR": 0xA09B,
        "SS_AR": 0x10000,
        "TR_AR": 0x8B,
        "TR_LIMIT": 0x67,
        "GDTR_LIMIT": 0xFFFF,
        "LDTR_AR": 0x10000,
        "SYSENTER_EIP": 0xFFFF82D080354420,
        "ACTIVITY": 0,
    }
    assert {register: environment.registers[register] for register in expected} == expected
    assert "RFLAGS" in environment.assumed and "CR3" not in environment.assumed


def test_efer_and_pat_that_the_controls_do_not_load(read):
    text = dump_text("kvm-2021-ds-not-accessed")
    assert read(text).registers["EFER"] == 0 and read(text).assumed == {}
    unloaded = read(
        text.replace("EntryControls=0000d1ff", "EntryControls=000013ff").replace(
            "ExitControls=002befff", "ExitControls=00036fff"
        )
    )
    assert (unloaded.registers["EFER"], unloaded.registers["PAT"]) == (0x500, 0x0007040600070406)
    assert unloaded.assumed.keys() == {"EFER", "PAT"}


def test_the_dump_is_chosen_by_its_position(read):
    text = dump_text("xen-2020-two-vcpus")
    refused(
        read,
        "f holds 2 VMCS dumps; give one of --cpu 0 (domain 1 vCPU 0), --cpu 1 (domain 1 vCPU 1)",
        text,
    )
    refused(read, "f has no VMCS dump 2; it holds 2", text, cpu=2)
    assert read(text, cpu=1, section="host").registers["RIP"] == 0xFFFF82D08031DF40


def dmesg(text):
    return "".join(
        f"[ 2311.{index:06}][T78789] kvm_intel: {line}\n"
        for index, line in enumerate(text.splitlines())
    )


def wrapped(text, width):
    return "".join(
        "> " + piece + "\n"
        for line in text.splitlines()
        for piece in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
    )


def journal(text):
    stamp = "<6>2023-01-02T03:04:05+0000 host kernel:"
    return "".join(f"{stamp} {line}\n" for line in text.splitlines())


def quoted_printable(text):
    lines = []
    for line in text.replace("=", "=3D").replace("  ", "=C2=A0 ").splitlines():
        lines += (
            [line[:60] + "=", line[60:]] if len(line) > 66 and "=" not in line[58:62] else [line]
        )
    return "\n".join(lines)


@pytest.mark.parametrize(
    "mangle",
    [
        lambda text: text.replace("\n", "\r\n"),
        dmesg,
        journal,
        lambda text: "".join(
            f"> > Jan  2 03:04:05 host kernel: {line}\n" for line in text.splitlines()
        ),
        lambda text: text.replace("\n", "\naudit: type=1400 reason=memory CS=zz\n"),
        lambda text: wrapped(text, 78),
        lambda text: wrapped(text, 72),
        lambda text: wrapped(text, 56),
        quoted_printable,
        lambda text: text + "\nKVM: entry failed, hardware error 0x80000021\n",
    ],
    ids=["crlf", "dmesg", "journal", "quoted", "mixed", "wrap78", "wrap72", "wrap56", "qp", "tail"],
)
@pytest.mark.parametrize("name", ["kvm-2017-cr4-smxe", "kvm-2020-ept-exit", "xen-2019-error7"])
def test_logs_and_mail_programs_change_nothing(name, mangle):
    plain = "\n".join(line.partition("] ")[2] or line for line in dump_text(name).splitlines())
    [expected], [dump] = vmcs_text.parse(plain, "f"), vmcs_text.parse(mangle(plain), "f")
    assert dump.fields == expected.fields and dump.effective == expected.effective
    assert dump.sections == ["Guest", "Host", "Control"]


@pytest.mark.parametrize("width", [72, 76, 78])
@pytest.mark.parametrize(
    "name",
    [
        "kvm-2020-ept-exit",
        "kvm-2022-smm-sti",
        "kvm-linux-guest",
        "xen-2019-error7",
        "xen-4.8-msr-load",
    ],
)
def test_log_lines_may_be_wrapped_anywhere(name, width):
    text = dump_text(name)
    [expected], [dump] = vmcs_text.parse(text, "f"), vmcs_text.parse(wrapped(text, width), "f")
    assert dump.fields == expected.fields


NEW_KVM = """\
*** Guest State ***
EFER= 0x0000000000000d01 (autoload)
MSR guest autoload:
   0: msr=0x00000600 value=0x0000000000000001
   1: msr=0xc0000080 value=0x0000000000000d01
S_CET = 0x0000000000000001, SSP = 0x0000000000000010, SSP TABLE = 0x0000000000000020
*** Host State ***
MSR host autoload:
   0: msr=0x00000600 value=0x0000000000000002
*** Control State ***
PinBased=0x000000ff EntryControls=0x000053ff
ExitControls=0x000befff SecondaryExitControls=0x0000000000000003
SVI|RVI = 12|34 TPR Threshold = 0x00
CR3 target0=0000000000001000 target1=0000000000002000
S_CET = 0x0000000000000003
"""


def test_newer_lines_of_kvm():
    [dump] = vmcs_text.parse(NEW_KVM, "f")
    assert dump.effective == {"GUEST_IA32_EFER": 0xD01}
    assert dump.msr_lists == {
        "guest autoload": [(0x600, 1), (0xC0000080, 0xD01)],
        "host autoload": [(0x600, 2)],
    }
    expected = {
        "GUEST_IA32_S_CET": 1,
        "GUEST_SSP": 0x10,
        "GUEST_INTERRUPT_SSP_TABLE_ADDR": 0x20,
        "HOST_IA32_S_CET": 3,
        "PIN_BASED_CTLS": 0xFF,
        "VM_ENTRY_CTLS": 0x53FF,
        "VM_EXIT_CTLS": 0xBEFFF,
        "SECONDARY_VM_EXIT_CTLS": 3,
        "GUEST_INTERRUPT_STATUS": 0x1234,
        "TPR_THRESHOLD": 0,
        "CR3_TARGET_VALUE0": 0x1000,
        "CR3_TARGET_VALUE1": 0x2000,
    }
    assert dump.fields == expected


def test_haxm_goes_by_encoding():
    first, second = vmcs_text.parse(
        "haxm_error: 6800 GUEST_CR0: 31\nhaxm_error: ...failed\nhaxm_error: ffff NEW: 1\n"
        "haxm_warning: 6802 X: 1000\nhaxm_error: 6800 GUEST_CR0: 33\n",
        "f",
    )
    assert (first.fields, second.fields) == (
        {"GUEST_CR0": 0x31, "GUEST_CR3": 0x1000},
        {"GUEST_CR0": 0x33},
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("CR3 = 0x0", "CR3 = 0xg", "f:4: 'CR3 = 0xg"),
        (
            "limit=0x0000ffff, base=0x000000000ab",
            "base=0x000000000ab",
            "f:15: 'LDTR: sel=0x0010, attr=0x00082,",
        ),
        (
            "CS:   sel=0x0097",
            "CS:   sel=0x10097",
            "f:8: GUEST_CS_SELECTOR = 0x10097 does not fit its 16 bits",
        ),
        (
            "> CR3 =",
            "> CR3 = 0x1\n> CR3 =",
            "f:5: GUEST_CR3 = 0xa709000, but the dump already has 0x1",
        ),
        (
            "GDTR: ",
            "GDTX: ",
            "f guest: this dump cannot be an environment, for it has no GUEST_GDTR_BASE, GUEST_",
        ),
        ("*** Guest", "*** Gast", "f guest: this dump cannot be an environment"),
        (
            "limit=0x00000017, base=",
            "limit=0x00010017, base=",
            "f guest: GDTR_LIMIT = 0x10017 does not fit 16 bits",
        ),
    ],
)
def test_a_damaged_dump_is_refused(read, old, new, message):
    text = dump_text("kvm-2021-ds-not-accessed")
    assert old in text
    refused(read, message, text.replace(old, new, 1))


def test_no_dump_at_all_is_an_error_of_its_own():
    for text, message in (
        ("x", "f: no section of a VMCS dump"),
        ("haxm_error: ffff NEW: 1", "f: no line of a HAXM dump names"),
    ):
        with pytest.raises(UsageError, match=message):
            vmcs_text.parse(text, "f")


# Damage of any kind

FUZZED = [
    shipped_text(LONG64),
    shipped_text(COMPAT),
    shipped_text("seabios-real"),
    dump_text("kvm-linux-guest"),
    dump_text("xen-4.8-msr-load"),
    Environment.read(LONG64).to_json(),
]


def damaged(text, source):
    """The text cut off, or with characters, pieces or lines changed."""
    kind, at = source.randrange(5), source.randrange(len(text))
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + source.choice('\0 =#x0f9\n{"\ud7ff*>') + text[at + 1 :]
    if kind == 2:
        return text[:at] + text[at + source.randrange(40) :]
    other = source.randrange(len(text))
    return text[:at] + text[other : other + source.randrange(80)] + text[at:]


@pytest.mark.parametrize("text", FUZZED, ids=["64", "compat", "real", "kvm", "xen", "json"])
def test_any_damage_gives_a_valid_environment_or_one_line(read, text):
    source = random.Random(4)
    for _ in range(400):
        try:
            environment = read(damaged(text, source), section=source.choice([None, None, "host"]))
        except UsageError:
            continue
        for register, width in REGISTERS.items():
            assert 0 <= environment.registers[register] < 1 << width
        environment.adjusted()

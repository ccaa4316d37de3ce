"""Every version of every format, in every disguise of logs and mails, reads back to its values.

:data:`VERSIONS` writes dumps as the sources do, :data:`DISGUISES` does to them what logs and mail
programs do.
"""

import random
import textwrap

import pytest

from vmxswitch.firmware.readers import vmcs_text
from vmxswitch.spec import tables

EQUATIONS = "limit=0x{}, base=0x{}"
KVM_SEGMENTS = ("CS", "DS", "SS", "ES", "FS", "GS")


def random_values(seed):
    """A value for every field, some of them as wide as they can be."""
    source = random.Random(seed)
    found = {}
    for name, row in tables.FIELDS.items():
        if not row.is_high:
            found[name] = source.choice([
                source.getrandbits(row.bits), source.getrandbits(8), 0, (1 << row.bits) - 1])
    found["VM_EXIT_REASON"] = source.choice([0x80000021, 0x30, 0xC])
    for name in ("POSTED_INTR_NOTIFICATION_VECTOR", "TPR_THRESHOLD"):
        found[name] = source.getrandbits(8)
    found["CR3_TARGET_COUNT"] = source.randrange(5)
    for name in ("GUEST_IA32_SYSENTER_CS", "HOST_IA32_SYSENTER_CS"):
        found[name] = source.getrandbits(16)
    return found


class Writer:
    """Writes lines and notes which fields it has written."""

    def __init__(self, values):
        self.values, self.written, self.lines = values, set(), []

    def x(self, name, digits):
        self.written.add(name)
        return f"{self.values[name]:0{digits}x}"

    def line(self, template, *names):
        """``{}`` in the template: ``NAME:digits``."""
        self.lines.append(template.format(*(
            self.x(*((name.split(":")[0], int(name.split(":")[1]))))
            for name in names)))

    def masked(self):
        for cr in ("CR0", "CR4"):
            self.line(f"{cr}: actual=0x{{}}, shadow=0x{{}}, gh_mask={{}}", f"GUEST_{cr}:16",
                      f"{cr}_READ_SHADOW:16", f"{cr}_GUEST_HOST_MASK:16")

    def segments(self, head, selector, gap, limit):
        """The lines CS to TR; ``gap`` stands in place of a selector."""
        for name in (*KVM_SEGMENTS, "GDTR", "LDTR", "IDTR", "TR"):
            g = f"GUEST_{name}"
            if name in ("GDTR", "IDTR"):
                self.line(head(name).rstrip() + gap + limit, f"{g}_LIMIT:8", f"{g}_BASE:16")
            else:
                self.line(head(name) + selector + limit, f"{g}_SELECTOR:4", f"{g}_AR:5",
                          f"{g}_LIMIT:8", f"{g}_BASE:16")

    def fred(self, area):
        """Of patches."""
        a = f"{area}_IA32_FRED"
        self.line(f"FRED {area.lower()}: config=0x{{}}, stack_levels=0x{{}}", f"{a}_CONFIG:16",
                  f"{a}_STKLVLS:16")
        self.line("RSP0=0x0000000000000042, RSP1=0x{}", f"{a}_RSP1:16")
        self.line("RSP2=0x{}, RSP3=0x{}", f"{a}_RSP2:16", f"{a}_RSP3:16")

    def area_system(self, area):
        a = f"{area}_IA32_SYSENTER"
        self.line("Sysenter RSP={} CS:RIP={}:{}", f"{a}_ESP:16", f"{a}_CS:4", f"{a}_EIP:16")


def kvm(values, version):
    """Lines of KVM's ``dump_vmcs`` of a version such as (5, 15), all controls on."""
    w = Writer(values)
    new = version >= (5, 12)
    if version >= (5, 15):
        w.line("VMCS 00000000f971be22, last attempted VM-entry on CPU 3")
    w.line("*** Guest State ***")
    w.masked()
    w.line("CR3 = 0x{}", "GUEST_CR3:16")
    for n in (0, 2):
        w.line(f"PDPTR{n} = 0x{{}}  PDPTR{n + 1} = 0x{{}}", f"GUEST_PDPTE{n}:16",
               f"GUEST_PDPTE{n + 1}:16")
    w.line("RSP = 0x{}  RIP = 0x{}", "GUEST_RSP:16", "GUEST_RIP:16")
    w.line("RFLAGS=0x{}         DR7 = 0x{}", "GUEST_RFLAGS:8", "GUEST_DR7:16")
    w.area_system("GUEST")
    w.segments(lambda name: f"{name + ':':<6}", "sel=0x{}, attr=0x{}, ", " " * 27, EQUATIONS)
    if new:
        w.line("EFER= 0x{}", "GUEST_IA32_EFER:16")
        w.line("PAT = 0x{}", "GUEST_IA32_PAT:16")
    else:
        w.line("EFER =     0x{}  PAT = 0x{}", "GUEST_IA32_EFER:16", "GUEST_IA32_PAT:16")
    w.line("DebugCtl = 0x{}  DebugExceptions = 0x{}", "GUEST_IA32_DEBUGCTL:16",
           "GUEST_PENDING_DBG_EXCEPTIONS:16")
    w.line("PerfGlobCtl = 0x{}", "GUEST_IA32_PERF_GLOBAL_CTRL:16")
    w.line("BndCfgS = 0x{}", "GUEST_IA32_BNDCFGS:16")
    w.line("Interruptibility = {}  ActivityState = {}", "GUEST_INTERRUPTIBILITY_STATE:8",
           "GUEST_ACTIVITY_STATE:8")
    w.line("InterruptStatus = {}", "GUEST_INTERRUPT_STATUS:4")
    if new:
        autostore = "MSR autostore:" if version >= (6, 10) else "MSR guest autostore:"
        for head in ("MSR guest autoload:", autostore):
            w.line(head)
            w.lines.append("   0: msr=0x00000600 value=0x0000000000001000")
    if version >= (6, 18):
        w.line("S_CET = 0x{}, SSP = 0x{}, SSP TABLE = 0x{}", "GUEST_IA32_S_CET:16", "GUEST_SSP:16",
               "GUEST_INTERRUPT_SSP_TABLE_ADDR:16")
    if version >= (7, 0):
        w.fred("GUEST")
    w.line("*** Host State ***")
    w.line("RIP = 0x{}  RSP = 0x{}", "HOST_RIP:16", "HOST_RSP:16")
    host(w, "CS", "SS", "DS", "ES", "FS", "GS", "TR")
    if version >= (7, 0):
        w.fred("HOST")
    if new:
        w.line("EFER= 0x{}", "HOST_IA32_EFER:16")
        w.line("PAT = 0x{}", "HOST_IA32_PAT:16")
    else:
        w.line("EFER = 0x{}  PAT = 0x{}", "HOST_IA32_EFER:16", "HOST_IA32_PAT:16")
    w.line("PerfGlobCtl = 0x{}", "HOST_IA32_PERF_GLOBAL_CTRL:16")
    if new:
        w.line("MSR host autoload:")
        w.lines.append("   0: msr=0x00000600 value=0x0000000000002000")
    if version >= (6, 18):
        w.line("S_CET = 0x{}, SSP = 0x{}, SSP TABLE = 0x{}", "HOST_IA32_S_CET:16", "HOST_SSP:16",
               "HOST_INTERRUPT_SSP_TABLE_ADDR:16")
    w.line("*** Control State ***")
    controls(w, version)
    exits(w)
    w.line("TSC Offset = 0x{}", "TSC_OFFSET:16")
    w.line("TSC Multiplier = 0x{}", "TSC_MULTIPLIER:16")
    if version >= (5, 2):
        status = values["GUEST_INTERRUPT_STATUS"]
        lead = f"SVI|RVI = {status >> 8:02x}|{status & 0xFF:02x} "
        w.line(f"{lead}TPR Threshold = 0x{{}}", "TPR_THRESHOLD:2")
        w.line("APIC-access addr = 0x{} virt-APIC addr = 0x{}", "APIC_ACCESS_ADDR:16",
               "VIRTUAL_APIC_ADDR:16")
    else:
        w.line("TPR Threshold = 0x{}", "TPR_THRESHOLD:2")
    w.line("PostedIntrVec = 0x{}", "POSTED_INTR_NOTIFICATION_VECTOR:2")
    w.line("EPT pointer = 0x{}", "EPT_POINTER:16")
    if version < (5, 6):
        w.line("CR3 target0={} target1={}", "CR3_TARGET_VALUE0:16", "CR3_TARGET_VALUE1:16")
    w.line("PLE Gap={} Window={}", "PLE_GAP:8", "PLE_WINDOW:8")
    w.line("Virtual processor ID = 0x{}", "VPID:4")
    if version >= (6, 10):
        w.line("VE info address = 0x{}", "VE_INFO_ADDR:16")
        w.line("ve_info: 0x00000000 0xffffffff 0x0000000000000000 0x0000000000000000 "
               "0x0000000000000000 0x0000")
    return w


def host(w, *order):
    w.line(" ".join(f"{name}={{}}" for name in order),
           *(f"HOST_{name}_SELECTOR:4" for name in order))
    w.line("FSBase={} GSBase={} TRBase={}", *(f"HOST_{n}_BASE:16" for n in ("FS", "GS", "TR")))
    w.line("GDTBase={} IDTBase={}", "HOST_GDTR_BASE:16", "HOST_IDTR_BASE:16")
    w.line("CR0={} CR3={} CR4={}", "HOST_CR0:16", "HOST_CR3:16", "HOST_CR4:16")
    w.area_system("HOST")


def controls(w, version):
    pin, cpu = "PIN_BASED_CTLS:8", "PRIMARY_PROC_BASED_CTLS:8"
    second = "SECONDARY_PROC_BASED_CTLS:8"
    if version < (6, 0):
        w.line("PinBased={} CPUBased={} SecondaryExec={}", pin, cpu, second)
        w.line("EntryControls={} ExitControls={}", "VM_ENTRY_CTLS:8", "VM_EXIT_CTLS:8")
    else:
        w.line("CPUBased=0x{} SecondaryExec=0x{} TertiaryExec=0x{}", cpu, second,
               "TERTIARY_PROC_BASED_CTLS:16")
        if version < (7, 0):
            w.line("PinBased=0x{} EntryControls={} ExitControls={}", pin, "VM_ENTRY_CTLS:8",
                   "VM_EXIT_CTLS:8")
        else:  # patches for FRED
            w.line("PinBased=0x{} EntryControls=0x{}", pin, "VM_ENTRY_CTLS:8")
            w.line("ExitControls=0x{} SecondaryExitControls=0x{}", "VM_EXIT_CTLS:8",
                   "SECONDARY_VM_EXIT_CTLS:16")
    w.line("ExceptionBitmap={} PFECmask={} PFECmatch={}", "EXCEPTION_BITMAP:8",
           "PAGE_FAULT_ERROR_CODE_MASK:8", "PAGE_FAULT_ERROR_CODE_MATCH:8")


def exits(w):
    w.line("VMEntry: intr_info={} errcode={} ilen={}", "VM_ENTRY_INTR_INFO:8",
           "VM_ENTRY_EXCEPTION_ERROR_CODE:8", "VM_ENTRY_INSTRUCTION_LENGTH:8")
    w.line("VMExit: intr_info={} errcode={} ilen={}", "VM_EXIT_INTR_INFO:8",
           "VM_EXIT_INTR_ERROR_CODE:8", "VM_EXIT_INSTRUCTION_LENGTH:8")
    w.line("        reason={} qualification={}", "VM_EXIT_REASON:8", "EXIT_QUALIFICATION:16")
    w.line("IDTVectoring: info={} errcode={}", "IDT_VECTORING_INFO:8", "IDT_VECTORING_ERROR_CODE:8")


def xen(values, version):
    """Lines of Xen's ``vmcs_dump_vcpu``, with the head and the end of a failed entry."""
    w = Writer(values)
    w.line("d1v0 vmentry failure (reason 0x80000021): Invalid guest state (0)")
    w.line("************* VMCS Area **************")
    w.line("*** Guest State ***")
    w.masked()
    (xen_guest if version >= (4, 6) else old_xen_guest)(w, version)
    w.line("*** Host State ***")
    if version >= (4, 6):
        w.line("RIP = 0x{} (vmx_asm_vmexit_handler)  RSP = 0x{}", "HOST_RIP:16", "HOST_RSP:16")
        host(w, "CS", "SS", "DS", "ES", "FS", "GS", "TR")
        w.line("EFER = 0x{}  PAT = 0x{}", "HOST_IA32_EFER:16", "HOST_IA32_PAT:16")
        w.line("PerfGlobCtl = 0x{}", "HOST_IA32_PERF_GLOBAL_CTRL:16")
    else:
        w.line("RSP = 0x{}  RIP = 0x{}", "HOST_RSP:16", "HOST_RIP:16")
        host(w, "CS", "DS", "ES", "FS", "GS", "SS", "TR")
        w.line("Host PAT = 0x{}", "HOST_IA32_PAT:16")
    w.line("*** Control State ***")
    if version >= (4, 20):
        w.line("PinBased={} CPUBased={}", "PIN_BASED_CTLS:8", "PRIMARY_PROC_BASED_CTLS:8")
        w.line("SecondaryExec={} TertiaryExec={}", "SECONDARY_PROC_BASED_CTLS:8",
               "TERTIARY_PROC_BASED_CTLS:16")
    else:
        w.line("PinBased={} CPUBased={} SecondaryExec={}", "PIN_BASED_CTLS:8",
               "PRIMARY_PROC_BASED_CTLS:8", "SECONDARY_PROC_BASED_CTLS:8")
    w.line("EntryControls={} ExitControls={}", "VM_ENTRY_CTLS:8", "VM_EXIT_CTLS:8")
    if version < (4, 6):
        w.line("ExceptionBitmap={}", "EXCEPTION_BITMAP:8")
    else:
        w.line("ExceptionBitmap={} PFECmask={} PFECmatch={}", "EXCEPTION_BITMAP:8",
               "PAGE_FAULT_ERROR_CODE_MASK:8", "PAGE_FAULT_ERROR_CODE_MATCH:8")
    exits(w)
    if version < (4, 6):
        w.line("TPR Threshold = 0x{}", "TPR_THRESHOLD:2")
        w.line("EPT pointer = 0x{}", "EPT_POINTER:16")
        w.line("Virtual processor ID = 0x{}", "VPID:4")
    else:
        w.line("TSC Offset = 0x{}  TSC Multiplier = 0x{}", "TSC_OFFSET:16", "TSC_MULTIPLIER:16")
        w.line("TPR Threshold = 0x{}  PostedIntrVec = 0x{}", "TPR_THRESHOLD:2",
               "POSTED_INTR_NOTIFICATION_VECTOR:2")
        w.line("EPT pointer = 0x{}  EPTP index = 0x{}", "EPT_POINTER:16", "EPTP_INDEX:4")
        w.line("CR3 target0={} target1={}", "CR3_TARGET_VALUE0:16", "CR3_TARGET_VALUE1:16")
        w.line("CR3 target2={}", "CR3_TARGET_VALUE2:16")
        w.line("PLE Gap={} Window={}", "PLE_GAP:8", "PLE_WINDOW:8")
        w.line("Virtual processor ID = 0x{} VMfunc controls = {}", "VPID:4",
               "VM_FUNCTION_CONTROLS:16")
    w.line("**************************************")
    return w


def xen_guest(w, version):
    w.line("CR3 = 0x{}", "GUEST_CR3:16")
    for n in (0, 2):
        w.line(f"PDPTE{n} = 0x{{}}  PDPTE{n + 1} = 0x{{}}", f"GUEST_PDPTE{n}:16",
               f"GUEST_PDPTE{n + 1}:16")
    w.line("RSP = 0x{} (0x0000000000000001)  RIP = 0x{} (0x0000000000000002)", "GUEST_RSP:16",
           "GUEST_RIP:16")
    w.line("RFLAGS=0x{} (0x00000003)  DR7 = 0x{}", "GUEST_RFLAGS:8", "GUEST_DR7:16")
    w.area_system("GUEST")
    w.line("       sel  attr  limit   base")
    w.segments(lambda name: f"{name:>4}: ", "{} {} ", " " * 12, "{} {}")
    efer = "EFER(VMCS)" if version >= (4, 12) else "EFER"
    w.line(f"{efer} = 0x{{}}  PAT = 0x{{}}", "GUEST_IA32_EFER:16", "GUEST_IA32_PAT:16")
    w.line("PreemptionTimer = 0x{}  SM Base = 0x{}", "VMX_PREEMPTION_TIMER_VALUE:8",
           "GUEST_SMBASE:8")
    w.line("DebugCtl = 0x{}  DebugExceptions = 0x{}", "GUEST_IA32_DEBUGCTL:16",
           "GUEST_PENDING_DBG_EXCEPTIONS:16")
    w.line("PerfGlobCtl = 0x{}  BndCfgS = 0x{}", "GUEST_IA32_PERF_GLOBAL_CTRL:16",
           "GUEST_IA32_BNDCFGS:16")
    w.line("Interruptibility = {}  ActivityState = {}", "GUEST_INTERRUPTIBILITY_STATE:8",
           "GUEST_ACTIVITY_STATE:8")
    w.line("InterruptStatus = {}", "GUEST_INTERRUPT_STATUS:4")
    if version >= (4, 20):
        w.line("SPEC_CTRL mask = 0x{}  shadow = 0x{}", "SPEC_CTRL_MASK:16", "SPEC_CTRL_SHADOW:16")


def old_xen_guest(w, _):
    """Up to about 4.5."""
    w.written |= {"GUEST_CR3", "CR3_TARGET_COUNT"}
    w.lines.append(f"CR3: actual=0x{w.values['GUEST_CR3']:016x}, "
                   f"target_count={w.values['CR3_TARGET_COUNT']}")
    for n in (0, 2):
        w.line(f"     target{n}={{}}, target{n + 1}={{}}", f"CR3_TARGET_VALUE{n}:16",
               f"CR3_TARGET_VALUE{n + 1}:16")
    w.line("RSP = 0x{} (0x0000000000000001)  RIP = 0x{} (0x0000000000000002)", "GUEST_RSP:16",
           "GUEST_RIP:16")
    w.line("RFLAGS=0x{} (0x0000000000000003)  DR7 = 0x{}", "GUEST_RFLAGS:16", "GUEST_DR7:16")
    w.area_system("GUEST")
    w.segments(lambda name: f"{name}: ", "sel=0x{}, attr=0x{}, ", " " * 27, EQUATIONS)
    w.line("Guest PAT = 0x{}", "GUEST_IA32_PAT:16")
    w.line("TSC Offset = {}", "TSC_OFFSET:16")
    w.line("DebugCtl={} DebugExceptions={}", "GUEST_IA32_DEBUGCTL:16",
           "GUEST_PENDING_DBG_EXCEPTIONS:16")
    w.line("Interruptibility={} ActivityState={}", "GUEST_INTERRUPTIBILITY_STATE:4",
           "GUEST_ACTIVITY_STATE:4")


def haxm(values, level):
    """Every field that the tables know, by encoding; names do not matter."""
    w = Writer(values)
    for name, row in tables.FIELDS.items():
        if not row.is_high:
            w.lines.append(f"haxm_{level}: {row.encoding:04x} {name}: {values[name]:x}")
            w.written.add(name)
    return w


#: Name -> how to write it.
VERSIONS = {
    **{f"kvm-{major}.{minor}": (kvm, (major, minor)) for major, minor in (
        (4, 4), (4, 15), (5, 2), (5, 4), (5, 10), (5, 12), (5, 15), (6, 0), (6, 3), (6, 10),
        (6, 18), (7, 0))},
    **{f"xen-4.{minor}": (xen, (4, minor)) for minor in (4, 6, 8, 11, 12, 17, 20)},
    "haxm-error": (haxm, "error"), "haxm-warning": (haxm, "warning"),
}


def stamped(stamp):
    """Each line behind a prefix; ``%`` in it counts."""
    return lambda lines: [stamp.replace("%", f"{number:06}") + line
                          for number, line in enumerate(lines)]


def wrapped(width, lead):
    """Each line wrapped by a mail program, as quoted text."""
    def wrap(lines):
        return [lead + piece for line in lines
                for piece in textwrap.wrap(line, width, break_long_words=False,
                                           break_on_hyphens=False, drop_whitespace=True) or [""]]
    return wrap


def quoted_printable(lines):
    """As mail programs send it: = and no-break spaces escaped, long lines broken anywhere."""
    sent = []
    for line in lines:
        line = line.replace("=", "=3D").replace("  ", "=C2=A0 ")
        while len(line) > 75:
            at = 70
            while "=" in line[at - 2:at]:
                at -= 1
            sent.append(line[:at] + "=")
            line = line[at:]
        sent.append(line)
    return sent


#: Name -> what a log or a mail does to the lines of a dump.
DISGUISES = {
    "bare": lambda lines: lines,
    "syslog": stamped("Sep  8 22:52:20 testhost kernel: "),
    "syslog-dmesg": stamped("Sep  8 22:52:20 testhost kernel: [10639.%] "),
    "journal": stamped("Nov 02 14:09:46 host-1.example kernel: "),
    "journal-precise": stamped("Nov 02 14:09:46.123456 host kernel: "),
    "journal-iso": stamped("2019-11-02T14:09:46+0100 host kernel: "),
    "journal-iso-precise": stamped("2019-11-02T14:09:46.%+01:00 host kernel: "),
    "journal-unix": stamped("1572700186.% host kernel: "),
    "journal-monotonic": stamped("[ 2311.%] host kernel: "),
    "dmesg": stamped("[ 2311.%] "),
    "dmesg-caller": stamped("[28040.%][T78789] "),
    "dmesg-cpu": stamped("[28040.%][   C12] "),
    "dmesg-raw": stamped("<3>[28040.%] "),
    "dmesg-time": stamped("[Sat Nov  2 14:09:46 2019] "),
    "dmesg-delta": stamped("[  +0.%] "),
    "dmesg-human": stamped("[Nov  2 14:09] "),
    "dmesg-iso": stamped("2019-11-02T14:09:46,%+01:00 "),
    "console-date": stamped("2019-11-02 14:09:46 "),
    "console-xen": stamped("2019-11-02 14:09:46.123 UTC (XEN) "),
    "console-syslog-xen": stamped("Nov  2 14:09:46 (XEN) [ 3158.%] "),
    "dmesg-decoded": stamped("kern  :err   : [28040.%] "),
    "kvm_intel": stamped("kvm_intel: "),
    "dmesg-kvm_intel": stamped("[28040.%] kvm_intel: "),
    "syslog-kvm_intel": stamped("Jun 24 17:25:51 testhost kernel: [28040.%][T1] kvm_intel: "),
    "xen": stamped("(XEN) "),
    "xen-date": stamped("(XEN) [2019-11-02 14:09:46] "),
    "xen-date-ms": stamped("(XEN) [2026-08-02 14:09:46.123] "),
    "xen-uptime": stamped("(XEN) [ 3158.%] "),
    "quoted": stamped("> "),
    "quoted-twice": stamped(">> > "),
    "quoted-xen": stamped("> (XEN) "),
    "quoted-syslog": stamped("> Sep  8 22:52:20 testhost kernel: [10639.%] "),
    "html": stamped("&gt; "),
    "unknown-prefix": stamped("ttyS0 2024/05/01 10:11:% |kernel| "),
    "wrapped-72": wrapped(72, "> "),
    "wrapped-76": wrapped(76, ""),
    "wrapped-78": wrapped(78, "> > "),
    "wrapped-dmesg": lambda lines: wrapped(76, "> ")(stamped("[28040.%] ")(lines)),
    "wrapped-xen": lambda lines: wrapped(72, "> ")(stamped("(XEN) ")(lines)),
    "quoted-printable": quoted_printable,
    "quoted-printable-quoted": lambda lines: quoted_printable(stamped("> ")(lines)),
    "crlf": lambda lines: [line + "\r" for line in lines],
    "console": lambda lines: [line + "\r\r" for line in lines],
    "trailing-blanks": lambda lines: [line + "  \t" for line in lines],
    "noise": lambda lines: [piece for number, line in enumerate(lines)
                            for piece in (line, f"audit: type=1400 audit({number}): a=CR3 = 0x1")],
}


def scan(lines):
    return list(vmcs_text.scan("".join(f"{line}\n" for line in lines).encode().splitlines(True)))


def written(name, seed):
    """Lines of a version, and the fields that must be read from them."""
    write, version = VERSIONS[name]
    values = random_values(seed)
    dump = write(values, version)
    fields = {field: values[field] for field in dump.written}
    if name.startswith("kvm") and version >= (5, 2):  # SVI|RVI
        fields["GUEST_INTERRUPT_STATUS"] = values["GUEST_INTERRUPT_STATUS"]
    return dump.lines, fields


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("name", VERSIONS)
def test_reads_back(name, disguise):
    lines, fields = written(name, seed=len(disguise))
    if disguise == "noise" and name.startswith("haxm"):
        pytest.skip("the noise is made for the words of the other formats")
    [dump] = scan(DISGUISES[disguise](lines))
    assert dump.fields == fields
    assert not dump.disputed and (disguise == "noise" or not dump.problems)
    assert name.startswith("haxm") or dump.sections == ["Guest", "Host", "Control"]
    assert dump.format == name.partition("-")[0] or "xen" in disguise


def test_many_dumps_in_many_disguises_in_one_file():
    lines, expected = [], []
    for seed, (name, disguise) in enumerate([
            ("kvm-4.4", "syslog"), ("xen-4.12", "xen-date"), ("kvm-6.3", "dmesg-kvm_intel"),
            ("kvm-5.15", "bare"), ("xen-4.20", "quoted-xen"), ("kvm-6.18", "wrapped-72")]):
        dump, fields = written(name, seed)
        lines += ["nothing to see here", *DISGUISES[disguise](dump), "EAX=00000000 EBX=00000001"]
        expected.append(fields)
    assert [dump.fields for dump in scan(lines)] == expected


@pytest.mark.parametrize(("head", "error", "reason", "qualification"), [
    ("KVM: entry failed, hardware error 0x7", 7, None, None),
    ("KVM: entry failed, hardware error 0x80000021", None, 0x80000021, None),
    ("d3v12 vmentry failure (reason 0x80000021): Invalid guest state (4)", None, 0x80000021, 4),
    ("d3v12 vmentry failure (reason 0x80000022): MSR loading (entry 0)", None, 0x80000022, 1),
    ("d3v12 vmentry failure (reason 0x80000029): MCE", None, 0x80000029, None),
    ("d3v12 vmentry failure (reason 0x80000030): Unknown", None, 0x80000030, None),
    ("d3v12 VMLAUNCH error: 0x8", 8, None, None),
    ("d3v12 VMRESUME error: 0x7", 7, None, None),
    ("Failed vm entry (exit reason 0x80000021) caused by invalid guest state (2).", None,
     0x80000021, 2),
    ("Failed vm entry (exit reason 0x80000022) caused by MSR entry 3 loading.", None, 0x80000022,
     3),
    ("<vm_launch_fail> error code 7", 7, None, None),
])
def test_head_lines(head, error, reason, qualification):
    [dump] = scan([head, "*** Guest State ***", "CR3 = 0x0000000000001000"])
    assert dump.failed
    assert (dump.error, dump.reason, dump.qualification) == (error, reason, qualification)


def test_the_message_of_qemu_belongs_to_the_nearer_dump():
    first, _ = written("kvm-5.10", 1)
    second, _ = written("kvm-5.10", 2)
    message = "KVM: entry failed, hardware error 0x7"
    quiet = ["other words"] * 30
    dumps = scan([*first, message, *quiet, *second])
    assert [dump.error for dump in dumps] == [7, None]
    dumps = scan([*first, *quiet, message, *second])
    assert [dump.error for dump in dumps] == [None, 7]
    assert [dump.error for dump in scan([*first, message])] == [7]


def test_other_registers_after_a_dump_are_no_part_of_it():
    lines, fields = written("kvm-5.10", 3)
    excerpt = lines[:lines.index("*** Control State ***")]
    qemu = ["RAX=0000000000000000 RBX=0000000000000001", "CR0=80050033 CR2=0 CR3=0000 CR4=000000"]
    [dump] = scan([*excerpt, *qemu])
    assert dump.fields.items() <= fields.items() and not dump.problems


def test_a_dump_is_over_when_the_log_has_been_silent_about_it():
    lines, _ = written("kvm-5.10", 3)
    [dump] = scan([*lines, *["something else"] * 1001, "reason=00000000 qualification=0"])
    assert not dump.problems


def test_two_values_of_a_field_are_no_value():
    [dump] = scan(["*** Guest State ***", "CR3 = 0x1000", "CR3 = 0x2000", "CR3 = 0x1000"])
    assert "GUEST_CR3" not in dump.fields and dump.disputed == {"GUEST_CR3"}
    assert dump.problems[0] == (3, "GUEST_CR3 = 0x2000, but the dump already has 0x1000")


def test_a_number_that_the_end_of_the_text_cuts_is_not_read():
    for text, fields in ((b"*** Guest State ***\nCR3 = 0x00000000a709", {}),
                         (b"*** Guest State ***\nCR3 = 0x000000000a709000",
                          {"GUEST_CR3": 0xA709000}),
                         (b"*** Guest State ***\nCR3 = 0xa709\n", {"GUEST_CR3": 0xA709})):
        [dump] = vmcs_text.scan(text.splitlines(True))
        assert dump.fields == fields

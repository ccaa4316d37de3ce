"""Reader of VMCS dumps: KVM's ``dump_vmcs``, Xen's ``vmcs_dump_vcpu``, HAXM's ``dump_vmcs``.

The text is what a log, a terminal or a mail program made of it: any prefixes, quoting, wrapped
lines, CR LF, quoted-printable. Lines are found by their words, never by position, because which of
them exist depends on versions, controls and features.

Sources: Linux arch/x86/kvm/vmx/vmx.c, Xen xen/arch/x86/hvm/vmx/vmcs.c, HAXM core/vmx.c.
Facts: vmcs_fields.csv (symbols, encodings, widths).
"""

import quopri
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from vmxswitch.spec import tables
from vmxswitch.spec.errors import UsageError

from ..environment import SEGMENTS

__all__ = ["VmcsDump", "parse", "recognises"]


@dataclass
class VmcsDump:
    """What one dump states.

    Attributes
    ----------
    format : str
        ``kvm``, ``xen`` or ``haxm``.
    line : int
        Line of the text at which it starts, from 1.
    fields : dict[str, int]
        VMCS field symbol -> value printed. A field that the controls neither load nor save prints
        as 0 (EFER, PAT); who reads it has to look at the controls.
    effective : dict[str, int]
        ``GUEST_IA32_EFER`` or ``HOST_IA32_EFER`` printed with a value that is not the field's:
        marked ``(effective)``, ``(autoload)`` or ``(MSR LL)``.
    sections : list[str]
        ``Guest``, ``Host``, ``Control``: section heads seen, in order. HAXM prints none.
    closed : bool
        Xen's closing line of asterisks was seen.
    domain, vcpu : int or None
        Which virtual processor, as Xen tells it.
    error : int or None
        VM-instruction error of a head line.
    reason, qualification : int or None
        Exit reason (with bit 31) and qualification of a head line.
    failing_msr : tuple[int, int] or None
        Index and value of the MSR that Xen's head names for reason 34.
    msr_lists : dict[str, list[tuple[int, int]]]
        ``guest autoload``, ``guest autostore``, ``autostore``, ``host autoload``: list of MSR
        index and value.
    """

    format: str
    line: int
    fields: dict[str, int] = field(default_factory=dict)
    effective: dict[str, int] = field(default_factory=dict)
    sections: list[str] = field(default_factory=list)
    closed: bool = False
    domain: int | None = None
    vcpu: int | None = None
    error: int | None = None
    reason: int | None = None
    qualification: int | None = None
    failing_msr: tuple[int, int] | None = None
    msr_lists: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the virtual processor as far as the text tells it, else the first line."""
        names = [
            f"{word} {number}"
            for word, number in (("domain", self.domain), ("vCPU", self.vcpu))
            if number is not None
        ]
        return " ".join(names) or f"line {self.line}"


# Templates. A name in braces stands for the digits of that field, "0x" is there or not as written,
# "[0x]" may be there, a blank is any white space, " = " may have any blanks around it or none.
# Words that stand on one line are separate templates if they make sense alone, so that a line may
# be wrapped, cut or printed in parts. ``*NAME``: see `VmcsDump.effective`. SVI, RVI: one field.


def _area(area: str) -> tuple[str, ...]:
    """Words that the guest and the host section share."""
    return (
        f"RSP = 0x{{{area}_RSP}}",
        f"RIP = 0x{{{area}_RIP}}",
        f"Sysenter RSP={{{area}_IA32_SYSENTER_ESP}} "
        f"CS:RIP={{{area}_IA32_SYSENTER_CS}}:{{{area}_IA32_SYSENTER_EIP}}",
        f"EFER = 0x{{{area}_IA32_EFER}}",
        f"EFER(VMCS) = 0x{{{area}_IA32_EFER}}",
        *(f"EFER = 0x{{*{area}_IA32_EFER}} ({mark})" for mark in ("effective", "autoload")),
        f"EFER(MSR LL) = 0x{{*{area}_IA32_EFER}}",
        f"PAT = 0x{{{area}_IA32_PAT}}",
        f"PerfGlobCtl = 0x{{{area}_IA32_PERF_GLOBAL_CTRL}}",
        f"S_CET = 0x{{{area}_IA32_S_CET}}",
        f"SSP = 0x{{{area}_SSP}}",
        f"SSP TABLE = 0x{{{area}_INTERRUPT_SSP_TABLE_ADDR}}",
    )


def _segment(name: str) -> tuple[str, str]:
    """KVM's and Xen's line of a segment register."""
    s = f"GUEST_{name}"
    return (
        f"{name}: sel=0x{{{s}_SELECTOR}}, attr=0x{{{s}_AR}}, "
        f"limit=0x{{{s}_LIMIT}}, base=0x{{{s}_BASE}}",
        f"{name}: {{{s}_SELECTOR}} {{{s}_AR}} {{{s}_LIMIT}} {{{s}_BASE}}",
    )


def _table(name: str) -> tuple[str, str]:
    s = f"GUEST_{name}"
    return (
        f"{name}: limit=0x{{{s}_LIMIT}}, base=0x{{{s}_BASE}}",
        f"{name}: {{{s}_LIMIT}} {{{s}_BASE}}",
    )


_TEMPLATES = {
    "Guest": (
        *_area("GUEST"),
        *(
            f"{cr}: actual=0x{{GUEST_{cr}}}, shadow=0x{{{cr}_READ_SHADOW}}, "
            f"gh_mask={{{cr}_GUEST_HOST_MASK}}"
            for cr in ("CR0", "CR4")
        ),
        "CR3 = 0x{GUEST_CR3}",
        *(f"{word}{i} = 0x{{GUEST_PDPTE{i}}}" for word in ("PDPTR", "PDPTE") for i in range(4)),
        "RFLAGS=0x{GUEST_RFLAGS}",
        "DR7 = 0x{GUEST_DR7}",
        *(line for name in SEGMENTS for line in _segment(name)),
        *(line for name in ("GDTR", "IDTR") for line in _table(name)),
        "DebugCtl = 0x{GUEST_IA32_DEBUGCTL}",
        "DebugExceptions = 0x{GUEST_PENDING_DBG_EXCEPTIONS}",
        "BndCfgS = 0x{GUEST_IA32_BNDCFGS}",
        "Interruptibility = {GUEST_INTERRUPTIBILITY_STATE}",
        "ActivityState = {GUEST_ACTIVITY_STATE}",
        "InterruptStatus = {GUEST_INTERRUPT_STATUS}",
        "PreemptionTimer = 0x{VMX_PREEMPTION_TIMER_VALUE}",
        "SM Base = 0x{GUEST_SMBASE}",
        "SPEC_CTRL mask = 0x{SPEC_CTRL_MASK} shadow = 0x{SPEC_CTRL_SHADOW}",
    ),
    "Host": (
        *_area("HOST"),
        *(f"{name}={{HOST_{name}_SELECTOR}}" for name in SEGMENTS if name != "LDTR"),
        *(f"{name}Base={{HOST_{name}_BASE}}" for name in ("FS", "GS", "TR")),
        *(f"{name}Base={{HOST_{name}R_BASE}}" for name in ("GDT", "IDT")),
        *(f"{cr}={{HOST_{cr}}}" for cr in ("CR0", "CR3", "CR4")),
    ),
    "Control": (
        "PinBased=[0x]{PIN_BASED_CTLS}",
        "CPUBased=[0x]{PRIMARY_PROC_BASED_CTLS}",
        "SecondaryExec=[0x]{SECONDARY_PROC_BASED_CTLS}",
        "TertiaryExec=[0x]{TERTIARY_PROC_BASED_CTLS}",
        "EntryControls=[0x]{VM_ENTRY_CTLS}",
        "ExitControls=[0x]{VM_EXIT_CTLS}",
        "SecondaryExitControls=[0x]{SECONDARY_VM_EXIT_CTLS}",
        "ExceptionBitmap={EXCEPTION_BITMAP}",
        "PFECmask={PAGE_FAULT_ERROR_CODE_MASK}",
        "PFECmatch={PAGE_FAULT_ERROR_CODE_MATCH}",
        "VMEntry: intr_info={VM_ENTRY_INTR_INFO} errcode={VM_ENTRY_EXCEPTION_ERROR_CODE} "
        "ilen={VM_ENTRY_INSTRUCTION_LENGTH}",
        "VMExit: intr_info={VM_EXIT_INTR_INFO} errcode={VM_EXIT_INTR_ERROR_CODE} "
        "ilen={VM_EXIT_INSTRUCTION_LENGTH}",
        "reason={VM_EXIT_REASON} qualification={EXIT_QUALIFICATION}",
        "IDTVectoring: info={IDT_VECTORING_INFO} errcode={IDT_VECTORING_ERROR_CODE}",
        "TSC Offset = 0x{TSC_OFFSET}",
        "TSC Multiplier = 0x{TSC_MULTIPLIER}",
        "SVI|RVI = {SVI}|{RVI}",
        "TPR Threshold = 0x{TPR_THRESHOLD}",
        "APIC-access addr = 0x{APIC_ACCESS_ADDR}",
        "virt-APIC addr = 0x{VIRTUAL_APIC_ADDR}",
        "PostedIntrVec = 0x{POSTED_INTR_NOTIFICATION_VECTOR}",
        "EPT pointer = 0x{EPT_POINTER}",
        "EPTP index = 0x{EPTP_INDEX}",
        "PLE Gap={PLE_GAP} Window={PLE_WINDOW}",
        "Virtual processor ID = 0x{VPID}",
        "VMfunc controls = {VM_FUNCTION_CONTROLS}",
        "VE info address = 0x{VE_INFO_ADDR}",
        *(f"{lead}target{i}={{CR3_TARGET_VALUE{i}}}" for i in range(4) for lead in ("CR3 ", "")),
        # early patch sets print the host's words of CET at the very end
        *(template for template in _area("HOST") if template.startswith(("S_CET", "SSP"))),
    ),
}


class _Template(NamedTuple):
    head: re.Pattern  # up to the first value
    whole: re.Pattern
    names: tuple[str, ...]
    shown: str  # for messages


def _literal(text: str) -> str:
    return (
        re.escape(text)
        .replace(r"\[0x\]", "(?:0x)?")
        .replace(r"\ =\ ", r"\s*=\s*")
        .replace(r"\ ", r"\s+")
    )


def _compiled(template: str) -> _Template:
    first, *rest = re.split(r"\{(.*?)\}", template)
    names, literals = rest[::2], rest[1::2]
    digits = "([0-9a-fA-F]{1,16})"
    whole = _literal(first) + "".join(digits + _literal(literal) for literal in literals)
    return _Template(
        re.compile(_literal(first)),
        re.compile(whole + r"(?![^\s,])"),
        tuple(names),
        re.sub(r"\{.*?\}", "...", template.replace("[0x]", "")),
    )


class _Section(NamedTuple):
    templates: tuple[_Template, ...]
    heads: re.Pattern  # any template's head, at the start of a word


def _section(templates: Iterable[str]) -> _Section:
    compiled = tuple(_compiled(template) for template in templates)
    heads = "|".join({template.head.pattern: None for template in compiled})
    return _Section(compiled, re.compile(rf"(?<!\S)(?:{heads})"))


_SECTIONS = {name: _section(templates) for name, templates in _TEMPLATES.items()}

_SECTION_HEAD = re.compile(r"\*\*\* (Guest|Host|Control) State \*\*\*\s*$")
_CLOSING = re.compile(r"\*{20,}\s*$")
_DOMAIN = re.compile(r"Domain (\d{1,9}) <<<")  # ">>> " before it is gone with the prefixes
_VCPU = re.compile(r"VCPU (\d{1,9})\s*$")
_XEN_HEAD = re.compile(
    r"d(\d{1,9})v(\d{1,9}) (?:vmentry failure \(reason 0x([0-9a-f]{1,8})\):"
    r"|VM(?:LAUNCH|RESUME) error: 0x([0-9a-f]{1,8}))"
    r"(?:\s+(?:Invalid guest state|MSR loading) \((entry )?(\d{1,18})\))?"
)
_XEN_MSR = re.compile(r"msr ([0-9a-f]{1,8}) val ([0-9a-f]{1,16}) \(mbz")
_KVM_HEAD = re.compile(r"KVM: entry failed, hardware error 0x([0-9a-f]{1,8})\b")
_MSR_LIST = re.compile(r"MSR ((?:guest |host )?auto(?:load|store)):\s*$")
_MSR_ENTRY = re.compile(r"\d{1,4}: msr=0x([0-9a-f]{1,8}) value=0x([0-9a-f]{1,16})\s*$")
_HAXM = re.compile(
    r"haxm_\w+:\s+([0-9a-fA-F]{4}) ([A-Z]\w*): ([0-9a-fA-F]{1,16})\s*$", re.MULTILINE
)
_QUOTED_PRINTABLE = re.compile(r"=3D|=C2=A0")

#: What stands before the payload of a line, in any combination. `stamp`: it begins a log record.
_PREFIX = re.compile(
    r"""(?:
    >\ ?
  | (?P<stamp>
        [A-Z][a-z]{2}\ [ \d]\d\ [\d:]{8}\ \S+\ \S+:\ ?      # syslog, journalctl
      | \d{4}-\d\d-\d\dT\S+\ \S+\ \S+:\ ?                   # the same with ISO dates
      | \[\ *\d+\.\d+\]\ ? | \[\ *[TC]\d+\]\ ?              # dmesg, with caller; Xen's uptime
      | \[\d{4}-\d\d-\d\d\ [\d:.]+\]\ ?                     # Xen's date
      | (?P<xen>\(XEN\)\ ?) | kvm_intel:\ | <\d>
    )
)*""",
    re.VERBOSE,
)

_MAX_CONTINUATIONS = 3  # lines; a wrapped line of 120 columns fits in


class _Line(NamedTuple):
    number: int
    payload: str
    stamped: bool  # it begins a log record
    xen: bool  # Xen's console printed it


def recognises(text: str) -> bool:
    """Whether the text has a line that only VMCS dumps have."""
    return bool(_HAXM.search(text)) or any(
        _SECTION_HEAD.search(line.payload) for line in _lines(text)
    )


def parse(text: str, name: str) -> list[VmcsDump]:
    """Read every dump in a text, in order.

    A section head starts a new dump if the present one has that section already or is closed, and
    the guest section's head always. Other lines between them are skipped.

    Raises
    ------
    :exc:`UsageError`
        If there is no dump, a value is no number or too wide, or a field has two values in a dump.
    """
    if _HAXM.search(text):
        return _parse_haxm(text, name)
    reader = _Reader(name)
    for line in _lines(text):
        reader.take(line)
    return reader.finish()


def _lines(text: str) -> list[_Line]:
    lines, soft = [], ""
    quoted_printable = _QUOTED_PRINTABLE.search(text)
    for number, raw in enumerate(text.splitlines(), 1):
        if quoted_printable:
            raw = soft + raw
            soft = raw[:-1] if raw.endswith("=") else ""
            if soft:
                continue
            raw = quopri.decodestring(raw.encode()).decode("utf-8", "replace")
        raw = raw.replace("\N{NO-BREAK SPACE}", " ")
        prefix = _PREFIX.match(raw)
        lines.append(
            _Line(
                number,
                raw[prefix.end() :].strip(),
                prefix["stamp"] is not None,
                prefix["xen"] is not None,
            )
        )
    return lines


class _Reader:
    """The state machine of KVM's and Xen's dumps."""

    def __init__(self, name: str):
        self._name = name
        self._dumps: list[VmcsDump] = []
        self._head: dict = {}  # facts of head lines that wait for their dump
        self._domain: int | None = None  # stays for the following virtual processors
        self._section: str | None = None
        self._msr_list: list[tuple[int, int]] | None = None
        self._group: list[_Line] = []  # a line and what may continue it

    def take(self, line: _Line) -> None:
        if match := _SECTION_HEAD.search(line.payload):
            self._flush()
            self._open(match[1], line)
        elif self._take_head(line.payload):
            self._flush()
        elif self._section is None:
            return
        elif _CLOSING.match(line.payload):
            self._flush()
            self._dumps[-1].format, self._dumps[-1].closed, self._section = "xen", True, None
        elif match := _MSR_LIST.match(line.payload):
            self._flush()
            self._msr_list = self._dumps[-1].msr_lists.setdefault(match[1], [])
        elif self._msr_list is not None and (match := _MSR_ENTRY.match(line.payload)):
            self._msr_list.append((int(match[1], 16), int(match[2], 16)))
        elif line.stamped or not self._group or _SECTIONS[self._section].heads.match(line.payload):
            self._flush()
            self._group = [line]
        elif len(self._group) <= _MAX_CONTINUATIONS:
            self._group.append(line)

    def finish(self) -> list[VmcsDump]:
        self._flush()
        if not self._dumps:
            raise UsageError(
                f"{self._name}: no section of a VMCS dump (*** Guest State *** ...) in it"
            )
        if self._head:  # QEMU's message may also come after the dump
            self._apply_head(self._dumps[-1])
        for dump in self._dumps:
            if {"SVI", "RVI"} <= dump.fields.keys():
                status = dump.fields.pop("SVI") << 8 | dump.fields.pop("RVI")
                dump.fields.setdefault("GUEST_INTERRUPT_STATUS", status)
        return self._dumps

    def _open(self, section: str, line: _Line) -> None:
        last = self._dumps[-1] if self._dumps else None
        if last is None or section == "Guest" or last.closed or section in last.sections:
            xen = line.xen or self._head.keys() & {"domain", "vcpu"}
            self._dumps.append(VmcsDump("xen" if xen else "kvm", line.number))
            self._apply_head(self._dumps[-1])
        self._dumps[-1].sections.append(section)
        self._section, self._msr_list = section, None

    def _apply_head(self, dump: VmcsDump) -> None:
        for key, value in self._head.items():
            if getattr(dump, key) is None:
                setattr(dump, key, value)
        self._head = {}

    def _take_head(self, payload: str) -> bool:
        """Note what a line beside the sections says about the next dump."""
        if match := _XEN_HEAD.search(payload):
            domain, vcpu, reason, error, entry, number = match.groups()
            self._head = {"domain": int(domain), "vcpu": int(vcpu)}
            if error:
                self._head["error"] = int(error, 16)
            else:
                self._head["reason"] = int(reason, 16)
            if number:  # Xen counts the entries of the list from 0, the qualification from 1
                self._head["qualification"] = int(number) + bool(entry)
        elif match := _KVM_HEAD.search(payload):
            number = int(match[1], 16)
            self._head["reason" if number >> 31 else "error"] = number
        elif self._head and (match := _XEN_MSR.match(payload)):
            self._head["failing_msr"] = (int(match[1], 16), int(match[2], 16))
        elif match := _DOMAIN.search(payload):
            self._domain = int(match[1])
        elif match := _VCPU.match(payload):
            self._head |= {"vcpu": int(match[1]), "domain": self._domain}
        else:
            return False
        return True

    def _flush(self) -> None:
        """Read the words of the line at hand, with as many continuations as complete it."""
        if not self._group:
            return
        section, number = _SECTIONS[self._section], self._group[0].number
        payloads, self._group = [line.payload for line in self._group], []
        texts = ["\n".join(payloads[:count]) for count in range(1, len(payloads) + 1)]
        # the shortest text of those with most values; none of another message's words
        found, damaged = max(
            (_matches(section, text) for text in texts if section.heads.match(text)),
            key=lambda pair: len(pair[0]),
            default=([], None),
        )
        if damaged:
            raise UsageError(
                f"{self._name}:{number}: {damaged[0][:60]!r} is cut off or not a number; "
                f"expected {damaged[1]!r} with hexadecimal numbers"
            )
        for name, digits in found:
            self._store(name, int(digits, 16), number)

    def _store(self, name: str, value: int, number: int) -> None:
        dump = self._dumps[-1]
        target, symbol = (dump.effective, name[1:]) if name.startswith("*") else (dump.fields, name)
        width = 8 if symbol in {"SVI", "RVI"} else tables.FIELDS[symbol].bits
        _put(target, symbol, value, width, f"{self._name}:{number}")


def _matches(section: _Section, text: str) -> tuple[list[tuple[str, str]], tuple[str, str] | None]:
    """Values in a text by field, and the first words that only begin like a template."""
    found, damaged, position = [], None, 0
    while head := section.heads.search(text, position):
        start, position = head.span()
        candidates = [
            template for template in section.templates if template.head.match(text, start)
        ]
        matches = [
            (match, template)
            for template in candidates
            if (match := template.whole.match(text, start))
        ]
        if matches:
            match, template = max(matches, key=lambda pair: pair[0].end())
            found += zip(template.names, match.groups(), strict=True)
            position = match.end()
        elif damaged is None:
            damaged = (text[start:], candidates[0].shown)
    return found, damaged


def _put(fields: dict[str, int], symbol: str, value: int, width: int, place: str) -> None:
    if value >> width:
        raise UsageError(f"{place}: {symbol} = {value:#x} does not fit its {width} bits")
    if fields.setdefault(symbol, value) != value:
        raise UsageError(
            f"{place}: {symbol} = {value:#x}, but the dump already has {fields[symbol]:#x}"
        )


def _parse_haxm(text: str, name: str) -> list[VmcsDump]:
    """One line a field, by encoding; a second line with an encoding starts the next dump."""
    dumps: list[VmcsDump] = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _HAXM.search(line)
        row = match and tables.FIELD_BY_ENCODING.get(int(match[1], 16))
        if row is None:  # another message, or a field that no table knows
            continue
        if not dumps or row.symbol in dumps[-1].fields:
            dumps.append(VmcsDump("haxm", number))
        _put(dumps[-1].fields, row.symbol, int(match[3], 16), row.bits, f"{name}:{number}")
    if not dumps:
        raise UsageError(f"{name}: no line of a HAXM dump names a VMCS field")
    return dumps

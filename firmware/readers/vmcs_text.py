"""Reader of VMCS dumps: KVM's ``dump_vmcs``, Xen's ``vmcs_dump_vcpu``, HAXM's ``dump_vmcs``.

The text is what a log, a terminal or a mail program made of it: any prefixes, quoting, wrapped
lines, CR LF, quoted-printable. Lines are found by their words, never by position, because which of
them exist depends on versions, controls and features.

Sources: Linux arch/x86/kvm/vmx/vmx.c, Xen xen/arch/x86/hvm/vmx/vmcs.c, HAXM core/vmx.c.
Facts: vmcs_fields.csv (symbols, encodings, widths).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vmxswitch.spec import tables
from vmxswitch.spec.errors import UsageError

from .log_lines import Line, LineReader
from .vmcs_templates import SECTIONS, matches, short

__all__ = ["Problem", "VmcsDump", "parse", "recognises", "scan"]


class Problem(NamedTuple):
    """Something in a dump that cannot be read."""

    line: int
    text: str


@dataclass
class VmcsDump:
    """What one dump states.

    Attributes
    ----------
    format : str
        ``kvm``, ``xen``, ``haxm`` or, for our own form, ``json``.
    line, last_line : int
        Lines of the text at which it starts and at which its last word stands, from 1.
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
    failed : bool
        A head line says that the entry failed, even if no number can be read there.
    error : int or None
        VM-instruction error of a head line.
    reason, qualification : int or None
        Exit reason (with bit 31) and qualification of a head line.
    failing_msr : tuple[int, int] or None
        Index and value of the MSR that Xen's head names for reason 34.
    failing_msr_reserved : int or None
        Bits 63:32 of that list entry.
    msr_load_list : list[tuple[int, int, int]]
        Our own form only: index, data and bits 63:32 of each entry.
    msr_lists : dict[str, list[tuple[int, int]]]
        ``guest autoload``, ``guest autostore``, ``autostore``, ``host autoload``: list of MSR
        index and value.
    excerpt : bool
        Our own form only: it does not claim to be complete.
    disputed : set[str]
        Fields printed twice with different values; they are not in ``fields``.
    problems : list[Problem]
        Words that could not be read, in order.
    """

    format: str
    line: int
    fields: dict[str, int] = field(default_factory=dict)
    effective: dict[str, int] = field(default_factory=dict)
    sections: list[str] = field(default_factory=list)
    closed: bool = False
    domain: int | None = None
    vcpu: int | None = None
    failed: bool = False
    error: int | None = None
    reason: int | None = None
    qualification: int | None = None
    failing_msr: tuple[int, int] | None = None
    failing_msr_reserved: int | None = None
    msr_load_list: list[tuple[int, int, int]] = field(default_factory=list)
    msr_lists: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    excerpt: bool = False
    disputed: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    last_line: int = 0

    @property
    def label(self) -> str:
        """Name of the virtual processor as far as the text tells it, else the first line."""
        names = [
            f"{word} {number}"
            for word, number in (("domain", self.domain), ("vCPU", self.vcpu))
            if number is not None
        ]
        return " ".join(names) or f"line {self.line}"

    def put(self, fields: dict[str, int], symbol: str, value: int, line: int) -> None:
        """Note a value; what does not fit or contradicts another one is a problem."""
        width = 8 if symbol in {"SVI", "RVI"} else tables.FIELDS[symbol].bits
        self.last_line = line
        if value >> width:
            self.problems.append(
                Problem(line, f"{symbol} = {value:#x} does not fit its {width} bits")
            )
        elif symbol not in self.disputed and fields.setdefault(symbol, value) != value:
            self.problems.append(
                Problem(line, f"{symbol} = {value:#x}, but the dump already has "
                              f"{fields.pop(symbol):#x}")
            )
            self.disputed.add(symbol)


_SECTION_HEAD = re.compile(r"\*\*\* (Guest|Host|Control) State \*\*\*\s*$")
_CLOSING = re.compile(r"\*{20,}\s*$")
_DOMAIN = re.compile(r"Domain (\d{1,9}) <<<")  # ">>> " before it is gone with the prefixes
_VCPU = re.compile(r"VCPU (\d{1,9})\s*$")
_XEN_HEAD = re.compile(
    r"d(\d{1,9})v(\d{1,9}) (?:vmentry failure \(reason 0x([0-9a-f]{1,8})\):"
    r"|VM(?:LAUNCH|RESUME) error: 0x([0-9a-f]{1,8}))"
    r"(?:\s+(?:Invalid guest state|MSR loading) \((entry )?(\d{1,18})\))?"
)
_OLD_XEN_HEAD = re.compile(
    r"Failed vm entry \(exit reason 0x([0-9a-f]{1,8})\)"
    r"(?: caused by (?:invalid guest state \((\d{1,18})\)|MSR entry (\d{1,18}) loading))?"
    r"|<vm_(?:launch|resume)_fail> error code (?:0x)?([0-9a-f]{1,8})\b"
)
_XEN_MSR = re.compile(r"msr ([0-9a-f]{1,8}) val ([0-9a-f]{1,16}) \(mbz (?:0x)?([0-9a-f]{1,8})\)")
_KVM_HEAD = re.compile(
    r"(?:KVM: entry failed, hardware error|hardware_entry_failure_reason\s*[:=])\s*"
    r"0x([0-9a-f]{1,8})\b"
)
_FAILED = re.compile(  # a head line that is damaged still says so
    r"vmentry failure|VM(?:LAUNCH|RESUME) error|Failed vm entry|_fail> error code|entry failed"
    r"|entry_failure_reason"
)
_MSR_LIST = re.compile(r"MSR ((?:guest |host )?auto(?:load|store)):\s*$")
_MSR_ENTRY = re.compile(r"\d{1,4}: msr=0x([0-9a-f]{1,8}) value=0x([0-9a-f]{1,16})\s*$")
_HAXM = re.compile(
    r"haxm_\w+:\s+([0-9a-fA-F]{4}) ([A-Z]\w*): ([0-9a-fA-F]{1,16})\s*$", re.MULTILINE
)
_HAXM_WRAPPED = re.compile(r"haxm_\w+:\s+[0-9a-fA-F]{4}(?: [A-Z]\w*:?)?\s*$")
_QEMU_REGISTERS = re.compile(r"[ER]AX=")  # software state, no VMCS

_MAX_CONTINUATIONS = 3  # lines; a wrapped line of 120 columns fits in
_MAX_SILENCE = 1000  # lines without a word of the dump, after which it is over


def recognises(text: str) -> bool:
    """Whether the text has a line that only VMCS dumps have."""
    return bool(_HAXM.search(text)) or any(
        _SECTION_HEAD.search(line.payload) for line in LineReader(_bytes(text))
    )


def scan(lines: Iterable[bytes]) -> Iterator[VmcsDump]:
    """Read every dump in the lines of a text, in order, as it goes by.

    A section head starts a new dump if the present one has that section already or is closed, and
    the guest section's head always. Other lines between them are skipped. What cannot be read is
    among a dump's ``problems``.
    """
    source = LineReader(lines)
    reader = _Reader()
    for line in source:
        yield from reader.take(line)
        source.inside = reader.inside
    yield from reader.finish()


def parse(text: str, name: str) -> list[VmcsDump]:
    """Read every dump in a text, in order, if nothing in it is damaged.

    Raises
    ------
    :exc:`UsageError`
        If there is no dump, a value is no number or too wide, or a field has two values in a dump.
    """
    dumps = list(scan(_bytes(text)))
    if not dumps:
        what = "line of a HAXM dump names a VMCS field" if _HAXM.search(text) else (
            "section of a VMCS dump (*** Guest State *** ...) in it")
        raise UsageError(f"{name}: no {what}")
    if problems := [problem for dump in dumps for problem in dump.problems]:
        raise UsageError(f"{name}:{problems[0].line}: {problems[0].text}")
    return dumps


def _bytes(text: str) -> list[bytes]:
    return text.encode("utf-8", "surrogatepass").splitlines(keepends=True)


class _Reader:
    """The state machine of the dumps."""

    def __init__(self):
        self._dump: VmcsDump | None = None  # the last one of KVM or Xen
        self._haxm: VmcsDump | None = None
        self._haxm_wrapped = ""  # a line that a mail program has broken
        self._head: dict = {}  # facts of head lines that wait for their dump
        self._head_line = 0
        self._head_may_follow = False  # it may also belong to the dump before it
        self._domain: int | None = None  # stays for the following virtual processors
        self._section: str | None = None
        self._msr_list: list[tuple[int, int]] | None = None
        self._group: list[Line] = []  # a line and what may continue it
        self._last_word = 0

    @property
    def inside(self) -> bool:
        """Whether the next line may belong to a section that is open."""
        return self._section is not None or bool(self._haxm_wrapped)

    def take(self, line: Line) -> Iterator[VmcsDump]:
        """Read one line; yields a dump that has ended."""
        payload, self._haxm_wrapped = f"{self._haxm_wrapped} {line.payload}".strip(), ""
        if "haxm_" in payload and (match := _HAXM.search(payload)):
            yield from self._take_haxm(match, line.number)
        elif "haxm_" in line.payload and _HAXM_WRAPPED.search(line.payload):
            self._haxm_wrapped = line.payload
        elif match := _SECTION_HEAD.search(line.payload):
            self._flush()
            yield from self._open(match[1], line)
        elif self._take_head(line):
            self._flush()
        elif self._section is None:
            return
        elif _CLOSING.match(line.payload):
            self._flush()
            self._dump.format, self._dump.closed, self._section = "xen", True, None
        elif (_QEMU_REGISTERS.match(line.payload)
              or line.number - self._last_word > _MAX_SILENCE):
            self._flush()
            self._section = None
        elif match := _MSR_LIST.match(line.payload):
            self._flush()
            self._msr_list = self._dump.msr_lists.setdefault(match[1], [])
        elif self._msr_list is not None and (match := _MSR_ENTRY.match(line.payload)):
            self._msr_list.append((int(match[1], 16), int(match[2], 16)))
        elif line.stamped or not self._group or SECTIONS[self._section].heads.match(line.payload):
            self._flush()
            self._group = [line]
        elif len(self._group) <= _MAX_CONTINUATIONS:
            self._group.append(line)

    def finish(self) -> Iterator[VmcsDump]:
        """Yield the dumps that the end of the text ends."""
        self._flush()
        if self._head and self._dump:  # QEMU's message may also come after the dump
            self._apply_head(self._dump)
        for dump in sorted(filter(None, (self._dump, self._haxm)), key=lambda dump: dump.line):
            yield _ended(dump)

    def _open(self, section: str, line: Line) -> Iterator[VmcsDump]:
        last = self._dump
        if last is None or section == "Guest" or last.closed or section in last.sections:
            if last is not None:
                near = self._head_line - last.last_line < line.number - self._head_line
                if self._head and self._head_may_follow and near and not last.failed:
                    self._apply_head(last)
                yield _ended(last)
            xen = line.xen or self._head.keys() & {"domain", "vcpu"}
            self._dump = VmcsDump("xen" if xen else "kvm", line.number)
            self._apply_head(self._dump)
        self._dump.sections.append(section)
        self._dump.last_line = self._last_word = line.number
        self._section, self._msr_list = section, None

    def _apply_head(self, dump: VmcsDump) -> None:
        for key, value in self._head.items():
            if not getattr(dump, key):
                setattr(dump, key, value)
        self._head = {}

    def _take_head(self, line: Line) -> bool:
        """Note what a line beside the sections says about the next dump."""
        payload = line.payload
        if match := _XEN_HEAD.search(payload):
            domain, vcpu, reason, error, entry, number = match.groups()
            self._head = {"domain": int(domain), "vcpu": int(vcpu)}
            self._note_failure(line, error, reason)
            if number:  # Xen counts the entries of the list from 0, the qualification from 1
                self._head["qualification"] = int(number) + bool(entry)
        elif match := _OLD_XEN_HEAD.search(payload):
            reason, invalid, entry, error = match.groups()
            self._head = {}
            self._note_failure(line, error, reason)
            if number := invalid or entry:
                self._head["qualification"] = int(number)
        elif match := _KVM_HEAD.search(payload):
            number = int(match[1], 16)
            self._head = {}
            self._note_failure(line, *((None, match[1]) if number >> 31 else (match[1], None)))
            self._head_may_follow = True
        elif _FAILED.search(payload):
            self._head = {}
            self._note_failure(line, None, None)
            self._head_may_follow = "entry failed" in payload
        elif self._head and (match := _XEN_MSR.search(payload)):
            self._head["failing_msr"] = (int(match[1], 16), int(match[2], 16))
            self._head["failing_msr_reserved"] = int(match[3], 16)
        elif match := _DOMAIN.search(payload):
            self._domain = int(match[1])
        elif match := _VCPU.match(payload):
            self._head |= {"vcpu": int(match[1]), "domain": self._domain}
        else:
            return False
        return True

    def _note_failure(self, line: Line, error: str | None, reason: str | None) -> None:
        self._head["failed"], self._head_line, self._head_may_follow = True, line.number, False
        if error:
            self._head["error"] = int(error, 16)
        if reason:
            self._head["reason"] = int(reason, 16)

    def _flush(self) -> None:
        """Read the words of the line at hand, with as many continuations as complete it."""
        if not self._group:
            return
        section, number = SECTIONS[self._section], self._group[0].number
        payloads, cut = [line.payload for line in self._group], self._group[-1].cut
        self._group = []
        texts = ["\n".join(payloads[:count]) for count in range(1, len(payloads) + 1)]
        # the shortest text of those with most values; none of another message's words
        found, damaged, text = max(
            ((*matches(section, text), text) for text in texts if section.heads.match(text)),
            key=lambda result: len(result[0]),
            default=([], None, ""),
        )
        if damaged:
            self._dump.problems.append(Problem(
                number,
                f"{damaged[0][:60]!r} is cut off or not a number; "
                f"expected {damaged[1]!r} with hexadecimal numbers",
            ))
        for name, digits, end in found:
            if cut and end == len(texts[-1]) and short(name, digits):
                symbol = name.removeprefix("*")
                self._dump.problems.append(
                    Problem(number, f"{symbol} = {digits!r} is cut off by the end of the text")
                )
                continue
            target = self._dump.effective if name.startswith("*") else self._dump.fields
            self._dump.put(target, name.removeprefix("*"), int(digits, 16), number)
            self._last_word = number

    def _take_haxm(self, match: re.Match, number: int) -> Iterator[VmcsDump]:
        """One line a field, by encoding; a second line with an encoding starts the next dump."""
        row = tables.FIELD_BY_ENCODING.get(int(match[1], 16))
        if row is None:  # a field that no table knows
            return
        if self._haxm is None or row.symbol in self._haxm.fields:
            if self._haxm:
                yield _ended(self._haxm)
            self._haxm = VmcsDump("haxm", number)
        self._haxm.put(self._haxm.fields, row.symbol, int(match[3], 16), number)


def _ended(dump: VmcsDump) -> VmcsDump:
    """The dump with halves of fields put together."""
    if {"SVI", "RVI"} <= dump.fields.keys():
        status = dump.fields.pop("SVI") << 8 | dump.fields.pop("RVI")
        dump.fields.setdefault("GUEST_INTERRUPT_STATUS", status)
    dump.fields.pop("SVI", None)
    dump.fields.pop("RVI", None)
    for symbol in [symbol for symbol in dump.fields if symbol.endswith("_HIGH")]:
        low = symbol.removesuffix("_HIGH")
        if tables.FIELDS[symbol].is_high and not dump.fields.get(low, 1 << 32) >> 32:
            dump.fields[low] |= dump.fields.pop(symbol) << 32
    return dump

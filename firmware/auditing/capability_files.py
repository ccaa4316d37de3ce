"""What a file says of a processor: capability MSRs as tools print them, or JSON.

Text: any line with an MSR, by number (0x480 to 0x493) or by name, and its value behind it, such as

================================================  ==================================================
``0x480: 00da040000000004``                       a loop around ``rdmsr``
``IA32_VMX_BASIC 0x480 = 0x00da0400_00000004``    printed by a program
``CPU0: RDMSR( 0x480 ) = 00DA040000000004 (...)`` CHIPSEC
``msr[480] = 00da0400`00000004``                  WinDbg
``MSR 0x480: 0x00da0400 0x00000004``              FreeBSD's ``cpucontrol -m``
``$ rdmsr 0x480``, value on the next line         a terminal
``address sizes : 46 bits physical, ...``         ``/proc/cpuinfo``
``Basic VMX Information``, ``Hex: 0x...``          the four words that QEMU's ``vmxcap`` gives so
================================================  ==================================================

JSON: a profile of recorded cases, or an object with ``msrs`` (number -> value) and any of
``name``, ``physical_address_width``, ``linear_address_width``, ``efer_bits``.
"""

import json
import re
from pathlib import Path

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.tables import CAPABILITY_MSRS

from .knowledge import Knowledge

__all__ = ["read"]

MAX_BYTES = 1 << 20
FIRST, LAST, BASIC = 0x480, 0x493, 0x480

_NAMES = {
    name: row.msr for symbol, row in CAPABILITY_MSRS.items()
    for name in (symbol.lower(), f"msr_{symbol.lower()}", f"ia32_vmx_{symbol.lower()}",
                 f"msr_ia32_vmx_{symbol.lower()}")
}
#: Headings of vmxcap below which a line "Hex: 0x..." has the whole MSR.
_HEADINGS = {
    "basic vmx information": 0x480, "miscellaneous data": 0x485,
    "vpid and ept capabilities": 0x48C, "vm functions": 0x491,
}
_WORD = re.compile(r"[a-z]*ia32_vmx_\w+|\bcr[04]_fixed[01]\b|\b0x[0-9a-f`_']+|\b[0-9a-f`_']+\b")
_WIDTH = re.compile(r"(\d+) bits physical|maxphyaddr\W+(\d+)", re.IGNORECASE)


def read(path: Path) -> Knowledge:
    """What a file says of a processor.

    Raises
    ------
    :exc:`UsageError`
        If it cannot be read, names no capability MSR, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read capabilities from '{path}': {reason}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: longer than {MAX_BYTES >> 20} MiB; give the MSRs only")
    text = data.decode("utf-8-sig", "replace")
    return _from_json(text, path) if text.lstrip().startswith("{") else _from_text(text, path)


def _from_text(text: str, path: Path) -> Knowledge:
    msrs: dict[int, int] = {}
    physical = waiting = None
    for number, line in enumerate(text.lower().splitlines(), 1):
        if match := _WIDTH.search(line):
            physical = int(match[1] or match[2])
            continue
        waiting = _HEADINGS.get(line.strip(), waiting)
        index, values = _parts(line)
        if index is None and waiting is not None and len(values) == 1:
            index = waiting
        if index is None or not values:
            waiting = index if index is not None else waiting
            continue
        waiting = None
        value = _value(values, f"{path}:{number}")
        if msrs.setdefault(index, value) != value:
            raise UsageError(f"{path}:{number}: MSR {index:#x} is {value:#x} here and "
                             f"{msrs[index]:#x} before; give the MSRs of one processor")
    if not msrs:
        raise UsageError(
            f"{path}: no preset or profile, and no capability MSR in it; write lines such as "
            "'0x480: 00da040000000004' (for m in $(seq 0x480 0x491); do printf '%#x: ' $m; "
            "rdmsr $m; done)")
    _plausible(msrs, path)
    return _knowledge(str(path), msrs, physical=physical)


def _parts(line: str) -> tuple[int | None, list[str]]:
    """The MSR that a line names, and the hexadecimal numbers behind it."""
    words = _WORD.findall(line)
    for place, word in enumerate(words):
        index = _NAMES.get(word)
        if index is None and len(word) <= 10:
            number = _number(word)
            index = number if number is not None and FIRST <= number <= LAST else None
        if index is not None:
            rest = words[place + 1:]
            if rest and _number(rest[0]) == index:  # by name and by number
                rest = rest[1:]
            return index, [word for word in rest if _number(word) is not None]
    return None, [word for word in words if _number(word) is not None]


def _number(word: str) -> int | None:
    digits = re.sub(r"[`_']", "", word)
    try:
        return int(digits, 16)
    except ValueError:
        return None


def _value(words: list[str], where: str) -> int:
    halves = [re.sub(r"^0x|[`_']", "", word) for word in words[:2]]
    text = halves[0]
    if len(halves) == 2 and all(len(half) == 8 for half in halves):
        text = "".join(halves)  # high half, low half
    value = int(text, 16)
    if value >> 64:
        raise UsageError(f"{where}: {words[0][:40]!r} has more than 64 bits")
    return value


def _plausible(msrs: dict[int, int], path: Path) -> None:
    """Refuse what is no IA32_VMX_BASIC, such as decimal output."""
    basic = msrs.get(BASIC)
    if basic is None:
        return
    size, memory_type = basic >> 32 & 0x1FFF, basic >> 50 & 0xF
    if basic >> 60 or basic >> 31 & 1 or not 0 < size <= 4096 or memory_type not in (0, 6):
        raise UsageError(f"{path}: MSR 0x480 = {basic:#x} is no IA32_VMX_BASIC (bits 63:60 and 31 "
                         "must be 0, bits 44:32 a size); values must be hexadecimal")


def _from_json(text: str, path: Path) -> Knowledge:
    try:
        content = json.loads(text)
        if content.get("format") == "vmx-profile v1":
            return Knowledge.of(Capabilities.from_profile(path))
        msrs = {int(index, 16): value if isinstance(value, int) else int(value, 0)
                for index, value in content["msrs"].items()}
        numbers = {key: content.get(key) for key in (
            "physical_address_width", "linear_address_width", "efer_bits")}
        if any(type(value) not in (int, type(None)) for value in numbers.values()):
            raise ValueError("a width or efer_bits is no integer")
        if any(not 0 <= value < 1 << 64 for value in msrs.values()):
            raise ValueError("an MSR has more than 64 bits")
        name = str(content.get("name", path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: no capabilities ({error!r:.100}); an object with 'msrs': "
                         "{\"0x480\": ...} is wanted") from None
    if not any(FIRST <= index <= LAST for index in msrs):
        raise UsageError(f"{path}: no capability MSR (0x480 to 0x493) in 'msrs'")
    _plausible(msrs, path)
    return _knowledge(name, msrs, *numbers.values())


def _knowledge(name, msrs, physical=None, linear=None, efer_bits=None) -> Knowledge:
    if linear not in (None, 48, 57):
        raise UsageError(f"{name}: linear_address_width {linear!r} is not 48 or 57")
    knowledge = Knowledge.assumed(name, msrs, LINEAR_WIDTH=linear, EFER_BITS=efer_bits)
    return knowledge if physical is None else knowledge.with_physical_width(physical)

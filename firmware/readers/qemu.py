"""Reader of the QEMU monitor's ``info registers`` (and of the same block after a failed VM entry).

Ref: firmware/environments/README.md describes the text and what it leaves out.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from vmxswitch.spec.errors import UsageError

from ..environment import SEGMENTS, Environment, listed

__all__ = ["parse", "recognises"]


class _Piece(NamedTuple):
    """One blank-separated part of a line."""

    head: str  # its text up to the value
    regex: re.Pattern  # with the blanks behind it
    shape: str  # what is expected, for messages


def _piece(head: str, value: str, shape: str) -> _Piece:
    return _Piece(head, re.compile(rf"{re.escape(head)}{value}(?!\S)\s*"), shape)


def _number(head: str, group: str, *digits: int) -> _Piece:
    widths = "|".join(f"[0-9a-fA-F]{{{count}}}" for count in digits)
    shape = f"{' or '.join(map(str, digits))} hexadecimal digits"
    return _piece(head, f"(?P<{group}>{widths})", f"{head!r} and {shape}" if head else shape)


def _numbers(names: str, *digits: int) -> tuple[_Piece, ...]:
    """Words such as ``CR0=`` and ``R8 =``: names take three places."""
    return tuple(_number(f"{name:<3}=", name, *digits) for name in names.split())


def _choice(name: str, values: str) -> _Piece:
    return _piece(f"{name}=", f"(?P<{name}>[{values}])", f"'{name}=' and one of {values}")


#: Letter and bit of each flag that the state line repeats.
_FLAGS = {"D": 10, "O": 11, "S": 7, "Z": 6, "A": 4, "P": 2, "C": 0}
_FLAG_WORD = "".join(f"[{letter}-]" for letter in _FLAGS)
_STATE = (
    _piece("[", rf"(?P<FLAGS>{_FLAG_WORD})\]", "the flags '[DOSZAPC]'"),
    _choice("CPL", "0123"),
    *(_choice(name, "01") for name in ("II", "A20", "SMM", "HLT")),
)
_GENERAL = {
    64: (
        _numbers("RAX RBX RCX RDX", 16),
        _numbers("RSI RDI RBP RSP", 16),
        _numbers("R8 R9 R10 R11", 16),
        _numbers("R12 R13 R14 R15", 16),
        (_number("RIP=", "IP", 16), _number("RFL=", "FL", 8), *_STATE),
    ),
    32: (
        _numbers("EAX EBX ECX EDX", 8),
        _numbers("ESI EDI EBP ESP", 8),
        (_number("EIP=", "IP", 8), _number("EFL=", "FL", 8), *_STATE),
    ),
}
#: Name of each segment register in the text.
_SEGMENT_WORDS = {name: {"LDTR": "LDT"}.get(name, name) for name in SEGMENTS}


def _segment(name: str, digits: int) -> tuple[_Piece, ...]:
    return (
        _number(f"{_SEGMENT_WORDS[name]:<3}=", f"{name}_SELECTOR", 4),
        _number("", f"{name}_BASE", digits),
        _number("", f"{name}_LIMIT", 8),
        _piece("", f"00(?P<{name}_FLAGS>[0-9a-fA-F]{{4}})00", "flags '00xxxx00'"),
        _piece("", "(?:DPL=.*)?", "'DPL=' or the end of the line"),
    )


def _table(name: str) -> tuple[_Piece, ...]:
    return (
        _piece(f"{name}=", "", f"'{name}='"),
        _number("", f"{name}R_BASE", 8, 16),
        _number("", f"{name}R_LIMIT", 8),
    )


#: Every line of a block in order, by the operand size of its code (64: EFER.LMA and CS.L are 1).
_LINES = {
    size: (
        *general,
        *(_segment(name, size // 4) for name in SEGMENTS),
        _table("GDT"),
        _table("IDT"),
        (*_numbers("CR0", 8), *_numbers("CR2 CR3", 8, 16), *_numbers("CR4", 8)),
        _numbers("DR0 DR1 DR2 DR3", 8, 16),
        _numbers("DR6 DR7", 8, 16),
        _numbers("EFER", 16),
    )
    for size, general in _GENERAL.items()
}
_HEADS = {size: [line[0].head for line in lines] for size, lines in _LINES.items()}
_ANY_HEAD = re.compile("|".join(re.escape(head) for head in sorted({*_HEADS[64], *_HEADS[32]})))

_CPU = re.compile(r"CPU#(\d{1,9})\s*$")
_BLOCK_START = re.compile(r"^[ \t]*(?:CPU#\d+\s*$|[ER](?:AX|SI|IP)=|[ECSDFG]S =)", re.MULTILINE)

#: Registers that the text never has: value after reset, and why.
_NOT_SHOWN = {
    **dict.fromkeys(
        ("DEBUGCTL", "SYSENTER_CS", "SYSENTER_ESP", "SYSENTER_EIP"),
        (0, "`info registers` does not show this MSR; taken as after reset"),
    ),
    "PAT": (0x0007040600070406, "`info registers` does not show this MSR; taken as after reset"),
    "PENDING_DBG": (0, "`info registers` does not show pending debug exceptions; taken as none"),
}


class _Line(NamedTuple):
    number: int
    text: str


def recognises(text: str) -> bool:
    """Whether the text has a line that only this format has."""
    return bool(_BLOCK_START.search(text))


def parse(text: str, name: str, cpu: int | None = None) -> Environment:
    """Read one processor's block.

    Lines before the first register line and after ``EFER=`` (prompt, x87 and vector registers) are
    not read. The result is :attr:`~Environment.emulated`.

    Raises
    ------
    :exc:`UsageError`
        If the block is not whole, a line is malformed or contradicts another, the processor is not
        in the text, or there are several and ``cpu`` is None.
    """
    blocks = _blocks(text, name)
    shown = " and ".join(f"CPU#{number}" for number in blocks)
    if cpu is None and len(blocks) > 1:
        choices = " or ".join(f"--cpu {number}" for number in blocks)
        raise UsageError(f"{name} holds {len(blocks)} processors ({shown}); give {choices}")
    if cpu is not None and cpu not in blocks:
        raise UsageError(f"{name} has no CPU#{cpu}; it holds {shown}")
    number = next(iter(blocks)) if cpu is None else cpu
    return _environment(blocks[number], name, number)


def _blocks(text: str, name: str) -> dict[int, list[_Line]]:
    """Register lines by processor. A block without ``CPU#n`` above it is processor 0."""
    blocks: dict[int, list[_Line]] = {}
    current: list[_Line] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if match := _CPU.match(line):
            if int(match[1]) in blocks:
                raise UsageError(
                    f"{name}:{number}: a second block of CPU#{match[1]}; keep one dump in the file"
                )
            current = blocks[int(match[1])] = []
            continue
        known = _ANY_HEAD.match(line)
        if current is None and known:
            current = blocks[0] = []
        if not current and not known or not line:
            continue
        if known or not current[-1].text.startswith("EFER="):
            current.append(_Line(number, line))
        # what follows EFER= is x87 and vector state, which a world switch leaves alone
    return blocks


def _environment(block: list[_Line], name: str, cpu: int) -> Environment:
    where = f"{name} CPU#{cpu}"
    size = 64 if any(line.text.startswith(("RAX=", "RSI=", "RIP=")) for line in block) else 32
    words = _words(block, size, name, cpu)
    value = {key: int(word, 16) for key, word in words.items() if key != "FLAGS"}
    _check(words, value, size, where)
    registers = {
        "RIP": value["IP"],
        "RSP": value["RSP" if size == 64 else "ESP"],
        "RFLAGS": value["FL"],
        **{register: value[register] for register in ("CR0", "CR3", "CR4", "DR7", "EFER")},
        **{
            f"{table}_{part}": value[f"{table}_{part}"]
            for table in ("GDTR", "IDTR")
            for part in ("BASE", "LIMIT")
        },
        "ACTIVITY": value["HLT"],
        **{register: reset for register, (reset, _) in _NOT_SHOWN.items()},
    }
    for segment in SEGMENTS:
        for part in ("SELECTOR", "BASE", "LIMIT"):
            registers[f"{segment}_{part}"] = value[f"{segment}_{part}"]
        # bits 11:8 are limit bits of the descriptor, not access rights
        registers[f"{segment}_AR"] = value[f"{segment}_FLAGS"] & 0xF0FF
    assumed = {register: why for register, (_, why) in _NOT_SHOWN.items()}
    registers["INTERRUPTIBILITY"], assumed["INTERRUPTIBILITY"] = _interruptibility(value)
    if size == 32 and value["EFER"] >> 10 & 1:
        cut = "compatibility mode shows bits 31:0 only; the upper half is unknown, taken as 0"
        assumed |= dict.fromkeys(("RSP", "FS_BASE", "GS_BASE", "LDTR_BASE", "TR_BASE"), cut)
    return Environment(registers, where, emulated=True, a20=bool(value["A20"]), assumed=assumed)


def _interruptibility(value: dict[str, int]) -> tuple[int, str]:
    """Interruptibility state, and what about it is assumed. Bits: 0 STI, 1 MOV SS, 2 SMI."""
    state, why = value["SMM"] << 2, "blocking by NMI is not shown; taken as none"
    if value["II"]:
        interrupts_on = value["FL"] >> 9 & 1  # without them the instruction was not STI
        state |= 1 if interrupts_on else 2
        if interrupts_on:
            why += "; II=1 does not say whether STI or MOV SS blocks: taken as STI"
    return state, why


def _words(block: list[_Line], size: int, name: str, cpu: int) -> dict[str, str]:
    """The value of each word in a block, as text, or an error that names the first wrong line."""
    words: dict[str, str] = {}
    lines, heads = _LINES[size], _HEADS[size]
    for index, line in enumerate(block):
        place, found = f"{name}:{line.number}", _ANY_HEAD.match(line.text)
        if found is None:
            raise UsageError(
                f"{place}: expected the line {heads[index]!r}, found {line.text[:40]!r}"
            )
        if index >= len(lines) or found[0] != heads[index]:
            raise UsageError(f"{place}: {_misplaced(found[0], index, heads)}")
        words |= _read_line(lines[index], line.text, place)
    if len(block) < len(lines):
        raise UsageError(
            f"{name}: CPU#{cpu} is cut off: no line {listed(heads[len(block) :])}; "
            "a whole block goes from the general registers to EFER"
        )
    return words


def _misplaced(head: str, index: int, heads: list[str]) -> str:
    if head in heads[:index]:
        return f"a second line {head!r}; keep one dump in the file"
    if head in heads:
        missing = heads[index : heads.index(head)]
        return f"no line {listed(missing)} before {head!r}; give the whole block"
    return f"a line {head!r} among registers of the other size (RAX.. or EAX..)"


def _read_line(pieces: tuple[_Piece, ...], text: str, place: str) -> Iterator[tuple[str, str]]:
    position = 0
    for piece in pieces:
        match = piece.regex.match(text, position)
        if match is None:
            rest = text[position:].split()
            found = repr(rest[0][:40]) if rest else "the end of the line"
            raise UsageError(f"{place}: expected {piece.shape}, found {found}")
        yield from match.groupdict().items()
        position = match.end()
    if text[position:]:
        raise UsageError(f"{place}: {text[position:][:40]!r} is left over at the end of the line")


def _check(words: dict[str, str], value: dict[str, int], size: int, where: str) -> None:
    """Refuse what a damaged text would contradict itself in."""
    long_mode = value["EFER"] >> 10 & 1
    code = 64 if long_mode and value["CS_FLAGS"] >> 13 & 1 else 32
    wide = 16 if long_mode else 8
    flags = "".join(letter if value["FL"] >> bit & 1 else "-" for letter, bit in _FLAGS.items())
    contradictions = (
        (size != code, f"{size}-bit register lines, but EFER and the CS flags say {code}-bit code"),
        (
            any(len(words[word]) != wide for word in ("GDTR_BASE", "IDTR_BASE", "CR2", "CR3")),
            f"GDT, IDT, CR2 and CR3 must have {wide} digits if EFER.LMA is {long_mode}",
        ),
        (
            len({len(words[f"DR{index}"]) for index in (0, 1, 2, 3, 6, 7)}) > 1,
            "DR0 to DR7 differ in digits",
        ),
        (
            words["FLAGS"] != flags,
            f"the flags are [{words['FLAGS']}], but their number says [{flags}]",
        ),
        (
            value["CR0"] & 1 and value["CPL"] != value["SS_FLAGS"] >> 5 & 3,
            f"CPL={value['CPL']}, but SS has DPL {value['SS_FLAGS'] >> 5 & 3}",
        ),
    )
    for wrong, text in contradictions:
        if wrong:
            raise UsageError(f"{where} contradicts itself: {text}; was the text damaged?")

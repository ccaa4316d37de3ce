"""Values of VMCS fields in words: access rights, control bits by name, modes, events.

Facts: register_bits.csv, controls.csv, exit_reasons.csv, instruction_errors.csv.
"""

import re

from vmxswitch.spec.tables import (
    CONTROL_WORDS,
    CONTROLS,
    ERRORS,
    EXIT_REASONS,
    MSRS,
    REGISTER_BITS,
    SYMBOL_WIDTHS,
)

__all__ = ["bits_of", "decoded", "hexadecimal", "shown"]

_WORD_OF_FIELD = {row.field: word for word, row in CONTROL_WORDS.items()}
_SEGMENT_TYPES = (
    "read-only data", "read-only data, accessed", "read/write data", "read/write data, accessed",
    "read-only data, expand-down", "read-only data, expand-down, accessed",
    "read/write data, expand-down", "read/write data, expand-down, accessed",
    "execute-only code", "execute-only code, accessed", "execute/read code",
    "execute/read code, accessed", "execute-only conforming code",
    "execute-only conforming code, accessed", "execute/read conforming code",
    "execute/read conforming code, accessed",
)
_SYSTEM_TYPES = {
    1: "available 16-bit TSS", 2: "LDT", 3: "busy 16-bit TSS", 9: "available 32-bit or 64-bit TSS",
    11: "busy 32-bit or 64-bit TSS",
}
_ACTIVITY = ("active", "HLT", "shutdown", "wait-for-SIPI")
_EVENTS = (
    "external interrupt", "reserved type 1", "NMI", "hardware exception", "software interrupt",
    "privileged software exception", "software exception", "other event",
)
_EXCEPTIONS = (
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP",
    "#PF", "", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
)
_MEMORY_TYPES = {0: "UC", 6: "WB"}
_EVENT_FIELDS = ("VM_ENTRY_INTR_INFO", "VM_EXIT_INTR_INFO", "IDT_VECTORING_INFO")


def hexadecimal(symbol: str, value: int) -> str:
    """A value with as many digits as its field has."""
    return f"{value:#0{2 + SYMBOL_WIDTHS.get(symbol, 64) // 4}x}"


def shown(symbol: str, value: int | None) -> str:
    """A field, its value, and that in words."""
    if value is None:
        return f"{symbol} = not known"
    words = decoded(symbol, value)
    return f"{symbol} = {hexadecimal(symbol, value)}" + (f": {words}" if words else "")


def decoded(symbol: str, value: int) -> str:
    """A value in words; "" if it is only a number."""
    if symbol in _WORD_OF_FIELD:
        return _controls(_WORD_OF_FIELD[symbol], value)
    if symbol in _EVENT_FIELDS:
        return _event(value)
    special = {
        "GUEST_ACTIVITY_STATE": _activity, "VM_EXIT_REASON": _reason, "EPT_POINTER": _ept_pointer,
        "VM_INSTRUCTION_ERROR": _error, "LIST_INDEX": _msr,
    }
    if symbol in special:
        return special[symbol](value)
    name = bits_of(symbol)
    if name == "AR":
        return _access_rights(value)
    if name == "SELECTOR":
        return f"index {value >> 3}, TI={value >> 2 & 1}, RPL={value & 3}"
    return _bits(name, value) if name in REGISTER_BITS else ""


def bits_of(symbol: str) -> str:
    """Under which name ``REGISTER_BITS`` has the bits of a field or register, if it has them."""
    if symbol in _EVENT_FIELDS:
        return "INTR_INFO"
    if match := re.search(r"_(AR|SELECTOR)$", symbol):
        return match[1]
    return re.sub(r"^(GUEST|HOST|LIVE)_(IA32_)?|_(READ_SHADOW|STATE|EXCEPTIONS)$", "", symbol)


def _bits(register: str, value: int) -> str:
    """Names of the bits that are 1, and the numbers of those that have no name."""
    words, named = [], 0
    for row in REGISTER_BITS[register]:
        mask = (1 << row.high - row.low + 1) - 1
        named |= mask << row.low
        part = value >> row.low & mask
        if part:
            words.append(row.name if row.low == row.high else f"{row.name}={part}")
    return " ".join(_joined(words) + _numbers(value & ~named)) or "no bit set"


def _joined(words: list[str]) -> list[str]:
    """Names of several words get a comma behind them."""
    several = any(" " in word for word in words)
    return [", ".join(words)] if several and words else words


def _numbers(value: int) -> list[str]:
    bits = [str(bit) for bit in range(value.bit_length()) if value >> bit & 1]
    return [f"and reserved bit{'s' if bits[1:] else ''} {', '.join(bits)}"] if bits else []


def _controls(word: str, value: int) -> str:
    names = []
    for control in (control for control in CONTROLS.values() if control.word == word):
        if value >> control.low & (1 << control.high - control.low + 1) - 1:
            if control.low != control.high or control.symbol.endswith(f"RESERVED_{control.low}"):
                if not control.default1:
                    names += [f"reserved bit {bit}" for bit in range(control.low, control.high + 1)
                              if value >> bit & 1]
            else:
                names.append(control.symbol)
    missing = [str(control.low) for control in CONTROLS.values() if control.word == word
               and control.default1 and not control.clearable and not value >> control.low & 1]
    if missing:
        names.append(f"(must-be-1 bits that are 0: {', '.join(missing)})")
    return " ".join(names) or "only reserved bits that must be 1"


def _access_rights(value: int) -> str:
    kind, system = value & 0xF, not value >> 4 & 1
    what = _SYSTEM_TYPES.get(kind, "system segment") if system else _SEGMENT_TYPES[kind]
    words = [f"type {kind} ({what})", f"S={value >> 4 & 1}", f"DPL={value >> 5 & 3}",
             f"P={value >> 7 & 1}"]
    words += [row.name for row in REGISTER_BITS["AR"]
              if 12 <= row.low < 16 and value >> row.low & 1]
    if value >> 16 & 1:
        words.insert(0, "unusable")
    return ", ".join(words + _numbers(value & 0xFFFE0F00))


def _event(value: int) -> str:
    if not value >> 31:
        return "no event (valid bit 31 is 0)"
    vector, kind = value & 0xFF, value >> 8 & 7
    name = _EXCEPTIONS[vector] if kind in (3, 5, 6) and vector < len(_EXCEPTIONS) else ""
    words = [f"{_EVENTS[kind]}, vector {vector}" + (f" ({name})" if name else "")]
    words.append("with error code" if value >> 11 & 1 else "no error code")
    return ", ".join(words + _numbers(value & 0x7FFFF000))


def _activity(value: int) -> str:
    return _ACTIVITY[value] if value < len(_ACTIVITY) else "no such state"


def _reason(value: int) -> str:
    number = value & 0xFFFF
    words = [f"{number} {EXIT_REASONS[number].name}" if number in EXIT_REASONS else
             f"{number}, no such reason"]
    words += [row.name for row in REGISTER_BITS["VM_EXIT_REASON"] if value >> row.low & 1]
    return ", ".join(words)


def _msr(value: int) -> str:
    return next((f"MSR {msr.name}" for msr in MSRS if msr.first <= value <= msr.last), "")


def _error(value: int) -> str:
    return f"{value}, {ERRORS[value].meaning}" if value in ERRORS else "no error"


def _ept_pointer(value: int) -> str:
    kind = value & 7
    words = [f"memory type {kind} ({_MEMORY_TYPES.get(kind, 'not allowed')})",
             f"walk length {(value >> 3 & 7) + 1}", f"table at {value & ~0xFFF:#x}"]
    words += [row.name for row in REGISTER_BITS["EPT_POINTER"]
              if row.low == row.high and value >> row.low & 1]
    return ", ".join(words + _numbers(value & 0xF00))

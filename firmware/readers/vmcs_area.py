"""Environments from the guest area and from the host area of a VMCS dump.

Ref: Intel SDM (325462), vol. 3C, "Loading Guest State" and "Loading Host State".
Facts: registers.csv (``field`` for the guest area, ``exit`` for the host area), controls.csv.
"""

from vmxswitch.spec import tables
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import bind, symbols

from ..environment import REGISTERS, Environment, listed
from .vmcs_text import VmcsDump

__all__ = ["SECTIONS", "environment"]

RESET_PAT = 0x0007040600070406
LME_LMA = 0x500

#: Controls under which a guest field holds the register. Without them it prints as 0.
_LOADED_OR_SAVED = {
    "PAT": ("ENTRY_LOAD_PAT", "EXIT_SAVE_PAT"),
    "EFER": ("ENTRY_LOAD_EFER", "EXIT_SAVE_EFER"),
}

_PAT_UNKNOWN = "the controls do not load it; taken as after reset"
_EFER_UNKNOWN = "the controls do not load it; LMA and LME follow from them, other bits taken as 0"

#: What a VM exit leaves alone in the registers of a host, and what is taken for it.
_LEFT_ALONE = {"LIVE_PAT": (RESET_PAT, _PAT_UNKNOWN), "LIVE_EFER": (0, _EFER_UNKNOWN)}


def environment(dump: VmcsDump, section: str, source: str) -> Environment:
    """What the guest area states, or what a VM exit makes of the host area.

    ``section`` is ``guest`` or ``host``. Nothing is corrected: a guest area that no VM entry would
    accept stays as it is.

    Raises
    ------
    :exc:`UsageError`
        If the dump lacks a field that is needed.
    """
    registers, assumed, missing = SECTIONS[section](dump)
    if missing:
        raise UsageError(
            f"{source}: this dump cannot be an environment, for it has no {listed(missing)}; "
            "give a whole dump" + (" or the other section" if dump.sections else "")
        )
    return Environment(registers, source, assumed=assumed)


def _control(dump: VmcsDump, symbol: str) -> bool | None:
    """A control bit, or None if its word is not printed."""
    control = tables.CONTROLS[symbol]
    word = dump.fields.get(tables.CONTROL_WORDS[control.word].field)
    return None if word is None else bool(word >> control.low & 1)


def _guest(dump: VmcsDump) -> tuple[dict[str, int], dict[str, str], list[str]]:
    registers, assumed, missing = {}, {}, []
    for name in REGISTERS:
        field = tables.REGISTERS[name].field
        in_use = [_control(dump, symbol) for symbol in _LOADED_OR_SAVED.get(name, ())]
        if field in dump.effective:
            registers[name] = dump.effective[field]
        elif field in dump.fields and (not in_use or any(bit is not False for bit in in_use)):
            registers[name] = dump.fields[field]
        elif name == "PAT":
            registers[name], assumed[name] = RESET_PAT, _PAT_UNKNOWN
        elif name == "EFER" and (long_mode := _control(dump, "ENTRY_IA32E_MODE_GUEST")) is not None:
            registers[name], assumed[name] = LME_LMA if long_mode else 0, _EFER_UNKNOWN
        else:
            missing.append(field)
    return registers, assumed, missing


def _host(dump: VmcsDump) -> tuple[dict[str, int], dict[str, str], list[str]]:
    registers, assumed, missing = {}, {}, []
    every_capability = {
        word.allowed_symbol: (1 << 64) - 1 for word in tables.CONTROL_WORDS.values()
    }
    # what a VM exit keeps of CR0 is what the VMM had there when it wrote the field
    live = {"NON_ROOT": 0, "LIVE_INTERRUPTIBILITY": 0, "LIVE_CR0": dump.fields.get("HOST_CR0", 0)}
    known = dump.fields | every_capability | live
    for name in REGISTERS:
        rule = tables.REGISTERS[name].exit
        value = bind(rule, known)
        left_alone = symbols(value) & _LEFT_ALONE.keys()
        value = bind(value, {symbol: _LEFT_ALONE[symbol][0] for symbol in left_alone})
        if needed := symbols(value):
            missing += sorted(needed - set(missing))
            continue
        registers[name] = value.value
        if left_alone:
            assumed[name] = _LEFT_ALONE[left_alone.pop()][1]
        elif not any(symbol.startswith("HOST_") for symbol in symbols(rule)):
            assumed[name] = "no part of a host area; the value that a VM exit loads"
    return registers, assumed, missing


SECTIONS = {"guest": _guest, "host": _host}

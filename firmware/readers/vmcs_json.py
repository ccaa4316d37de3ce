"""Our own form of a VMCS: one JSON object, or a list of them.

==================  ============================================================================
key                 value
==================  ============================================================================
``format``          ``"vmxswitch-vmcs v1"``
``fields``          object: VMCS field symbol -> integer, or a string such as ``"0x1f"``
``complete``        optional boolean: every field that the entry read is given (else false)
``error``           optional integer: VM-instruction error of the entry
``msr_load_list``   optional list of {``index``, ``data``, optional ``reserved``}
==================  ============================================================================

What became of the entry is told by ``error`` or by the field ``VM_EXIT_REASON``.
"""

import difflib

from vmxswitch.spec import tables
from vmxswitch.spec.errors import UsageError

from ..environment import listed
from . import json_form
from .vmcs_text import VmcsDump

__all__ = ["FORMAT", "parse", "recognises"]

FORMAT = "vmxswitch-vmcs v1"
_KEYS = {"format": str, "fields": dict, "complete": bool, "error": int, "msr_load_list": list}


def recognises(text: str) -> bool:
    """Whether the text starts like such JSON; no log does."""
    start = "".join(text[:4096].split())
    return start.startswith(("{\"", "[{", "{}", "[]"))


def parse(text: str, name: str) -> list[VmcsDump]:
    """Read every VMCS.

    Raises
    ------
    :exc:`UsageError`
        If the text is no JSON, has another format name, an unknown key or field, or a value of
        a wrong type or width.
    """
    content = json_form.load(text, name)
    items = content if isinstance(content, list) else [content]
    return [_dump(item, f"{name}[{index}]" if isinstance(content, list) else name)
            for index, item in enumerate(items)]


def _dump(item, where: str) -> VmcsDump:
    if type(item) is not dict or item.get("format") != FORMAT:
        found = item.get("format") if type(item) is dict else item
        raise UsageError(f"{where}: the format must be {FORMAT!r}, not {found!r:.60}")
    for key, value in item.items():
        if key not in _KEYS:
            raise UsageError(f"{where}: unknown key {key[:40]!r}; known: {listed(list(_KEYS))}")
        if type(value) is not _KEYS[key]:
            raise UsageError(f"{where}: {key!r} must be {_KEYS[key].__name__}, not {value!r:.40}")
    dump = VmcsDump("json", 1)
    for symbol, value in item.get("fields", {}).items():
        row = tables.FIELDS.get(symbol)
        if row is None or row.is_high:
            near = difflib.get_close_matches(symbol, tables.FIELDS, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{where}: no VMCS field {symbol[:60]!r}{meant}")
        dump.fields[symbol] = _number(value, row.bits, f"{where}: {symbol}")
    if "error" in item:
        dump.failed, dump.error = True, _number(item["error"], 32, f"{where}: error")
    dump.excerpt = not item.get("complete", False)
    for index, entry in enumerate(item.get("msr_load_list", [])):
        place = f"{where}: msr_load_list[{index}]"
        if type(entry) is not dict or not {"index", "data"} <= entry.keys() <= {
                "index", "data", "reserved"}:
            raise UsageError(f"{place}: must have 'index', 'data' and may have 'reserved'")
        dump.msr_load_list.append((
            _number(entry["index"], 32, f"{place}: index"),
            _number(entry["data"], 64, f"{place}: data"),
            _number(entry.get("reserved", 0), 32, f"{place}: reserved")))
    return dump


def _number(value, bits: int, where: str) -> int:
    if isinstance(value, str):
        try:
            value = int(value, 0)
        except ValueError:
            pass
    if type(value) is not int:
        raise UsageError(f"{where}: {value!r:.40} is no number; write 31 or \"0x1f\"")
    if not 0 <= value < 1 << bits:
        shown = f"{value:#x}" if abs(value) >> 80 == 0 else "the number"
        raise UsageError(f"{where}: {shown} does not fit {bits} bits")
    return value

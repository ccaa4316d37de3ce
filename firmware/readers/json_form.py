"""Our own form of an environment: one JSON object, exact in both directions.

================  ==============================================================================
key               value
================  ==============================================================================
``format``        ``"vmxswitch-environment v1"``
``registers``     object: every register of `vmxswitch.firmware.environment.REGISTERS` -> integer
``source``        optional string: where it comes from (else the file's name)
``emulated``      optional boolean: hidden parts are an emulator's, not yet adjusted (else false)
``a20``           optional boolean: A20 gate open (else true)
``assumed``       optional object: register -> why its value is not the source's own
``adjustments``   optional list of {``register``, ``from``, ``to``, ``why``}
================  ==============================================================================
"""

import json
from dataclasses import replace

from vmxswitch.spec.errors import UsageError

from ..environment import REGISTERS, Adjustment, Environment, listed

__all__ = ["FORMAT", "load", "parse", "recognises", "write"]

FORMAT = "vmxswitch-environment v1"

#: Key -> type of its value.
_KEYS = {
    "format": str,
    "registers": dict,
    "source": str,
    "emulated": bool,
    "a20": bool,
    "assumed": dict,
    "adjustments": list,
}
_TYPE_NAMES = {
    str: "a string",
    dict: "an object",
    bool: "true or false",
    list: "a list",
    int: "an integer",
}
_ADJUSTMENT_KEYS = {"register": str, "from": int, "to": int, "why": str}


def recognises(text: str) -> bool:
    """Whether the text starts like a JSON object; no register dump does."""
    return text.lstrip().startswith("{")


def write(environment: Environment) -> str:
    """The environment as indented JSON."""
    return (
        json.dumps(
            {
                "format": FORMAT,
                "source": environment.source,
                "emulated": environment.emulated,
                "a20": environment.a20,
                "registers": dict(environment.registers),
                "assumed": dict(environment.assumed),
                "adjustments": [adjustment.as_dict() for adjustment in environment.adjustments],
            },
            indent=2,
        )
        + "\n"
    )


def parse(text: str, name: str) -> Environment:
    """Read an environment.

    Raises
    ------
    :exc:`UsageError`
        If the text is no JSON, has another format name, a key or register that does not exist,
        lacks a register, or has a value of the wrong type or width.
    """
    content = load(text, name)
    _check_keys(content, _KEYS, name)
    if content.get("format") != FORMAT:
        raise UsageError(
            f"{name}: the format must be {FORMAT!r}, not {content.get('format')!r:.60}"
        )
    if "registers" not in content:
        raise UsageError(f"{name}: no key 'registers'")
    assumed = content.get("assumed", {})
    _check_keys(assumed, dict.fromkeys(REGISTERS, str), f"{name}: assumed")
    adjustments = content.get("adjustments", [])
    for index, adjustment in enumerate(adjustments):
        where = f"{name}: adjustments[{index}]"
        _check_keys(adjustment, _ADJUSTMENT_KEYS, where)
        if missing := [key for key in _ADJUSTMENT_KEYS if key not in adjustment]:
            raise UsageError(f"{where}: no key {listed(missing)}")
    environment = Environment(
        content["registers"],
        name,
        content.get("emulated", False),
        content.get("a20", True),
        assumed,
        tuple(Adjustment(*(item[key] for key in _ADJUSTMENT_KEYS)) for item in adjustments),
    )
    return replace(environment, source=content.get("source", name))  # messages above name the file


def load(text: str, name: str):
    """What a JSON text holds; no key may be given twice in an object.

    Raises
    ------
    :exc:`UsageError`
        If the text is no JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, name))
    except json.JSONDecodeError as error:
        raise UsageError(f"{name}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of brackets
        raise UsageError(
            f"{name}: a number or the nesting in this JSON is out of all bounds"
        ) from None


def _once(pairs: list[tuple[str, object]], name: str) -> dict:
    content = {}
    for key, value in pairs:
        if key in content:
            raise UsageError(f"{name}: {key[:40]!r} is given twice")
        content[key] = value
    return content


def _check_keys(content, keys: dict[str, type], where: str) -> None:
    """Refuse unknown keys and values of a wrong type."""
    if type(content) is not dict:
        raise UsageError(f"{where}: must be an object")
    for key, value in content.items():
        if key not in keys:
            raise UsageError(f"{where}: unknown key {key[:40]!r}; known: {listed(list(keys))}")
        if type(value) is not keys[key]:
            raise UsageError(
                f"{where}: {key!r} must be {_TYPE_NAMES[keys[key]]}, not {str(value)[:40]!r}"
            )

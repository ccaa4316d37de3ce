"""Recorded VMX cases (format "vmx-case v1"): reading, choosing a sample, comparing.

The format is described in ``tests/cases/README.md``; :mod:`.runner` runs a case. Every mistake in a
file ends in a :exc:`UsageError` that names the file and the line.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.tables import FIELDS, implemented_reason

from .guest_events import EVENT_NUMBERS, Unknown, event_of
from .memory import Fault
from .processor import DERIVED

__all__ = [
    "FAULTS", "Case", "Disagreement", "Profile", "agrees", "disagreements", "read_cases",
    "read_profile", "sample",
]

MAX_INSTRUCTION_BYTES = 15


@dataclass(frozen=True)
class Profile:
    """The processor that cases run on."""
    capabilities: Capabilities
    environment: Mapping[str, int]  # registers at the start, and the DERIVED entries
    setup: Sequence[Mapping[str, Any]]
    baselines: Mapping[str, Sequence[Sequence]]


@dataclass(frozen=True)
class Case:
    """A script of operations and what each has to report."""
    id: str
    file: Path
    profile: Path
    env: Mapping[str, int]          # replaces entries of the profile's environment
    base: str | None
    writes: Sequence[Sequence]      # pairs of field, by name or encoding, and value
    ops: Sequence[Mapping[str, Any]]
    expect: Sequence[Any] | None


# --- Profiles ---

@cache
def read_profile(path: Path) -> Profile:
    """Read a profile (format "vmx-profile v1")."""
    try:
        profile = json.loads(_text(path))
        for name in ("physical_address_width", "linear_address_width", "efer_bits"):
            _check_number(name, _entry(profile, name, int))
        for index, value in _entry(profile, "msrs", dict).items():
            _check_number(index, value)
        for encoding in _entry(profile, "fields", list):
            _check_number("fields", encoding)
        capabilities = Capabilities.from_profile(path)
        environment = _entry(profile, "environment", dict)
        _check_environment(environment, capabilities)
        for name in (*DERIVED, "SS_AR", "CS_AR"):
            _entry(environment, name, int)
        baselines = _entry(profile, "baselines", dict)
        for pairs in baselines.values():
            _check_pairs(pairs)
        setup = _entry(profile, "setup", list)
        for op in setup:
            _check_operation(op, capabilities, baselines)
    except _Mistake as mistake:
        raise UsageError(f"{path}: {mistake}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    return Profile(capabilities, environment, setup, baselines)


# --- Cases ---

def read_cases(path: Path, profiles: Path | None = None) -> Iterator[Case]:
    """Read a file of cases, one JSON object per line, plain or compressed by gzip.

    ``profiles`` is the folder of their profiles; by default ``profiles`` beside the file.
    """
    profiles = profiles or path.parent / "profiles"
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _case(json.loads(line), path, profiles)
        except (_Mistake, UsageError) as mistake:
            raise UsageError(f"{path}:{number}: {mistake}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}:{number}: not JSON ({error})") from None


def _text(path):
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: damaged gzip file ({error})") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: neither text nor a gzip file") from None


def _case(record, path, profiles):
    profile_path = _profile_path(_entry(record, "profile", str), profiles)
    profile = read_profile(profile_path)
    env = _entry(record, "env", dict, {})
    base = _entry(record, "base", str, None)
    writes = _entry(record, "writes", list, [])
    ops = _entry(record, "ops", list)
    expect = _entry(record, "expect", list, None)
    _check_environment(env, profile.capabilities)
    _check_pairs(writes)
    if base is not None:
        _check_base(base, profile.baselines)
    elif writes:
        raise _Mistake("writes without base")
    for op in ops:
        _check_operation(op, profile.capabilities, profile.baselines)
    if expect is not None and len(expect) != len(ops):
        raise _Mistake(f"{len(expect)} results expected of {len(ops)} operations")
    return Case(_entry(record, "id", str), path, profile_path, env, base, writes, ops, expect)


def _profile_path(name, folder):
    known = sorted(path.stem for path in folder.glob("*.json"))
    if name not in known:
        raise _Mistake(f"no profile {name!r} in {folder} (there: {', '.join(known) or 'none'})")
    return folder / f"{name}.json"


class _Mistake(Exception):
    """Something that a case or profile must not hold."""


_NEEDED = object()


def _entry(record, key, kind, default=_NEEDED):
    """An entry of a JSON object, checked to be of one type."""
    if not isinstance(record, dict):
        raise _Mistake(f"{record!r:.40} is not an object")
    if key not in record:
        if default is _NEEDED:
            raise _Mistake(f"no {key!r}")
        return default
    if not isinstance(record[key], kind) or isinstance(record[key], bool):
        raise _Mistake(f"{key!r} is {record[key]!r:.40}, not of type {kind.__name__}")
    return record[key]


def _check_number(name, value, bits=64):
    if type(value) is not int or not 0 <= value < 1 << bits:
        raise _Mistake(f"{name!r} is {value!r:.40}, not a number of {bits} bits")


def _check_environment(environment, capabilities):
    for name, value in environment.items():
        if name in DERIVED:
            _check_number(name, value)
            if value not in DERIVED[name]:
                raise _Mistake(f"{name!r} is {value}, none of {DERIVED[name]}")
        elif name in capabilities.registers:
            _check_number(name, value, capabilities.bits(capabilities.registers[name]))
        else:
            raise _Mistake(f"unknown register {name!r}")


def _check_base(base, baselines):
    if base not in baselines:
        raise _Mistake(f"unknown base {base!r} (there: {', '.join(baselines) or 'none'})")


def _check_field(field):
    if not isinstance(field, str):
        _check_number("field", field)
    elif field not in FIELDS:
        raise _Mistake(f"unknown field {field!r}")


def _check_pairs(pairs):
    if not isinstance(pairs, list):
        raise _Mistake(f"{pairs!r:.40} is not a list of pairs")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _Mistake(f"{pair!r:.40} is not [field, value]")
        _check_field(pair[0])
        _check_number(pair[0], pair[1])


#: Every operation: its operands that are numbers, with their width in bits.
NUMBERS = {
    "w32": {"addr": 64, "value": 32}, "w64": {"addr": 64, "value": 64},
    "r32": {"addr": 64}, "r64": {"addr": 64},
    "vmxon": {"addr": 64}, "vmclear": {"addr": 64}, "vmptrld": {"addr": 64},
    "vmxoff": {}, "vmcall": {}, "vmptrst": {},
    "vmread": {}, "vmwrite": {"value": 64}, "vmreads": {}, "apply": {},
    "invept": {"type": 64, "lo": 64, "hi": 64}, "invvpid": {"type": 64, "lo": 64, "hi": 64},
    "vmlaunch": {}, "vmresume": {}, "vmfunc": {"eax": 32, "ecx": 32},
    "rdmsr": {"msr": 32}, "wrmsr": {"msr": 32, "value": 64}, "movcr": {"reg": 64, "value": 64},
    "dump": {}, "set": {}, "guest": {}, "time": {"ticks": 32},
    "fault": {"addr": 64},
}
#: What memory does at a word, by name.
FAULTS = {"none": None} | {fault.name.lower(): fault for fault in Fault}
#: Numbers in a guest event of the other kinds, with their width in bits.
EVENT_OPERANDS = {
    "msr": 32, "port": 16, "size": 3, "imm": 1, "cr": 4, "dr": 4, "gpr": 4, "source": 16,
    "vector": 8, "type": 3, "first": 1, "nmi": 1, "interrupt": 1, "init": 1, "sipi": 1,
}


def _check_operation(op, capabilities, baselines):
    name = _entry(op, "op", str)
    if name not in NUMBERS:
        raise _Mistake(f"unknown op {name!r}")
    for operand, bits in NUMBERS[name].items():
        _check_number(operand, _entry(op, operand, int), bits)
    _check_environment(_entry(op, "env", dict, {}), capabilities)
    _check_circumstances(op)
    match name:
        case "w32" | "w64" | "r32" | "r64":
            if op["addr"] % (int(name[1:]) // 8):
                raise _Mistake(f"{name} at {op['addr']:#x}, which is not aligned")
        case "vmread" | "vmwrite":
            _check_field(op.get("field"))
        case "vmreads":
            for field in _entry(op, "fields", list):
                _check_field(field)
        case "apply":
            _check_base(_entry(op, "base", str), baselines)
            _check_pairs(_entry(op, "writes", list, []))
        case "movcr":
            if op["reg"] not in (0, 4):
                raise _Mistake(f"movcr of CR{op['reg']}, not CR0 or CR4")
        case "fault":
            if _entry(op, "kind", str) not in FAULTS:
                raise _Mistake(f"{op['kind']!r:.40} is none of {', '.join(FAULTS)}")
        case "set":
            _check_environment(_entry(op, "state", dict), capabilities)
        case "guest":
            _check_environment(_entry(op, "state", dict, {}), capabilities)
            _check_event(_entry(op, "event", dict))


def _check_circumstances(op):
    """Optional operands of VMX operations."""
    if "fault" in op:
        fault = op["fault"]
        if not isinstance(fault, list) or len(fault) != 2:
            raise _Mistake(f"{fault!r:.40} is not [vector, error code]")
        _check_number("vector", fault[0], 8)
        _check_number("error code", fault[1], 16)
    if "length" in op:
        _check_length(_entry(op, "length", int))
    for name in ("movss", "register"):
        if op.get(name, 0) not in (0, 1):
            raise _Mistake(f"{name!r} is {op[name]!r:.40}, not 0 or 1")
    _check_number("info", op.get("info", 0), 32)
    _check_number("displacement", op.get("displacement", 0))


def _check_event(event):
    match _entry(event, "kind", str):
        case "insn":
            _entry(event, "insn", str)
            _check_length(_entry(event, "length", int))
        case "reason":
            implemented_reason(_entry(event, "reason", int))
    for name, bits in EVENT_NUMBERS.items():
        _check_number(name, event.get(name, 0), bits)
    for name, bits in EVENT_OPERANDS.items():
        _check_number(name, event.get(name, 0), bits)
    with suppress(Unknown):  # which the run then calls unsupported
        event_of(event, None)


def _check_length(length):
    if not 1 <= length <= MAX_INSTRUCTION_BYTES:
        raise _Mistake(f"instruction of {length} bytes")


# --- A sample ---

def sample(cases: Sequence[Case], count: int) -> list[Case]:
    """``count`` of the cases, always the same, spread evenly over the profiles and the files."""
    by_profile: dict[Path, list[int]] = {}
    for position, case in enumerate(cases):
        by_profile.setdefault(case.profile, []).append(position)
    chosen = []
    groups = sorted(by_profile.values(), key=len)
    for number, positions in enumerate(groups):
        share = min(len(positions), (count - len(chosen)) // (len(groups) - number))
        chosen += [positions[(2 * n + 1) * len(positions) // (2 * share)] for n in range(share)]
    return [cases[position] for position in sorted(chosen)]


# --- Comparing ---

@dataclass(frozen=True)
class Disagreement:
    """An operation that did not report what it had to. Of long results only what differs."""
    number: int  # of the operation, from 0
    expected: Any
    got: Any


def disagreements(case: Case, results: Sequence[Mapping]) -> list[Disagreement]:
    """What a case's results do not agree with; nothing for a case without ``expect``."""
    expectations = case.expect or [None] * len(results)
    return [
        Disagreement(number, *_differing(expected, got))
        for number, (expected, got) in enumerate(zip(expectations, results, strict=True))
        if expected is not None and not agrees(expected, got)
    ]


def agrees(expected: Any, got: Any) -> bool:
    """Whether a result, or a part of one, is what is expected. Keys that are not expected are free.

    A list holds alternatives, except for ``failing``, all of which must be there;
    ``{"value": v, "mask": m}`` compares the bits of ``m``.
    """
    match expected:
        case list():
            return any(agrees(alternative, got) for alternative in expected)
        case {"value": int(value), "mask": int(mask), **others} if not others:
            return isinstance(got, int) and (got ^ value) & mask == 0
        case dict():
            return isinstance(got, dict) and all(
                key in got and (value == got[key] if key == "failing" else agrees(value, got[key]))
                for key, value in expected.items())
    return expected == got


def _differing(expected, got):
    """Both sides, without the parts of ``values`` and ``state`` that agree."""
    if not (isinstance(expected, dict) and isinstance(got, dict)):
        return expected, got
    for key in ("values", "state"):
        parts, actual = expected.get(key), got.get(key)
        if isinstance(parts, dict) and isinstance(actual, dict):
            names = [name for name in parts if not agrees(parts[name], actual.get(name))]
            expected = expected | {key: {name: parts[name] for name in names}}
            got = got | {key: {name: actual.get(name) for name in names}}
    return expected, got

"""A whole processor environment: what a world switch takes from one program and gives to another.

Ref: Intel SDM (325462), vol. 3A, "System Architecture Overview" and "Protection"; vol. 3C,
"Guest-State Area".
Facts: registers.csv (names and widths).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple, Self

from vmxswitch.spec import tables
from vmxswitch.spec.errors import UsageError

__all__ = ["REGISTERS", "SEGMENTS", "Adjustment", "Environment", "listed"]

#: Segment registers in the order of the VMCS. ``X_AR`` has the VMCS format: bit 16 is *unusable*.
SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")

_NAMES = (
    *"RIP RSP RFLAGS CR0 CR3 CR4 DR7 DEBUGCTL PAT EFER".split(),
    *"SYSENTER_CS SYSENTER_ESP SYSENTER_EIP".split(),
    *"GDTR_BASE GDTR_LIMIT IDTR_BASE IDTR_LIMIT".split(),
    *(f"{name}_{part}" for name in SEGMENTS for part in ("SELECTOR", "BASE", "LIMIT", "AR")),
    *"ACTIVITY INTERRUPTIBILITY PENDING_DBG".split(),
)
#: Registers of an environment: name -> width in bits.
REGISTERS: Mapping[str, int] = MappingProxyType(
    {name: tables.REGISTERS[name].bits for name in _NAMES}
)

UNUSABLE = 1 << 16


@dataclass(frozen=True)
class Adjustment:
    """One register that a processor would hold differently from what an emulator shows."""

    register: str
    before: int
    after: int
    why: str  # a clause in words, without a full stop

    def as_dict(self) -> dict[str, int | str]:
        """The form that JSON outputs use: ``register``, ``from``, ``to``, ``why``."""
        return {"register": self.register, "from": self.before, "to": self.after, "why": self.why}


@dataclass(frozen=True)
class Environment:
    """One processor's registers, as plain integers, and what is known about where they come from.

    Parameters
    ----------
    registers : Mapping[str, int]
        A value for every name in :data:`REGISTERS`, none wider than the register. Read-only after
        construction. ``ACTIVITY``, ``INTERRUPTIBILITY`` and ``PENDING_DBG`` have the layout of
        the guest-state fields (ACTIVITY: 0 active, 1 HLT).
    source : str
        Where the registers come from, for people: file or name, processor, section.
    emulated : bool
        The hidden parts are an emulator's copy; :meth:`adjusted` has not been applied yet.
    a20 : bool
        The A20 gate is open.
    assumed : Mapping[str, str]
        Registers that the source does not state, or not wholly: name -> why, and what was taken.
    adjustments : tuple[Adjustment, ...]
        What :meth:`adjusted` changed.

    Raises
    ------
    :exc:`UsageError`
        If a register is missing, unknown, not an integer, negative or too wide.
    """

    registers: Mapping[str, int]
    source: str
    emulated: bool = False
    a20: bool = True
    assumed: Mapping[str, str] = field(default_factory=dict)
    adjustments: tuple[Adjustment, ...] = ()

    def __post_init__(self):
        for name in self.registers:
            if name not in REGISTERS:
                raise UsageError(f"{self.source}: unknown register {name!r}")
        if missing := [name for name in REGISTERS if name not in self.registers]:
            raise UsageError(f"{self.source}: no value for {listed(missing)}")
        for name, value in self.registers.items():
            if type(value) is not int:  # bool is an int to isinstance
                raise UsageError(f"{self.source}: {name} must be an integer, not {value!r:.40}")
            if not 0 <= value < 1 << REGISTERS[name]:
                raise UsageError(
                    f"{self.source}: {name} = {_hex(value)} does not fit {REGISTERS[name]} bits"
                )
        ordered = {name: self.registers[name] for name in REGISTERS}
        object.__setattr__(self, "registers", MappingProxyType(ordered))
        object.__setattr__(self, "assumed", MappingProxyType(dict(self.assumed)))

    @classmethod
    def read(cls, source: str, cpu: int | None = None, section: str | None = None) -> Self:
        """Read a file or a shipped dump: see :func:`vmxswitch.firmware.readers.read`."""
        from . import readers  # the readers build environments, so they import this module

        return readers.read(source, cpu, section)

    def to_json(self) -> str:
        """Write all of it in the format of :mod:`vmxswitch.firmware.readers.json_form`."""
        from .readers import json_form  # as above

        return json_form.write(self)

    @classmethod
    def from_json(cls, text: str, name: str = "JSON text") -> Self:
        """Read what :meth:`to_json` wrote; equal to what was written."""
        from .readers import json_form  # as above

        return json_form.parse(text, name)

    @property
    def long_mode(self) -> bool:
        """EFER.LMA: 64-bit or compatibility mode."""
        return bool(self.registers["EFER"] >> 10 & 1)

    @property
    def mode(self) -> str:
        """``real``, ``virtual-8086``, ``protected``, ``compatibility`` or ``64-bit``."""
        if not self.registers["CR0"] & 1:
            return "real"
        if self.long_mode:
            return "64-bit" if self.registers["CS_AR"] >> 13 & 1 else "compatibility"
        return "virtual-8086" if self.registers["RFLAGS"] >> 17 & 1 else "protected"

    @property
    def cpl(self) -> int:
        """Current privilege level: SS.DPL in protected mode."""
        fixed = {"real": 0, "virtual-8086": 3}
        return fixed.get(self.mode, self.registers["SS_AR"] >> 5 & 3)

    @property
    def paging(self) -> str:
        """``none``, ``32-bit``, ``PAE``, ``4-level`` or ``5-level``."""
        if not self.registers["CR0"] >> 31:
            return "none"
        if self.long_mode:
            return "5-level" if self.registers["CR4"] >> 12 & 1 else "4-level"
        return "PAE" if self.registers["CR4"] >> 5 & 1 else "32-bit"

    @property
    def smm(self) -> bool:
        """In system management mode: the only place where SMIs are blocked."""
        return bool(self.registers["INTERRUPTIBILITY"] >> 2 & 1)

    def adjusted(self) -> Self:
        """The environment as a processor would hold it.

        Changes only what a processor does by itself and an emulator does not show (the ``why`` of
        each rule below), and only if the registers are an emulator's: values that a VMCS or a
        person states stay as they are, also where a VM entry refuses them. What an emulator's text
        has lost stays in :attr:`assumed`. Applying it twice changes nothing.
        """
        if not self.emulated:
            return self
        registers, adjustments = dict(self.registers), []
        for rule in _RULES:
            for name in rule.registers:
                before, after = self.registers[name], rule.apply(self, name)
                if before != after:
                    adjustments.append(Adjustment(name, before, after, rule.why))
                    registers[name] = after
        return replace(self, registers=registers, emulated=False, adjustments=tuple(adjustments))


class _Rule(NamedTuple):
    """One thing that processors do by themselves. No two rules change the same register at once."""

    registers: tuple[str, ...]
    apply: Callable[[Environment, str], int]  # environment, register -> value in a processor
    why: str


def _busy(env: Environment, name: str) -> int:
    ar = env.registers[name]
    return ar | 2 if ar & 0x9F in {0x81, 0x89} else ar  # present, system, available TSS


def _accessed(env: Environment, name: str) -> int:
    ar = env.registers[name]
    return ar | 1 if ar & 0x90 == 0x90 else ar


def _null_segment(env: Environment, name: str) -> int:
    ar = env.registers[name]
    return ar if ar & 0x80 or env.mode in {"real", "virtual-8086"} else ar | UNUSABLE


def _null_ldt(env: Environment, name: str) -> int:
    ar = env.registers[name]
    null = env.registers["LDTR_SELECTOR"] < 4 and env.registers["LDTR_LIMIT"] == 0
    return ar | UNUSABLE if null or not ar & 0x80 else ar


def _fixed(ones: int, zeros: int) -> Callable[[Environment, str], int]:
    return lambda env, name: env.registers[name] & ~zeros | ones


_RULES = (
    _Rule(
        ("TR_AR",),
        _busy,
        "LTR makes the loaded TSS type busy too; the emulator marks only the descriptor in memory",
    ),
    _Rule(
        ("CS_AR", "SS_AR", "DS_AR", "ES_AR", "FS_AR", "GS_AR"),
        _accessed,
        "loading a segment register in protected mode sets the accessed bit; the emulator's far "
        "jumps, far returns and IRET leave it clear",
    ),
    _Rule(
        ("SS_AR", "DS_AR", "ES_AR", "FS_AR", "GS_AR"),
        _null_segment,
        "loading a null selector makes the segment register unusable",
    ),
    _Rule(
        ("LDTR_AR",),
        _null_ldt,
        "LLDT with a null selector makes LDTR unusable; the emulator only clears its limit",
    ),
    _Rule(
        ("RFLAGS",), _fixed(0x2, 0x8028), "RFLAGS bit 1 is always 1; bits 3, 5 and 15 are always 0"
    ),
    _Rule(
        ("DR7",), _fixed(0x400, 0xD000), "DR7 bit 10 is always 1; bits 12, 14 and 15 are always 0"
    ),
    _Rule(
        ("CR0",),
        _fixed(0x10, 0x1FFAFFC0),
        "CR0.ET is always 1; bits 15:6, 17 and 28:19 are reserved and stay 0",
    ),
)


def _hex(value: int) -> str:
    text = f"{value:#x}"
    return text if len(text) <= 24 else f"{text[:20]}..."


def listed(names: Sequence[str], limit: int = 6) -> str:
    """The first few of many names, for messages."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

"""What the host area of a VMCS cannot carry, and what software does to restore it.

Ref: Intel SDM (325462), vol. 3C, "Loading Host State".
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vmxswitch.spec.tables import REGISTERS

from .environment import SEGMENTS, Environment

__all__ = ["NotCarried", "not_carried"]

UNUSABLE = 1 << 16


@dataclass(frozen=True)
class NotCarried:
    """A register of the target that has another value when the switch is over."""
    register: str
    wanted: int
    actual: int
    restore: str  # what software does after VMXOFF

    def as_dict(self) -> dict:
        """The form that JSON outputs use."""
        return {"register": self.register, "wanted": self.wanted, "actual": self.actual,
                "restore": self.restore}


def not_carried(target: Environment, final: Mapping[str, int]) -> tuple[NotCarried, ...]:
    """Every register of ``target`` that differs from the environment ``final``."""
    return tuple(
        NotCarried(name, wanted, final[name], _restore(name, target, final))
        for name, wanted in target.registers.items() if wanted != final[name])


def _restore(name: str, target: Environment, final: Mapping[str, int]) -> str:
    wanted = target.registers[name]
    register, _, part = name.rpartition("_")
    if register in SEGMENTS:
        return _restore_segment(register, target, final)
    if register in ("GDTR", "IDTR"):
        limit, base = (target.registers[f"{register}_{part}"] for part in ("LIMIT", "BASE"))
        return f"L{register[:3]} with limit {limit:#x}, base {base:#x}"
    if REGISTERS[name].field.startswith("GUEST_IA32_"):
        return f"WRMSR {REGISTERS[name].field.removeprefix('GUEST_')}, {wanted:#x}"
    special = {
        "RFLAGS": f"{'POPFQ' if target.mode == '64-bit' else 'POPFD'} of {wanted:#x}",
        "ACTIVITY": "HLT" if wanted == 1 else "no instruction does; INIT or a reset would",
        "INTERRUPTIBILITY": "no instruction does: " + " and ".join(
            why for bit, why in _BLOCKING.items() if (wanted ^ final[name]) >> bit & 1),
        "PENDING_DBG": "no instruction does: pending debug exceptions are lost",
        "RIP": f"JMP to {wanted:#x}",
    }
    return special.get(name, f"MOV {name}, {wanted:#x}")


#: Bits of the interruptibility state, and how they come about.
_BLOCKING = {
    0: "blocking by STI lasts one instruction",
    1: "blocking by MOV SS lasts one instruction",
    2: "only an SMI enters system management mode",
    3: "blocking by NMI begins with an NMI and ends with IRET",
    4: "only an enclave is interrupted there",
}


def _restore_segment(segment: str, target: Environment, final: Mapping[str, int]) -> str:
    registers = target.registers
    selector = registers[f"{segment}_SELECTOR"]
    if segment in ("TR", "LDTR") and selector < 4 and not registers[f"{segment}_AR"] & UNUSABLE:
        return f"nothing: {segment} is as after reset, and no instruction loads that"
    if segment == "TR":
        return f"mark the TSS of {selector:#x} available in the GDT, then LTR {selector:#x}"
    unusable = bool(registers[f"{segment}_AR"] & UNUSABLE)
    if unusable and final[f"{segment}_AR"] & UNUSABLE and selector == final[f"{segment}_SELECTOR"]:
        return f"nothing: {segment} is unusable, so this does not count"
    if segment == "LDTR":
        return f"LLDT {selector:#x}"
    if segment in ("CS", "SS") and target.cpl:
        ss, cs, rip = registers["SS_SELECTOR"], registers["CS_SELECTOR"], registers["RIP"]
        return f"IRET to CPL {target.cpl}, with SS {ss:#x} and CS:RIP {cs:#x}:{rip:#x}"
    if segment == "CS":
        return f"far return to {selector:#x}:{registers['RIP']:#x}"
    if selector < 4 and not unusable and target.mode == "64-bit":
        return f"nothing: 64-bit code does not see whether a null {segment} is usable"
    return f"MOV {segment}, {selector:#x}"

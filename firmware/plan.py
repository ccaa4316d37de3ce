"""What software knows before a world switch begins: the VMCS it will write, and what must follow.

Where things are
----------------
VMCALL
    At the original's own RIP: software puts its three bytes there, the only code address known to
    be mapped in the original's address space.
VMXOFF
    In the three bytes before the target's own RIP, for the same reason; what comes after it is the
    target's own instruction.
VMXON region, VMCS region
    The first two pages of physical memory above page 0 that neither CR3 points to.

The two entry points are fields, ``GUEST_RIP`` and ``HOST_RIP``: settings can move them.

Ref: Intel SDM (325462), vol. 3C, "Preparation and Launching a Virtual Machine"; vol. 3D, "VMX
Capability Reporting Facility".
Facts: vmcs_fields.csv, controls.csv, control_words.csv, registers.csv.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import count
from typing import NamedTuple

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import to_function
from vmxswitch.spec.operations import NO_VMCS
from vmxswitch.spec.tables import CONTROL_WORDS, CONTROLS, REGISTERS, expression

from .driver import operand_bits
from .environment import Adjustment, Environment
from .prediction import Situation

__all__ = [
    "PAGE_BYTES", "PE_PG", "Plan", "Preparation", "fixed_bits", "misfits", "switch_on",
    "vmcs_fields",
]

PAGE_BYTES = 4096
VMXOFF_BYTES = 3            # 0F 01 C4
PE_PG = 0x8000_0001         # CR0 bits that are a mode of the program, no preparation
LOCKED, OUTSIDE_SMX = 1, 4  # IA32_FEATURE_CONTROL
STI_MOV_SS = 0b11           # interruptibility bits that end with the next instruction
SHUTDOWN = 2                # activity state; from here on a processor executes nothing

#: Controls that are 1 where the processor offers them: they make the move carry more.
IF_OFFERED = (
    "ENTRY_LOAD_DEBUG_CONTROLS", "ENTRY_LOAD_PAT", "ENTRY_LOAD_EFER", "EXIT_SAVE_DEBUG_CONTROLS",
    "EXIT_SAVE_PAT", "EXIT_SAVE_EFER", "EXIT_LOAD_PAT", "EXIT_LOAD_EFER",
)


class Preparation(NamedTuple):
    """A register that software must change before VMXON."""
    instruction: str
    register: str
    value: int


class Plan:
    """A world switch, thought through.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    original, target : Environment
        As a processor holds them (:meth:`Environment.adjusted`).
    settings : mapping of str to int
        VMCS fields that software sets after it has filled the VMCS, whatever they should be.

    Attributes
    ----------
    start : dict of str to int
        The original's registers, as the switch software runs in them.
    adjustments : list of Adjustment
        What that software, by running, has changed about them.
    preparations : list of Preparation
        What it must change before VMXON.
    fields : dict of str to int
        The VMCS it fills.
    notes : dict of str to str
        What is to be said about some of these fields.
    settings : dict of str to int
        As far as VMWRITE can write them: what is wider than its operand is cut.
    vmxon_region, vmcs_region : int
        Physical addresses.
    situation : Situation
        Just before VMLAUNCH.
    prepared, guest, host, failed_host, arrived : dict of str to int
        Environments that must be live: before VMLAUNCH; in the guest; after the exit; after an
        entry that fails beyond its host checks; when the target runs its own instructions.

    Raises
    ------
    :exc:`UsageError`
        If a setting names no field of this processor or is wider than it, or if the original
        cannot execute instructions.
    """
    def __init__(self, capabilities: Capabilities, original: Environment, target: Environment,
                 settings: Mapping[str, int]):
        _check_settings(capabilities, settings)
        self.capabilities = capabilities
        running, self.adjustments = _running(original)
        self.start = {name: running.get(name, 0) for name in capabilities.registers}
        self.preparations = _preparations(capabilities, self.start)
        self.prepared = self.start | {name: value for _, name, value in self.preparations}

        fields = vmcs_fields(capabilities, original.registers | self.prepared, target)
        operand = (1 << operand_bits(capabilities, self.prepared)) - 1
        self.fields, self.settings = (
            {name: _cut(capabilities, name, value, operand) for name, value in written.items()}
            for written in (fields, settings))

        self.notes = {
            f"HOST_{name}": f"preparation: the target's {target.registers[name]:#x} with what VMX "
                            "operation needs"
            for name, value in fixed_bits(capabilities, target.registers).items()
            if value != target.registers[name]}

        final = self.fields | self.settings
        used = {final[field] // PAGE_BYTES for field in ("GUEST_CR3", "HOST_CR3")}
        free = (page * PAGE_BYTES for page in count(1) if page not in used)
        self.vmxon_region, self.vmcs_region = next(free), next(free)
        uses_ept = to_function(capabilities.bind(expression("PROC2_ENABLE_EPT")))(final)
        self.situation = Situation(capabilities, final, self.prepared, {
            "IN_VMX": 1, "CURRENT_VMCS": self.vmcs_region, "VMXON_POINTER": self.vmxon_region,
            # without EPT they are read from memory, which is 0
            **{f"PDPTE{n}": final[f"GUEST_PDPTE{n}"] if uses_ept else 0 for n in range(4)},
        })
        self.guest = self.situation.entered()
        self.host = self.situation.running(self.guest).left()
        self.failed_host = self.situation.failed()
        rip_mask = (1 << capabilities.natural_bits) - 1
        self.arrived = self.host | {"RIP": target.registers["RIP"] & rip_mask}


def misfits(capabilities: Capabilities, environment: Environment) -> list[str]:
    """Registers of an environment that this processor lacks or has narrower.

    A missing register is no misfit: the unit does not switch it, so it stays as it is (PAT). The
    exception is EFER, which is missing only where the processor has none.
    """
    present = capabilities.registers

    def bits(name):
        if name in present:
            return capabilities.bits(present[name])
        return 0 if name == "EFER" else REGISTERS[name].bits

    return [name for name, value in environment.registers.items() if value >> bits(name)]


def vmcs_fields(capabilities: Capabilities, original: Mapping[str, int],
                target: Environment) -> dict[str, int]:
    """Value of every field that software writes: the original as guest, the target as host.

    ``original`` holds the registers that software runs with, CR0 and CR4 prepared. Controls follow
    from the capability MSRs: what must be 1; :data:`IF_OFFERED`; and the two that say which
    environment is one of IA-32e mode. Those are set even if the processor does not offer them: it
    is the processor that refuses.
    """
    plan = {field: 0 for field, row in capabilities.fields.items() if row.access == "rw"}
    host = {**target.registers, **fixed_bits(capabilities, target.registers)}
    for name, row in REGISTERS.items():
        if row.field in plan:
            plan[row.field] = original.get(name, 0)
        host_field = row.field.replace("GUEST_", "HOST_", 1)
        if host_field != row.field and host_field in plan:
            plan[host_field] = host.get(name, 0)
    width = 64 if target.mode == "64-bit" else 32
    plan["HOST_RIP"] = target.registers["RIP"] - VMXOFF_BYTES & (1 << width) - 1
    plan["VMCS_LINK_POINTER"] = NO_VMCS

    for word in CONTROL_WORDS.values():
        if word.field in plan and not word.activated_by:
            plan[word.field] = capabilities.constants[word.capability_symbol] & 0xFFFF_FFFF
    needed = {"ENTRY_IA32E_MODE_GUEST": original["EFER"] >> 10 & 1,
              "EXIT_HOST_ADDR_SPACE_SIZE": target.long_mode}
    offered = {symbol: capabilities.allows(symbol) for symbol in IF_OFFERED}
    switch_on(plan, [symbol for symbol, wanted in (offered | needed).items() if wanted])
    return plan


def switch_on(fields: dict[str, int], controls: Iterable[str]) -> None:
    """Set control bits in the fields that hold them."""
    for symbol in controls:
        control = CONTROLS[symbol]
        fields[CONTROL_WORDS[control.word].field] |= 1 << control.low


def fixed_bits(capabilities: Capabilities, registers: Mapping[str, int]) -> dict[str, int]:
    """CR0 and CR4 with the bits that VMX operation needs."""
    return {"CR0": registers["CR0"] | capabilities.msr("CR0_FIXED0") & ~PE_PG,
            "CR4": registers["CR4"] | capabilities.msr("CR4_FIXED0")}


def _check_settings(capabilities: Capabilities, settings: Mapping[str, int]) -> None:
    for field, value in settings.items():
        if field not in capabilities.fields:
            areas = (f"GUEST_{field}", f"HOST_{field}", f"GUEST_IA32_{field}", f"HOST_IA32_{field}")
            near = ([name for name in areas if name in capabilities.fields]
                    or get_close_matches(field.upper(), capabilities.fields, 1))
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(
                f"the {capabilities.name} processor has no VMCS field {field!r}{meant}")
        bits = capabilities.bits(capabilities.fields[field])
        if not 0 <= value < 1 << bits:
            raise UsageError(f"{field}={value:#x} does not fit the field's {bits} bits")


def _running(original: Environment) -> tuple[dict[str, int], list[Adjustment]]:
    """The original while it executes the switch software."""
    registers = dict(original.registers)
    if registers["ACTIVITY"] >= SHUTDOWN:
        raise UsageError(f"{original.source}: activity state {registers['ACTIVITY']} (shutdown or "
                         "wait-for-SIPI): the processor executes nothing, so it cannot switch")
    adjustments = []
    for name, after, why in (
        ("ACTIVITY", 0, "the processor executes the switch software, so it has left HLT"),
        ("INTERRUPTIBILITY", registers["INTERRUPTIBILITY"] & ~STI_MOV_SS,
         "blocking by STI or MOV SS ends with the first instruction of the switch software"),
        ("PENDING_DBG", 0,
         "pending debug exceptions are taken before the first instruction of the switch software"),
    ):
        if registers[name] != after:
            adjustments.append(Adjustment(name, registers[name], after, why))
            registers[name] = after
    return registers, adjustments


def _preparations(capabilities: Capabilities, start: Mapping[str, int]) -> list[Preparation]:
    feature_control = start["IA32_FEATURE_CONTROL"]
    if not feature_control & LOCKED:
        feature_control |= LOCKED | OUTSIDE_SMX
    wanted = fixed_bits(capabilities, start)
    steps = [Preparation(f"MOV {name}", name, value) for name, value in wanted.items()]
    steps.append(Preparation("WRMSR IA32_FEATURE_CONTROL", "IA32_FEATURE_CONTROL", feature_control))
    return [step for step in steps if step.value != start[step.register]]


def _cut(capabilities: Capabilities, field: str, value: int, operand: int) -> int:
    """What VMWRITE makes of a value. A field with two halves takes two, so it is not cut."""
    row = capabilities.fields[field]
    mask = (1 << capabilities.bits(row)) - 1
    return value & mask & (mask if row.width_class == "64" else operand)

"""What one processor supports: capability MSRs, widths, and everything that follows from them.

A :class:`Capabilities` is either a preset of ours (:data:`PRESETS`), composed from the control bits
that it offers, or read from the JSON profile of a recorded processor. From it follow the fields and
registers that exist and the entry checks that can fail, with the capability values folded in; the
reference model and the hardware are built from the same object.

Source: Intel SDM vol. 3D, appendix A, "VMX Capability Reporting Facility".
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from .errors import UsageError
from .expression import ALWAYS, NEVER, Expression, Extend, Symbol, bind
from .tables import (
    CAPABILITY_MSRS,
    CHECKS,
    CONTROL_WORDS,
    CONTROLS,
    FIELDS,
    REGISTERS,
    SYMBOLS,
    Check,
    Field,
    InstructionRow,
    Register,
)

__all__ = ["LIST_STAGE", "PRESETS", "WRMSR_RULES", "BoundCheck", "Capabilities"]

LMA = 1 << 10  # IA32_EFER
LIST_STAGE = "msr-load"
CR4_CET, CR4_FRED = 1 << 23, 1 << 32

#: Conditions under which an MSR-load list may load an MSR, as texts over ``LIST_DATA``.
WRMSR_RULES = {"any": "True", "canonical": "CANON(LIST_DATA)", "pat": "PAT(LIST_DATA)"}


@dataclass(frozen=True)
class BoundCheck:
    """An entry check as one processor makes it.

    ``fails`` is 1 if the check applies and its condition does not hold; capabilities are folded in.
    """
    check: Check
    fails: Expression

    @property
    def id(self) -> str:
        return self.check.id

    @property
    def stage(self) -> str:
        return self.check.stage


@dataclass(frozen=True, eq=False)
class Capabilities:
    """One processor's capabilities.

    Parameters
    ----------
    name : str
        Name of the preset or profile.
    msrs : mapping of int to int
        Capability MSRs by index, 0x480 to 0x493; one that is missing does not exist.
    physical_address_width, linear_address_width : int
        MAXPHYADDR (32 to 52) and N (32, 48 or 57), in bits.
    efer_bits : int
        IA32_EFER bits that are not reserved; LMA among them means Intel 64 is supported.
    wrmsr_rules : mapping of int to str
        MSRs that an MSR-load list may load and the rule, of :data:`WRMSR_RULES`, for their data.
    debugctl_bits, perf_global_ctrl_bits : int
        Bits of IA32_DEBUGCTL and IA32_PERF_GLOBAL_CTRL that are not reserved.
    resident_vmcss : int
        How many VMCSs the processor holds at a time, 1 to 16.

    Raises
    ------
    :exc:`UsageError`
        If a value is out of range or a rule is unknown; the message quotes it.
    """
    name: str
    msrs: Mapping[int, int]
    physical_address_width: int
    linear_address_width: int
    efer_bits: int
    wrmsr_rules: Mapping[int, str]
    debugctl_bits: int = 0x7FC3
    perf_global_ctrl_bits: int = 0x7_0000_000F
    resident_vmcss: int = 1

    def __post_init__(self):
        if not 32 <= self.physical_address_width <= 52:
            raise UsageError(f"{self.name}: physical-address width {self.physical_address_width!r} "
                             "is not 32 to 52")
        if self.linear_address_width not in (32, 48, 57):
            raise UsageError(f"{self.name}: linear-address width {self.linear_address_width!r} "
                             "is not 32, 48 or 57")
        if not 1 <= self.resident_vmcss <= 16:
            raise UsageError(f"{self.name}: {self.resident_vmcss!r} resident VMCSs; there can be "
                             "1 to 16")
        for index, rule in self.wrmsr_rules.items():
            if rule not in WRMSR_RULES:
                raise UsageError(f"{self.name}: no WRMSR rule {rule!r} (MSR {index:#x}); "
                                 f"there are {', '.join(WRMSR_RULES)}")

    @classmethod
    def from_profile(cls, path: Path | str) -> "Capabilities":
        """Read a JSON profile of the recorded cases (format "vmx-profile v1").

        Raises :exc:`UsageError` if the file is not one, or lists other fields than its MSRs imply.
        """
        try:
            profile = json.loads(Path(path).read_text(encoding="utf-8"))
            if profile["format"] != "vmx-profile v1":
                raise UsageError(f"{path}: format {profile['format']!r} is not 'vmx-profile v1'")
            capabilities = cls(
                profile["name"],
                {int(index, 16): value for index, value in profile["msrs"].items()},
                profile["physical_address_width"], profile["linear_address_width"],
                profile["efer_bits"],
                {int(index, 16): rule for index, rule in profile["wrmsr_rules"].items()},
                resident_vmcss=profile.get("resident_vmcss", 1))
            differing = set(profile["fields"]) ^ capabilities.encodings
            if differing:
                raise UsageError(f"{path}: field {min(differing):#06x} does not follow from the "
                                 "capability MSRs")
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: not a vmx-profile v1 ({error!r})") from None
        for feature, present in capabilities.unsupported.items():
            if present:
                raise UsageError(f"{path}: the processor has {feature}, which is not implemented")
        return capabilities

    @property
    def intel64(self) -> bool:
        """Whether the processor supports Intel 64."""
        return bool(self.efer_bits & LMA)

    @property
    def unsupported(self) -> dict[str, bool]:
        """Features that are not implemented, and whether the processor has them."""
        return {
            "dual-monitor treatment of SMM (IA32_VMX_BASIC[49])":
                bool(self.msr("IA32_VMX_BASIC") >> 49 & 1),
            "FRED (CR4_FIXED1[32])": bool(self.msr("CR4_FIXED1") & CR4_FRED),
        }

    @property
    def description(self) -> tuple:
        """All that tells this processor from another but its name: equal if they are."""
        return (
            sorted(self.msrs.items()), self.physical_address_width, self.linear_address_width,
            self.efer_bits, sorted(self.wrmsr_rules.items()), self.debugctl_bits,
            self.perf_global_ctrl_bits, self.resident_vmcss)

    @property
    def natural_bits(self) -> int:
        """Width of natural-width fields and registers in bits: 64 or 32."""
        return 64 if self.intel64 else 32

    def bits(self, row: Field | Register) -> int:
        """Width in bits that a field or register has on this processor."""
        return self.natural_bits if row.width_class == "natural" else row.bits

    def msr(self, symbol: str) -> int:
        """A capability MSR by name; one that does not exist reads as 0 here."""
        return self.msrs.get(CAPABILITY_MSRS[symbol].msr, 0)

    @property
    def revision(self) -> int:
        """VMCS revision identifier, 31 bits."""
        return self.msr("IA32_VMX_BASIC") & 0x7FFF_FFFF

    def allows(self, control: str) -> bool:
        """Whether the processor lets a control bit be 1."""
        row = CONTROLS[control]
        word = CONTROL_WORDS[row.word]
        return bool(self.constants[word.allowed_symbol] >> row.low & 1)

    @cached_property
    def constants(self) -> dict[str, int]:
        """Values of all symbols that the capabilities decide."""
        basic = self.msr("IA32_VMX_BASIC")
        true = basic >> 55 & 1
        fixed1 = self.msr("CR4_FIXED1")
        values = {name: 0 for name, row in SYMBOLS.items() if row.source == "capability"}
        values |= {symbol: self.msr(symbol) for symbol in CAPABILITY_MSRS}
        values |= {
            word.capability_symbol: self.msr(word.true_capability if true else word.capability)
            for word in CONTROL_WORDS.values() if word.true_capability
        }
        values |= {
            word.allowed_symbol: values[word.capability_symbol] >> word.allowed_1_low
            for word in CONTROL_WORDS.values()
        }
        return values | {
            "PHYSICAL_WIDTH": self.physical_address_width,
            "ADDRESS_WIDTH": 32 if basic >> 48 & 1 else self.physical_address_width,
            "LINEAR_WIDTH": self.linear_address_width,
            "INTEL64": int(self.intel64),
            "EFER_BITS": self.efer_bits,
            "DEBUGCTL_BITS": self.debugctl_bits,
            "PERF_GLOBAL_CTRL_BITS": self.perf_global_ctrl_bits,
            "CET_SUPPORTED": int(bool(fixed1 & CR4_CET)),
            "FRED_SUPPORTED": int(bool(fixed1 & CR4_FRED)),
        }

    def _exists(self, feature: Expression) -> bool:
        folded = bind(feature, self.constants | {name: int(self.allows(name)) for name in CONTROLS})
        return bool(folded.value)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Fields that exist, without the rows of high halves, in table order."""
        return {symbol: row for symbol, row in FIELDS.items()
                if not row.is_high and self._exists(row.feature)}

    @cached_property
    def encodings(self) -> frozenset[int]:
        """Every encoding that VMREAD knows, high halves included."""
        return frozenset(row.encoding for row in FIELDS.values() if self._exists(row.feature))

    @cached_property
    def registers(self) -> dict[str, Register]:
        """Registers of the running environment that exist, in table order."""
        return {name: row for name, row in REGISTERS.items()
                if self._exists(row.feature) or row.msr in self.wrmsr_rules}

    @cached_property
    def readable_msrs(self) -> dict[int, str | int]:
        """MSRs that RDMSR knows: by index the register, or the value of a capability MSR."""
        registers = {row.msr: name for name, row in self.registers.items() if row.msr is not None}
        return registers | dict(self.msrs)

    @cached_property
    def _known(self) -> dict[str, int | Expression]:
        """What folds in: capabilities, 0 for what is absent, narrower values zero-extended."""
        known = dict(self.constants)
        for symbol, row in FIELDS.items():
            known |= self._as_wide(symbol, row, symbol in self.fields)
        for name, row in REGISTERS.items():
            known |= self._as_wide(row.symbol, row, name in self.registers)
        return known

    def _as_wide(self, symbol, row, exists) -> dict[str, int | Expression]:
        if not exists:
            return {symbol: 0}
        if self.bits(row) == row.bits:
            return {}
        return {symbol: Extend(row.bits, Symbol(self.bits(row), symbol))}

    def bind(self, expression: Expression) -> Expression:
        """Fold this processor's capabilities, absent fields and absent registers (0) in."""
        return bind(expression, self._known)

    def met(self, rows: Iterable[InstructionRow]) -> Iterator[tuple[InstructionRow, Expression]]:
        """The rows of an instruction that can decide on this processor, each with its condition."""
        for row in rows:
            condition = self.bind(row.condition)
            if condition != NEVER:
                yield row, condition
            if condition == ALWAYS:
                return

    @cached_property
    def checks(self) -> dict[str, BoundCheck]:
        """Checks that can fail on this processor, in table order."""
        result = {}
        for check in CHECKS.values():
            fails = self.bind(check.violated)
            if fails != NEVER:
                result[check.id] = BoundCheck(check, fails)
        return result

    @cached_property
    def state_checks(self) -> tuple[BoundCheck, ...]:
        """The checks of the VMCS and of what it points to, in table order."""
        return tuple(row for row in self.checks.values() if row.stage != LIST_STAGE)

    @cached_property
    def list_checks(self) -> tuple[BoundCheck, ...]:
        """The checks made for each entry of the VM-entry MSR-load list, in table order."""
        return tuple(row for row in self.checks.values() if row.stage == LIST_STAGE)


def _offer(
    name: str, controls: Iterable[str], *, cr4_bits: int, misc: int, ept_vpid: int = 0,
    physical_address_width: int, linear_address_width: int, efer_bits: int,
    wrmsr_rules: Mapping[int, str],
) -> Capabilities:
    """Compose the capability MSRs of a processor that offers the given control bits."""
    offered, allowed0, true0 = {}, {}, {}
    controls = set(controls)
    for word in CONTROL_WORDS:
        offered[word] = allowed0[word] = true0[word] = 0
    for control in CONTROLS.values():
        bit = 1 << control.low
        if control.default1:
            allowed0[control.word] |= bit
            offered[control.word] |= bit
            if not control.clearable:
                true0[control.word] |= bit
        elif control.symbol in controls:
            offered[control.word] |= bit
            controls.discard(control.symbol)
    assert not controls, f"no such control: {controls}"
    region_size, write_back, true_msrs, io_information = 4096, 6, 1, 1
    values = {
        "IA32_VMX_BASIC": REVISION | region_size << 32 | write_back << 50 | io_information << 54
                          | true_msrs << 55,
        "IA32_VMX_MISC": misc,
        "CR0_FIXED0": 0x80000021, "CR0_FIXED1": 0xFFFFFFFF,
        "CR4_FIXED0": 0x2000, "CR4_FIXED1": cr4_bits,
    }
    for word, row in CONTROL_WORDS.items():
        if row.true_capability:
            values[row.capability] = offered[word] << 32 | allowed0[word]
            values[row.true_capability] = offered[word] << 32 | true0[word]
        elif offered[word]:
            values[row.capability] = offered[word] << row.allowed_1_low
    if ept_vpid:
        values["IA32_VMX_EPT_VPID_CAP"] = ept_vpid
    msrs = {CAPABILITY_MSRS[symbol].msr: value for symbol, value in values.items()}
    offering = Capabilities(
        name, msrs, physical_address_width, linear_address_width, efer_bits, wrmsr_rules)
    highest_index = max(encoding >> 1 & 0x1FF for encoding in offering.encodings)
    msrs[CAPABILITY_MSRS["IA32_VMX_VMCS_ENUM"].msr] = highest_index << 1
    return replace(offering, msrs=msrs)


#: VMCS revision identifier of our region format (:mod:`vmxswitch.spec.region`).
REVISION = 1

_EXITING = (
    "PIN_EXT_INTR_EXITING", "PIN_NMI_EXITING", "PIN_VIRTUAL_NMIS", "PIN_ACTIVATE_PREEMPTION_TIMER",
    "PROC1_INTR_WINDOW_EXITING", "PROC1_HLT_EXITING", "PROC1_INVLPG_EXITING", "PROC1_MWAIT_EXITING",
    "PROC1_RDPMC_EXITING", "PROC1_RDTSC_EXITING", "PROC1_NMI_WINDOW_EXITING",
    "PROC1_MOV_DR_EXITING", "PROC1_UNCOND_IO_EXITING", "PROC1_USE_IO_BITMAPS",
    "PROC1_MONITOR_TRAP_FLAG", "PROC1_USE_MSR_BITMAPS", "PROC1_MONITOR_EXITING",
    "PROC1_PAUSE_EXITING", "EXIT_ACK_INTR_ON_EXIT", "EXIT_SAVE_PREEMPTION_TIMER",
)
#: Our own configurations. Beyond the default1 bits, a control bit whose work is not implemented is
#: not offered.
PRESETS: dict[str, Capabilities] = {
    "full": _offer(
        "full",
        (*_EXITING, "PROC1_USE_TSC_OFFSETTING", "PROC1_CR8_LOAD_EXITING",
         "PROC1_CR8_STORE_EXITING", "PROC1_USE_TPR_SHADOW", "PROC1_ACTIVATE_SECONDARY",
         "PROC2_ENABLE_EPT", "PROC2_DESCRIPTOR_TABLE_EXITING", "PROC2_ENABLE_RDTSCP",
         "PROC2_ENABLE_VPID", "PROC2_WBINVD_EXITING", "PROC2_UNRESTRICTED_GUEST",
         "PROC2_RDRAND_EXITING", "PROC2_ENABLE_INVPCID", "PROC2_RDSEED_EXITING",
         "PROC2_ENABLE_XSAVES_XRSTORS", "PROC2_ENABLE_USER_WAIT_PAUSE",
         "EXIT_HOST_ADDR_SPACE_SIZE", "EXIT_SAVE_PAT", "EXIT_LOAD_PAT", "EXIT_SAVE_EFER",
         "EXIT_LOAD_EFER", "ENTRY_IA32E_MODE_GUEST", "ENTRY_LOAD_PAT", "ENTRY_LOAD_EFER"),
        cr4_bits=0x773FFF, misc=0x2004_01E0, ept_vpid=0x0F01_0633_4141,
        physical_address_width=46, linear_address_width=57, efer_bits=0xD01,
        wrmsr_rules={0x174: "any", 0x175: "canonical", 0x176: "canonical", 0x277: "pat",
                     0xC0000081: "any", 0xC0000082: "canonical", 0xC0000102: "canonical"}),
    "compact": _offer(
        "compact", _EXITING, cr4_bits=0x27FF, misc=0x0000_0040,
        physical_address_width=32, linear_address_width=32, efer_bits=0,
        wrmsr_rules={0x174: "any", 0x175: "any", 0x176: "any"}),
}


def split_configuration(name: str) -> tuple[str, str]:
    """A configuration's preset or file, and the number of resident VMCSs as text, if it has one."""
    source, _, count = name.rpartition(":")
    return (source, count) if source and count and not Path(name).is_file() else (name, "")


def configuration(name: str) -> Capabilities:
    """A preset by its name, or the processor of a profile's file; NAME:N has N resident VMCSs.

    Raises :exc:`UsageError` if there is neither, or for a number that cannot be.
    """
    source, count = split_configuration(name)
    if source in PRESETS:
        capabilities = PRESETS[source]
    elif Path(source).is_file():
        capabilities = Capabilities.from_profile(source)
    else:
        raise UsageError(f"no configuration {name!r}: {', '.join(PRESETS)}, or the file of a "
                         "profile; NAME:N has N resident VMCSs")
    if not count:
        return capabilities
    if not count.isdecimal():
        raise UsageError(f"{name!r}: {count!r} is not a number of resident VMCSs")
    return replace(capabilities, name=f"{capabilities.name}:{count}", resident_vmcss=int(count))

"""Whether a text shows a whole dump: every line that its source always prints, to the last one.

Facts: what KVM and Xen print, and under which controls (``docs/audit.md``).
"""

from collections.abc import Mapping

from vmxswitch.spec.expression import bind
from vmxswitch.spec.tables import CONTROL_WORDS, expression

from ..environment import SEGMENTS
from ..readers.vmcs_text import VmcsDump

__all__ = ["missing"]

_SEGMENT_PARTS = ("SELECTOR", "AR", "LIMIT", "BASE")
#: Fields that every version of KVM and Xen prints.
_ALWAYS = (
    *"GUEST_CR0 CR0_READ_SHADOW GUEST_CR4 CR4_READ_SHADOW GUEST_CR3 GUEST_RSP GUEST_RIP".split(),
    *"GUEST_RFLAGS GUEST_DR7 GUEST_IA32_SYSENTER_ESP".split(),
    *(f"GUEST_{name}_{part}" for name in SEGMENTS for part in _SEGMENT_PARTS),
    *(f"GUEST_{name}_{part}" for name in ("GDTR", "IDTR") for part in ("LIMIT", "BASE")),
    *"GUEST_IA32_DEBUGCTL GUEST_PENDING_DBG_EXCEPTIONS".split(),
    *"GUEST_INTERRUPTIBILITY_STATE GUEST_ACTIVITY_STATE".split(),
    *"HOST_RIP HOST_RSP HOST_CR0 HOST_CR3 HOST_CR4 HOST_IA32_SYSENTER_EIP".split(),
    *(f"HOST_{name}_SELECTOR" for name in SEGMENTS if name != "LDTR"),
    *(f"HOST_{name}_BASE" for name in ("FS", "GS", "TR", "GDTR", "IDTR")),
    *"PIN_BASED_CTLS PRIMARY_PROC_BASED_CTLS SECONDARY_PROC_BASED_CTLS".split(),
    *"VM_ENTRY_CTLS VM_EXIT_CTLS EXCEPTION_BITMAP VM_ENTRY_INTR_INFO VM_EXIT_INTR_INFO".split(),
    *"VM_EXIT_REASON EXIT_QUALIFICATION IDT_VECTORING_INFO TSC_OFFSET".split(),
)
#: Fields that are printed under a control, at the end of a dump or in its middle.
_UNDER = {
    "PROC2_ENABLE_EPT": ("EPT_POINTER",),
    "PROC2_ENABLE_VPID": ("VPID",),
    "PROC2_PAUSE_LOOP_EXITING": ("PLE_WINDOW",),
    "PROC2_USE_TSC_SCALING": ("TSC_MULTIPLIER",),
    "PROC1_USE_TPR_SHADOW": ("TPR_THRESHOLD",),
    "ENTRY_LOAD_PERF_GLOBAL_CTRL": ("GUEST_IA32_PERF_GLOBAL_CTRL",),
    "ENTRY_LOAD_BNDCFGS": ("GUEST_IA32_BNDCFGS",),
}
#: The same of KVM alone.
_KVM_UNDER = {
    "PROC2_EPT_VIOLATION_VE": ("VE_INFO_ADDR",),
    "PIN_PROCESS_POSTED_INTERRUPTS": ("POSTED_INTR_NOTIFICATION_VECTOR",),
    "ENTRY_LOAD_CET": ("GUEST_IA32_S_CET", "GUEST_SSP", "GUEST_INTERRUPT_SSP_TABLE_ADDR"),
    "EXIT_LOAD_CET": ("HOST_IA32_S_CET", "HOST_SSP", "HOST_INTERRUPT_SSP_TABLE_ADDR"),
}
_EVERY_CONTROL_EXISTS = {word.allowed_symbol: (1 << 64) - 1 for word in CONTROL_WORDS.values()}
_ORDER = ["Guest", "Host", "Control"]


def missing(dump: VmcsDump) -> list[str]:
    """Sections and fields that a whole dump of the format has, and this one has not.

    HAXM prints no sections and its end cannot be recognised: a dump of it always lacks something.
    """
    if dump.format == "json":
        return ["claim to be complete"] if dump.excerpt else []
    absent = [f"{name} section" for name in _ORDER if name not in dump.sections]
    if dump.sections != _ORDER and not absent:
        absent = ["order of the sections"]
    absent += [field for field in _ALWAYS if field not in dump.fields]
    under = _UNDER | _KVM_UNDER if dump.format == "kvm" else _UNDER
    if "EPTP_INDEX" in dump.fields:  # a Xen that ends the last line with the VM-function controls
        under = under | {"PROC2_ENABLE_VPID": ("VPID", "VM_FUNCTION_CONTROLS")}
    for control, fields in under.items():
        if _is_1(control, dump.fields):
            absent += [field for field in fields if field not in dump.fields]
    return absent


def _is_1(control: str, fields: Mapping[str, int]) -> bool:
    value = bind(expression(control), {**_EVERY_CONTROL_EXISTS, **fields})
    return bool(getattr(value, "value", 0))

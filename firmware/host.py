"""The VMM's own environment, and the VMCS that it makes for a guest.

Memory: the VMM's pages lie above those that the guests' CR3 point to, which matters to processors
without EPT only.

Ref: Intel SDM (325462), vol. 3C, "VMM Setup & Tear Down", "VM-Execution Control Fields".
Facts: controls.csv, registers.csv.
"""

from collections.abc import Iterable, Mapping
from itertools import count

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.structures import LIST_ENTRY_BYTES
from vmxswitch.spec.tables import CONTROL_WORDS, CONTROLS

from .environment import Environment
from .plan import PAGE_BYTES, PE_PG, fixed_bits, switch_on, vmcs_fields
from .port import Port

__all__ = [
    "HOST_MSRS", "Memory", "VmcsWriter", "host_environment", "host_registers",
    "is_on",
]

BASE = 0xE000_0000
FEATURE_CONTROL = 5                # locked, VMX outside SMX
WRITE_BACK = 6
FREE_PORT = 0x80                   # the guests may write to it: POST codes, and delays

#: What the VMM holds in MSRs that VM entries and exits leave alone.
HOST_MSRS = {"STAR": 0x0023_0008_0000_0000, "LSTAR": 0xFFFF_8000_0000_4000,
             "KERNEL_GS_BASE": 0x1000}

#: Controls that are 1 where the processor offers them, and those that each of them needs.
WANTED = {
    "PIN_EXT_INTR_EXITING": (),
    "PIN_NMI_EXITING": ("PIN_VIRTUAL_NMIS",), "PIN_VIRTUAL_NMIS": ("PIN_NMI_EXITING",),
    "PIN_ACTIVATE_PREEMPTION_TIMER": (),
    "PROC1_HLT_EXITING": (), "PROC1_USE_TSC_OFFSETTING": (), "PROC1_USE_IO_BITMAPS": (),
    "PROC1_USE_MSR_BITMAPS": (), "PROC1_PAUSE_EXITING": (), "PROC1_ACTIVATE_SECONDARY": (),
    "PROC2_ENABLE_EPT": (), "PROC2_ENABLE_VPID": (), "PROC2_ENABLE_RDTSCP": (),
    "PROC2_ENABLE_INVPCID": (), "PROC2_UNRESTRICTED_GUEST": ("PROC2_ENABLE_EPT",),
    "EXIT_ACK_INTR_ON_EXIT": (),
    "EXIT_SAVE_PREEMPTION_TIMER": ("PIN_ACTIVATE_PREEMPTION_TIMER",),
}
#: In place of what is not offered.
OTHERWISE = {
    "PROC1_USE_IO_BITMAPS": ("PROC1_UNCOND_IO_EXITING",),
    "PROC2_ENABLE_EPT": ("PROC1_CR3_LOAD_EXITING", "PROC1_CR3_STORE_EXITING",
                         "PROC1_INVLPG_EXITING"),
}


def host_environment(capabilities: Capabilities) -> Environment:
    """The VMM: 64-bit mode, or 32-bit with paging where there is no other."""
    wide = capabilities.intel64
    high = 0xFFFF_8000_0000_0000 if wide else 0xC000_0000
    flat = {"BASE": 0, "LIMIT": 0xFFFFFFFF}
    data = flat | {"SELECTOR": 0x10, "AR": 0xC093}
    segments = {
        "CS": flat | {"SELECTOR": 0x08, "AR": 0xA09B if wide else 0xC09B},
        **dict.fromkeys(("SS", "DS", "ES", "FS"), data), "GS": data | {"BASE": high + 0x9000},
        "LDTR": {"SELECTOR": 0, "BASE": 0, "LIMIT": 0, "AR": 0x10000},
        "TR": {"SELECTOR": 0x18, "BASE": high + 0x6000, "LIMIT": 0x67, "AR": 0x8B},
    }
    registers = {
        "RIP": high + 0x1000, "RSP": high + 0x8000, "RFLAGS": 2, "CR0": 0x8005_0033,
        "CR3": BASE + 0xF_F000, "CR4": 0x26A0 if wide else 0x2690, "DR7": 0x400, "DEBUGCTL": 0,
        "PAT": 0x0007_0406_0007_0406, "EFER": capabilities.efer_bits & 0xD00 if wide else 0,
        "SYSENTER_CS": 0, "SYSENTER_ESP": 0, "SYSENTER_EIP": 0,
        "GDTR_BASE": high + 0x7000, "GDTR_LIMIT": 0xFFFF, "IDTR_BASE": high + 0x5000,
        "IDTR_LIMIT": 0xFFFF, "ACTIVITY": 0, "INTERRUPTIBILITY": 0, "PENDING_DBG": 0,
        **{f"{name}_{part}": value for name, parts in segments.items()
           for part, value in parts.items()},
    }
    registers["CR4"] &= capabilities.msr("CR4_FIXED1")
    return Environment(registers, "the VMM")


def is_on(capabilities: Capabilities, fields: Mapping[str, int], control: str) -> bool:
    """Whether a VMCS has a control bit set."""
    row = CONTROLS[control]
    field = CONTROL_WORDS[row.word].field
    return field in capabilities.fields and bool(fields[field] >> row.low & 1)


class Memory:
    """The VMM's pages.

    Attributes
    ----------
    vmxon, io_bitmaps, msr_bitmaps, host_list : int
        Addresses of what there is once; the I/O bitmaps are two pages.
    """
    def __init__(self, port: Port):
        self._port = port
        self._free: list[int] = []
        self._fresh = count(BASE, PAGE_BYTES)
        self.vmxon, self.io_bitmaps, _, self.msr_bitmaps, self.host_list = (
            next(self._fresh) for _ in range(5))

    def allocate(self) -> int:
        """A page of zeros."""
        return self._free.pop() if self._free else next(self._fresh)

    def free(self, *pages: int) -> None:
        """Give pages back."""
        for page in pages:
            for address in range(page, page + PAGE_BYTES, 8):
                self._port.write_memory(address, 8, 0)
        self._free += pages

    def write_region(self, page: int) -> None:
        """Make a VMCS or VMXON region."""
        self._port.write_memory(page, 4, self._port.capabilities.revision)

    def write_list(self, page: int, entries: Mapping[int, int]) -> None:
        """Write an MSR list: values by index."""
        for number, (index, value) in enumerate(entries.items()):
            self._port.write_memory(page + LIST_ENTRY_BYTES * number, 8, index)
            self._port.write_memory(page + LIST_ENTRY_BYTES * number + 8, 8, value)

    def write_bitmaps(self, free_msrs: Iterable[int]) -> None:
        """Let every I/O instruction but those to the POST port exit, and all MSRs but some."""
        ones = (1 << 64) - 1
        for address in range(self.io_bitmaps, self.io_bitmaps + 2 * PAGE_BYTES, 8):
            self._port.write_memory(address, 8, ones)
        words = dict.fromkeys(range(self.msr_bitmaps, self.msr_bitmaps + PAGE_BYTES, 8), ones)
        for index in free_msrs:
            for kind in (0, 0x800): # reads, writes
                part = self.msr_bitmaps + kind + (0x400 if index >> 31 else 0)
                words[part + (index & 0x1FFF) // 64 * 8] &= ~(1 << index % 64)
        for address, word in words.items():
            self._port.write_memory(address, 8, word)
        self._port.write_memory(self.io_bitmaps + FREE_PORT // 64 * 8, 8,
                                ones & ~(1 << FREE_PORT % 64))


class VmcsWriter:
    """Fills the VMCSs of guests, all by the same rules.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    host : Environment
        The VMM's.
    memory : Memory
        Where bitmaps are.
    """
    def __init__(self, capabilities: Capabilities, host: Environment, memory: Memory):
        self._capabilities, self._host, self._memory = capabilities, host, memory

    def fields(self, guest: Environment, number: int, now: int, root: int) -> dict[str, int]:
        """Every field for the guest of a number, from 1, created at a time, with an EPT root.

        The guest does not see the bits that VMX operation fixes in CR0 and CR4.
        """
        capabilities, memory = self._capabilities, self._memory
        running = {**guest.registers, **fixed_bits(capabilities, guest.registers)}
        fields = vmcs_fields(capabilities, running, self._host)
        fields["HOST_RIP"] = self._host.registers["RIP"]
        for control, needs in WANTED.items():
            if all(map(capabilities.allows, (control, *needs))):
                switch_on(fields, [control])
            else:
                switch_on(fields, filter(capabilities.allows, OTHERWISE.get(control, ())))
        unrestricted = is_on(capabilities, fields, "PROC2_UNRESTRICTED_GUEST")
        present = {
            "CR0_GUEST_HOST_MASK": capabilities.msr("CR0_FIXED0") & ~(PE_PG if unrestricted else 0),
            "CR0_READ_SHADOW": guest.registers["CR0"],
            "CR4_GUEST_HOST_MASK": capabilities.msr("CR4_FIXED0"),
            "CR4_READ_SHADOW": guest.registers["CR4"],
            "IO_BITMAP_A_ADDR": memory.io_bitmaps,
            "IO_BITMAP_B_ADDR": memory.io_bitmaps + PAGE_BYTES,
            "MSR_BITMAPS_ADDR": memory.msr_bitmaps,
            "TSC_OFFSET": -now & (1 << 64) - 1,
            "VPID": number,
            "EPT_POINTER": root | (3 << 3) | WRITE_BACK,
        }
        return fields | {name: value for name, value in present.items() if name in fields}


def host_registers(capabilities: Capabilities, host: Environment) -> dict[str, int]:
    """All registers of the processor when the VMM starts."""
    start = {**host.registers, **HOST_MSRS, "IA32_FEATURE_CONTROL": FEATURE_CONTROL}
    return {name: start.get(name, 0) for name in capabilities.registers}

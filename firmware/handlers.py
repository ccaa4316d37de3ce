"""What the VMM does about VM exits: a handler for each basic exit reason.

A handler is called with the VMM, the guest and the :class:`~.exits.Exit`, while the guest's VMCS is
current. It changes the guest through the VMM and says in a :class:`Verdict` how to go on. A reason
without a handler stops the guest.

Ref: Intel SDM (325462), vol. 3C, "VM Exit Handling" and "Handling Virtualization Exceptions".
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from .exits import HARDWARE_EXCEPTION, TYPE, VALID, Exit, Reason, exception
from .guest import Alarm, Guest
from .msrs import TIME_STAMP_COUNTER

if TYPE_CHECKING:
    from .vmm import Vmm

__all__ = ["HANDLERS", "HYPERCALLS", "Handler", "Next", "Verdict"]


class Next(Enum):
    """Who runs after a VM exit."""
    RESUME = "the same guest"
    YIELD = "the next guest"
    BLOCK = "the next guest; this one when an interrupt comes for it"
    STOP = "the next guest; this one never again"


class Verdict(NamedTuple):
    """How to go on, and what was done, in a few words."""
    next: Next
    done: str


Handler = Callable[["Vmm", Guest, Exit], Verdict]

IF = 1 << 9
TS = 1 << 3
DOUBLE_FAULT, INVALID_OPCODE, GENERAL_PROTECTION, PAGE_FAULT = 8, 6, 13, 14
CONTRIBUTORY = {0, 10, 11, 12, 13}
MASK32 = 0xFFFFFFFF

#: CPUID leaf 1, ECX: a hypervisor is present. Leaf 0x40000000: its name.
CPUID = {0: (0x16, 0x756E6547, 0x6C65746E, 0x49656E69),  # GenuineIntel
         1: (0x000506E3, 0x00100800, 0x8000_2001, 0x0F8B_FBFF),
         0x4000_0000: (0x4000_0000, 0x7378_6D76, 0x6374_6977, 0x2020_2068),  # vmxswitch
         0x8000_0001: (0, 0, 1, 0x2C10_0800)}
#: MSRs that the VMM emulates, and what they hold at first.
EMULATED_MSRS = {0x1B: 0xFEE0_0900, 0x3A: 1, 0x8B: 0xF0_0000_0000, 0xFE: 0x508, 0x1A0: 1,
                 0x2FF: 0xC06, 0x6E0: 0, 0xC000_0084: 0, 0xC000_0103: 0}

TIMER_PORT, DISK_PORT = 0x40, 0x1F7
#: Interrupts of the guests' devices, as a PC has them: the timer, and the disk.
TIMER_VECTOR, DISK_VECTOR = 0x20, 0x2E
DISK_CYC = 7_000                     # from a command to the interrupt
PERIOD_UNIT_CYC = 64                 # of what is written to the timer's port


def _exception(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """An NMI is the VMM's own; an exception goes to the guest, as it would have without VMX."""
    if exit.is_nmi:
        vmm.machine.nmi = False
        return Verdict(Next.RESUME, "noted")
    event = exit.event
    if event.information & 0xFF == PAGE_FAULT:
        guest.cpu.general["CR2"] = exit.qualification
    first = exit.interrupted
    if first is not None and first.information & TYPE == HARDWARE_EXCEPTION:
        vectors = first.information & 0xFF, event.information & 0xFF
        if vectors[0] == DOUBLE_FAULT:
            return Verdict(Next.STOP, "shut down: third fault in a row")
        if _serious(*vectors):
            event = exception(DOUBLE_FAULT)
    elif first is not None and first.information & TYPE == 0:
        vmm.interrupts.post(guest, first.information & 0xFF)
    guest.injection = event
    return Verdict(Next.RESUME, "given to the guest")


def _serious(first: int, second: int) -> bool:
    """Whether two faults make a double fault (SDM vol. 3A, interrupt 8)."""
    return (second in CONTRIBUTORY and first in {*CONTRIBUTORY, PAGE_FAULT}
            or second == first == PAGE_FAULT)


def _external_interrupt(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """Give it to the guest that its device belongs to."""
    if not exit.interruption & VALID:
        return Verdict(Next.RESUME, vmm.interrupts.route(vmm.machine.acknowledge()))
    return Verdict(Next.RESUME, vmm.interrupts.route(exit.interruption & 0xFF))


def _window(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """The next entry will inject what waits."""
    return Verdict(Next.RESUME, "window open")


def _cpuid(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    leaf = guest.cpu.general["RAX"] & MASK32
    values = CPUID.get(leaf, (0, 0, 0, 0))
    guest.cpu.general |= zip(("RAX", "RBX", "RCX", "RDX"), values, strict=True)
    return _done(vmm, guest, exit, f"leaf {leaf:#x} answered")


def _hlt(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    vmm.skip(guest, exit)
    if not exit.fields["GUEST_RFLAGS"] & IF and not guest.nmi:
        return Verdict(Next.STOP, "halted for good")
    if guest.pending or guest.nmi:
        return Verdict(Next.RESUME, "an interrupt waits already")
    return Verdict(Next.BLOCK, "idle")


def _pause(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    vmm.skip(guest, exit)
    return Verdict(Next.YIELD, "next, please")


def _nothing(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """An instruction without effect on a guest whose caches and translations are its own."""
    return _done(vmm, guest, exit, "skipped")


def _rdtsc(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    _read_msr_value(guest, vmm.guest_tsc(guest))
    return _done(vmm, guest, exit, "emulated")


def _hypercall(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """VMCALL: number in RAX, argument in RBX, result in RAX."""
    name = HYPERCALLS.get(guest.cpu.general["RAX"])
    vmm.skip(guest, exit)
    guest.cpu.general["RAX"] = 0
    match name:
        case "power off":
            return Verdict(Next.STOP, "powered off")
        case "yield":
            return Verdict(Next.YIELD, "next, please")
        case "write":
            character = chr(guest.cpu.general["RBX"])
            guest.console.append(character)
            return Verdict(Next.RESUME, f"console {character!r}")
    guest.cpu.general["RAX"] = MASK32
    return Verdict(Next.RESUME, "unknown hypercall")


#: Numbers of hypercalls.
HYPERCALLS = {0: "power off", 1: "yield", 2: "write"}


def _vmx_instruction(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """The guests have no VMX of their own."""
    guest.injection = exception(INVALID_OPCODE)
    return Verdict(Next.RESUME, "#UD: no VMX in a guest")


def _control_register(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    access, general = exit.control_register, guest.cpu.general
    field, shadow = f"GUEST_CR{access.number}", f"CR{access.number}_READ_SHADOW"
    if access.number == 3:
        if access.kind == 1:
            general[access.register] = vmm.read(guest, field)
        else:
            guest.writes[field] = general[access.register]
        return _done(vmm, guest, exit, "emulated")
    if access.number not in (0, 4):
        return Verdict(Next.STOP, f"no emulation of CR{access.number}")
    seen, mask = vmm.read(guest, shadow), vmm.read(guest, f"CR{access.number}_GUEST_HOST_MASK")
    match access.kind:
        case 0:
            value = general[access.register]
        case 2:
            value = seen & ~TS
        case _:
            value = seen & ~0xE | access.source & 0xF
    real = vmm.read(guest, field)
    guest.writes |= {shadow: value, field: real & mask | value & ~mask}
    return _done(vmm, guest, exit, "emulated")


def _io(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """A timer and a disk; no device answers at other ports."""
    access, general = exit.port, guest.cpu.general
    if access.reads:
        general["RAX"] = 0
        return _done(vmm, guest, exit, "reads 0")
    if access.port == TIMER_PORT:
        period = (general["RAX"] & 0xFFFF) * PERIOD_UNIT_CYC
        vmm.interrupts.set_alarm(guest, Alarm(TIMER_VECTOR, vmm.machine.now + period, period))
        return _done(vmm, guest, exit, f"timer each {period} cycles")
    if access.port == DISK_PORT:
        vmm.interrupts.start_device(guest, DISK_VECTOR, DISK_CYC)
        return _done(vmm, guest, exit, "disk started")
    return _done(vmm, guest, exit, "ignored")


def _rdmsr(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    index = guest.cpu.general["RCX"] & MASK32
    value = vmm.guest_tsc(guest) if index == TIME_STAMP_COUNTER else vmm.msrs.read(guest, index)
    if value is None:
        value = guest.msrs.get(index, EMULATED_MSRS.get(index))
    if value is None:
        guest.injection = exception(GENERAL_PROTECTION)
        return Verdict(Next.RESUME, f"MSR {index:#x}: #GP")
    _read_msr_value(guest, value)
    return _done(vmm, guest, exit, f"MSR {index:#x} emulated")


def _wrmsr(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    general = guest.cpu.general
    index, value = general["RCX"] & MASK32, general["RDX"] << 32 | general["RAX"] & MASK32
    if not vmm.msrs.write(guest, index, value):
        if index not in EMULATED_MSRS:
            guest.injection = exception(GENERAL_PROTECTION)
            return Verdict(Next.RESUME, f"MSR {index:#x}: #GP")
        guest.msrs[index] = value
    return _done(vmm, guest, exit, f"MSR {index:#x} emulated")


def _read_msr_value(guest: Guest, value: int) -> None:
    guest.cpu.general |= {"RAX": value & MASK32, "RDX": value >> 32}


def _ept_violation(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    """Give the guest the page; it then tries again."""
    address = vmm.read(guest, "GUEST_PHYSICAL_ADDRESS")
    guest.cpu.nested.add(address & ~0xFFF)
    return Verdict(Next.RESUME, f"page {address >> 12:#x} mapped")


def _timer(vmm: "Vmm", guest: Guest, exit: Exit) -> Verdict:
    if vmm.slice_over:
        return Verdict(Next.YIELD, "time slice over")
    return Verdict(Next.RESUME, "alarm")


def _stop(why: str) -> Handler:
    return lambda vmm, guest, exit: Verdict(Next.STOP, why)


def _done(vmm: "Vmm", guest: Guest, exit: Exit, words: str) -> Verdict:
    """The VMM has done what the instruction asks for."""
    vmm.skip(guest, exit)
    return Verdict(Next.RESUME, words)


#: The handler of each reason; a VMM takes them unless it is given others.
HANDLERS: Mapping[Reason, Handler] = {
    Reason.EXCEPTION_NMI: _exception,
    Reason.EXTERNAL_INTERRUPT: _external_interrupt,
    Reason.TRIPLE_FAULT: _stop("shut down"),
    Reason.INTERRUPT_WINDOW: _window,
    Reason.NMI_WINDOW: _window,
    Reason.CPUID: _cpuid,
    Reason.HLT: _hlt,
    **dict.fromkeys((Reason.INVD, Reason.INVLPG, Reason.WBINVD, Reason.INVPCID, Reason.MONITOR,
                     Reason.MWAIT, Reason.XSETBV), _nothing),
    Reason.RDTSC: _rdtsc,
    Reason.RDTSCP: _rdtsc,
    Reason.VMCALL: _hypercall,
    **dict.fromkeys((Reason.VMCLEAR, Reason.VMLAUNCH, Reason.VMPTRLD, Reason.VMPTRST,
                     Reason.VMREAD, Reason.VMRESUME, Reason.VMWRITE, Reason.VMXOFF, Reason.VMXON,
                     Reason.INVEPT, Reason.INVVPID, Reason.VMFUNC), _vmx_instruction),
    Reason.CR_ACCESS: _control_register,
    Reason.IO_INSTRUCTION: _io,
    Reason.RDMSR: _rdmsr,
    Reason.WRMSR: _wrmsr,
    Reason.PAUSE: _pause,
    Reason.EPT_VIOLATION: _ept_violation,
    Reason.PREEMPTION_TIMER: _timer,
}

"""Programs for guests: lives of operating systems, and of what runs before and below them.

Each reads like a small history of the system: see :mod:`~vmxswitch.firmware.program` for the words.
"""

from random import Random

from .environment import Environment
from .handlers import DISK_PORT, DISK_VECTOR, TIMER_PORT, TIMER_VECTOR
from .program import (
    EFER,
    KERNEL_GS_BASE,
    LME,
    LSTAR,
    PAGE_FAULT,
    STAR,
    SYSENTER_CS,
    SYSENTER_EIP,
    SYSENTER_ESP,
    VM,
    Change,
    Cpu,
    Work,
)

__all__ = ["PROGRAMS", "default_program"]

NMI_VECTOR, INVALID_OPCODE = 2, 6
STATUS_FLAGS = 0x8D5  # OF, SF, ZF, AF, PF, CF


# --- Handlers, behind gates ---

def tick(cpu: Cpu):
    """The timer interrupt: bookkeeping, and the end-of-interrupt command."""
    yield Work(120)
    yield from cpu.out(0x20, 0x20)


def watchdog(cpu: Cpu):
    """The NMI of the watchdog: is there progress?"""
    yield Work(40)


def disk_done(cpu: Cpu):
    """The disk interrupt: fetch the status, wake who waits."""
    yield from cpu.inp(DISK_PORT)
    yield Work(200)


def page_fault(cpu: Cpu):
    """The page-fault handler: find a page, enter it in the page tables."""
    yield Work(350)
    cpu.pages.add(cpu.general["CR2"])


def oops(cpu: Cpu):
    """An exception in the kernel: say so, go on behind it."""
    yield from say(cpu, "?")
    frame = cpu.frames[-1]
    frame.saved["RIP"] = frame.saved["RIP"] + 3 & cpu.mask


def say(cpu: Cpu, text: str):
    """Write to the VMM's console."""
    for character in text:
        yield from cpu.vmcall(2, ord(character))


# --- Systems ---

def kernel(cpu: Cpu):
    """An operating system: boot, then processes with system calls, page faults, disk and sleep."""
    cpu.gates |= {TIMER_VECTOR: tick, DISK_VECTOR: disk_done, PAGE_FAULT: page_fault,
                  INVALID_OPCODE: oops}
    cpu.timers[TIMER_VECTOR] = 16_384
    yield from boot_kernel(cpu)
    process = 0
    while True:
        process += 1
        yield from switch_to(cpu, process)
        yield from run_process(cpu, process)
        yield from cpu.sti()
        yield from cpu.hlt()  # idle until the timer, or the disk, has something


def boot_kernel(cpu: Cpu):
    """Look at the processor, say where system calls go, start the timer."""
    yield from cpu.cpuid(1)
    base = cpu.registers["RIP"] & ~0xFFFFF
    if cpu.long_mode and "LSTAR" in cpu.registers:
        yield from cpu.wrmsr(STAR, 0x0023_0010_0000_0000)
        yield from cpu.wrmsr(LSTAR, base + 0x40)
        yield from cpu.wrmsr(KERNEL_GS_BASE, 0)
    yield from cpu.wrmsr(SYSENTER_CS, 0x60)
    yield from cpu.wrmsr(SYSENTER_ESP, cpu.registers["RSP"] & ~0xFFF)
    yield from cpu.wrmsr(SYSENTER_EIP, base + 0x80 & cpu.mask)
    yield from cpu.out(TIMER_PORT, 0x100)
    yield Work(2_000)


def switch_to(cpu: Cpu, process: int):
    """The context switch: another address space, other thread-local storage."""
    space = cpu.registers["CR3"] & ~0xFFFF | (process % 16) << 12
    yield from cpu.mov_to_cr(3, space)
    if cpu.long_mode:
        yield from cpu.set(FS_BASE=0x7F00_0000_0000 + (process << 20))
        if "KERNEL_GS_BASE" in cpu.registers:
            yield from cpu.set(KERNEL_GS_BASE=process << 16)
    elif cpu.nested is not None and cpu.registers["CR4"] >> 5 & 1:
        yield from cpu.set(**{f"PDPTE{n}": space + 0x1000 * (n + 1) | 1 for n in range(4)})


def run_process(cpu: Cpu, process: int):
    """A process: compute, ask the kernel for something, touch memory that is not there yet."""
    stack, text = cpu.registers["RSP"], 0x40_0000 + (process << 12)
    yield from cpu.system_return(text, 0x7FFF_F000)
    yield Work(1_500 + process * 370 % 1_000)
    yield from cpu.touch(0x1000_0000 + (process << 12))
    yield from cpu.system_call()
    yield from cpu.set(RSP=stack)
    yield Work(400)
    if process % 3 == 0:
        yield from cpu.out(DISK_PORT, 0x20)
    yield from cpu.system_return(text + 0x20, 0x7FFF_EF00)
    yield Work(900)
    yield from cpu.system_call()
    yield from cpu.set(RSP=stack)


def firmware(cpu: Cpu):
    """A boot loader or firmware at its prompt: poll the keyboard, wait for the next tick."""
    cpu.gates |= {TIMER_VECTOR: tick}
    cpu.timers[TIMER_VECTOR] = 20_000
    yield from cpu.cpuid(0)
    line = 0
    while True:
        while (yield from cpu.inp(0x64)):  # is a key there?
            yield Work(50)
        line += 1
        yield from cpu.set(RSP=cpu.registers["RSP"] ^ 0x40)
        yield Work(600)
        yield from cpu.out(0x80, line & 0xFF)  # POST code: this port does not exit
        yield from cpu.sti()
        yield from cpu.hlt()


def hypervisor(cpu: Cpu):
    """A hypervisor that finds itself in a guest: it looks for VMX, fails, and goes on without.

    It has halted with interrupts off, so that only the NMI of its watchdog wakes it.
    """
    cpu.gates |= {TIMER_VECTOR: tick, NMI_VECTOR: watchdog, INVALID_OPCODE: oops}
    cpu.timers |= {TIMER_VECTOR: 32_768, NMI_VECTOR: 22_000}
    features = yield from cpu.mov_from_cr(4)
    yield from cpu.cpuid(0x4000_0000)
    yield from cpu.mov_to_cr(4, features | 1 << 13)  # CR4.VMXE, which the VMM owns
    yield from cpu.vmx("VMXON", pointer=0x1000)
    yield from say(cpu, "no VMX")
    while True:
        yield Work(3_000)
        yield from cpu.clts()
        yield from cpu.pause()
        yield from cpu.sti()
        yield from cpu.hlt()


def boot(cpu: Cpu):
    """From the reset vector to 64-bit mode, where the processor has it; then a kernel."""
    code = {"BASE": 0, "LIMIT": 0xFFFFFFFF}

    def segment(name, selector, access_rights):
        parts = {**code, "SELECTOR": selector, "AR": access_rights}
        return {f"{name}_{part}": value for part, value in parts.items()}

    yield from cpu.out(0x80, 1)
    yield from cpu.set(RIP=0xE05B, CS_SELECTOR=0xF000, CS_BASE=0xF0000)  # the first far jump
    yield from cpu.cli()
    yield from cpu.set(GDTR_BASE=0x7000, GDTR_LIMIT=0x2F)
    value = yield from cpu.mov_from_cr(0)
    yield from cpu.mov_to_cr(0, value & ~0x6000_0000 | 1)                # protected mode
    flat = {}
    for name in ("DS", "ES", "SS", "FS", "GS"):
        flat |= segment(name, 0x10, 0xC093)
    yield Change({"RIP": 0x10_0000, **segment("CS", 8, 0xC09B), **flat})
    yield Work(500)
    yield from cpu.mov_to_cr(4, 0x20)                                     # PAE
    yield from cpu.mov_to_cr(3, 0x1000)
    wide = "EFER" in cpu.registers
    if wide:
        yield from cpu.wrmsr(EFER, LME)
    value = yield from cpu.mov_from_cr(0)
    yield from cpu.mov_to_cr(0, value | 1 << 31)                          # paging
    if wide:
        yield Change({"RIP": 0x10_1000, **segment("CS", 0x18, 0xA09B)})
    yield Change({**segment("TR", 0x20, 0x8B), "TR_LIMIT": 0x67, "TR_BASE": 0x6000,
                  "LDTR_AR": 0x1_0000, "RSP": 0x9_0000, "IDTR_BASE": 0x5000})
    yield from kernel(cpu)


def process(cpu: Cpu):
    """A program in user mode, whose kernel shows only when the timer interrupts."""
    cpu.gates |= {TIMER_VECTOR: tick, PAGE_FAULT: page_fault}
    cpu.timers[TIMER_VECTOR] = 16_384
    page = 0
    while True:
        page += 1
        yield Work(2_500)
        yield from cpu.touch(0x2000_0000 + (page << 12))
        yield from cpu.cpuid(0x8000_0001)
        yield from cpu.set(RSP=cpu.registers["RSP"] & ~0xFF0 | page << 4 & 0xFF0)


def busy(cpu: Cpu):
    """Change every register that may change at any time, without end and without a pattern."""
    cpu.gates |= {TIMER_VECTOR: tick}
    cpu.timers[TIMER_VECTOR] = 16_384
    random = Random(cpu.number)
    while True:
        yield Change(anything(cpu, random))
        yield Work(random.randrange(4_000))
        yield from random.choice((cpu.cpuid(0), cpu.pause(), cpu.mov_from_cr(0), cpu.rdmsr(0x1B)))


def anything(cpu: Cpu, random: Random) -> dict[str, int]:
    """Random values for registers, all of which a VM entry accepts."""
    registers = cpu.registers
    addresses = ["RSP", "SYSENTER_ESP", "SYSENTER_EIP", "GDTR_BASE", "IDTR_BASE", "TR_BASE",
                 "LSTAR", "KERNEL_GS_BASE"]
    if not registers["RFLAGS"] & VM:
        addresses += ["FS_BASE", "GS_BASE"]
    chosen = {name: random.getrandbits(47) & cpu.mask for name in addresses} | {
        "RFLAGS": registers["RFLAGS"] & ~STATUS_FLAGS | random.getrandbits(12) & STATUS_FLAGS,
        "CR3": random.getrandbits(19) << 12,
        "DR7": random.getrandbits(16) << 16 | random.getrandbits(8) | 0x400,
        "DEBUGCTL": random.getrandbits(2),
        "PAT": sum(random.choice((0, 1, 4, 5, 6, 7)) << 8 * entry for entry in range(8)),
        "EFER": registers.get("EFER", 0) ^ random.choice((0, 1, 0x800, 0x801)),
        "SYSENTER_CS": random.getrandbits(32), "STAR": random.getrandbits(63),
        "GDTR_LIMIT": random.getrandbits(16), "IDTR_LIMIT": random.getrandbits(16)}
    if cpu.nested is not None:
        chosen |= {f"PDPTE{n}": random.getrandbits(20) << 12 | 1 for n in range(4)}
    return {name: value for name, value in chosen.items() if name in registers}


def crash(cpu: Cpu):
    """A short life: a fault in the fault handler of the fault handler."""
    cpu.timers[NMI_VECTOR] = 10_000  # it begins even if it has halted
    yield Work(1_000)
    yield from cpu.triple_fault()


#: Programs by name.
PROGRAMS = {program.__name__: program
            for program in (kernel, firmware, hypervisor, boot, process, busy, crash)}
#: Program for an environment whose source begins like this.
BY_SOURCE = {"xen": hypervisor, **dict.fromkeys(
    ("grub", "ipxe", "memtest86+", "ovmf", "seabios", "systemd-boot", "u-boot"), firmware)}


def default_program(environment: Environment):
    """The program that suits an environment."""
    if environment.mode == "real":
        return boot if environment.registers["CS_BASE"] >> 16 == 0xFFFF else firmware
    if environment.cpl == 3:
        return process
    return next((program for name, program in BY_SOURCE.items()
                 if environment.source.startswith(name)), kernel)

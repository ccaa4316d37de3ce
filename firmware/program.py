"""What a guest's program does, and the logical processor that it does it on.

A program is a function of a :class:`Cpu` that returns a generator: a life of an operating system,
told as what the unit sees of it. It yields operations, mostly through the methods of :class:`Cpu`
(``yield from cpu.cpuid(1)``), and is sent what the operation reads, or None if the guest exited.
What it does before its first ``yield`` is how its world was before it begins: gates and timers.

A handler is such a function too: ``cpu.gates[14] = page_fault`` puts it behind a vector. It runs
between two operations of what it interrupts and ends with an IRET of its own.

Memory is not simulated: an address that the processor would take from it (the code behind a gate,
the stack of another privilege level) is made up from registers.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from vmxswitch.spec.operations import Delivery, Event, Instruction

from .exits import GENERAL, Reason, exception

__all__ = ["Change", "Cpu", "Frame", "Operation", "Program", "Work", "kernel_segments"]

IF, VM = 1 << 9, 1 << 17                  # RFLAGS
PE, TS, PG = 1 << 0, 1 << 3, 1 << 31      # CR0
LME, LMA = 1 << 8, 1 << 10                # EFER
STI_BLOCKING = 1
HALTED = 1                                # activity state
STAR, LSTAR, EFER, KERNEL_GS_BASE = 0xC0000081, 0xC0000082, 0xC0000080, 0xC0000102
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
PAGE_FAULT = 14
ACCESS_WRITE, LINEAR_VALID = 2, 0x180     # EPT-violation qualification


@dataclass(frozen=True)
class Work:
    """Compute for so many clock cycles, without anything that the unit would see."""
    cycles: int


@dataclass(frozen=True)
class Change:
    """Change registers, as one of the guest's own instructions does."""
    registers: Mapping[str, int]


#: A :class:`Delivery` is an INT n: it goes through the IDT without leaving the guest.
Operation = Work | Change | Event | Instruction | Delivery
Program = Callable[["Cpu"], Generator[Operation, int | None, None]]


@dataclass
class Frame:
    """A program in execution, and what it interrupted.

    ``saved`` are the registers that IRET restores, ``general`` those that a handler saves and
    restores itself, ``operation`` what comes next if it is known already, ``result`` what the
    program is then sent, ``work`` the cycles left of a :class:`Work`.
    """
    program: Generator[Operation, int | None, None]
    saved: dict[str, int] = field(default_factory=dict)
    general: Mapping[str, int] = field(default_factory=dict)
    operation: Operation | None = None
    result: int | None = None
    work: int = 0


@dataclass
class Cpu:
    """The logical processor of one guest, with one method for each instruction of its programs.

    The methods are generators of operations. They raise RIP where the instruction does not do so
    itself and has not exited; if it has, that is the VMM's affair.

    Attributes
    ----------
    number : int
        The guest's.
    registers : dict of str to int
        The environment as the guest knows it.
    msrs : mapping of int to str
        Registers among them by MSR index.
    general : dict of str to int
        General registers and CR2; software switches them, not VMX.
    gates : dict of int to Program
        Handlers by vector. A vector without one is ignored.
    pages : set of int
        Linear pages that the guest's own page tables map, of those that programs touch.
    nested : set of int, optional
        Guest-physical pages that the VMM's EPT maps; None without EPT.
    timers : dict of int to int
        Interrupts that come periodically from the start: period in cycles by vector, 2 for NMIs.
    kernel_stack : int
        RSP of the last stay at CPL 0.
    """
    number: int
    registers: dict[str, int]
    msrs: Mapping[int, str]
    nested: set[int] | None
    general: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*GENERAL, "CR2"), 0))
    gates: dict[int, Program] = field(default_factory=dict)
    pages: set[int] = field(default_factory=set)
    timers: dict[int, int] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    kernel_stack: int = 0

    def start(self, program: Program) -> None:
        """Let the processor run a program, from its first operation."""
        generator = program(self)
        self.kernel_stack = self.registers["TR_BASE"]
        self.frames = [Frame(generator, operation=next(generator, None))]

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.registers["SS_AR"] >> 5 & 3 if self.registers["CR0"] & PE else 0

    @property
    def long_mode(self) -> bool:
        """EFER.LMA."""
        return bool(self.registers.get("EFER", 0) & LMA)

    @property
    def mask(self) -> int:
        """Of an address in the present mode."""
        wide = self.long_mode and self.registers["CS_AR"] >> 13 & 1
        return (1 << (64 if wide else 32)) - 1

    # --- Instructions that may exit ---

    def cpuid(self, leaf: int):
        """CPUID; returns EAX."""
        self.general["RAX"] = leaf
        yield Event(Reason.CPUID, length=2)
        return self.general["RAX"]

    def hlt(self):
        """HLT: until an interrupt comes."""
        if (yield Event(Reason.HLT, length=1)) is not None:
            yield Change({"ACTIVITY": HALTED})

    def pause(self):
        """PAUSE."""
        yield Event(Reason.PAUSE, length=2)

    def out(self, port: int, value: int, size: int = 1):
        """OUT to a port of 16 bits."""
        self.general |= {"RDX": port, "RAX": value}
        yield Event(Reason.IO_INSTRUCTION, size - 1 | port << 16, length=1)

    def inp(self, port: int, size: int = 1):
        """IN from a port; returns what it reads, 0 if no device answers."""
        self.general |= {"RDX": port, "RAX": 0}
        yield Event(Reason.IO_INSTRUCTION, size - 1 | 8 | port << 16, length=1)
        return self.general["RAX"]

    def rdmsr(self, index: int):
        """RDMSR."""
        self.general["RCX"] = index
        held = self.registers[self.msrs[index]] if index in self.msrs else 0
        value = yield Event(Reason.RDMSR, length=2, number=index, value=held)
        if value is None:
            value = self.general["RDX"] << 32 | self.general["RAX"]
        return value

    def wrmsr(self, index: int, value: int):
        """WRMSR."""
        self.general |= {"RCX": index, "RAX": value & 0xFFFFFFFF, "RDX": value >> 32}
        if (yield Event(Reason.WRMSR, length=2, number=index)) is not None and index in self.msrs:
            yield Change({self.msrs[index]: value})

    def mov_to_cr(self, number: int, value: int):
        """MOV to CR0, CR3 or CR4, from RAX. Paging switched on with EFER.LME makes EFER.LMA 1."""
        self.general["RAX"] = value
        loaded = yield Event(Reason.CR_ACCESS, number, length=3, value=value)
        if loaded is None:
            return
        changes = {f"CR{number}": loaded}
        efer = self.registers.get("EFER", 0)
        if number == 0 and efer & LME:
            changes["EFER"] = efer & ~LMA | (LMA if loaded & PG else 0)
        yield Change(changes)

    def mov_from_cr(self, number: int):
        """MOV from CR0, CR3 or CR4, to RAX."""
        value = yield Event(Reason.CR_ACCESS, number | 1 << 4, length=3)
        return self.general["RAX"] if value is None else value

    def clts(self):
        """CLTS."""
        value = yield Event(Reason.CR_ACCESS, 2 << 4, length=2)
        if value is not None:
            yield Change({"CR0": value})

    def vmx(self, name: str, **operands):
        """A VMX instruction."""
        yield Instruction(name, **operands)

    def vmcall(self, number: int, argument: int = 0):
        """VMCALL with the number of a hypercall in RAX and its argument in RBX."""
        self.general |= {"RAX": number, "RBX": argument}
        yield Instruction("VMCALL")
        return self.general["RAX"]

    def touch(self, linear: int):
        """Write to a page: through page faults and EPT violations, until it is there."""
        page = linear & self.mask & ~0xFFF
        while page not in self.pages:
            fault = exception(PAGE_FAULT, 2 | (4 if self.cpl == 3 else 0))
            yield Event(Reason.EXCEPTION_NMI, page, interruption=fault.information,
                        error_code=fault.error_code)
        physical = page & 0x3FFFF000
        while self.nested is not None and physical not in self.nested:
            yield Event(Reason.EPT_VIOLATION, ACCESS_WRITE | LINEAR_VALID, linear_address=linear,
                        physical_address=physical)

    def raise_exception(self, vector: int, error_code: int = 0):
        """Do something that ends in an exception."""
        fault = exception(vector, error_code)
        yield Event(Reason.EXCEPTION_NMI, interruption=fault.information,
                    error_code=fault.error_code)

    def triple_fault(self):
        """Lose the IDT and everything with it."""
        yield Event(Reason.TRIPLE_FAULT)

    # --- Instructions that are the guest's own affair ---

    def set(self, **registers: int):
        """An instruction, two bytes long, that changes registers."""
        rip = self.registers["RIP"] + 2 & self.mask
        yield Change({"RIP": rip, **registers})

    def sti(self):
        """STI: interrupts, but not before the next instruction has been executed."""
        flags = self.registers["RFLAGS"]
        blocking = {} if flags & IF else {
            "INTERRUPTIBILITY": self.registers["INTERRUPTIBILITY"] | STI_BLOCKING}
        yield from self.set(RFLAGS=flags | IF, **blocking)

    def cli(self):
        """CLI."""
        yield from self.set(RFLAGS=self.registers["RFLAGS"] & ~IF)

    def int_n(self, vector: int):
        """INT n."""
        yield Delivery(1 << 31 | 4 << 8 | vector, length=2)

    def swapgs(self):
        """SWAPGS."""
        yield from self.set(GS_BASE=self.registers["KERNEL_GS_BASE"],
                            KERNEL_GS_BASE=self.registers["GS_BASE"])

    def system_call(self):
        """SYSCALL in IA-32e mode where IA32_LSTAR says where to, else SYSENTER."""
        registers = self.registers
        self.general |= {"RCX": registers["RIP"] + 2, "R11": registers["RFLAGS"]}
        if self.long_mode and registers.get("LSTAR"):
            selector, rip, rsp = registers["STAR"] >> 32, registers["LSTAR"], registers["RSP"]
        else:
            self.general["RDX"] = registers["RSP"]
            selector, rip, rsp = (registers[f"SYSENTER_{name}"] for name in ("CS", "EIP", "ESP"))
        yield Change({"RIP": rip, "RSP": rsp, "RFLAGS": registers["RFLAGS"] & ~(IF | VM),
                      **kernel_segments(selector, self.long_mode)})

    def system_return(self, rip: int, rsp: int):
        """SYSRET or SYSEXIT to user code, with interrupts on."""
        registers = self.registers
        self.kernel_stack = registers["RSP"]
        flags = registers["RFLAGS"] | IF
        if self.long_mode and registers.get("LSTAR"):
            selector = (registers["STAR"] >> 48) + 8
            segments = _flat("SS", selector, 0xC0F3) | _flat("CS", selector + 8, 0xA0FB)
        else:
            selector = (registers["SYSENTER_CS"] & 0xFFFC) + 16
            code = 0xA0FB if self.long_mode else 0xC0FB
            selector += 16 if self.long_mode else 0
            segments = _flat("CS", selector, code) | _flat("SS", selector + 8, 0xC0F3)
        yield Change({"RIP": rip, "RSP": rsp, "RFLAGS": flags, **segments})


def _flat(segment: str, selector: int, access_rights: int) -> dict[str, int]:
    """A segment from 0 over everything; the selector gets the RPL that its DPL demands."""
    return {f"{segment}_SELECTOR": selector & 0xFFFC | access_rights >> 5 & 3,
            f"{segment}_BASE": 0, f"{segment}_LIMIT": 0xFFFFFFFF, f"{segment}_AR": access_rights}


def kernel_segments(selector: int, long_mode: bool) -> dict[str, int]:
    """CS and SS at CPL 0 as system calls load them."""
    return (_flat("CS", selector, 0xA09B if long_mode else 0xC09B)
            | _flat("SS", (selector & 0xFFFC) + 8, 0xC093))

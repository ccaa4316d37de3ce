"""Makes up programs that stay near the places where something is decided.

A program begins with VMCSs that pass every check, changes little at a time, with values from both
sides of a check's bounds (:mod:`vmxswitch.sim.row_cases`), and looks at the model's mode before
each step, so most entries come to their checks and many guests run. A program follows from seed and
number alone.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import NO_VMCS, Boundary, Event, Instruction, Mode, Outcome
from vmxswitch.spec.region import SHADOW_BIT, field_offsets
from vmxswitch.spec.structures import LIST_ENTRY_BYTES, VTPR_OFFSET
from vmxswitch.spec.tables import (
    CONTROL_WORDS,
    CONTROLS,
    EVENT_EXITS,
    FIELD_BY_ENCODING,
    FIELDS,
    INSTRUCTIONS,
    Control,
)

from ..memory import Fault
from ..model import Model
from ..observation import MemoryFault, MemoryWrite, RegisterWrites, Timing
from ..processor import CR4_PCIDE, EFER_LMA, EFER_LME
from ..row_cases import VMCS_POINTER, VMXON_POINTER, RowPair, Subject
from .events import guest_events
from .program import FieldWrites, Region, Step, is_64_bit, revision, vmwrites

__all__ = ["Author", "pairs_of"]

#: Regions beside those of the row cases, and the words beside the VMCS that baselines point to.
POINTERS = (VMCS_POINTER, 0x22_0000, 0x22_1000, 0x22_2000)
SHADOW_POINTER = 0x22_3000
LIST_ADDRESS, READ_BITMAP, WRITE_BITMAP, EPTP_LIST, PDPT, STORE_LIST, LOAD_LIST = (
    0x23_0000, 0x23_1000, 0x23_2000, 0x23_3000, 0x23_4000, 0x23_5000, 0x23_6000)
IO_A, IO_B, MSR_BITMAPS, VIRTUAL_APIC = 0x23_7000, 0x23_8000, 0x23_9000, 0x23_A000
MOST_ACTIONS = 50
#: Registers that decide whether an instruction is allowed.
DECIDING = ("CR0", "CR4", "EFER", "RFLAGS", "CS_AR", "SS_AR", "IA32_FEATURE_CONTROL")
ODD = 0.04               # share of instructions with an odd circumstance of each kind
VALID = 1 << 31          # of VM_ENTRY_INTR_INFO
#: Events that an entry may inject: information, error code, instruction length.
INJECTIONS = (
    (0x20, 0, 0), (0x202, 0, 0), (0x306, 0, 0), (0xB0D, 0x18, 0), (0x480, 0, 2), (0x501, 0, 1),
    (0x603, 0, 1))
SECONDARY = "PROC1_ACTIVATE_SECONDARY"
#: Control bits that an entry accepts together, whatever else is set.
INTERCEPTS = (
    ("PIN_EXT_INTR_EXITING",), ("PIN_EXT_INTR_EXITING", "EXIT_ACK_INTR_ON_EXIT"),
    ("PIN_NMI_EXITING",), ("PIN_NMI_EXITING", "PIN_VIRTUAL_NMIS"),
    ("PIN_NMI_EXITING", "PIN_VIRTUAL_NMIS", "PROC1_NMI_WINDOW_EXITING"),
    ("PIN_ACTIVATE_PREEMPTION_TIMER",),
    ("PIN_ACTIVATE_PREEMPTION_TIMER", "EXIT_SAVE_PREEMPTION_TIMER"),
    *((f"PROC1_{name}",) for name in (
        "INTR_WINDOW_EXITING", "USE_TSC_OFFSETTING", "HLT_EXITING", "INVLPG_EXITING",
        "MWAIT_EXITING", "RDPMC_EXITING", "RDTSC_EXITING", "CR8_LOAD_EXITING",
        "CR8_STORE_EXITING", "MOV_DR_EXITING", "UNCOND_IO_EXITING", "USE_IO_BITMAPS",
        "MONITOR_TRAP_FLAG", "USE_MSR_BITMAPS", "MONITOR_EXITING", "PAUSE_EXITING")),
    *((SECONDARY, f"PROC2_{name}") for name in (
        "DESCRIPTOR_TABLE_EXITING", "ENABLE_RDTSCP", "WBINVD_EXITING", "PAUSE_LOOP_EXITING",
        "RDRAND_EXITING", "ENABLE_INVPCID", "RDSEED_EXITING", "ENABLE_XSAVES_XRSTORS",
        "ENCLS_EXITING", "USE_TSC_SCALING", "ENABLE_USER_WAIT_PAUSE")),
    (SECONDARY, "PROC1_USE_TPR_SHADOW", "PROC2_VIRTUALIZE_APIC_ACCESSES"),
    (SECONDARY, "PROC1_USE_TSC_OFFSETTING", "PROC2_USE_TSC_SCALING"),
)
#: Guest state that the delivery of an event ends.
ENDED_BY_DELIVERY = (
    ("GUEST_INTERRUPTIBILITY_STATE", 1), ("GUEST_INTERRUPTIBILITY_STATE", 2),
    ("GUEST_PENDING_DBG_EXCEPTIONS", 1))
LMA_AND_LME = EFER_LMA | EFER_LME
GOOD_PAT, BAD_PAT = 0x0007_0406_0007_0406, 0x0002_0406_0007_0406


class Author:
    """Makes up one program.

    Parameters
    ----------
    subject : Subject
        The processor; its environment is where the program begins.
    pairs : callable
        For a check row, its pairs of a failing and a passing VMCS: the same ones for every program.
    model : Model
        Runs the program while it is made; only looked at.
    seed : int
    number : int
        The first programs are about one row each, in table order.

    Attributes
    ----------
    timing : Timing
        To run the program with.
    neighbours : list of str
        Check rows whose nearest passing VMCS was entered right after the one that fails them alone.
    """

    def __init__(
        self, subject: Subject, pairs: Callable[[str], Sequence[RowPair]], model: Model, seed: int,
        number: int,
    ):
        self._subject, self._pairs, self._model = subject, pairs, model
        self._capabilities = capabilities = subject.capabilities
        self._number = number
        self._random = random.Random(f"{seed}:{number}")
        self._rows = tuple(capabilities.checks)
        self._encodings = sorted(capabilities.encodings)
        self._controls = _free_controls(capabilities)
        self._intercepts = [group for group in INTERCEPTS if all(map(capabilities.allows, group))]
        self._vmcs: dict[int, dict[str, int]] = {}  # by pointer: fields as last written
        self._baseline: dict[int, str] = {}         # by pointer: the one it was made from
        self._faults: set[int] = set()              # words of memory that fail
        #: By mode: operations and the words that they needed.
        self._needed: dict[Mode, dict[Step, list[int]]] = {mode: {} for mode in Mode}
        self._failed = False                        # the last VM entry
        environments = [*subject.environments().values()]
        environment = environments[-1 if self._random.random() < 0.1 else 0]
        self._usual = {name: value for name, value in environment.items() if name in DECIDING}
        self.neighbours: list[str] = []
        self.timing = self._timing()

    def _timing(self):
        choose = self._random.choice
        return Timing(choose((False, True)), choose((0, 0, 0, 0, 1, 3)), choose((0, 0, 0, 1, 3)))

    # --- The program ---

    def script(self):
        """The program; see :data:`~.differential.Script`."""
        steps, answer = self._steps(), None
        with suppress(StopIteration):
            while True:
                step, mode = steps.send(answer), self._model.mode
                answer = yield step
                self._learn(step, mode, answer)

    def _learn(self, step, mode, answer):
        if isinstance(step, Instruction | Event | Boundary) and self._model.transfers:
            self._needed[mode][step] = self._model.transfers
        match step:
            case Instruction(name="VMPTRLD") if answer.outcome is Outcome.SUCCEED:
                self._vmcs.setdefault(
                    step.pointer, dict.fromkeys(self._capabilities.fields, 0))

    def _steps(self):
        chance = self._random.random
        if self._number < len(self._rows):
            yield from self._row(self._rows[self._number], first=True)
        elif chance() < 0.3:
            yield from self._row(self._random.choice(self._rows))
        else:
            yield from self._environment(self._usual)
        for _ in range(self._random.randint(1, MOST_ACTIONS)):
            if self._random.random() < 0.5:
                yield from self._mend()
            match self._model.mode:
                case Mode.OFF:
                    yield from self._outside()
                case Mode.ROOT:
                    yield from self._choose(self._ROOT)
                case Mode.NON_ROOT:
                    yield from self._choose(self._GUEST)
                case Mode.ABORT:
                    yield from self._any()
                    return
        yield from self._finish()

    def _choose(self, actions):
        action, = self._random.choices([*actions], [*actions.values()])
        yield from action(self)

    def _row(self, row, *, first=False):
        """A VMCS that fails a row alone, and its neighbour that passes."""
        pairs = self._pairs(row)
        if not pairs:
            return
        pair = pairs[0] if first else self._random.choice(pairs)
        fails, passes = pair.fails, pair.passes
        yield MemoryWrite(VMXON_POINTER, 4, self._revision)
        yield from self._do("VMXON", pointer=VMXON_POINTER)
        yield from self._words(fails.memory)
        if self._random.random() < 0.1:
            yield MemoryWrite(VMCS_POINTER, 4, self._revision)
            yield from self._do("VMCLEAR", pointer=VMCS_POINTER)
            yield from self._do("VMPTRLD", pointer=VMCS_POINTER)
            yield from self._environment(self._subject.writing_environment())
            yield FieldWrites(fails.baseline, fails.writes)
            self._know(VMCS_POINTER, fails.baseline, fails.writes)
        else:
            yield from self._region(VMCS_POINTER, fails.baseline, fails.writes)
            yield from self._do("VMPTRLD", pointer=VMCS_POINTER)
        environment = self._subject.environment
        yield from self._environment({**environment, **dict(fails.registers)})
        failed = yield from self._enter()
        yield from self._words(passes.memory)
        yield from self._environment(self._subject.writing_environment())
        baseline = self._subject.baselines[passes.baseline]
        wanted, there = dict(passes.writes), dict(fails.writes)
        for field in sorted(wanted.keys() | there.keys()):
            value = wanted.get(field, baseline[field])
            if value != self._vmcs[VMCS_POINTER][field]:
                yield from self._write(field, value)
        yield from self._environment({**environment, **dict(passes.registers)})
        entered = yield from self._enter()
        if failed.failing == (row,) and entered.outcome is Outcome.ENTERED:
            self.neighbours.append(row)

    def _finish(self):
        """Show what the unit holds: pointer and launch state in answers, the fields in memory."""
        yield from self._mend()
        if self._model.mode == Mode.ROOT:
            yield from self._environment(self._usual)
            yield from self._probe()
        if self._model.mode == Mode.NON_ROOT:
            yield from self._do("VMCALL")
        if self._model.mode == Mode.ABORT:
            return
        yield from self._environment(self._usual)
        if self._model.mode == Mode.ROOT and self._current is not None:
            if self._random.random() < 0.1:
                for encoding in self._encodings:
                    yield from self._do("VMREAD", encoding=encoding)
            yield from self._do("VMCLEAR", pointer=self._current)

    def _probe(self):
        """Instructions whose answers tell of the current pointer and its launch state."""
        yield from self._do("VMPTRST")
        yield from self._do("VMLAUNCH" if self._model.launched else "VMRESUME")

    # --- Instructions, and what is remembered of them ---

    def _do(self, name, **operands):
        """Carry out an instruction; returns the answer."""
        return (yield Instruction(name, **operands))

    @property
    def _current(self):
        """Pointer of the current VMCS, None if there is none."""
        pointer = self._model.current_vmcs
        return None if pointer == NO_VMCS else pointer

    def _enter(self, **operands):
        """VMLAUNCH or VMRESUME, whichever fits the launch state."""
        name = "VMRESUME" if self._model.launched else "VMLAUNCH"
        answer = yield from self._do(name, **operands)
        self._failed = bool(answer.failing)
        return answer

    def _write(self, field, value):
        """VMWRITE to the current VMCS, sometimes of its halves."""
        value &= (1 << self._bits(field)) - 1
        halves = not is_64_bit(self._model.read_registers()) or self._random.random() < 0.1
        for instruction in vmwrites(field, value, halves=halves):
            answer = yield instruction
            if answer.outcome is not Outcome.SUCCEED:
                return
        if self._current is not None:
            self._vmcs[self._current][field] = value

    def _region(self, pointer, baseline, changes=(), *, word=None, launch=0):
        """Write a region to memory."""
        word = self._revision if word is None else word
        yield Region(pointer, word, launch, baseline, tuple(changes))
        self._know(pointer, baseline, changes)

    def _know(self, pointer, baseline, changes):
        self._vmcs[pointer] = {**self._subject.baselines[baseline], **dict(changes)}
        self._baseline[pointer] = baseline

    def _environment(self, wanted):
        """Give the live registers the values of an environment."""
        now = self._model.read_registers()
        values = tuple((name, value) for name, value in wanted.items() if now[name] != value)
        if values:
            yield RegisterWrites(values)

    def _words(self, memory):
        for address, size, value in memory:
            yield MemoryWrite(address, size, value)

    # --- Values ---

    @property
    def _revision(self):
        return revision(self._capabilities)

    def _bits(self, field):
        return self._capabilities.bits(self._capabilities.fields[field])

    def _value(self, bits, now=0):
        """A number, mostly one bit or one step from another."""
        one = 1 << self._random.randrange(bits)
        return self._random.choices(
            (now ^ one, one, ~one, now + 1, now - 1, 0, -1, VMCS_POINTER,
             self._random.getrandbits(bits)),
            (30, 10, 5, 5, 5, 5, 5, 3, 15))[0] & (1 << bits) - 1

    def _pointer(self):
        """Content of a memory operand: a region, or something near one."""
        pointer = self._random.choice((*POINTERS, SHADOW_POINTER))
        odd = 1 << self._random.randrange(64)
        return self._random.choices(
            (pointer, VMXON_POINTER, pointer ^ odd, NO_VMCS, self._random.getrandbits(64)),
            (60, 8, 12, 2, 3))[0]

    def _encoding(self):
        """A field encoding: an existing one, or one bit from it."""
        encoding = self._random.choice(self._encodings)
        odd = 1 << self._random.randrange(64)
        return self._random.choices(
            (encoding, encoding ^ odd, self._random.getrandbits(16)), (80, 15, 5))[0]

    def _eptp(self):
        good = 0x11_001E
        return self._random.choice((good, good ^ 1 << self._random.randrange(64)))

    def _operands(self, name):
        """Operands that an instruction may have."""
        choose, bits = self._random.choice, self._random.getrandbits
        match name:
            case "VMXON" | "VMCLEAR" | "VMPTRLD":
                operands = {"pointer": self._pointer()}
            case "VMREAD" | "VMWRITE":
                operands = {"encoding": self._encoding(), "value": bits(64)}
            case "INVEPT":
                operands = {"invalidation": choose((1, 1, 1, 2, 0, 3, 1 << 33)),
                            "descriptor": self._eptp() | choose((0, bits(64) << 64))}
            case "INVVPID":
                vpid = choose((1, 1, 0, 0x8000, 1 << choose(range(16, 64))))
                linear = choose((0x1000, (1 << 64) - 0x1000, bits(64)))
                operands = {"invalidation": choose((0, 0, 1, 2, 3, 4, 1 << 32)),
                            "descriptor": vpid | linear << 64}
            case "VMFUNC":
                operands = {"eax": choose((0, 0, 0, 1, 63, 64, 1 << 31)),
                            "ecx": choose((0, 1, 2, 511, 512, 1 << 31))}
            case _:
                operands = {}
        if self._random.random() < ODD:
            operands["register_operand"] = True
        if self._random.random() < ODD:
            operands["operand_fault"] = (choose((12, 13, 14)), choose((0, bits(16))))
        if self._random.random() < ODD:
            operands["mov_ss_blocking"] = True
        if self._model.mode == Mode.NON_ROOT:
            operands |= {"length": choose(range(1, 16)), "information": bits(32),
                         "displacement": choose((0, bits(64)))}
        return operands

    def _any(self, names=()):
        """Any instruction, or any of these."""
        name = self._random.choice(names or [*INSTRUCTIONS])
        return (yield from self._do(name, **self._operands(name)))

    # --- Outside VMX operation ---

    def _outside(self):
        odd = self._random.random()
        if odd < 0.1:
            yield from self._any()
        elif odd > 0.9:
            yield from self._fault()
        elif odd < 0.2:
            yield from self._oddly("VMXON")
        elif odd < 0.3:
            yield MemoryWrite(VMXON_POINTER, 4, self._value(32, self._revision))
            yield from self._do("VMXON", **self._operands("VMXON"))
        else:
            yield MemoryWrite(VMXON_POINTER, 4, self._revision)
            yield from self._do("VMXON", pointer=VMXON_POINTER)

    # --- In VMX root operation ---

    def _try(self):
        """VM entry, or what must come before."""
        if self._current is None:
            yield from self._load()
        elif self._failed:
            remedy = self._random.choice((self._repair, self._repair, self._load, self._nothing))
            yield from remedy()
        if self._random.random() < 0.7:
            yield from self._environment(self._usual)
        if self._random.random() < 0.1:
            name = self._random.choice(("VMLAUNCH", "VMRESUME"))
            yield from self._do(name, **self._operands(name))
        else:
            yield from self._enter()

    def _nothing(self):
        yield from ()

    def _load(self):
        """Make a VMCS current, mostly a fresh one."""
        pointer = self._random.choice(POINTERS)
        if pointer not in self._baseline or self._random.random() < 0.3:
            if pointer != self._current:
                yield from self._region(
                    pointer, self._random.choice([*self._subject.baselines]),
                    launch=self._random.choice((0, 0, 1, self._random.getrandbits(64))))
        yield from self._do("VMPTRLD", pointer=pointer)
        if self._random.random() < 0.5:
            yield from self._intercept()

    def _repair(self):
        """Undo the changes of the current VMCS."""
        if self._current not in self._baseline:
            return
        baseline = self._subject.baselines[self._baseline[self._current]]
        for field, value in [*self._vmcs[self._current].items()]:
            if value != baseline[field] and FIELDS[field].access == "rw":
                yield from self._write(field, baseline[field])
        self._failed = False

    def _change(self):
        """Change a field or two of the current VMCS."""
        if self._current is None:
            return (yield from self._load())
        for _ in range(self._random.choice((1, 1, 2))):
            field = self._random.choice([*self._capabilities.fields])
            now = self._vmcs[self._current][field]
            yield from self._write(field, self._value(self._bits(field), now))

    def _near_a_bound(self):
        """Put a value beside the bound of a check."""
        pairs = self._pairs(self._random.choice(self._rows))
        if not pairs or self._current is None:
            return
        pair = self._random.choice(pairs)
        case = self._random.choice((pair.fails, pair.passes))
        values = {**self._subject.baselines[case.baseline], **dict(case.writes)}
        for symbol in pair.changed:
            if symbol in values:
                yield from self._write(symbol, values[symbol])
        yield from self._words(case.memory)

    def _toggle(self):
        """Invert a control bit that may have both values."""
        if self._current is None:
            return
        control = self._random.choice(self._controls)
        field = CONTROL_WORDS[control.word].field
        yield from self._write(field, self._vmcs[self._current][field] ^ 1 << control.low)

    def _set(self, *controls):
        for symbol in controls:
            control = CONTROLS[symbol]
            field = CONTROL_WORDS[control.word].field
            now = self._vmcs[self._current][field]
            if not now >> control.low & 1:
                yield from self._write(field, now | 1 << control.low)

    def _inject(self):
        """Have an event delivered by the entry."""
        if self._current is None:
            return
        information, error, length = self._random.choice(INJECTIONS)
        yield from self._write("VM_ENTRY_INTR_INFO", VALID | information)
        yield from self._write("VM_ENTRY_EXCEPTION_ERROR_CODE", error)
        yield from self._write("VM_ENTRY_INSTRUCTION_LENGTH", length)
        if information < 0x100:
            flags = self._vmcs[self._current]["GUEST_RFLAGS"]
            yield from self._write("GUEST_RFLAGS", flags | 1 << 9)
        elif self._random.random() < 0.3:
            yield from self._write(*self._random.choice(ENDED_BY_DELIVERY))

    def _list(self):
        """Have MSRs loaded by the entry, stored or loaded by the exit."""
        if self._current is None:
            return
        name, address = self._random.choice((
            ("VM_ENTRY_MSR_LOAD", LIST_ADDRESS), ("VM_EXIT_MSR_STORE", STORE_LIST),
            ("VM_EXIT_MSR_LOAD", LOAD_LIST)))
        odd = self._random.choice((0, 0, 0, 10))
        rules = self._capabilities.wrmsr_rules
        known = self._capabilities.readable_msrs if name == "VM_EXIT_MSR_STORE" else rules
        count = self._random.choice((0, 1, 1, 2, 3))
        for number in range(count):
            msr = self._random.choice([*known])
            data = self._random.choice({
                "any": (0, self._random.getrandbits(64)),
                "canonical": (self._random.getrandbits(40), 1 << 63 if odd else 0),
                "pat": (GOOD_PAT, GOOD_PAT, BAD_PAT if odd else GOOD_PAT),
            }[rules.get(msr, "any")])
            index = self._random.choices(
                (msr, msr ^ 1 << self._random.randrange(64)), (90, odd))[0]
            yield MemoryWrite(address + LIST_ENTRY_BYTES * number, 8, index)
            yield MemoryWrite(address + LIST_ENTRY_BYTES * number + 8, 8, data)
        yield from self._write(f"{name}_ADDR", address)
        yield from self._write(f"{name}_COUNT", count)

    def _intercept(self):
        """Change what makes guest events exit: controls that may go together, masks, bitmaps."""
        if self._current is None:
            return
        bits = self._random.getrandbits
        for group in self._random.sample(self._intercepts, min(6, len(self._intercepts))):
            yield from self._set(*group)
        for symbol in ("PROC1_CR3_LOAD_EXITING", "PROC1_CR3_STORE_EXITING"):
            field = "PRIMARY_PROC_BASED_CTLS"
            if self._random.random() < 0.3:
                now = self._vmcs[self._current][field]
                yield from self._write(field, now & ~(1 << CONTROLS[symbol].low))
        for field, value in self._random.sample([
            ("EXCEPTION_BITMAP", bits(32)), ("EXCEPTION_BITMAP", 1 << 14),
            ("PAGE_FAULT_ERROR_CODE_MASK", bits(5)), ("PAGE_FAULT_ERROR_CODE_MATCH", bits(5)),
            ("CR0_GUEST_HOST_MASK", bits(6)), ("CR0_READ_SHADOW", bits(6)),
            ("CR4_GUEST_HOST_MASK", bits(14)), ("CR4_READ_SHADOW", bits(14)),
            ("CR3_TARGET_COUNT", bits(3) % 5), ("CR3_TARGET_VALUE0", 0x1000),
            ("TSC_OFFSET", bits(64)), ("TSC_MULTIPLIER", bits(50)), ("XSS_EXITING_BITMAP", bits(9)),
            ("ENCLS_EXITING_BITMAP", bits(64)), ("EOI_EXIT_BITMAP1", bits(64)),
            ("IO_BITMAP_A_ADDR", IO_A), ("IO_BITMAP_B_ADDR", IO_B),
            ("MSR_BITMAPS_ADDR", MSR_BITMAPS), ("VMX_PREEMPTION_TIMER_VALUE", bits(2)),
            ("TPR_THRESHOLD", bits(4)),
        ], 4):
            if field in self._capabilities.fields:
                yield from self._write(field, value)

    def _pae_host(self):
        """Give the host page-directory-pointer-table entries, mostly good ones."""
        if self._current is None:
            return
        table = PDPT + 0x40
        yield from self._write("HOST_CR3", table)
        yield from self._write("HOST_CR4", self._vmcs[self._current]["HOST_CR4"] | 1 << 5)
        for number in range(4):
            value = self._random.choice((0, 0x5001, 0x6001, self._value(64, 0x5001)))
            yield MemoryWrite(table + 8 * number, 8, value)

    def _legacy_host(self):
        """Have a host outside IA-32e mode, from an environment like it."""
        if self._current is None or not self._capabilities.intel64:
            return
        self._usual = {
            name: value for name, value in min(self._subject.environments().items())[1].items()
            if name in DECIDING}
        yield from self._environment(self._usual)
        fields = self._vmcs[self._current]
        for field, mask in (
            ("VM_EXIT_CTLS", ~(1 << CONTROLS["EXIT_HOST_ADDR_SPACE_SIZE"].low)),
            ("VM_ENTRY_CTLS", ~(1 << CONTROLS["ENTRY_IA32E_MODE_GUEST"].low)),
            ("HOST_IA32_EFER", ~LMA_AND_LME), ("HOST_CR4", ~CR4_PCIDE), ("HOST_RIP", (1 << 32) - 1),
        ):
            if field in fields and fields[field] & ~mask:
                yield from self._write(field, fields[field] & mask)

    def _task_priority(self):
        """Have the task priority virtualized, not below its threshold."""
        if self._current is None or not self._capabilities.allows("PROC1_USE_TPR_SHADOW"):
            return
        threshold = self._random.randrange(16)
        yield from self._set("PROC1_USE_TPR_SHADOW")
        yield from self._write("VIRTUAL_APIC_ADDR", VIRTUAL_APIC)
        yield from self._write("TPR_THRESHOLD", threshold)
        yield MemoryWrite(VIRTUAL_APIC + VTPR_OFFSET, 4, self._random.randrange(threshold, 16) << 4)

    def _page_table(self):
        """Write page-directory-pointer-table entries; PAE guests without EPT are given them."""
        if self._current is None:
            return
        table = PDPT + self._random.choice((0, 0x20, 0xFE0))
        yield from self._write("GUEST_CR3", table)
        for number in range(4):
            value = self._random.choice((0, 0x5001, self._value(64, 0x5001)))
            yield MemoryWrite(table + 8 * number, 8, value)

    def _shadow(self):
        """Give the guest a shadow VMCS."""
        if self._current is None or not self._capabilities.allows("PROC2_VMCS_SHADOWING"):
            return
        yield from self._region(
            SHADOW_POINTER, self._random.choice([*self._subject.baselines]),
            word=self._revision | SHADOW_BIT)
        yield from self._set("PROC1_ACTIVATE_SECONDARY", "PROC2_VMCS_SHADOWING")
        for field, bitmap in (
                ("VMREAD_BITMAP_ADDR", READ_BITMAP), ("VMWRITE_BITMAP_ADDR", WRITE_BITMAP)):
            yield from self._write(field, bitmap)
            encoding = self._random.choice(self._encodings)
            yield MemoryWrite(bitmap + encoding // 64 * 8, 8, self._random.getrandbits(64))
        yield from self._write("VMCS_LINK_POINTER", SHADOW_POINTER)
        yield from self._try()
        for _ in range(self._random.choice((0, 2, 4))):
            yield from self._guest_access()

    def _functions(self):
        """Let the guest switch its EPTP."""
        if self._current is None or not self._capabilities.allows("PROC2_ENABLE_VM_FUNCTIONS"):
            return
        yield from self._set(
            "PROC1_ACTIVATE_SECONDARY", "PROC2_ENABLE_EPT", "PROC2_ENABLE_VM_FUNCTIONS")
        yield from self._write("VM_FUNCTION_CONTROLS", 1)
        yield from self._write("EPTP_LIST_ADDR", EPTP_LIST)
        for number in (0, 1, 2, 511):
            yield MemoryWrite(EPTP_LIST + 8 * number, 8, self._eptp())
        yield from self._try()
        for _ in range(self._random.choice((0, 1, 2))):
            yield from self._guest_function()

    def _access(self):
        """VMREAD or VMWRITE with any encoding."""
        name = self._random.choice(("VMREAD", "VMREAD", "VMWRITE"))
        operands = self._operands(name)
        answer = yield from self._do(name, **operands)
        row = FIELD_BY_ENCODING.get(operands["encoding"])
        if name == "VMWRITE" and row and answer.outcome is Outcome.SUCCEED:
            field = FIELD_BY_ENCODING[row.encoding & ~1].symbol  # what it holds now does not matter
            self._vmcs[self._current][field] = operands["value"] & (1 << self._bits(field)) - 1

    def _pointers(self):
        """VMCLEAR, VMPTRLD or VMPTRST with any operand."""
        name = self._random.choice(("VMCLEAR", "VMPTRLD", "VMPTRST"))
        yield from self._do(name, **self._operands(name))

    def _rarely(self):
        name = self._random.choice(("VMXOFF", "VMXON", "VMCALL", "VMFUNC", "INVEPT", "INVVPID"))
        yield from self._do(name, **self._operands(name))

    def _oddly(self, *names):
        """Instructions, with these names or with any, in an environment that may forbid them."""
        registers = self._model.read_registers()
        name, bits = self._random.choice([(name, bits) for name, bits in (
            ("SS_AR", (5, 6)), ("RFLAGS", (17,)), ("CR0", (0, *range(32))),
            ("CR4", (13, *range(32))), ("EFER", (8, 10)), ("CS_AR", (13,)),
            ("IA32_FEATURE_CONTROL", (0, 2))) if name in registers])
        yield RegisterWrites(((name, registers[name] ^ 1 << self._random.choice(bits)),))
        for _ in range(self._random.choice((1, 2))):
            if self._current is not None and self._random.random() < 0.2:
                yield from self._enter()
            else:
                yield from self._any(names)
        if self._model.mode != Mode.NON_ROOT:
            yield RegisterWrites(((name, registers[name]),))

    def _live(self):
        """The core changes registers."""
        values = {}
        for name in self._random.choices([*self._capabilities.registers], k=2):
            bits = self._capabilities.bits(self._capabilities.registers[name])
            values[name] = self._value(bits, self._model.read_registers()[name])
        yield RegisterWrites(tuple(values.items()))

    def _memory(self):
        """Software writes to memory, mostly to a region."""
        pointer = self._random.choice((*POINTERS, SHADOW_POINTER))
        offset = self._random.choice((*field_offsets(self._capabilities).values(), 8))
        if self._random.random() < 0.3:
            word = self._random.choice((
                self._revision, self._revision | SHADOW_BIT, self._value(32, self._revision)))
            yield MemoryWrite(pointer, 4, word)
        else:
            yield MemoryWrite(pointer + offset, 8, self._random.getrandbits(64))

    # --- Memory that fails ---

    def _fault(self):
        """Let a word fail that an operation here has needed before, and repeat the operation."""
        steps = self._needed[self._model.mode]
        if not steps:
            return
        step = self._random.choice([*steps])
        word = self._random.choice((steps[step][0], steps[step][-1], *steps[step]))
        self._faults.add(word)
        yield MemoryFault(word, self._random.choice((*Fault,)))
        if isinstance(step, Instruction) and step.name in ("VMLAUNCH", "VMRESUME"):
            yield from self._enter()
        else:
            yield step

    def _mend(self):
        """Memory is whole again."""
        for word in sorted(self._faults):
            yield MemoryFault(word, None)
        self._faults.clear()

    #: What may happen in VMX root operation, with its weight.
    _ROOT = {
        _try: 30, _near_a_bound: 12, _change: 10, _toggle: 6, _load: 6, _access: 6, _oddly: 5,
        _live: 3, _memory: 3, _pointers: 4, _rarely: 4, _inject: 3, _list: 5, _page_table: 2,
        _shadow: 3, _functions: 2, _probe: 3, _intercept: 12, _pae_host: 2,
        _fault: 12, _task_priority: 3, _legacy_host: 1,
    }

    # --- In the guest ---

    def _event(self):
        bits = self._random.getrandbits
        yield Event(
            self._random.choice([*EVENT_EXITS]), *(
                self._random.choice((0, bits(count))) for count in (64, 4, 32, 64, 64)))

    def _guest_access(self):
        """VMREAD or VMWRITE, which may go to the shadow VMCS."""
        name = self._random.choice(("VMREAD", "VMWRITE"))
        yield from self._do(name, **self._operands(name))

    def _guest_function(self):
        yield from self._do("VMFUNC", **self._operands("VMFUNC"))

    def _long_mode(self):
        """The guest enters or leaves IA-32e mode."""
        if self._capabilities.intel64:
            yield RegisterWrites((("EFER", self._model.read_registers()["EFER"] ^ LMA_AND_LME),))

    def _happens(self):
        yield from guest_events(self._random, self._model)

    #: What may happen in the guest, with its weight.
    _GUEST = {
        _happens: 50, _event: 10, _any: 8, _guest_access: 10, _guest_function: 5, _live: 10,
        _memory: 2, _oddly: 3, _fault: 8, _long_mode: 1,
    }


@cache
def _free_controls(capabilities: Capabilities) -> list[Control]:
    """The control bits that a processor lets be 0 and 1."""
    def is_free(control):
        word = CONTROL_WORDS[control.word]
        must = 0 if word.bits == 64 else capabilities.constants[word.capability_symbol]
        return capabilities.allows(control.symbol) and not must >> control.low & 1
    return [control for control in CONTROLS.values() if is_free(control)]


def pairs_of(search, row) -> Iterator[RowPair]:
    """The pairs of a row that programs are made from: the best one first."""
    best = search.pair(row)
    if best is not None:
        yield best
        yield from search.variants(best)

"""Programs that go through the values that a row of a table reads, one at a time.

:func:`moves` is about rows of registers.csv, exit_information.csv and exit_reasons.csv: VM entry
and exit with every bit of what the row reads inverted in turn, and with the values that its
expressions compare with. :func:`attempts` is about the rows of an instruction: the same with its
operands and with the registers that it looks at, in every mode.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import Expression, symbols
from vmxswitch.spec.operations import Event, Instruction, Mode, Outcome
from vmxswitch.spec.region import LAUNCH_OFFSET
from vmxswitch.spec.tables import EXIT_INFORMATION, FIELDS, SYMBOL_WIDTHS

from .fuzz.differential import Script
from .fuzz.program import Region, is_64_bit, revision, vmwrites
from .model import Model
from .neighbours import flips, near
from .observation import MemoryWrite, RegisterWrites
from .row_cases import VMCS_POINTER, VMXON_POINTER, RowCase, RowPair, Subject

__all__ = ["attempts", "moves", "starts"]

MOST_STARTS = 24
NARROW = 4  #: bits of a field that gets all its values
#: Guest state that an exit always saves, and that may keep the next entry from succeeding.
ALWAYS_SAVED = (
    "GUEST_INTERRUPTIBILITY_STATE", "GUEST_ACTIVITY_STATE", "GUEST_PENDING_DBG_EXCEPTIONS")
VMCALL = Instruction("VMCALL", length=3, information=0xA5A5_5A5A, displacement=0x1234_5678_9ABC)
ONES = (1 << 64) - 1


def starts(
    subject: Subject, pairs: Callable[[str], Sequence[RowPair]], read: Iterable[str],
) -> Iterator[RowCase | None]:
    """VMCSs that pass every check and differ in what is read; None: the first baseline.

    They are the passing ones of the checks that read something of it.
    """
    read = sorted(read)
    baseline = next(iter(subject.baselines))
    seen = {_of(subject.baselines[baseline], read)}
    yield None
    for id, row in subject.capabilities.checks.items():
        if symbols(row.fails) & set(read):
            for pair in pairs(id):
                case = pair.passes
                key = _of({**subject.baselines[case.baseline], **dict(case.writes)}, read)
                if key not in seen and len(seen) < MOST_STARTS:
                    seen.add(key)
                    yield case


def _of(fields, read):
    return tuple(fields.get(symbol) for symbol in read)


def moves(
    subject: Subject, start: RowCase | None, expressions: Sequence[Expression], model: Model,
    reasons: Sequence[int] = (),
) -> Script:
    """VM entries and exits around a VMCS of :func:`starts`.

    ``reasons`` are those of the events that try to leave the guest, beside VMCALL.
    """
    place = _Place(subject, start)
    read = sorted(set().union(*map(symbols, expressions)))
    registers = [symbol.removeprefix("LIVE_") for symbol in read if symbol.startswith("LIVE_")]
    changed = {*EXIT_INFORMATION, *ALWAYS_SAVED, *read} | {
        subject.capabilities.registers[name].field for name in registers}
    left = [name for name in place.fields if name in changed]
    odd = tuple((name, place.environment[name] ^ 1) for name in registers)  # left by the guest
    yield MemoryWrite(VMXON_POINTER, 4, revision(subject.capabilities))
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    yield from place.load(model)
    yield from _round_trip(place, left, model, reasons)
    for symbol in read:
        if (now := _present(place, symbol)) is None:
            continue
        bits = _bits(subject.capabilities, symbol)
        for value in near(expressions, symbol, now, bits, NARROW):
            if symbol in place.fields:
                for guest in dict.fromkeys(((), odd)):
                    yield from _round_trip(
                        place, left, model, reasons, fields={symbol: value}, guest=guest)
            else:
                register = symbol.removeprefix("LIVE_"), value
                yield from _round_trip(place, left, model, reasons, root=(register,))
                yield from _round_trip(place, left, model, reasons, guest=(register,))


class _Place:
    """A VMCS with its surroundings."""

    def __init__(self, subject: Subject, case: RowCase | None):
        self.subject = subject
        self.baseline = case.baseline if case else next(iter(subject.baselines))
        self.changes = case.writes if case else ()
        self.memory = case.memory if case else ()
        self.fields = {**subject.baselines[self.baseline], **dict(self.changes)}
        self.environment = {**subject.environment, **(dict(case.registers) if case else {})}
        #: What an exit overwrites; a region can hold what VMWRITE cannot write.
        self.overwritten = tuple(
            (name, ONES >> 64 - subject.capabilities.bits(subject.capabilities.fields[name]))
            for name in EXIT_INFORMATION
            if name in self.fields and FIELDS[name].access != "rw")

    def surroundings(self, model: Model, more: Mapping[str, int] | None = None) -> Script:
        """The registers as software in VMX root operation has them."""
        now, wanted = model.read_registers(), self.environment | (more or {})
        values = tuple((name, value) for name, value in wanted.items() if now[name] != value)
        if values:
            yield RegisterWrites(values)

    def load(self, model: Model) -> Script:
        """Make it current, as launched."""
        for address, size, value in self.memory:
            yield MemoryWrite(address, size, value)
        yield Instruction("VMCLEAR", pointer=VMCS_POINTER)
        yield Region(VMCS_POINTER, revision(self.subject.capabilities), 1, self.baseline,
                     (*self.changes, *self.overwritten))
        yield from self.surroundings(model)
        yield Instruction("VMPTRLD", pointer=VMCS_POINTER)

    def write(self, field: str, value: int) -> Script:
        """VMWRITE a field."""
        yield from vmwrites(field, value, halves=not is_64_bit(self.environment))

    def restore(self, names: Iterable[str]) -> Script:
        """VMWRITE what fields held at first; not those that VMWRITE may refuse."""
        for name in names:
            if FIELDS[name].access == "rw":
                yield from self.write(name, self.fields[name])


def _round_trip(place, left, model, reasons, fields=(), root=(), guest=()):
    """VM entry, and if it enters, exit by each event and by VMCALL; then what has changed is read.

    An event that does not exit is followed by VMCALL. Other fields, and other registers on either
    side of the entry, can be given; afterwards the fields are as they were.
    """
    leaves = [Event(reason, ONES, 15, 0xFFFF_FFFF, ONES, ONES) for reason in reasons]
    for leave in (*leaves, VMCALL):
        for field, value in dict(fields).items():
            yield from place.write(field, value)
        yield from place.surroundings(model, dict(root))
        answer = yield Instruction("VMRESUME")
        if answer.outcome is Outcome.ENTERED:
            yield RegisterWrites(guest)
            yield leave
            if model.mode == Mode.NON_ROOT:
                yield VMCALL
        yield from place.surroundings(model)
        yield from _look(left)
        yield from place.restore(left)


def _look(left):
    """Read the fields that an exit may have changed."""
    for field in left:
        encoding = FIELDS[field].encoding
        yield Instruction("VMREAD", encoding=encoding)
        if FIELDS[field].width_class == "64":
            yield Instruction("VMREAD", encoding=encoding + 1)


def _present(place, symbol):
    """The present value of a field or register; None for other symbols."""
    if symbol in place.fields:
        return place.fields[symbol]
    return place.environment.get(symbol.removeprefix("LIVE_")) if "LIVE_" in symbol else None


def _bits(capabilities: Capabilities, symbol: str) -> int:
    if symbol in capabilities.fields:
        return capabilities.bits(capabilities.fields[symbol])
    if (name := symbol.removeprefix("LIVE_")) != symbol:
        return capabilities.bits(capabilities.registers[name])
    return SYMBOL_WIDTHS[symbol]


# --- Instructions ---

OPERAND_POINTER = 0x20_2000
#: How the processor comes from outside VMX operation to where an instruction is attempted.
WAYS = ((), ("VMXON",), ("VMXON", "VMPTRLD"), ("VMXON", "VMPTRLD", "VMRESUME"))
POINTERS = {"VMXON": VMXON_POINTER, "VMPTRLD": VMCS_POINTER}
#: Symbols of conditions that are operands.
OPERANDS = {
    "POINTER": "pointer", "ENCODING": "encoding", "INVALIDATION": "invalidation", "EAX": "eax",
    "ECX": "ecx", "REGISTER_OPERAND": "register_operand", "MOV_SS_BLOCKING": "mov_ss_blocking",
}


def attempts(
    subject: Subject, name: str, conditions: Sequence[Expression], model: Model,
) -> Script:
    """An instruction outside VMX operation, with and without a current VMCS, and in the guest.

    ``conditions`` are those of its rows.
    """
    place = _Place(subject, None)
    word = revision(subject.capabilities)
    operands = _usual(name)
    yield from place.load(model)  # VMCLEAR and VMPTRLD are #UD still
    read = set().union(*map(symbols, conditions))
    for way in WAYS:
        for symbol in [None, *sorted(read)]:
            for operand, before, inside in _attempts(place, symbol, conditions, operands, word):
                yield from _go(place, way, model, before)
                yield from _steps(inside)
                yield Instruction(name, **operands | operand)
                yield MemoryWrite(OPERAND_POINTER, 4, word)


def _usual(name):
    """Operands with which an instruction succeeds, if it can."""
    match name:
        case "VMXON":
            return {"pointer": VMXON_POINTER}
        case "VMCLEAR" | "VMPTRLD":
            return {"pointer": OPERAND_POINTER}
        case "VMREAD" | "VMWRITE":
            return {"encoding": FIELDS["GUEST_RIP"].encoding, "value": ONES}
        case "INVEPT":
            return {"invalidation": 1, "descriptor": 0x11_001E}
        case "INVVPID":
            return {"invalidation": 1, "descriptor": 1}
    return {}


def _attempts(place, symbol, conditions, operands, word):
    """Operands, VMWRITEs before a guest is entered, and what happens right before the attempt."""
    if symbol is None:
        yield {}, (), ()
    elif symbol in OPERANDS:
        operand = OPERANDS[symbol]
        now = operands.get(operand, 0)
        for value in near(conditions, symbol, now, SYMBOL_WIDTHS[symbol], NARROW):
            yield {operand: value}, (), ()
    elif symbol == "OPERAND_FAULT":
        yield {"operand_fault": (14, 2)}, (), ()
    elif symbol in ("DESCRIPTOR_LOW", "DESCRIPTOR_HIGH"):
        now = operands.get("descriptor", 0)
        for bit in range(64):
            yield {"descriptor": now ^ 1 << bit + 64 * (symbol == "DESCRIPTOR_HIGH")}, (), ()
    elif symbol == "REGION_WORD":
        for value in flips(word, 32):
            yield ({"pointer": OPERAND_POINTER}, (),
                   (MemoryWrite(OPERAND_POINTER, 4, value),))
    elif (now := _present(place, symbol)) is not None:
        bits = _bits(place.subject.capabilities, symbol)
        for value in near(conditions, symbol, now, bits, NARROW):
            if symbol in place.fields:
                yield {}, tuple(place.write(symbol, value)), ()
            else:
                name = symbol.removeprefix("LIVE_")
                yield {}, (), (RegisterWrites(((name, value),)),)


def _steps(steps) -> Script:
    return (step for step in steps)


def _go(place, way, model, before):
    """From anywhere out of VMX operation, and then that way."""
    if model.mode == Mode.NON_ROOT:
        yield Instruction("VMCALL")
    yield from place.surroundings(model)
    yield Instruction("VMXOFF")
    yield MemoryWrite(VMXON_POINTER, 4, revision(place.subject.capabilities))
    yield MemoryWrite(VMCS_POINTER + LAUNCH_OFFSET, 8, 1)
    for name in way:
        if name == "VMRESUME":
            yield from _steps(before)
        yield Instruction(name, **({"pointer": POINTERS[name]} if name in POINTERS else {}))

"""Programs that go through the values that a row of a table reads, one at a time or two.

:func:`moves` is about rows of registers.csv, exit_information.csv and exit_reasons.csv: VM entry
and exit with every bit of what the row reads inverted in turn, and with the values that its
expressions compare with. :func:`attempts` is about the rows of an instruction: the same with its
operands and with the registers that it looks at, in every mode.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import Expression, symbols
from vmxswitch.spec.operations import Event, Instruction, Mode, Outcome
from vmxswitch.spec.region import LAUNCH_OFFSET
from vmxswitch.spec.tables import EXIT_INFORMATION, FIELDS, SYMBOL_WIDTHS

from .fuzz.differential import Script
from .fuzz.program import Region, is_64_bit, revision, vmwrites
from .model import Model
from .neighbours import flips, near, suggested
from .observation import MemoryWrite, RegisterWrites
from .row_cases import VMCS_POINTER, VMXON_POINTER, RowCase, RowPair, Subject

__all__ = ["attempts", "moves", "starts"]

MOST_STARTS = 24
NARROW, NARROW_OF_TWO = 8, 3  #: bits of a field that gets all its values, alone and beside another
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
    subject: Subject, starts: Iterable[RowCase | None], expressions: Sequence[Expression],
    model: Model, depth: int = 1, reasons: Sequence[int] = (),
) -> Script:
    """VM entries and exits around some VMCSs. Depth 1 or 2: how much changes at a time.

    ``reasons`` are those of the events that try to leave the guest, beside VMCALL.
    """
    read = sorted(set().union(*map(symbols, expressions)))
    yield MemoryWrite(VMXON_POINTER, 4, revision(subject.capabilities))
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    for start in starts:
        yield from _around(_Start(subject, start), expressions, read, model, depth, reasons)


class _Start:
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

    def load(self) -> Script:
        """Make it current, as launched."""
        for address, size, value in self.memory:
            yield MemoryWrite(address, size, value)
        yield Instruction("VMCLEAR", pointer=VMCS_POINTER)
        yield Region(VMCS_POINTER, revision(self.subject.capabilities), 1, self.baseline,
                     (*self.changes, *self.overwritten))
        yield RegisterWrites(tuple(self.environment.items()))
        yield Instruction("VMPTRLD", pointer=VMCS_POINTER)

    def write(self, field: str, value: int) -> Script:
        """VMWRITE a field."""
        yield from vmwrites(field, value, halves=not is_64_bit(self.environment))

    def restore(self, names: Iterable[str]) -> Script:
        """VMWRITE what fields held at first; not those that VMWRITE may refuse."""
        for name in names:
            if FIELDS[name].access == "rw":
                yield from self.write(name, self.fields[name])


def _around(start, expressions, read, model, depth, reasons):
    left = [name for name in start.fields
            if name in EXIT_INFORMATION or name in ALWAYS_SAVED or name in read]

    def round_trip(root=(), guest=()):
        yield from _round_trip(start, left, model, root, guest, reasons)

    yield from start.load()
    yield from round_trip()
    inputs = {symbol: now for symbol in read
              if (now := _present(start, symbol)) is not None}
    for symbol, now in inputs.items():
        bits = _bits(start.subject.capabilities, symbol)
        for value in near(expressions, symbol, now, bits, NARROW):
            yield from _with(start, {symbol: value}, round_trip)
    if depth > 1:
        for first, now in inputs.items():
            values = (value for node in expressions
                      for value in suggested(node, first, now, NARROW_OF_TWO))
            for value in dict.fromkeys(values):
                for second, other in inputs.items():
                    bits = _bits(start.subject.capabilities, second)
                    base = value if second == first else other
                    for changed in near(expressions, second, base, bits, NARROW_OF_TWO):
                        yield from _with(start, {first: value, second: changed}, round_trip)


def _with(start, values, round_trip):
    """A round trip with other values of fields and of registers, on both sides of the entry."""
    fields = {symbol: value for symbol, value in values.items() if symbol in start.fields}
    registers = tuple((symbol.removeprefix("LIVE_"), value) for symbol, value in values.items()
                      if symbol not in fields)
    for field, value in fields.items():
        yield from start.write(field, value)
    if registers:
        yield from round_trip(root=registers)
        yield from round_trip(guest=registers)
    else:
        yield from round_trip()


def _round_trip(start, left, model, root, guest, reasons):
    """VM entry, and if it enters, exit by each event and by VMCALL; then what has changed is read.

    An event that does not exit is followed by VMCALL.
    """
    leaves = [Event(reason, ONES, 15, 0xFFFF_FFFF, ONES, ONES) for reason in reasons]
    for leave in (*leaves, VMCALL):
        yield RegisterWrites((*start.environment.items(), *root))
        answer = yield Instruction("VMRESUME")
        if answer.outcome is Outcome.ENTERED:
            yield RegisterWrites(guest)
            yield leave
            if model.mode == Mode.NON_ROOT:
                yield VMCALL
        yield RegisterWrites(tuple(start.environment.items()))
        yield from _look(start, left)
        yield from start.restore(left)


def _look(start, left):
    """Read the fields that an exit may have changed."""
    for field in left:
        encoding = FIELDS[field].encoding
        yield Instruction("VMREAD", encoding=encoding)
        if FIELDS[field].width_class == "64":
            yield Instruction("VMREAD", encoding=encoding + 1)


def _present(start, symbol):
    """The present value of a field or register; None for other symbols."""
    if symbol in start.fields:
        return start.fields[symbol]
    return start.environment.get(symbol.removeprefix("LIVE_")) if "LIVE_" in symbol else None


def _bits(capabilities: Capabilities, symbol: str) -> int:
    if symbol in capabilities.fields:
        return capabilities.bits(capabilities.fields[symbol])
    if (name := symbol.removeprefix("LIVE_")) != symbol:
        return capabilities.bits(capabilities.registers[name])
    return SYMBOL_WIDTHS[symbol]


# --- Instructions ---

OPERAND_POINTER, WORDS = 0x20_2000, 0x20_4000
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
    start = _Start(subject, None)
    word = revision(subject.capabilities)
    operands = _usual(name)
    yield from start.load()  # VMCLEAR and VMPTRLD are #UD still
    read = set().union(*map(symbols, conditions))
    for way in WAYS:
        for symbol in [None, *sorted(read)]:
            for operand, before, inside in _attempts(start, symbol, conditions, operands, word):
                yield from _go(start, way, model, before)
                yield from inside
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


def _attempts(start, symbol, conditions, operands, word):
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
    elif (now := _present(start, symbol)) is not None:
        bits = _bits(start.subject.capabilities, symbol)
        for value in near(conditions, symbol, now, bits, NARROW):
            if symbol in start.fields:
                yield {}, tuple(start.write(symbol, value)), ()
            else:
                name = symbol.removeprefix("LIVE_")
                yield {}, (), (RegisterWrites(((name, value),)),)


def _go(start, way, model, before):
    """From anywhere out of VMX operation, and then that way."""
    if model.mode == Mode.NON_ROOT:
        yield Instruction("VMCALL")
    yield RegisterWrites(tuple(start.environment.items()))
    yield Instruction("VMXOFF")
    yield MemoryWrite(VMXON_POINTER, 4, revision(start.subject.capabilities))
    yield MemoryWrite(VMCS_POINTER + LAUNCH_OFFSET, 8, 1)
    for name in way:
        if name == "VMRESUME":
            yield from before
        yield Instruction(name, **({"pointer": POINTERS[name]} if name in POINTERS else {}))

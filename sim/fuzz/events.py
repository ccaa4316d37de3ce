"""Makes up guest events that stay near what decides them: masks, bitmaps, windows, priorities."""

import random
from collections.abc import Callable, Iterator

from vmxswitch.spec.operations import Boundary, Event
from vmxswitch.spec.structures import VTPR_OFFSET

from ..model import Model
from ..observation import MemoryWrite, RegisterWrites, TimePasses

__all__ = ["guest_events"]

VALID, HAS_CODE, NMI_UNBLOCKING = 1 << 31, 1 << 11, 1 << 12
#: Interruption types, with how often an exception is of it.
TYPES = {3: 10, 6: 4, 5: 2, 4: 2, 2: 3, 0: 1, 7: 1}
VECTORS = (0, 1, 3, 6, 8, 13, 14, 14, 18, 31)
TSC, LSTAR = 0x10, 0xC000_0082
ALL_ONES = (1 << 64) - 1

Step = Event | Boundary | RegisterWrites | MemoryWrite | TimePasses


def guest_events(chance: random.Random, model: Model) -> Iterator[Step]:
    """One guest event, and what the core or other software does right before it."""
    kind, = chance.choices([*_KINDS], [*_KINDS.values()])
    yield from kind(chance, model)


def _near(chance, value, bits):
    """The value, or one that differs from it in a bit."""
    return (value ^ chance.choice((0, 0, 1 << chance.randrange(bits)))) & (1 << bits) - 1


def _exception(chance, model):
    vector = chance.choice((*VECTORS, chance.randrange(256)))
    kind, = chance.choices([*TYPES], [*TYPES.values()])
    information = VALID | kind << 8 | vector
    information |= chance.choice((0, HAS_CODE)) | chance.choice((0, 0, 0, NMI_UNBLOCKING))
    vectoring = {}
    if chance.random() < 0.3:
        vectoring = {
            "vectoring": VALID | chance.choice((0, HAS_CODE)) | chance.choice(
                (0x20, 0x202, 0x30D, 0x308, 0x480, 0x603)),
            "vectoring_error_code": chance.getrandbits(32)}
    match = model.field("PAGE_FAULT_ERROR_CODE_MATCH")
    yield Event(
        0, chance.choice((0, chance.getrandbits(64))), length=chance.choice((0, 1, 2)),
        interruption=information, error_code=_near(chance, match, 5), **vectoring)


def _control_register(chance, model):
    number, access = chance.choice((0, 0, 0, 3, 3, 4, 4, 8)), chance.choice((0, 0, 0, 1, 1, 2, 3))
    value = chance.getrandbits(64)
    if number == 3:
        value = _near(chance, chance.choice(
            [model.field(f"CR3_TARGET_VALUE{n}") for n in range(4)]), 64)
    elif number in (0, 4):
        register, shadow = model.read_registers()[f"CR{number}"], f"CR{number}_READ_SHADOW"
        mask = model.field(f"CR{number}_GUEST_HOST_MASK")
        value = _near(chance, register & ~mask | model.field(shadow) & mask, 33)
    source = _near(chance, model.field("CR0_READ_SHADOW") & 0xFFFF, 4)
    yield Event(
        28, number | access << 4 | chance.randrange(16) << 8 | (source << 16 if access == 3 else 0),
        length=3, value=value)


def _port(chance, model):
    size = chance.choice((1, 1, 2, 4))
    port = chance.choice((0x3F, 0x40, 0x80, 0x7FFE, 0x7FFF, 0x8000, 0xFFFC, 0xFFFF))
    port = port + chance.choice((0, 0, 1, -1, -2, -3)) & 0xFFFF
    bitmap = model.field("IO_BITMAP_B_ADDR" if port >> 15 else "IO_BITMAP_A_ADDR")
    yield from _word(chance, bitmap + (port & 0x7FFF) // 64 * 8)
    yield from _word(chance, bitmap + ((port & 0x7FFF) // 64 + 1 & 0x1FF) * 8)
    yield Event(30, size - 1 | chance.choice((0, 8)) | port << 16, length=chance.choice((1, 2)))


def _msr(chance, model):
    index = chance.choice((TSC, 0x174, 0x1FFF, 0x2000, 0xC000_0000, LSTAR, 0xC000_1FFF))
    index = chance.choice((index, index, index ^ 1 << chance.randrange(32)))
    write = chance.random() < 0.5
    word = (index & 0x1FFF) // 64 * 8 + (0x400 if index >> 31 else 0) + (0x800 if write else 0)
    yield from _word(chance, model.field("MSR_BITMAPS_ADDR") + word)
    yield Event(32 if write else 31, length=2, number=index, value=chance.getrandbits(64))


def _word(chance, address):
    """Write a word of a bitmap, most of its bits alike."""
    if chance.random() < 0.6 and not address % 8 and address < 1 << 52:
        value = chance.choice((0, ALL_ONES)) ^ 1 << chance.randrange(64)
        yield MemoryWrite(address, 8, chance.choice((value, chance.getrandbits(64))))


def _valued(chance, model):
    """An instruction whose operand decides, or whose result does."""
    reason = chance.choice((16, 16, 40, 45, 51, 58, 60, 62, 63, 64, 65, 67, 68, 70))
    bits = chance.getrandbits
    yield Event(
        reason, bits(8), length=3, number=chance.choice((0, 1, 62, 63, 64, bits(32))),
        value=chance.choice((0, 1, model.field("XSS_EXITING_BITMAP"), bits(64))))


def _during_delivery(chance, model):
    """An exit of the core's memory accesses, with or without an event being delivered."""
    yield Event(
        chance.choice((9, 44, 48, 48, 49, 62, 66)), chance.getrandbits(17),
        length=chance.choice((0, 2)), linear_address=chance.getrandbits(48),
        physical_address=chance.getrandbits(40),
        vectoring=chance.choice((0, VALID | 0x30D, VALID | 0x480, VALID | 0x20)))


def _boundary(chance, model):
    """A boundary, mostly in a state in which something is pending."""
    live = model.read_registers()
    changes = {
        "RFLAGS": live["RFLAGS"] ^ chance.choice((0, 1 << 9)),
        "INTERRUPTIBILITY": chance.choice((0, 0, 0, 1, 2, 8, 9)),
        "ACTIVITY": chance.choice((0, 0, 0, 0, 1, 2, 3)),
        "PENDING_DBG": chance.choice((0, 0, 0, 0x1001, 0x4000, 0x0800, 1)),
        "PREEMPTION_TIMER": chance.choice((0, 1, 1000)),
    }
    names = [name for name in changes if name in live and chance.random() < 0.5]
    if names:
        yield RegisterWrites(tuple((name, changes[name]) for name in names))
    often = chance.choice((0.1, 0.5))
    yield Boundary(
        *(chance.random() < often for _ in range(5)), vector=chance.getrandbits(8))


def _task_priority(chance, model):
    """The core has carried out MOV to CR8."""
    address = model.field("VIRTUAL_APIC_ADDR") | VTPR_OFFSET
    if address & 0xFFF == VTPR_OFFSET and address < 1 << 52:
        yield MemoryWrite(address, 4, chance.getrandbits(4) << 4)
    yield Event(43)


def _time(chance, model):
    yield TimePasses(chance.choice((0, 1, 1000, chance.getrandbits(32))))


#: What may happen, with its weight.
_KINDS: dict[Callable, int] = {
    _exception: 10, _control_register: 12, _port: 8, _msr: 8, _valued: 8, _during_delivery: 4,
    _boundary: 20, _time: 5, _task_priority: 3,
}

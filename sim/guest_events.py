"""Guest events of the case format (``tests/cases/README.md``) as events of the unit's ports."""

from collections.abc import Callable, Mapping

from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Boundary, Delivery, Event
from vmxswitch.spec.tables import EXIT_REASONS

__all__ = ["ATTRIBUTES", "EVENT_NUMBERS", "Unknown", "event_of"]

VALID, HAS_ERROR_CODE = 1 << 31, 1 << 11
EXCEPTION, TRIPLE_FAULT, CR_ACCESS, DR_ACCESS, IO, TIMER = 0, 2, 28, 29, 30, 52  # exit reasons
#: Guest instructions that nothing but their exit reason tells of.
REASONS = {name: row.number for row in EXIT_REASONS.values() for name in row.instructions}
#: Numbers that a guest event of the kind ``reason`` may have, with their width in bits; they are
#: the attributes of :class:`Event`, two of them under a shorter name.
EVENT_NUMBERS = {
    "qualification": 64, "length": 4, "info": 32, "linear": 64, "physical": 64, "number": 32,
    "value": 64, "interruption": 32, "error_code": 32, "vectoring": 32, "vectoring_error_code": 32,
}
#: Attributes of :class:`Event` that have a shorter name in the case format.
ATTRIBUTES = {"info": "information", "linear": "linear_address", "physical": "physical_address"}


class Unknown(Exception):
    """The event names an instruction or kind that is not known."""


def event_of(event: Mapping, delivery: Delivery | None) -> Event | Boundary:
    """The event of a ``guest`` operation.

    ``delivery`` is what the last VM entry injected. Raises :exc:`Unknown` for an unknown kind or
    instruction, :exc:`UsageError` for a number that is missing.
    """
    try:
        match event["kind"]:
            case "insn":
                return _instruction(event)
            case "exception":
                return _exception(event, delivery)
            case "triple_fault":
                return Event(TRIPLE_FAULT)
            case "preemption_timer":
                return Event(TIMER)
            case "boundary":
                flags = {name: bool(event.get(name, name == "first"))
                         for name in ("first", "nmi", "interrupt", "init", "sipi")}
                return Boundary(**flags, vector=event.get("vector", 0))
            case "reason":
                return Event(event["reason"], **{
                    ATTRIBUTES.get(key, key): event[key] for key in EVENT_NUMBERS if key in event})
    except KeyError as missing:
        raise UsageError(f"guest event without {missing}: {dict(event)}") from None
    raise Unknown(event["kind"])


def _instruction(event):
    """An instruction that is no VMX instruction."""
    name = event["insn"]
    given = {"length": event["length"], "information": event.get("info", 0),
             "linear_address": 0}
    if name in DECODED:
        reason, decode = DECODED[name]
        return Event(reason, **given | decode(event))
    if name in REASONS:
        return Event(REASONS[name], **given, qualification=event.get("linear", 0),
                     number=event.get("msr", 0))
    raise Unknown(name)


def _exception(event, delivery):
    interruption = VALID | event["type"] << 8 | event["vector"]
    vectoring = {}
    if event.get("delivering") == "injected" and delivery is not None:
        vectoring = {"vectoring": delivery.information, "vectoring_error_code": delivery.error_code}
    if "error_code" in event:
        interruption |= HAS_ERROR_CODE
    return Event(
        EXCEPTION, event.get("qualification", 0), interruption=interruption,
        error_code=event.get("error_code", 0),
        length=event.get("length", delivery.length if vectoring else 0), **vectoring)


def _port(direction):
    return lambda event: {"qualification": (
        event["size"] - 1 | direction << 3 | event["imm"] << 6 | event["port"] << 16)}


def _control_register(access):
    return lambda event: {
        "qualification": event["cr"] | access << 4 | event["gpr"] << 8,
        "value": event.get("value", 0)}


def _debug_register(direction):
    return lambda event: {"qualification": event["dr"] | direction << 4 | event["gpr"] << 8}


#: Instructions with an exit qualification of their own: exit reason, and what it says.
DECODED: dict[str, tuple[int, Callable]] = {
    "IN": (IO, _port(1)), "OUT": (IO, _port(0)),
    "MOV_TO_CR": (CR_ACCESS, _control_register(0)),
    "MOV_FROM_CR": (CR_ACCESS, _control_register(1)),
    "CLTS": (CR_ACCESS, lambda event: {"qualification": 2 << 4}),
    "LMSW": (CR_ACCESS, lambda event: {"qualification": 3 << 4 | event["source"] << 16}),
    "SMSW": (CR_ACCESS, lambda event: {"qualification": 1 << 4}),
    "MOV_TO_DR": (DR_ACCESS, _debug_register(0)), "MOV_FROM_DR": (DR_ACCESS, _debug_register(1)),
}

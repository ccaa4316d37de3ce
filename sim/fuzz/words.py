"""Programs and answers of the fuzzer in words."""

from collections.abc import Iterator

from vmxswitch.spec.operations import Answer, Boundary, Event, Instruction, Outcome
from vmxswitch.spec.region import LAUNCH_OFFSET, field_offsets
from vmxswitch.spec.tables import EXIT_REASONS, FIELD_BY_ENCODING

from ..memory import Fault
from ..observation import MemoryFault, MemoryWrite, RegisterWrites, TimePasses
from .differential import Difference, Run
from .program import FieldWrites, Region, Step

__all__ = ["answer_in_words", "in_words", "step_in_words"]

REGION_BYTES = 4096


def in_words(run: Run, capabilities) -> Iterator[str]:
    """A program line by line, each step with the model's answer, and the difference at its end."""
    difference = run.difference
    for number, (step, answer) in enumerate(zip(run.program.steps, run.answers, strict=True), 1):
        differs = number - 1 == difference.step and difference.what == "answer"
        text = f": {answer_in_words(answer)}" if answer is not None and not differs else ""
        yield f"{number:3}  {step_in_words(step)}{text}"
    if timing := _timing_in_words(run.program.timing):
        yield f"     while {timing}"
    yield from _difference_in_words(difference, run.program, capabilities)


def step_in_words(step: Step) -> str:
    """What a step does."""
    match step:
        case Instruction():
            return " ".join([step.name, *_operands(step)])
        case Event():
            reason = f"event {step.reason} ({EXIT_REASONS[step.reason].name})"
            return " ".join([reason, *_others(step, "reason")])
        case Boundary():
            return " ".join(["boundary", *_others(step)])
        case MemoryFault(address, fault):
            how = {Fault.ERROR: "answers with an error", Fault.HANG: "does not answer",
                   None: "answers again"}[fault]
            return f"memory {address:#x} {how}"
        case TimePasses(ticks):
            return f"timer counts {ticks:#x}"
        case RegisterWrites(values):
            return "registers " + _pairs(values)
        case MemoryWrite(address, size, value):
            return f"memory {address:#x}, {size} bytes := {value:#x}"
        case Region(pointer, word, launch, baseline, changes):
            launched = f", launch word {launch:#x}" if launch else ""
            base = f" {baseline}" if baseline else ""
            return (f"region {pointer:#x}, first word {word:#x}{launched}:"
                    f"{base} {_pairs(changes)}").rstrip(" :")
        case FieldWrites(baseline, changes):
            return f"VMWRITEs of {baseline} {_pairs(changes)}".rstrip()


def _operands(step):
    if step.name in ("VMREAD", "VMWRITE"):
        field = FIELD_BY_ENCODING.get(step.encoding)
        value = f" := {step.value:#x}" if step.name == "VMWRITE" else ""
        yield f"{field.symbol if field else f'{step.encoding:#x}'}{value}"
        yield from _others(step, "name", "encoding", "value")
    else:
        yield from _others(step, "name")


def _others(step, *names):
    """Attributes that are not the default."""
    for name, attribute in type(step).__dataclass_fields__.items():
        value = getattr(step, name)
        if name not in names and value != attribute.default:
            if value is True:
                yield name
            else:
                yield f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value}"


def _pairs(values):
    return " ".join(f"{name}={value:#x}" for name, value in values)


def answer_in_words(answer: Answer) -> str:
    """What an answer says."""
    text = answer.outcome.value
    match answer.outcome:
        case Outcome.FAIL_VALID:
            text += f"({answer.error})"
        case Outcome.FAULT:
            code = "" if answer.error_code is None else f", error code {answer.error_code:#x}"
            text += f" {answer.vector}{code}"
        case Outcome.EXIT | Outcome.ENTRY_FAILURE:
            text += f" {answer.reason}, qualification {answer.qualification:#x}"
        case Outcome.SUCCEED if answer.row.startswith(("VMREAD.", "VMPTRST.")):
            text += f", value {answer.value:#x}"
        case Outcome.NO_EXIT if answer.value:
            text += f", value {answer.value:#x}"
        case Outcome.ABORT:
            text += f" {answer.error}"
    if answer.delivery is not None:
        text += f", to deliver {answer.delivery.information:#x}"
    failing = f", failing {' '.join(answer.failing)}" if answer.failing else ""
    return f"{text}{failing}" + (f" [{answer.row}]" if answer.row else "")


def _timing_in_words(timing):
    parts = []
    if timing.back_to_back:
        parts.append("requests come back to back")
    if timing.bus_wait_cyc:
        parts.append(f"memory answers late by {_cycles(timing.bus_wait_cyc)}")
    if timing.stall_cyc:
        parts.append(f"answers are taken late by {_cycles(timing.stall_cyc)}")
    return ", ".join(parts)


def _cycles(count):
    return "1 cycle" if count == 1 else f"{count} cycles"


def _difference_in_words(difference: Difference, program, capabilities):
    match difference.what:
        case "silence":
            yield "  the hardware gives no answer"
        case "answer":
            yield f"  model     {answer_in_words(difference.model)}"
            yield f"  hardware  {answer_in_words(difference.port)}"
        case "mode":
            yield f"  model     mode {difference.model.name}"
            yield f"  hardware  mode {difference.port.name}"
        case _:
            for name, value in difference.model.items():
                place = name if isinstance(name, str) else _place(name, program, capabilities)
                yield f"  {place}: model {value:#x}, hardware {difference.port[name]:#x}"


def _place(address, program, capabilities):
    """A memory address, with the field of a VMCS region if that is what lies there."""
    pointers = {step.pointer for step in program.steps if hasattr(step, "pointer")}
    region = address & -REGION_BYTES
    names = {offset: field for field, offset in field_offsets(capabilities).items()}
    names |= {0: "first word", LAUNCH_OFFSET: "launch state"}
    if region in pointers and address - region in names:
        return f"{names[address - region]} in the region at {region:#x}"
    return f"memory {address:#x}"

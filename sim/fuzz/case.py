"""Writes a program of the fuzzer as a recorded case that ``vmxswitch replay`` reads."""

import json
from collections.abc import Callable
from pathlib import Path

from vmxswitch.spec.operations import Boundary, Event, Instruction
from vmxswitch.spec.tables import EXIT_REASONS, FIELD_BY_ENCODING

from ..cases import disagreements, read_cases, read_profile
from ..guest_events import ATTRIBUTES, EVENT_NUMBERS
from ..model import Model
from ..observation import MemoryFault, MemoryWrite, RegisterWrites, TimePasses
from ..processor import Processor
from ..row_cases import VMCS_POINTER, VMXON_POINTER, Subject
from ..runner import CIRCUMSTANCES, Runner
from .differential import Difference
from .program import FieldWrites, Program, Region, operations, revision, writable

__all__ = ["profile_record", "replays", "write_case"]


def write_case(
    program: Program, difference: Difference, subject: Subject, id: str, folder: Path,
) -> Path:
    """Write a program as the case ``id``, with what the model says as its ``expect``.

    The file is ``folder/ID.jsonl``; the profile of its processor goes to ``folder/profiles``.
    """
    profiles = folder / "profiles"
    profiles.mkdir(parents=True, exist_ok=True)
    profile = profiles / f"{subject.capabilities.name}.json"
    profile.write_text(json.dumps(profile_record(subject), indent=1) + "\n", encoding="utf-8")
    read_profile.cache_clear()  # the file may be another than before
    ops = [op for step in program.steps for op in _operations(step, subject)]
    last = len(ops)
    ops += _looks(difference)
    record = {"id": id, "profile": profile.stem, "ops": ops}
    path = folder / f"{id}.jsonl"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    case, = read_cases(path)
    results = Runner(read_profile(profile), Model(subject.capabilities)).run(case)
    record["expect"] = [
        _expected(result, difference if number >= last else None)
        for number, result in enumerate(results)]
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return path


def replays(path: Path, make_port: Callable) -> bool:
    """Whether a case of :func:`write_case` disagrees on a port, as it must."""
    case, = read_cases(path)
    profile = read_profile(case.profile)
    try:
        return bool(disagreements(case, Runner(profile, make_port(profile.capabilities)).run(case)))
    except RuntimeError:  # no answer
        return True


def profile_record(subject: Subject) -> dict:
    """A subject as a profile (format "vmx-profile v1")."""
    capabilities, word = subject.capabilities, revision(subject.capabilities)
    model = Model(capabilities)
    model.write_registers(subject.environment)
    return {
        "format": "vmx-profile v1",
        "name": capabilities.name,
        "physical_address_width": capabilities.physical_address_width,
        "linear_address_width": capabilities.linear_address_width,
        "efer_bits": capabilities.efer_bits,
        "resident_vmcss": capabilities.resident_vmcss,
        "msrs": {hex(index): value for index, value in capabilities.msrs.items()},
        "environment": Processor(model).environment(),
        "wrmsr_rules": {hex(index): rule for index, rule in capabilities.wrmsr_rules.items()},
        "fields": sorted(capabilities.encodings),
        "setup": [
            {"op": "w32", "addr": VMXON_POINTER, "value": word},
            {"op": "vmxon", "addr": VMXON_POINTER},
            {"op": "w32", "addr": VMCS_POINTER, "value": word},
            {"op": "vmclear", "addr": VMCS_POINTER}, {"op": "vmptrld", "addr": VMCS_POINTER}],
        "baselines": {name: writable(values) for name, values in subject.baselines.items()},
    }


def _operations(step, subject):
    """The case operations of a step."""
    match step:
        case Instruction():
            yield _instruction(step)
        case Event():
            yield {"op": "guest", "event": _event(step)}
        case Boundary():
            yield {"op": "guest", "event": {"kind": "boundary"} | {
                name: int(value) for name, value in vars(step).items()}}
        case MemoryFault(address, fault):
            yield {"op": "fault", "addr": address, "kind": fault.name.lower() if fault else "none"}
        case TimePasses(ticks):
            yield {"op": "time", "ticks": ticks}
        case RegisterWrites(values):
            yield {"op": "set", "state": dict(values)}
        case MemoryWrite(address, size, value):
            yield {"op": f"w{8 * size}", "addr": address, "value": value}
        case Region():
            for operation in operations(step, subject):
                yield from _operations(operation, subject)
        case FieldWrites(baseline, changes):
            yield {"op": "apply", "base": baseline, "writes": [list(pair) for pair in changes]}


def _instruction(step):
    op = {"op": step.name.lower()}
    match step.name:
        case "VMXON" | "VMCLEAR" | "VMPTRLD":
            op["addr"] = step.pointer
        case "VMREAD" | "VMWRITE":
            row = FIELD_BY_ENCODING.get(step.encoding)
            op["field"] = row.symbol if row else step.encoding
            if step.name == "VMWRITE":
                op["value"] = step.value
        case "INVEPT" | "INVVPID":
            op |= {"type": step.invalidation, "lo": step.descriptor & (1 << 64) - 1,
                   "hi": step.descriptor >> 64}
        case "VMFUNC":
            op |= {"eax": step.eax, "ecx": step.ecx}
    usual = Instruction(step.name)
    op |= {key: int(getattr(step, name)) for key, name in CIRCUMSTANCES.items()
           if getattr(step, name) != getattr(usual, name)}
    if step.operand_fault is not None:
        op["fault"] = list(step.operand_fault)
    return op


def _event(event):
    """The guest event, by the name of its instruction where that says everything."""
    names = EXIT_REASONS[event.reason].instructions
    plain = Event(event.reason, event.qualification, event.length, event.information)
    if names and event.length and event == plain:
        record = {"kind": "insn", "insn": names[0], "linear": event.qualification,
                  "length": event.length, "info": event.information}
    else:
        record = {"kind": "reason", "reason": event.reason} | {
            key: getattr(event, ATTRIBUTES.get(key, key)) for key in EVENT_NUMBERS}
    return {key: value for key, value in record.items() if value or key == "reason"}


def _looks(difference):
    """Operations that show a difference that no answer does."""
    match difference.what:
        case "mode":
            yield {"op": "vmptrst"}
        case "vmcs":
            yield from ({"op": "vmptrst"}, {"op": "vmlaunch"})
        case "registers":
            yield {"op": "dump"}
        case "memory":
            yield from ({"op": "r64", "addr": address} for address in difference.model)


def _expected(result, difference):
    if difference is not None and difference.what == "registers":
        state = {name: result["state"][name] for name in difference.model}
        return {"result": "ok", "state": state}
    return None if result == {"result": "ok"} else result

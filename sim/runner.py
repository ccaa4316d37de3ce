"""Runs recorded cases (:mod:`.cases`) on a port: the reference model, hardware in simulation."""

from vmxswitch.spec.operations import Answer, Instruction, Mode, Outcome
from vmxswitch.spec.tables import FIELD_BY_ENCODING, FIELDS, INSTRUCTIONS

from .cases import FAULTS, Case, Profile
from .guest_events import Unknown, event_of
from .processor import Fault, Processor

__all__ = ["Runner"]

#: Name of each outcome in a result, and the attributes of the answer that go with it.
RESULTS = {
    Outcome.SUCCEED: ("succeed", ()),
    Outcome.FAIL_INVALID: ("failInvalid", ()),
    Outcome.FAIL_VALID: ("failValid", ("error",)),
    Outcome.FAULT: ("exception", ("vector",)),
    Outcome.ENTERED: ("entered", ()),
    Outcome.ENTRY_FAILURE: ("entry_failure", ("reason", "qualification")),
    Outcome.EXIT: ("exit", ("reason", "qualification")),
    Outcome.NO_EXIT: ("no_exit", ()),
    Outcome.CONTINUE: ("no_exit", ()),
    Outcome.BUS_ERROR: ("bus_error", ()),
    Outcome.ABORT: ("abort", ("error",)),
}
#: Optional keys of VMX operations, and the attributes of the instruction that they give.
CIRCUMSTANCES = {
    "movss": "mov_ss_blocking", "register": "register_operand", "length": "length",
    "info": "information", "displacement": "displacement",
}
UNSUPPORTED = {"result": "unsupported"}


class Runner:
    """Runs the cases of one profile on one port.

    Parameters
    ----------
    profile : Profile
    port : Port
        A processor of ``profile.capabilities``.
    """

    def __init__(self, profile: Profile, port):
        self._profile, self._port = profile, port
        self._processor = Processor(port)
        self._delivery = None  # what the last VM entry injected

    def run(self, case: Case) -> list[dict]:
        """The results of a case's operations, one each, in the case format.

        A result also says which row of instructions.csv decided (``row``) and which entry checks
        failed (``failing``). From a guest event on that is not supported, all is ``unsupported``;
        if the case's baseline cannot be written, all is ``not_prepared``.
        """
        self._port.reset()
        self._processor.set_up({**self._profile.environment, **case.env})
        failure = self._prepare(case)
        if failure is not None:
            return [{"result": "not_prepared", "got": failure}] * len(case.ops)
        results = []
        for op in case.ops:
            results.append(self._run(op))
            if results[-1] == UNSUPPORTED:
                break
        return results + [UNSUPPORTED] * (len(case.ops) - len(results))

    def _prepare(self, case):
        """Setup, baseline and writes; the first result that is not as it must be, or None."""
        if case.base is None:
            return None
        for op in self._profile.setup:
            result = self._run(op)
            if result["result"] not in ("ok", "succeed"):
                return result | {"op": op["op"]}
        result = self._write_pairs([*self._profile.baselines[case.base], *case.writes])
        return None if result["result"] == "succeed" else result

    def _run(self, op) -> dict:
        """Carry out one operation."""
        name = op["op"]
        try:
            match name:
                case "w32" | "w64":
                    self._port.write_memory(op["addr"], int(name[1:]) // 8, op["value"])
                    return {"result": "ok"}
                case "r32" | "r64":
                    return _ok(self._port.read_memory(op["addr"], int(name[1:]) // 8))
                case "rdmsr":
                    return _ok(self._processor.read_msr(op["msr"]))
                case "wrmsr":
                    self._processor.write_msr(op["msr"], op["value"])
                    return {"result": "ok"}
                case "movcr":
                    self._processor.move_to_cr(op["reg"], op["value"])
                    return {"result": "ok"}
                case "dump":
                    return {"result": "ok", "state": self._processor.environment()}
                case "set":
                    self._processor.set_up(op["state"])
                    return {"result": "ok"}
                case "vmreads":
                    return self._read_fields(op)
                case "apply":
                    return self._write_pairs(
                        [*self._profile.baselines[op["base"]], *op.get("writes", [])])
                case "time":
                    self._port.pass_time(op["ticks"])
                    return {"result": "ok"}
                case "fault":
                    self._port.fail_memory(op["addr"], FAULTS[op["kind"]])
                    return {"result": "ok"}
                case "guest":
                    return self._guest(op["event"], op.get("state", {}))
        except Fault as fault:
            return _exception(fault.vector, fault.error_code)
        return self._execute(name.upper(), op.get("env", {}), **_operands(op))

    def _execute(self, name, environment, **operands):
        answer = self._processor.execute(Instruction(name, **operands), environment)
        if answer.outcome == Outcome.ENTERED:
            self._delivery = answer.delivery
        result = _result(answer)
        if answer.outcome == Outcome.SUCCEED and name in ("VMREAD", "VMPTRST"):
            result["value"] = answer.value
        return result

    def _read_fields(self, op):
        values = {}
        for field in op["fields"]:
            result = self._execute("VMREAD", {}, encoding=_encoding(field))
            if result["result"] != "succeed":
                return result | {"field": field}
            values[field] = result["value"]
        return {"result": "succeed", "values": values}

    def _write_pairs(self, pairs):
        """One VMWRITE per pair; two per 64-bit field where software has 32-bit registers."""
        halves = self._profile.environment["MODE"] == 32
        writes = []
        for field, value in pairs:
            encoding = _encoding(field)
            if halves and not encoding & 1 and encoding + 1 in FIELD_BY_ENCODING:
                writes.append((field, encoding, value & 0xFFFFFFFF))
                writes.append((field, encoding + 1, value >> 32))
            else:
                writes.append((field, encoding, value))
        for batch in self._batches(writes):
            answers = self._port.execute_many(
                [Instruction("VMWRITE", encoding=encoding, value=value)
                 for _, encoding, value in batch])
            for (field, *_), answer in zip(batch, answers, strict=True):
                if answer.outcome != Outcome.SUCCEED:
                    return _result(answer) | {"field": field}
        return {"result": "succeed"}

    def _batches(self, writes):
        """The writes in batches of which only the last write can be the first one that fails.

        Once a VMWRITE has succeeded, others succeed whose fields exist and may be written.
        """
        known = self._port.capabilities.encodings
        if all(encoding in known and FIELD_BY_ENCODING[encoding].access == "rw"
               for _, encoding, _ in writes):
            return [writes[:1], writes[1:]]
        return [[write] for write in writes]

    def _guest(self, event, state):
        if self._port.mode != Mode.NON_ROOT:
            return UNSUPPORTED
        name = event.get("insn") if event["kind"] == "insn" else None
        if name in INSTRUCTIONS:
            self._processor.set_up(state)
            answer = self._port.execute(Instruction(
                name, length=event["length"], information=event.get("info", 0)))
            return _result(answer) if answer.outcome == Outcome.EXIT else {"result": "no_exit"}
        try:
            happened = event_of(event, self._delivery)
        except Unknown:
            return UNSUPPORTED
        if event["kind"] == "preemption_timer":
            state = {**state, "PREEMPTION_TIMER": 0}
        self._processor.set_up(state)
        answer = self._port.report(happened)
        result = _result(answer)
        if answer.outcome == Outcome.NO_EXIT:
            result["value"] = answer.value
        if answer.delivery is not None:
            result["delivery"] = answer.delivery.information
        return result


def _operands(op):
    """Operands of the instruction that a VMX op stands for, and its circumstances."""
    operands = {name: op[key] for key, name in CIRCUMSTANCES.items() if key in op}
    if "fault" in op:
        operands["operand_fault"] = tuple(op["fault"])
    match op["op"]:
        case "vmxon" | "vmclear" | "vmptrld":
            operands["pointer"] = op["addr"]
        case "vmread":
            operands["encoding"] = _encoding(op["field"])
        case "vmwrite":
            operands |= {"encoding": _encoding(op["field"]), "value": op["value"]}
        case "invept" | "invvpid":
            operands |= {"invalidation": op["type"], "descriptor": op["lo"] | op["hi"] << 64}
        case "vmfunc":
            operands |= {"eax": op["eax"], "ecx": op["ecx"]}
    return operands


def _encoding(field):
    return FIELDS[field].encoding if isinstance(field, str) else field


def _ok(value):
    return {"result": "ok", "value": value}


def _exception(vector, error_code):
    result = {"result": "exception", "vector": vector}
    return result if error_code is None else result | {"errcode": error_code}


def _result(answer: Answer) -> dict:
    name, attributes = RESULTS[answer.outcome]
    result = {"result": name} | {key: getattr(answer, key) for key in attributes}
    if answer.outcome == Outcome.FAULT:
        result = _exception(answer.vector, answer.error_code)
    if answer.row:
        result["row"] = answer.row
    if answer.failing:
        result["failing"] = list(answer.failing)
    return result

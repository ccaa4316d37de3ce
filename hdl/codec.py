"""Operations, answers and environments as the bits on the unit's ports, for every backend."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from amaranth.hdl import Shape
from amaranth.lib import data

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Answer, Boundary, Delivery, Event, Instruction, Outcome
from vmxswitch.spec.tables import implemented_reason

from . import interface
from .interface import INSTRUCTION_ROWS, Code, Operation

__all__ = ["Codec", "Layout"]

WORD = (1 << 64) - 1
ANSWERS_KEPT = 4096
HOST_LIVE = (Code.EXIT, Code.ENTRY_FAILURE)
_OPERATIONS = {name: operation.value for name, operation in Operation.__members__.items()}
_ROW_NUMBERS = {row.id: number for number, row in enumerate(INSTRUCTION_ROWS)}


class Layout:
    """Packs and unpacks the fields of a port whose shape is a struct."""

    def __init__(self, shape):
        self._fields = {
            name: (field.offset, (1 << Shape.cast(field.shape).width) - 1)
            for name, field in data.Layout.cast(shape)
        }

    def pack(self, values: dict[str, int]) -> int:
        """Bits of the port; fields that are not given are 0, values are cut to their field."""
        bits = 0
        for name, value in values.items():
            if value:
                offset, mask = self._fields[name]
                bits |= (value & mask) << offset
        return bits

    def mask(self, names: Iterable[str]) -> int:
        """All bits of the fields named."""
        return self.pack(dict.fromkeys(names, -1))

    def unpack(self, bits: int) -> dict[str, int]:
        """Every field by name."""
        return {name: bits >> offset & mask for name, (offset, mask) in self._fields.items()}


class Codec:
    """The port formats of the unit that is built for one processor."""

    def __init__(self, capabilities: Capabilities):
        self._capabilities = capabilities
        self._checks = (*capabilities.state_checks, *capabilities.list_checks)
        self._request, self._event = Layout(interface.Request), Layout(interface.Event)
        self._pending = Layout(interface.Pending)
        self._response = Layout(interface.Response)
        self._live = Layout(interface.register_layout(capabilities))
        self._update = Layout(interface.update_layout(capabilities))
        self._numbers = {name: number for number, name in enumerate(capabilities.registers)}
        self._check_numbers = {check.id: number for number, check in enumerate(self._checks)}
        self._kept = lru_cache(ANSWERS_KEPT)(self._answer)  # few differ, and making one is slow

    def request(self, instruction: Instruction) -> int:
        """Payload of ``requests``."""
        vector, error_code = instruction.operand_fault or (0, 0)
        operand, source, source_high = instruction.pointer, instruction.value, 0
        match instruction.name:
            case "VMREAD" | "VMWRITE":
                operand = instruction.encoding
            case "INVEPT" | "INVVPID":
                operand = instruction.invalidation
                source, source_high = instruction.descriptor & WORD, instruction.descriptor >> 64
            case "VMFUNC":
                operand, source = instruction.eax, instruction.ecx
        return self._request.pack({
            "operation": _OPERATIONS[instruction.name],
            "operand": operand, "source": source, "source_high": source_high,
            "register_operand": instruction.register_operand,
            "operand_fault": instruction.operand_fault is not None,
            "vector": vector, "error_code": error_code or 0,
            "mov_ss_blocking": instruction.mov_ss_blocking, "length": instruction.length,
            "information": instruction.information, "displacement": instruction.displacement,
        })

    def event(self, event: Event | Boundary) -> int:
        """Payload of ``events``; :exc:`UsageError` for a reason that is not implemented."""
        if isinstance(event, Boundary):
            return self._event.pack({"boundary": 1, "pending": self._pending.pack(vars(event))})
        implemented_reason(event.reason)
        return self._event.pack(vars(event))

    def update(self, register: str, value: int) -> int:
        """Payload of ``updates``.

        Raises :exc:`KeyError` for a register that the processor does not have and
        :exc:`ValueError` for a value wider than the register.
        """
        bits = self._capabilities.bits(self._capabilities.registers[register])
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{register}: {value:#x} does not fit {bits} bits")
        return self._update.pack({"register": self._numbers[register], "value": value})

    def registers(self, live: int) -> dict[str, int]:
        """The environment on ``live``."""
        return self._live.unpack(live)

    def live(self, registers: Mapping[str, int]) -> int:
        """What ``live`` shows in an environment."""
        return self._live.pack(registers)

    def diagnosis(self, failing: Iterable[str]) -> int:
        """What ``diagnosis`` shows if the checks with these ids fail."""
        return sum(1 << self._check_numbers[id] for id in failing)

    def response(self, answer: Answer) -> tuple[int, int]:
        """The bits of ``responses`` or ``verdicts`` that :meth:`answer` makes the answer from.

        Returns their values and a mask.
        """
        code = Code[answer.outcome.name]
        fields = {"code": code.value}
        if answer.row:
            fields["row"] = _ROW_NUMBERS[answer.row]
        match code:
            case Code.FAIL_VALID | Code.ABORT:
                fields["error"] = answer.error
            case Code.FAULT:
                fields |= {"vector": answer.vector, "has_code": answer.error_code is not None}
                if answer.error_code is not None:
                    fields["error_code"] = answer.error_code
            case Code.SUCCEED if _gives_value(answer.row):
                fields["value"] = answer.value
            case Code.NO_EXIT | Code.ENTERED:
                fields |= self._delivery(answer.delivery)
                if code is Code.NO_EXIT:
                    fields["value"] = answer.value
            case Code.EXIT | Code.ENTRY_FAILURE:
                fields |= {"reason": answer.reason, "qualification": answer.qualification}
        return self._response.pack(fields), self._response.mask(fields)

    def _delivery(self, delivery):
        if delivery is None:
            return {"delivery": 0}
        return {"delivery": delivery.information, "error_code": delivery.error_code,
                "length": delivery.length}

    def answer(self, response: int, *, event: bool, diagnosis: int, cycles: int) -> Answer:
        """The answer on ``responses`` or ``verdicts``; ``diagnosis`` 0 if it was not checked."""
        return self._kept(response, event, diagnosis, cycles)

    def _answer(self, response, event, diagnosis, cycles):
        fields = self._response.unpack(response)
        code = Code(fields["code"])
        fault = code is Code.FAULT
        decided = not event and code not in (Code.ABORT, Code.BUS_ERROR)
        row = INSTRUCTION_ROWS[fields["row"]] if decided else None
        gives_value = code is Code.NO_EXIT or (
            row and code is Code.SUCCEED and _gives_value(row.id))
        delivery = None
        if code in (Code.NO_EXIT, Code.ENTERED) and fields["delivery"]:
            delivery = Delivery(fields["delivery"], fields["error_code"], fields["length"])
        return Answer(
            outcome=Outcome[code.name],
            row=row.id if row else "",
            error=fields["error"] if code in (Code.FAIL_VALID, Code.ABORT) else 0,
            vector=fields["vector"] if fault else 0,
            error_code=fields["error_code"] if fault and fields["has_code"] else None,
            value=fields["value"] if gives_value else 0,
            reason=fields["reason"] if code in HOST_LIVE else 0,
            qualification=fields["qualification"] if code in HOST_LIVE else 0,
            failing=tuple(
                check.id for number, check in enumerate(self._checks) if diagnosis >> number & 1),
            delivery=delivery,
            cycles=cycles,
        )


def _gives_value(row: str) -> bool:
    """Whether success by a row of instructions.csv hands a value over."""
    return row.startswith(("VMREAD.", "VMPTRST."))

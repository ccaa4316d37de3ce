"""Says in words what a unit does, beside its waves: for whoever reads them."""

from enum import Enum

from amaranth.hdl import Signal

from vmxswitch.hdl.interface import INSTRUCTION_ROWS, Code, Operation
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec.operations import Mode

__all__ = ["NONE", "Narrator", "Owner", "executing", "failing", "outcome", "owner", "row"]

NONE = "-"  #: shown where there is no name


class Owner(Enum):
    """What ``live`` was last loaded from."""
    SOFTWARE = 0    # register writes of the core, before the first commit
    GUEST_AREA = 1  # a VM entry
    HOST_AREA = 2   # a VM exit or entry failure


def _names(title, names):
    """An enumeration whose first member is that there is none of ``names``."""
    return Enum(title, {name: number for number, name in enumerate([NONE, *names])})


EVENT = "event"
Executing = _names("Executing", [*Operation.__members__, EVENT])
Outcome = _names("Outcome", Code.__members__)
Row = _names("Row", [row.id for row in INSTRUCTION_ROWS])


def executing(event: int, request: int, operation: int) -> str:
    """Operation that is accepted, from what is offered."""
    return EVENT if event else Operation(operation).name if request else NONE


def outcome(valid: int, code: int) -> str:
    """What the operation that ``retired`` shows ended in."""
    return Code(code).name if valid else NONE


def row(valid: int, event: int, number: int) -> str:
    """Id of the row of instructions.csv that decided it."""
    return INSTRUCTION_ROWS[number].id if valid and not event else NONE


def failing(bits: int, ids: list[str]) -> str:
    """Ids of the checks in ``diagnosis``."""
    return ",".join(name for number, name in enumerate(ids) if bits >> number & 1) or NONE


def owner(mode: int) -> Owner:
    """What a commit that ended in this mode has loaded ``live`` from."""
    return Owner.GUEST_AREA if Mode(mode) is Mode.NON_ROOT else Owner.HOST_AREA


class Narrator:
    """Signals beside a unit that say in words what it does, for whoever reads the waves.

    Attributes
    ----------
    cycle : Signal
        As :attr:`PysimPort.cycle`.
    instruction : Signal(Executing)
        Operation in execution.
    outcome, row : Signal(Outcome), Signal(Row)
        What the operation that ended at the last edge ended in; the row that decided.
    failing : Signal(number of checks)
        Checks that failed in the last VM entry that came to them; shown as their ids.
    owner : Signal(Owner)
        Changes at the same edge as ``live``.
    """
    def __init__(self, unit: VmxUnit):
        self._unit = unit
        ids = [row.id for row in unit.rows]
        self.cycle = Signal(32, name="cycle")
        self.instruction = Signal(Executing, name="instruction")
        self.outcome = Signal(Outcome, name="outcome")
        self.row = Signal(Row, name="row")
        self.failing = Signal(len(ids), name="failing", decoder=lambda bits: failing(bits, ids))
        self.owner = Signal(Owner, name="owner")

    @property
    def signals(self) -> list[Signal]:
        """All of them."""
        return [self.cycle, self.instruction, self.outcome, self.row, self.failing, self.owner]

    def attach(self, simulator) -> None:
        """Let the signals follow the unit; before the simulation starts."""
        simulator.add_process(self._clocked)
        simulator.add_process(self._combinational)

    async def _clocked(self, ctx):
        requests, events = self._unit.requests, self._unit.events
        cycle = 0
        async for _, _, free, event, request, operation in ctx.tick().sample(
                events.ready, events.valid, requests.valid, requests.p.operation):
            cycle += 1
            ctx.set(self.cycle, cycle)
            if free:  # the operation at hand, if any, has ended
                ctx.set(self.instruction, Executing[executing(event, request, operation)])

    async def _combinational(self, ctx):
        unit = self._unit
        async for retired, mode, diagnosis in ctx.changed(
                unit.retired, unit.mode, unit.diagnosis):
            ctx.set(self.outcome, Outcome[outcome(retired.valid, retired.code)])
            ctx.set(self.row, Row[row(retired.valid, retired.event, retired.row)])
            ctx.set(self.failing, diagnosis)
            if retired.commit:
                ctx.set(self.owner, owner(mode))

"""Waves of a simulated run, with views for GTKWave and Surfer and a timing picture.

What the files hold and how to open them: ``docs/waves.md``.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

from amaranth.hdl import Signal

from vmxswitch.hdl.interface import INSTRUCTION_ROWS, Code, Operation
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Mode

from .pysim import CLOCK_PERIOD_S, PysimPort
from .timing_svg import timing_svg
from .vcd_file import VcdFile
from .wave_view import gtkwave_save, surfer_state, view

__all__ = ["Owner", "recording"]

PERIOD_FS = round(CLOCK_PERIOD_S * 1e15)
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


@contextmanager
def recording(port: PysimPort, directory: Path | str) -> Iterator[None]:
    """Record what ``port`` does in the body and write the files to ``directory``.

    The port must be fresh, and the body must not reset it once it has run. If the body raises an
    exception, nothing is written.

    Parameters
    ----------
    port : PysimPort
    directory : Path or str
        Made if it does not exist; ``switch.vcd``, ``switch.gtkw``, ``switch.surf.ron`` and
        ``switch.svg`` in it are replaced, all or none.

    Raises
    ------
    :exc:`UsageError`
        If ``directory`` cannot be written; before the body where that shows before.
    """
    directory = Path(directory)
    with _reported(directory):
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        nearest = directory if directory.is_dir() else directory.parent
        folder = TemporaryDirectory(prefix=".waves-", dir=nearest)
    with folder as temporary:
        stream = io.StringIO()
        narrator = Narrator(port.unit)
        narrator.attach(port.simulator)
        with port.simulator.write_vcd(stream, traces=narrator.signals):
            port.read_registers()  # starts the simulation, even if the body does nothing
            yield
            port.read_registers()  # so that the last cycle is seen whole
        files = _files(port, stream.getvalue())
        with _reported(directory):
            for name, text in files.items():
                Path(temporary, name).write_text(text, encoding="utf-8")
            directory.mkdir(exist_ok=True)
            for name in files:
                os.replace(Path(temporary, name), directory / name)


@contextmanager
def _reported(directory):
    """Turn an error of the file system into one about ``directory``."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write waves to {directory}: {error.strerror}") from None


def _files(port, text):
    """Contents of all files by name."""
    vcd = VcdFile(text)
    groups = view(port.capabilities)
    edge = _edge(vcd)
    return {
        "switch.vcd": text,
        "switch.gtkw": gtkwave_save(groups, vcd, edge, PERIOD_FS),
        "switch.surf.ron": surfer_state(groups, vcd, edge, PERIOD_FS),
        "switch.svg": timing_svg(vcd, edge, PERIOD_FS),
    }


def _edge(vcd):
    """When ``live`` last changed owner; when the last operation ended, if it never did."""
    owners = [time for time, _ in vcd.changes["bench.owner"]]
    ends = [time for time, outcome in vcd.changes["bench.outcome"] if outcome != NONE]
    return owners[-1] or (ends or [0])[-1]


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
        self.failing = Signal(len(ids), name="failing", decoder=lambda bits: ",".join(
            name for number, name in enumerate(ids) if bits >> number & 1) or NONE)
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
                name = EVENT if event else Operation(operation).name if request else NONE
                ctx.set(self.instruction, Executing[name])

    async def _combinational(self, ctx):
        unit = self._unit
        async for retired, mode, failing in ctx.changed(unit.retired, unit.mode, unit.diagnosis):
            row = retired.valid and not retired.event
            ctx.set(self.outcome, Outcome[Code(retired.code).name if retired.valid else NONE])
            ctx.set(self.row, Row[INSTRUCTION_ROWS[retired.row].id if row else NONE])
            ctx.set(self.failing, failing)
            if retired.commit:
                in_guest = Mode(mode) is Mode.NON_ROOT
                ctx.set(self.owner, Owner.GUEST_AREA if in_guest else Owner.HOST_AREA)

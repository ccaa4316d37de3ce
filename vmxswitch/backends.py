"""The backends that a verb can run on."""

import importlib
from contextlib import nullcontext
from pathlib import Path

from vmxswitch import extras
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError

__all__ = ["BACKENDS", "CLOCKLESS", "SERIAL", "line", "port", "recording"]

#: Module and class of each backend that needs no board, and the extras that it needs.
BACKENDS = {
    "model": ("vmxswitch.sim.model", "Model", ()),
    "pysim": ("vmxswitch.sim.pysim", "PysimPort", ()),
    "verilator": ("vmxswitch.sim.verilator", "VerilatorPort", ("compiled",)),
    "netlist": ("vmxswitch.sim.verilator", "NetlistPort", ("compiled", "netlist")),
}
#: The backend that counts operations, not cycles.
CLOCKLESS = "model"
#: The backend that is a board; it can be read after operations, not in every cycle.
SERIAL = "serial"
#: Those that have no waves.
WAVELESS = (CLOCKLESS, SERIAL, "netlist")


def line(arguments) -> tuple[str, int] | None:
    """Serial port and baud rate of the board that a command line names; None if it names none.

    Raises :exc:`UsageError` for a port without ``--backend serial``, or the other way round.
    """
    if arguments.backend != SERIAL:
        if arguments.port is not None:
            raise UsageError(f"--port {arguments.port} names a board; it needs --backend {SERIAL}")
        return None
    if arguments.port is None:
        raise UsageError(f"--backend {SERIAL} needs --port, the serial port of the board, such as "
                         "/dev/ttyUSB0")
    return arguments.port, arguments.baud


def port(backend: str, capabilities: Capabilities, *, waves: bool = False,
         line: tuple[str, int] | None = None):
    """A processor of these capabilities on a backend: a :class:`vmxswitch.firmware.port.Port`.

    ``waves``: it must be possible to record it (:func:`vmxswitch.sim.waves.recording`).
    ``line``: where the board is, as :func:`line` says.

    Raises :exc:`~vmxswitch.extras.MissingExtra` if the backend's tools are not installed, and
    :exc:`UsageError` for waves of a backend that has none.
    """
    if waves and backend in WAVELESS:
        raise UsageError("--waves shows the hardware; it needs --backend pysim or verilator")
    if backend == SERIAL:
        extras.need("serial")
        from vmxswitch.boards.serial_port import SerialPort
        return SerialPort(capabilities, *line)
    module, name, needed = BACKENDS[backend]
    for extra in needed:
        extras.need(extra)
    options = {"waves": True} if waves and needed else {}
    return getattr(importlib.import_module(module), name)(capabilities, **options)


def recording(port, folder: Path | None):
    """A context in which a port made for waves is recorded; nothing is without a folder."""
    if folder is None:
        return nullcontext()
    from vmxswitch.sim import waves
    return waves.recording(port, folder)

"""The backends that a verb can run on."""

import importlib
from contextlib import nullcontext
from pathlib import Path

from vmxswitch import extras
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError

__all__ = ["BACKENDS", "CLOCKLESS", "port", "recording"]

#: Module and class of each backend, and whether it is compiled.
BACKENDS = {
    "model": ("vmxswitch.sim.model", "Model", False),
    "pysim": ("vmxswitch.sim.pysim", "PysimPort", False),
    "verilator": ("vmxswitch.sim.verilator", "VerilatorPort", True),
}
#: The backend that counts operations, not cycles, and has no waves.
CLOCKLESS = "model"


def port(backend: str, capabilities: Capabilities, *, waves: bool = False):
    """A processor of these capabilities on a backend: a :class:`vmxswitch.firmware.port.Port`.

    ``waves``: it must be possible to record it (:func:`vmxswitch.sim.waves.recording`).

    Raises :exc:`~vmxswitch.extras.MissingExtra` if the backend's tools are not installed, and
    :exc:`UsageError` for waves of a backend that has none.
    """
    if waves and backend == CLOCKLESS:
        raise UsageError("--waves shows the hardware; it needs --backend pysim or verilator")
    module, name, compiled = BACKENDS[backend]
    if compiled:
        extras.need_compiled()
    options = {"waves": True} if compiled and waves else {}
    return getattr(importlib.import_module(module), name)(capabilities, **options)


def recording(port, folder: Path | None):
    """A context in which a port made for waves is recorded; nothing is without a folder."""
    if folder is None:
        return nullcontext()
    from vmxswitch.sim import waves
    return waves.recording(port, folder)

"""The backends that a verb can run on."""

import importlib
from contextlib import nullcontext
from pathlib import Path

from vmxswitch import extras
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError

__all__ = ["BACKENDS", "CLOCKLESS", "port", "recording"]

#: Module and class of each backend, and the extras that it needs.
BACKENDS = {
    "model": ("vmxswitch.sim.model", "Model", ()),
    "pysim": ("vmxswitch.sim.pysim", "PysimPort", ()),
    "verilator": ("vmxswitch.sim.verilator", "VerilatorPort", ("compiled",)),
    "netlist": ("vmxswitch.sim.verilator", "NetlistPort", ("compiled", "fpga")),
}
#: The backend that counts operations, not cycles; those that have no waves.
CLOCKLESS = "model"
WAVELESS = (CLOCKLESS, "netlist")


def port(backend: str, capabilities: Capabilities, *, waves: bool = False):
    """A processor of these capabilities on a backend: a :class:`vmxswitch.firmware.port.Port`.

    ``waves``: it must be possible to record it (:func:`vmxswitch.sim.waves.recording`).

    Raises :exc:`~vmxswitch.extras.MissingExtra` if the backend's tools are not installed, and
    :exc:`UsageError` for waves of a backend that has none.
    """
    if waves and backend in WAVELESS:
        raise UsageError("--waves shows the hardware; it needs --backend pysim or verilator")
    module, name, needed = BACKENDS[backend]
    if needed:
        extras.need_compiled()
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

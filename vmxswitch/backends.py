"""The backends that a verb can run on."""

import importlib

from vmxswitch import extras
from vmxswitch.spec.capabilities import Capabilities

__all__ = ["BACKENDS", "port"]

#: Module and class of each backend, and whether it is compiled.
BACKENDS = {
    "model": ("vmxswitch.sim.model", "Model", False),
    "pysim": ("vmxswitch.sim.pysim", "PysimPort", False),
    "verilator": ("vmxswitch.sim.verilator", "VerilatorPort", True),
}


def port(backend: str, capabilities: Capabilities, *, waves: bool = False):
    """A processor of these capabilities on a backend: a :class:`vmxswitch.firmware.port.Port`.

    ``waves``: it must be possible to record it (:func:`vmxswitch.sim.waves.recording`).

    Raises :exc:`~vmxswitch.extras.MissingExtra` if the backend's tools are not installed.
    """
    module, name, compiled = BACKENDS[backend]
    if compiled:
        extras.need_compiled()
    options = {"waves": True} if compiled and waves else {}
    return getattr(importlib.import_module(module), name)(capabilities, **options)

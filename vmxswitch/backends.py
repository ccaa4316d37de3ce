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


def port(backend: str, capabilities: Capabilities):
    """A processor of these capabilities on a backend: a :class:`vmxswitch.firmware.port.Port`.

    Raises :exc:`~vmxswitch.extras.MissingExtra` if the backend's tools are not installed.
    """
    module, name, compiled = BACKENDS[backend]
    if compiled:
        extras.need_compiled()
    return getattr(importlib.import_module(module), name)(capabilities)

"""The backends that a verb can run on."""

import importlib
import shutil

from vmxswitch import extras
from vmxswitch.spec.capabilities import Capabilities

__all__ = ["BACKENDS", "port"]

#: Module and class of each backend, and the extra that it needs.
BACKENDS = {
    "model": ("vmxswitch.sim.model", "Model", None),
    "pysim": ("vmxswitch.sim.pysim", "PysimPort", None),
    "verilator": ("vmxswitch.sim.verilator", "VerilatorPort", "compiled"),
}


def port(backend: str, capabilities: Capabilities):
    """A processor of these capabilities on a backend: a :class:`vmxswitch.firmware.port.Port`.

    Raises :exc:`~vmxswitch.extras.MissingExtra` if the backend's tools are not installed.
    """
    module, name, extra = BACKENDS[backend]
    if extra:
        extras.need(extra)
        if not shutil.which("c++"):
            extras.need("compiler")
    return getattr(importlib.import_module(module), name)(capabilities)

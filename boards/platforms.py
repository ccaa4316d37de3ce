"""Boards that `amaranth-boards` does not have.

Source of the pins: https://github.com/wuxx/Colorlight-FPGA-Projects, README.md (i5 v7.0) and
colorlight_i9_v7.2.md; serial port of the extension board: litex_boards/platforms/colorlight_i5.py
of https://github.com/litex-hub/litex-boards. By the former both modules have the same layout but
for one contact that is not used here.
"""

from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.resources import UARTResource

__all__ = ["ColorlightI5Platform", "ColorlightI9Platform"]


class ColorlightI5Platform(LatticeECP5Platform):
    """Colorlight i5 v7.0 on its extension board, whose USB port is the UART."""
    device      = "LFE5U-25F"
    package     = "BG381"
    speed       = "6"
    default_clk = "clk25"
    resources   = [
        Resource("clk25", 0, Pins("P3", dir="i"), Clock(25e6), Attrs(IO_TYPE="LVCMOS33")),
        UARTResource(0, rx="H18", tx="J17", attrs=Attrs(IO_TYPE="LVCMOS33")),
    ]
    connectors  = []


class ColorlightI9Platform(ColorlightI5Platform):
    """Colorlight i9 v7.2 on the same extension board."""
    device = "LFE5U-45F"

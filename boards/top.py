"""What goes onto a board: the unit behind its serial port, with lights that show the mode."""

from amaranth import Elaboratable, Module
from amaranth.build import ResourceError
from amaranth.lib import io

from vmxswitch.hdl.serial_unit import SerialUnit
from vmxswitch.spec.capabilities import Capabilities

__all__ = ["BoardTop"]


class BoardTop(Elaboratable):
    """A :class:`~vmxswitch.hdl.serial_unit.SerialUnit` on the pins of a platform.

    It runs at the platform's default clock; ``uart`` 0 is the serial port, and ``led`` 0 to 3 are
    the lights, as many as the platform has.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    frames : int
        Size of the board's memory, see :class:`~vmxswitch.hdl.sparse_memory.SparseMemory`.
    """
    def __init__(self, capabilities: Capabilities, *, frames: int):
        self._capabilities, self._frames = capabilities, frames

    def elaborate(self, platform):
        m = Module()
        m.submodules.serial_unit = unit = SerialUnit(
            self._capabilities, clock_hz=int(platform.default_clk_frequency), frames=self._frames)
        uart = platform.request("uart", dir="-")
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.d.comb += [unit.rx.eq(rx.i), tx.o.eq(unit.tx)]
        for number, light in enumerate(unit.leds):
            try:
                pin = platform.request("led", number, dir="-")
            except ResourceError:
                break
            m.submodules[f"led_{number}"] = led = io.Buffer("o", pin)
            m.d.comb += led.o.eq(light)
        return m

"""What goes onto a board: the unit, and what stands between its ports and two pins."""

from amaranth import Cat, Elaboratable, Module, Signal, Value
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec.capabilities import Capabilities

__all__ = ["FACE", "BoardTop", "Scan"]


class Scan(wiring.Component):
    """The unit behind two wires, for measuring size and speed; no use beyond that.

    Every input of the unit is a bit of one shift register, every output but ``controls`` goes into
    one parity through registers, so that nothing of the unit is optimised away and no path outside
    it is long. ``controls`` is left out since VMREAD shows the fields too: a core pays a flip-flop
    for each bit of it that no check reads.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    rx : In(1)
        Goes into the shift register in each cycle.
    tx : Out(1)
        Parity of the outputs, some cycles ago.
    """
    rx: In(1)
    tx: Out(1)

    GROUP_BITS = 16  #: how many bits one register of the parity takes in

    def __init__(self, capabilities: Capabilities):
        self._unit = VmxUnit(capabilities)
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = self._unit
        inputs, outputs = [], []
        for path, member, value in unit.signature.flatten(unit):
            if path[0] != "controls":
                (inputs if member.flow is In else outputs).append(Value.cast(value))
        shifted = Signal(sum(map(len, inputs)))
        m.d.sync += shifted.eq(Cat(self.rx, shifted))
        m.d.comb += Cat(inputs).eq(shifted)

        bits = Cat(outputs)
        while len(bits) > 1:
            groups = [bits[low:low + self.GROUP_BITS]
                      for low in range(0, len(bits), self.GROUP_BITS)]
            bits = Signal(len(groups))
            m.d.sync += bits.eq(Cat(group.xor() for group in groups))
        m.d.comb += self.tx.eq(bits)
        return m


#: Component with `rx` and `tx` that takes the capabilities.
FACE = Scan


class BoardTop(Elaboratable):
    """The face on the UART of a platform, at the platform's default clock."""

    def __init__(self, capabilities: Capabilities):
        self._face = FACE(capabilities)

    def elaborate(self, platform):
        m = Module()
        m.submodules.face = self._face
        uart = platform.request("uart", dir="-")
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        m.d.comb += [self._face.rx.eq(rx.i), tx.o.eq(self._face.tx)]
        return m

"""VMCS register bank: every field of the resident VMCS in flip-flops.

Facts: vmcs_fields.csv; instructions.csv rows VMREAD.7 and VMWRITE.8 for widths and high halves.
"""

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.tables import FIELD_BY_ENCODING

from .interface import field_layout, require_capabilities

__all__ = ["FieldSelect", "VmcsBank"]


class FieldSelect(data.Struct):
    """Which field a VMREAD or VMWRITE names: the outcome of :meth:`VmcsBank.decode`."""
    number: 8  # of the field in the processor's table order
    high:   1  # the encoding is that of bits 63:32
    exists: 1


class VmcsBank(wiring.Component):
    """All fields of the resident VMCS: readable whole, writable one by one or many at an edge.

    Parameters
    ----------
    capabilities : Capabilities
        The processor; decides which fields exist and how wide they are.

    Members
    -------
    fields : Out(:func:`~.interface.field_layout`), resets to 0
        Present values.
    select : In(FieldSelect)
        Field for ``r_data`` and for ``w_stb``.
    r_data : Out(64)
        Combinational: the selected field, zero-extended; bits 63:32 of it if ``select.high``.
    w_data : In(64)
        Value for the selected field, cut to its width; bits 31:0 go to bits 63:32 of the field if
        ``select.high``.
    w_stb : In(1)
        Writes ``w_data`` at the next edge. Not together with a bit of ``load_stb``.
    load : In(:func:`~.interface.field_layout`)
        New values for many fields at once.
    load_stb : In(number of fields)
        Writes field n of ``load`` at the next edge if bit n is high.
    changing : Out(1)
        Combinational: a field may change at the next edge.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        layout = field_layout(capabilities)
        super().__init__({
            "fields": Out(layout), "select": In(FieldSelect), "r_data": Out(64),
            "w_data": In(64), "w_stb": In(1), "load": In(layout),
            "load_stb": In(len(capabilities.fields)), "changing": Out(1),
        })

    @staticmethod
    def decode(capabilities: Capabilities, m: Module, encoding, select):
        """Add to ``m`` the decoder from a 64-bit VMCS encoding to a :class:`FieldSelect`."""
        numbers = {symbol: number for number, symbol in enumerate(capabilities.fields)}
        with m.If(encoding[16:] == 0):
            with m.Switch(encoding[:16]):
                for known in sorted(capabilities.encodings):
                    row = FIELD_BY_ENCODING[known & ~1]
                    with m.Case(known):
                        m.d.comb += [
                            select.number.eq(numbers[row.symbol]),
                            select.high.eq(known & 1),
                            select.exists.eq(1),
                        ]

    def elaborate(self, platform):
        m = Module()
        whole = Signal(64)
        m.d.comb += [
            whole.eq(Array(
                self.fields[symbol] for symbol in self._capabilities.fields)[self.select.number]),
            self.r_data.eq(Mux(self.select.high, whole[32:], whole)),
            self.changing.eq(self.w_stb | self.load_stb.any()),
        ]
        for number, (symbol, row) in enumerate(self._capabilities.fields.items()):
            value = self.fields[symbol]
            with m.If(self.load_stb[number]):
                m.d.sync += value.eq(self.load[symbol])
            with m.Elif(self.w_stb & (self.select.number == number)):
                if row.width_class == "64":
                    high = Cat(value[:32], self.w_data[:32])
                    m.d.sync += value.eq(Mux(self.select.high, high, self.w_data))
                else:
                    m.d.sync += value.eq(self.w_data)
        return m

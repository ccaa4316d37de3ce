"""VMCS register bank: every field of the resident VMCSs.

Facts: vmcs_fields.csv; instructions.csv rows VMREAD.7 and VMWRITE.8 for widths and high halves.
"""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.tables import EXIT_INFORMATION, FIELD_BY_ENCODING

from .interface import field_layout, require_capabilities

__all__ = ["FieldSelect", "VmcsBank"]


class FieldSelect(data.Struct):
    """Which field a VMREAD or VMWRITE names: the outcome of :meth:`VmcsBank.decode`."""
    number: 8  # of the field in the processor's table order
    high:   1  # the encoding is that of bits 63:32
    exists: 1


class VmcsBank(wiring.Component):
    """All fields of a resident VMCS: readable whole, writable one by one or many at an edge.

    One VMCS is held in flip-flops. Several are held in a small memory for each field, one word per
    slot, with an asynchronous read port, as FPGAs build from look-up tables (distributed RAM).

    Fields that change one by one only, which are the controls and the host area, are also kept in
    one memory with a synchronous read port (block RAM), and VMREAD reads them there. So no
    multiplexer over them is needed, and of their bits only those that somebody looks at in parallel
    cost a flip-flop.

    Parameters
    ----------
    capabilities : Capabilities
        The processor; decides which fields exist, how wide they are, and how many slots there are.

    Members
    -------
    slot : In(range(slots))
        Slot that is read and written.
    fields : Out(:func:`~.interface.field_layout`)
        Combinational in ``slot``: its present values. All are 0 until they are written; a reset
        leaves them as they are.
    select : In(FieldSelect)
        Field for ``w_stb``.
    slot_next : In(range(slots)), select_next : In(FieldSelect)
        What ``slot`` will be after the next edge, and the field that ``r_data`` is to show then.
    r_data : Out(64)
        The field that ``select_next`` named at the last edge, zero-extended; bits 63:32 of it if
        ``select_next.high``. What is written at an edge is shown from that edge on.
    w_data : In(64)
        Value for the selected field, cut to its width; bits 31:0 go to bits 63:32 of the field if
        ``select.high``.
    w_en : In(1)
        ``w_stb`` may be high in this cycle, but no bit of ``load_stb`` other than that of
        VM_INSTRUCTION_ERROR. Known long before the strobes, so that it can choose the data.
    w_stb : In(1)
        Writes ``w_data`` at the next edge. Not together with a bit of ``load_stb``.
    load : In(:func:`~.interface.field_layout`)
        New values for many fields at once; only those of :meth:`loaded` are looked at.
    load_stb : In(number of fields)
        Writes field n of ``load`` at the next edge if bit n is high.
    changing : Out(1)
        Combinational: a field may change at the next edge.
    """
    def __init__(self, capabilities: Capabilities):
        self._capabilities = require_capabilities(self, capabilities)
        layout = field_layout(capabilities)
        slot = range(capabilities.resident_vmcss)
        super().__init__({
            "slot": In(slot), "fields": Out(layout), "select": In(FieldSelect),
            "slot_next": In(slot), "select_next": In(FieldSelect), "r_data": Out(64),
            "w_data": In(64), "w_en": In(1), "w_stb": In(1), "load": In(layout),
            "load_stb": In(len(capabilities.fields)), "changing": Out(1),
        })

    @staticmethod
    def loaded(capabilities: Capabilities) -> set[str]:
        """The fields that the unit itself writes, others aside from VMWRITE and VMPTRLD."""
        written = {row.field for row in capabilities.registers.values()}
        return (written | {*EXIT_INFORMATION, "VM_INSTRUCTION_ERROR", "EPT_POINTER", "EPTP_INDEX"}
                ) & set(capabilities.fields)

    @staticmethod
    def decode(capabilities: Capabilities, m: Module, encoding, select):
        """Add to ``m`` the decoder from a 32-bit VMCS encoding to a :class:`FieldSelect`."""
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
        fields, select = self._capabilities.fields, self.select
        high = Mux(select.high, self.w_data[:32], self.w_data[32:])
        w_data = Cat(self.w_data[:32], high)
        loaded = self.loaded(self._capabilities)
        m.d.comb += self.changing.eq(self.w_stb | self.load_stb.any())

        shown = Signal(FieldSelect)
        m.d.sync += shown.eq(self.select_next)
        whole = Signal(64)
        m.d.comb += [
            whole.eq(self._copies(m, w_data)),
            self.r_data.eq(Mux(shown.high, whole[32:], whole)),
        ]
        with m.Switch(shown.number):
            for number, symbol in enumerate(fields):
                if symbol in loaded:
                    with m.Case(number):
                        m.d.comb += whole.eq(self.fields[symbol])

        for number, symbol in enumerate(fields):
            bits = len(self.load[symbol])
            written = self.w_stb & (select.number == number)
            following, write = Signal(bits), Signal(2)  # for bits 31:0 and 63:32
            m.d.comb += [
                following.eq(w_data), write.eq(Cat(written & ~select.high, written)),
            ]
            if symbol in loaded:
                late = symbol == "VM_INSTRUCTION_ERROR"
                with m.If(self.load_stb[number] if late else ~self.w_en):
                    m.d.comb += following.eq(self.load[symbol])
                with m.If(self.load_stb[number]):
                    m.d.comb += write.eq(0b11)
            for low in range(0, bits, 32):
                part = slice(low, min(low + 32, bits))
                self._keep(m, f"{symbol}_{low}", self.fields[symbol][part], following[part],
                           write[low // 32])
        return m

    def _copies(self, m, w_data):
        """What the memory of all fields has for the field selected at the last edge."""
        fields, select = self._capabilities.fields, self.select
        widths = [self._capabilities.bits(row) for row in fields.values()]
        fits = [select.number.matches(*(
            number for number, width in enumerate(widths) if width > least)) for least in (16, 32)]
        slots, places = self._capabilities.resident_vmcss, ceil_log2(len(fields))
        m.submodules.copies = memory = Memory(
            shape=data.ArrayLayout(32, 2), depth=slots << places, init=[])
        writer = memory.write_port(granularity=1)
        reader = memory.read_port(transparent_for=[writer])
        m.d.comb += [
            writer.addr.eq(Cat(select.number[:places], self.slot)),
            writer.data.eq(Cat(
                w_data[:16], Mux(fits[0], w_data[16:32], 0), Mux(fits[1], w_data[32:], 0))),
            writer.en.eq(Cat(self.w_stb & ~select.high, self.w_stb)),
            reader.addr.eq(Cat(self.select_next.number[:places], self.slot_next)),
        ]
        return reader.data

    def _keep(self, m, name, value, following, write):
        """Up to 32 bits of a field."""
        slots = self._capabilities.resident_vmcss
        if slots == 1:
            # A reset line to each of them would be thousands of wires, and nothing needs it.
            kept = Signal(len(value), name=f"kept_{name}", reset_less=True)
            m.d.comb += value.eq(kept)
            with m.If(write):
                m.d.sync += kept.eq(following)
            return
        m.submodules[name] = memory = Memory(shape=len(value), depth=slots, init=[])
        writer, reader = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [
            writer.addr.eq(self.slot), writer.data.eq(following), writer.en.eq(write),
            reader.addr.eq(self.slot), value.eq(reader.data),
        ]

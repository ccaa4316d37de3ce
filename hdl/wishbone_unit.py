"""The unit behind registers on a 32-bit Wishbone bus, for a processor or a bridge to drive it."""

from amaranth import Cat, Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Mode

from .interface import Response, require_capabilities
from .memory_unit import TIMEOUT_CYC, BusSignature, require_timeout
from .register_file import WORD_BITS, RegisterFile
from .register_map import BOARD_BASE, RESET_WORD, Status, unit_registers
from .vmx_unit import VmxUnit

__all__ = ["ADDRESS_BITS", "WishboneUnit"]

ADDRESS_BITS = (BOARD_BASE // 4 - 1).bit_length()  #: of the bus, which counts words


class WishboneUnit(wiring.Component):
    """A :class:`~.vmx_unit.VmxUnit` whose streams and ports are registers.

    The map is :func:`~.register_map.unit_registers`. Software writes a payload, then its START
    register; one burst does both. It waits for STATUS.busy to fall and reads the answer, which
    stays until the next one.

    Parameters
    ----------
    capabilities : Capabilities
        The processor that the unit is built for.
    timeout_cyc : int
        Cycles that memory has for a transfer; see :class:`~.memory_unit.MemoryUnit`.

    Members
    -------
    bus : In(BusSignature)
        Wishbone target: 32 bits of data. An access takes two cycles and never ends in ``err``.
    memory : Out(BusSignature)
        Wishbone initiator to physical memory.
    mode : Out(Mode), busy : Out(1)
        Present mode; something was started that has not ended.
    cleared : Out(1)
        High for one cycle: the reset word was written, the unit is reset at the next edge.
    """
    def __init__(self, capabilities: Capabilities, *, timeout_cyc: int = TIMEOUT_CYC):
        self._capabilities = require_capabilities(self, capabilities)
        self._timeout_cyc = require_timeout(timeout_cyc)
        #: The register map.
        self.registers = unit_registers(capabilities)
        super().__init__({
            "bus": In(BusSignature(address_bits=ADDRESS_BITS, data_bits=WORD_BITS)),
            "memory": Out(BusSignature()), "mode": Out(Mode), "busy": Out(1), "cleared": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        registers = self.registers
        unit = VmxUnit(self._capabilities, timeout_cyc=self._timeout_cyc)
        m.submodules.file = file = RegisterFile(registers.values(), address_bits=ADDRESS_BITS)
        m.submodules.unit = ResetInserter(self.cleared)(unit)
        wiring.connect(m, wiring.flipped(self.bus), file.bus)
        wiring.connect(m, unit.memory, wiring.flipped(self.memory))
        m.d.comb += self.mode.eq(unit.mode)

        # operations: a payload is written word by word, and handed over
        operand = Signal(max(registers[name].bits for name in ("REQUEST", "EVENT", "UPDATE")))
        offered, waiting = Signal(3), Signal()
        elapsed, cycles = Signal(32), Signal(32)
        response, checked = Signal(Response), Signal()
        m.d.comb += self.busy.eq(offered.any() | waiting)
        with m.If(waiting):
            m.d.sync += elapsed.eq(elapsed + 1)
        for number, (name, stream) in enumerate([
            ("REQUEST", unit.requests), ("EVENT", unit.events), ("UPDATE", unit.updates),
        ]):
            register, start = registers[name], registers[f"{name}_START"]
            m.d.comb += [stream.payload.eq(operand[:register.bits]),
                         stream.valid.eq(offered[number])]
            with m.If(stream.valid & stream.ready):
                m.d.sync += offered[number].eq(0)
                if name != "UPDATE":
                    m.d.sync += [waiting.eq(1), elapsed.eq(1)]
            with m.If(file.w_stb & ~self.busy):
                with m.Switch(file.address):
                    for word in range(register.words):
                        with m.Case(register.first + word):
                            m.d.sync += operand.word_select(word, WORD_BITS).eq(file.w_data)
                    with m.Case(start.first):
                        m.d.sync += offered[number].eq(1)
        for answers in (unit.responses, unit.verdicts):
            m.d.comb += answers.ready.eq(1)
            with m.If(answers.valid):
                m.d.sync += [
                    waiting.eq(0), response.eq(answers.payload), cycles.eq(elapsed),
                    checked.eq(unit.retired.checked if answers is unit.responses else 0),
                ]

        # time
        cycle, cycle_high = Signal(64), Signal(32)
        m.d.sync += [cycle.eq(cycle + 1), unit.ticks.eq(0)]
        with m.If(file.r_stb & (file.address == registers["CYCLE"].first)):
            m.d.sync += cycle_high.eq(cycle[32:])
        with m.If(file.w_stb & (file.address == registers["TICKS"].first)):
            m.d.sync += unit.ticks.eq(file.w_data)

        # what can be read
        status = Signal(Status)
        m.d.comb += [
            status.busy.eq(self.busy), status.checked.eq(checked),
            status.launched.eq(unit.retired.launched), status.mode.eq(unit.mode),
        ]
        for name, value in {
            "ID": registers["ID"].reset, "CONFIGURATION": registers["CONFIGURATION"].reset,
            "CYCLE": Cat(cycle[:32], cycle_high), "STATUS": status, "CYCLES": cycles,
            "RESPONSE": response, "CURRENT_VMCS": unit.retired.current_vmcs,
            "DIAGNOSIS": unit.diagnosis, "LIVE": unit.live,
        }.items():
            m.d.comb += file.values[name].eq(value)

        # reset
        m.d.sync += self.cleared.eq(file.w_stb & (file.address == registers["RESET"].first)
                                    & (file.w_data == RESET_WORD))
        with m.If(self.cleared):
            m.d.sync += [offered.eq(0), waiting.eq(0), cycles.eq(0), response.eq(0), checked.eq(0),
                         cycle.eq(0)]
        return m

"""Backend: the RTL in Amaranth's own simulator, one clock cycle at a time."""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

from amaranth.hdl import Value
from amaranth.sim import Simulator

from vmxswitch.hdl.codec import Codec
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Answer, Boundary, Event, Instruction, Mode, Sample

from .memory import Fault, Memory

__all__ = ["PysimPort"]

CLOCK_PERIOD_S = 1e-8
RESPONSE_LIMIT_CYC = 100_000  #: cycles after which an operation without an answer is a defect


class PysimPort:
    """A processor made of :class:`~vmxswitch.hdl.vmx_unit.VmxUnit`; a backend for firmware.

    Implements :class:`vmxswitch.firmware.port.Port`. The clock runs only while an operation is
    being carried out, and for one idle cycle between operations.

    Parameters
    ----------
    capabilities : Capabilities
        The processor to build.
    unit : VmxUnit, optional
        The unit to simulate, if not a new one: a test's deliberately broken one, say.
    """
    def __init__(self, capabilities: Capabilities, unit: VmxUnit | None = None):
        self.capabilities = capabilities
        self.watcher: Callable[[Sample], None] | None = None
        self.memory = Memory()
        if unit is not None:
            self.unit = unit
        self.cycle = 0
        self._job = None
        self._mode = Mode.OFF
        self._codec = Codec(capabilities)

    @cached_property
    def unit(self) -> VmxUnit:
        """The simulated unit."""
        return VmxUnit(self.capabilities)

    @cached_property
    def simulator(self) -> Simulator:
        """The simulator; it takes a second or two to make and is made when it is first needed."""
        simulator = Simulator(self.unit)
        simulator.add_clock(CLOCK_PERIOD_S)
        simulator.add_testbench(self._carry_out)
        return simulator

    def reset(self) -> None:
        """Registers 0, outside VMX operation, memory all zero, cycle 0."""
        self._job = None
        self.cycle = 0
        self._mode = Mode.OFF
        self.memory.clear()
        if "simulator" in vars(self):
            self.simulator.reset()

    @property
    def mode(self) -> Mode:
        """Present mode."""
        return self._mode

    @property
    def current_vmcs(self) -> int:
        """Current-VMCS pointer; all ones if there is none."""
        return self._retired("current_vmcs")

    @property
    def launched(self) -> bool:
        """Whether the current VMCS is launched; False if there is none."""
        return bool(self._retired("launched"))

    def execute(self, instruction: Instruction) -> Answer:
        """Carry out one VMX instruction in the present environment."""
        return self.execute_many([instruction])[0]

    def execute_many(self, instructions: Iterable[Instruction]) -> list[Answer]:
        """Carry out instructions back to back: one per cycle where nothing has to wait."""
        requests = [self._codec.request(instruction) for instruction in instructions]
        return self._run(lambda ctx: self._exchange(
            ctx, self.unit.requests, self.unit.responses, requests))

    def report(self, event: Event | Boundary) -> Answer:
        """Tell of a guest event; only in VMX non-root operation."""
        return self._run(lambda ctx: self._exchange(
            ctx, self.unit.events, self.unit.verdicts, [self._codec.event(event)]))[0]

    def pass_time(self, ticks: int) -> None:
        """Let the VMX-preemption timer count, all ``ticks`` (32 bits) in one cycle."""
        self._run(lambda ctx: self._pass(ctx, ticks))

    def read_registers(self) -> dict[str, int]:
        """The live environment: every register by name."""
        return self._run(self._registers)

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Change registers through the unit's ``updates`` port, one per cycle.

        Raises :exc:`KeyError` for a register that the processor does not have and
        :exc:`ValueError` for a value wider than the register.
        """
        updates = [self._codec.update(name, value) for name, value in values.items()]
        self._run(lambda ctx: self._update(ctx, updates))

    def read_memory(self, address: int, size: int) -> int:
        """Read ``size`` bytes (4 or 8, naturally aligned), little-endian, of physical memory."""
        return self.memory.read(address, size)

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes (4 or 8, naturally aligned), little-endian."""
        self.memory.write(address, size, value)

    def memory_words(self) -> dict[int, int]:
        """Every 64-bit word of memory that is not 0, by address."""
        return self.memory.words()

    def fail_memory(self, address: int, fault: Fault | None) -> None:
        """Let memory fail the unit at the 64-bit word of ``address``, or no longer (None)."""
        self.memory.fail(address, fault)

    # --- simulation ---

    def _run(self, job):
        """Let the simulation run until the job, a coroutine of the testbench, has its result."""
        self._result = None
        self._job = job
        while self._job is not None:
            self.simulator.advance()
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    async def _carry_out(self, ctx):
        ctx.set(self.unit.responses.ready, 1)
        ctx.set(self.unit.verdicts.ready, 1)
        while True:
            if self._job is None:
                await self._tick(ctx)
                continue
            try:
                self._result = await self._job(ctx)
            except RuntimeError as error:
                self._result = error
            self._mode = Mode(ctx.get(self.unit.mode))
            self._job = None

    def _retired(self, name):
        async def look(ctx):
            return ctx.get(self.unit.retired[name])
        return self._run(look)

    async def _registers(self, ctx):
        return self._codec.registers(ctx.get(Value.cast(self.unit.live)))

    async def _tick(self, ctx):
        """One clock cycle, with memory's answer and the watcher's look at what it shows."""
        if self.watcher is not None:
            mode = Mode(ctx.get(self.unit.mode))
            self.watcher(Sample(self.cycle, mode, await self._registers(ctx)))
        bus = self.unit.memory
        transfer = ctx.get(bus.stb) and not ctx.get(bus.ack) and not ctx.get(bus.err)
        address = ctx.get(bus.adr) << 3 if transfer else 0
        write = ctx.get(bus.we) if transfer else 0
        fault = self.memory.faults.get(address) if transfer else None
        answered = transfer and fault is None
        await ctx.tick()
        self.cycle += 1
        if answered and write:
            self.memory.write(address, 8, ctx.get(bus.dat_w))
        elif answered:
            ctx.set(bus.dat_r, self.memory.read(address, 8))
        ctx.set(bus.ack, int(bool(answered)))
        ctx.set(bus.err, int(fault is Fault.ERROR))

    async def _pass(self, ctx, ticks):
        ctx.set(self.unit.ticks, ticks)
        await self._tick(ctx)
        ctx.set(self.unit.ticks, 0)

    async def _update(self, ctx, updates):
        port = self.unit.updates
        for update in updates:
            ctx.set(Value.cast(port.payload), update)
            ctx.set(port.valid, 1)
            while not ctx.get(port.ready):
                await self._tick(ctx)
            await self._tick(ctx)
        ctx.set(port.valid, 0)

    async def _exchange(self, ctx, port, answers, payloads):
        """Hand payloads over back to back and collect their answers."""
        waiting, accepted, results = list(reversed(payloads)), [], []
        quiet = 0
        while len(results) < len(payloads):
            if waiting:
                ctx.set(Value.cast(port.payload), waiting[-1])
            ctx.set(port.valid, int(bool(waiting)))
            taken = waiting and ctx.get(port.ready)
            start = self.cycle
            await self._tick(ctx)
            if taken:
                waiting.pop()
                accepted.append(start)
            quiet += 1
            if ctx.get(answers.valid):
                event = port is self.unit.events
                checked = not event and ctx.get(self.unit.retired.checked)
                results.append(self._codec.answer(
                    ctx.get(Value.cast(answers.payload)), event=event,
                    diagnosis=ctx.get(self.unit.diagnosis) if checked else 0,
                    cycles=self.cycle - accepted.pop(0)))
                quiet = 0
            if quiet > RESPONSE_LIMIT_CYC:
                raise RuntimeError(f"the unit gave no answer in {RESPONSE_LIMIT_CYC} cycles")
        ctx.set(port.valid, 0)
        return results

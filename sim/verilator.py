"""Backend: the RTL compiled by Verilator, a batch of operations per call.

A batch is an array of records, a row of 32-bit words each: the kind, then the payload of the unit's
port as bits, or address, value and size. For each record the runner (``batch_runner.cpp``) fills a
row of results: mode, live environment, response, cycles, retired operation and diagnosis, at the
word offsets that :class:`VerilatorPort` computes from the unit's ports.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from amaranth.hdl import Shape, unsigned

from vmxswitch.hdl import interface
from vmxswitch.hdl.codec import Codec, Layout
from vmxswitch.hdl.sequencer import Retired
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import (
    Answer,
    Boundary,
    Event,
    Instruction,
    Mode,
    Outcome,
    Sample,
)

from .memory import Fault
from .observation import (
    PROMPT,
    MemoryFault,
    MemoryWrite,
    Observation,
    Operation,
    RegisterWrites,
    TimePasses,
    Timing,
)
from .verilator_build import Form, library

__all__ = ["NetlistPort", "VerilatorPort"]

WORD_BITS, WORD_BYTES = 32, 4
RESPONSE_LIMIT_CYC = 100_000  #: cycles after which an operation without an answer is a defect


class Kind(IntEnum):
    """What a record asks for; numbered as in ``batch_runner.cpp``."""
    REQUEST = 0
    EVENT = 1
    UPDATE = 2
    WRITE_MEMORY = 3
    READ_MEMORY = 4
    LOOK = 5
    FAULT = 6
    RESET = 7
    TIMING = 8
    IDLE = 9
    SHOW = 10
    TIME = 11          # preemption-timer ticks, in one cycle


class VerilatorPort:
    """A processor made of the compiled unit; a backend for firmware.

    Implements :class:`vmxswitch.firmware.port.Port`. The clock runs as in
    :class:`~.pysim.PysimPort`: while an operation is being carried out, and for one idle cycle
    between operations.

    Parameters
    ----------
    capabilities : Capabilities
        The processor to build; built on first use and then kept in a cache.
    waves : bool
        Build one for :meth:`recorded`; slower.
    """
    form = Form.RTL

    def __init__(self, capabilities: Capabilities, *, waves: bool = False):
        self.capabilities = capabilities
        if waves:
            self.form = Form.WAVES
        self.watcher: Callable[[Sample], None] | None = None
        self._codec = Codec(capabilities)
        payloads = (interface.Request, interface.Event, interface.update_layout(capabilities))
        self._record_bytes = WORD_BYTES * (1 + max(5, *map(_words, payloads)))
        self._places = {}
        position = 0
        checks = unsigned(len(capabilities.checks))
        for name, shape in [
            ("MODE", Mode), ("CYCLES", unsigned(WORD_BITS)), ("RETIRED", Retired),
            ("RESPONSE", interface.Response), ("DIAGNOSIS", checks),
            ("LIVE", interface.register_layout(capabilities)),
        ]:
            words = _words(shape)
            self._places[name] = slice(WORD_BYTES * position, WORD_BYTES * (position + words))
            position += words
        self._result_bytes = WORD_BYTES * position
        sizes = {f"{name}_AT": place.start // WORD_BYTES for name, place in self._places.items()}
        live_words = _words(interface.register_layout(capabilities))
        self._sample_bytes = WORD_BYTES * (3 + live_words)
        sizes |= {
            "SAMPLE_WORDS": 3 + live_words,
            "RECORD_WORDS": self._record_bytes // WORD_BYTES, "RESULT_WORDS": position,
            "LIMIT_CYC": RESPONSE_LIMIT_CYC,
        }
        self._library = ctypes.CDLL(str(self._build(sizes)))
        self._library.vmx_new.restype = ctypes.c_void_p
        self._library.vmx_cycle.restype = ctypes.c_uint64
        self._library.vmx_cycle.argtypes = [ctypes.c_void_p]
        self._library.vmx_free.argtypes = [ctypes.c_void_p]
        self._library.vmx_watch.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._library.vmx_samples.restype = ctypes.c_uint32
        self._library.vmx_samples.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library.vmx_memory.restype = ctypes.c_uint64
        self._library.vmx_memory.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._library.vmx_run.restype = ctypes.c_uint32
        self._library.vmx_run.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_char_p]
        self._handle = self._library.vmx_new()
        self._mode = Mode.OFF
        self._is_fresh = True
        self._shifts = {name: 8 * place.start for name, place in self._places.items()}
        self._always, self._diagnosis = (
            sum((1 << 8 * (place.stop - place.start)) - 1 << 8 * place.start
                for name, place in self._places.items() if name in names)
            for names in (("MODE", "LIVE"), ("DIAGNOSIS",)))
        self._retired = Layout(Retired)
        self._checked = self._retired.mask(["checked"]) << self._shifts["RETIRED"]
        self._always |= self._retired.mask(["current_vmcs", "launched"]) << self._shifts["RETIRED"]
        self._packed = ({}, 0)  # an environment and what ``live`` shows in it

    def _build(self, sizes):
        """The path of the library; ``sizes`` are constants for ``batch_runner.cpp``."""
        return library(self.capabilities, sizes, form=self.form)

    def __del__(self):
        if hasattr(self, "_handle"):
            self._library.vmx_free(self._handle)

    @property
    def cycle(self) -> int:
        """Clock cycles since reset."""
        return self._library.vmx_cycle(self._handle)

    @property
    def mode(self) -> Mode:
        """Present mode."""
        return self._mode

    def reset(self) -> None:
        """Registers 0, outside VMX operation, memory all zero, cycle 0.

        Timing as after the start: what one call asks for is offered back to back, and nobody waits
        longer than needed.
        """
        self._run([self._record(Kind.RESET)])
        self._is_fresh = True

    def execute(self, instruction: Instruction) -> Answer:
        """Carry out one VMX instruction in the present environment."""
        return self.execute_many([instruction])[0]

    def execute_many(self, instructions: Iterable[Instruction]) -> list[Answer]:
        """Carry out instructions back to back: one per cycle where nothing has to wait."""
        rows = self._call([
            self._record(Kind.REQUEST, self._codec.request(instruction))
            for instruction in instructions])
        return [self._answer(row, event=False) for row in rows]

    def report(self, event: Event | Boundary) -> Answer:
        """Tell of a guest event; only in VMX non-root operation."""
        row, = self._call([self._record(Kind.EVENT, self._codec.event(event))])
        return self._answer(row, event=True)

    def pass_time(self, ticks: int) -> None:
        """Let the VMX-preemption timer count, all ``ticks`` (32 bits) in one cycle."""
        self._call([self._record(Kind.TIME, ticks)])

    def observe(
        self, operations: Iterable[Operation], timing: Timing = PROMPT,
    ) -> list["CompiledObservation | None"]:
        """Carry out a program in one call; what each operation left behind.

        Writes and faults of memory give None. The timing stays until the next reset. If an
        operation gets no answer in :data:`RESPONSE_LIMIT_CYC` cycles, the list ends before it.
        """
        records = [self._record(
            Kind.TIMING,
            timing.back_to_back | timing.bus_wait_cyc << 32 | timing.stall_cyc << 64)]
        ends = []
        for operation in operations:
            records += self._records(operation)
            ends.append((operation, len(records) - 1))
        rows = self._carry_out(records)
        return [
            None if isinstance(operation, MemoryWrite | MemoryFault) else
            CompiledObservation(self, operation, rows[end])
            for operation, end in ends if end < len(rows)]

    def _records(self, operation):
        match operation:
            case Instruction():
                return [self._record(Kind.REQUEST, self._codec.request(operation))]
            case Event() | Boundary():
                return [self._record(Kind.EVENT, self._codec.event(operation))]
            case MemoryWrite(address, size, value):
                _check_access(address, size, value)
                return [self._record(Kind.WRITE_MEMORY, address | value << 64 | size << 128)]
            case TimePasses(ticks):
                return [self._record(Kind.TIME, ticks)]
            case MemoryFault(address, fault):
                return [self._record(Kind.FAULT, address | (fault or 0) << 64)]
            case RegisterWrites(values):
                updates = [self._codec.update(name, value) for name, value in values]
                return ([self._record(Kind.UPDATE, update) for update in updates]
                        or [self._record(Kind.LOOK)])

    def read_registers(self) -> dict[str, int]:
        """The live environment: every register by name."""
        row, = self._call([self._record(Kind.LOOK)])
        return self._codec.registers(self._part(row, "LIVE"))

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Change registers through the unit's ``updates`` port, one per cycle.

        Raises :exc:`KeyError` for a register that the processor does not have and
        :exc:`ValueError` for a value wider than the register; then nothing has changed.
        """
        updates = [self._codec.update(name, value) for name, value in values.items()]
        self._call([self._record(Kind.UPDATE, update) for update in updates])

    def read_memory(self, address: int, size: int) -> int:
        """Read ``size`` bytes (4 or 8, naturally aligned), little-endian, of physical memory."""
        _check_access(address, size, 0)
        row, = self._run([self._record(Kind.READ_MEMORY, address & ~7)])
        word = self._part(row, "RESPONSE") & (1 << 64) - 1
        return word >> address % 8 * 8 & (1 << 8 * size) - 1

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes (4 or 8, naturally aligned), little-endian."""
        _check_access(address, size, value)
        self._run([self._record(Kind.WRITE_MEMORY, address | value << 64 | size << 128)])

    def memory_words(self) -> dict[int, int]:
        """Every 64-bit word of memory that is not 0, by address."""
        count = self._library.vmx_memory(self._handle, None)
        words = (ctypes.c_uint64 * (2 * count))()
        self._library.vmx_memory(self._handle, words)
        return {address: word for address, word in zip(words[::2], words[1::2], strict=True)
                if word}

    def fail_memory(self, address: int, fault: Fault | None) -> None:
        """Let memory fail the unit at the 64-bit word of ``address``, or no longer (None)."""
        self._run(self._records(MemoryFault(address, fault)))

    @contextmanager
    def recorded(self, path: Path) -> Iterator[None]:
        """Record all signals in the body, in a VCD file; times are half cycles.

        The body may reset the port only if nothing has been done yet.
        """
        handle = ctypes.c_void_p(self._handle)
        self._library.vmx_record(handle, os.fsencode(path))
        try:
            yield
        finally:
            self._library.vmx_stop(handle)

    def _record(self, kind, payload=0):
        return kind.to_bytes(WORD_BYTES, "little") + payload.to_bytes(
            self._record_bytes - WORD_BYTES, "little")

    def _call(self, records):
        """Run a batch, after an idle cycle unless it is the first one; the rows of results.

        The watcher sees that idle cycle when it begins, which is now for the next call.
        """
        idle = [] if self._is_fresh else [self._record(Kind.IDLE)]
        self._is_fresh = False
        return self._run([*idle, *records, self._record(Kind.SHOW)])[len(idle):-1]

    def _run(self, records):
        """Run a batch; the rows of results."""
        rows = self._carry_out(records)
        if len(rows) < len(records):
            raise RuntimeError(f"the unit gave no answer in {RESPONSE_LIMIT_CYC} cycles")
        return rows

    def _carry_out(self, records):
        """Run a batch; the rows of results up to a record that got no answer."""
        results = ctypes.create_string_buffer(self._result_bytes * len(records))
        self._library.vmx_watch(self._handle, self.watcher is not None)
        done = self._library.vmx_run(self._handle, b"".join(records), len(records), results)
        data = results.raw
        rows = [data[start:start + self._result_bytes]
                for start in range(0, done * self._result_bytes, self._result_bytes)]
        if rows:
            self._mode = Mode(self._part(rows[-1], "MODE"))
        if self.watcher is not None:
            self._show()
        return rows

    def _show(self):
        """Show the watcher every cycle of the last batch."""
        size = self._sample_bytes * self._library.vmx_samples(self._handle, None)
        samples = ctypes.create_string_buffer(size)
        self._library.vmx_samples(self._handle, samples)
        for start in range(0, size, self._sample_bytes):
            sample = samples.raw[start:start + self._sample_bytes]
            cycle, mode, live = (
                int.from_bytes(part, "little") for part in (sample[:8], sample[8:12], sample[12:]))
            self.watcher(Sample(cycle, Mode(mode), self._codec.registers(live)))

    def _part(self, row, name):
        return int.from_bytes(row[self._places[name]], "little")

    def _answer(self, row, *, event):
        checked = not event and self._retired.unpack(self._part(row, "RETIRED"))["checked"]
        return self._codec.answer(
            self._part(row, "RESPONSE"), event=event,
            diagnosis=self._part(row, "DIAGNOSIS") if checked else 0,
            cycles=self._part(row, "CYCLES"))

    def _expectation(self, expected):
        """What an observation is made from, as a row of results: its bits and a mask."""
        at = self._shifts
        bits = (expected.mode << at["MODE"] | self._live(expected.registers) << at["LIVE"]
                | self._retired.pack(expected.vmcs) << at["RETIRED"])
        mask = self._always
        if (answer := expected.answer) is not None:
            response, response_mask = self._codec.response(answer)
            bits |= response << at["RESPONSE"]
            mask |= response_mask << at["RESPONSE"] | self._checked
            if answer.failing or answer.outcome is Outcome.ENTERED:
                bits |= self._checked | self._codec.diagnosis(answer.failing) << at["DIAGNOSIS"]
                mask |= self._diagnosis
        return bits, mask

    def _live(self, registers):
        if registers is not self._packed[0]:
            self._packed = registers, self._codec.live(registers)
        return self._packed[1]


class CompiledObservation:
    """What an operation left behind; an :class:`~.observation.Observation`, decoded when asked for.

    ``agrees`` compares bits and decodes nothing.
    """
    __slots__ = ("_operation", "_port", "_row")

    def __init__(self, port: VerilatorPort, operation: Operation, row: bytes):
        self._port, self._operation, self._row = port, operation, row

    @property
    def answer(self) -> Answer | None:
        if isinstance(self._operation, RegisterWrites):
            return None
        return self._port._answer(self._row, event=isinstance(self._operation, Event | Boundary))

    @property
    def mode(self) -> Mode:
        return Mode(self._port._part(self._row, "MODE"))

    @property
    def registers(self) -> dict[str, int]:
        return self._port._codec.registers(self._port._part(self._row, "LIVE"))

    @property
    def vmcs(self) -> dict[str, int]:
        """Pointer and launch state of the current VMCS by name."""
        retired = self._port._retired.unpack(self._port._part(self._row, "RETIRED"))
        return {name: retired[name] for name in ("current_vmcs", "launched")}

    def agrees(self, expected: Observation) -> bool:
        """Whether all is as expected but for the number of cycles."""
        bits, mask = self._port._expectation(expected)
        return (int.from_bytes(self._row, "little") ^ bits) & mask == 0


class NetlistPort(VerilatorPort):
    """A processor: the unit after synthesis for an FPGA family, compiled.

    Every look-up table, carry and flip-flop is simulated as Yosys's model of the cell says, without
    delays. Slower than the RTL, and building it takes many minutes.
    """
    form = Form.NETLIST


def _words(shape) -> int:
    return -(-Shape.cast(shape).width // WORD_BITS)


def _check_access(address, size, value):
    if size not in (4, 8) or address % size or not 0 <= address < 1 << 64:
        raise ValueError(f"no access of {size} bytes at {address:#x}")
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"{value:#x} does not fit {size} bytes")

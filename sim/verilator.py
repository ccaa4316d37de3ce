"""Backend: the RTL compiled by Verilator, a batch of operations per call.

A batch is an array of records, a row of 32-bit words each: the kind, then the payload of the unit's
port as bits, or address, value and size. For each record the runner (``batch_runner.cpp``) fills a
row of results: mode, live environment, response, cycles, retired operation and diagnosis, at the
word offsets that :class:`VerilatorPort` computes from the unit's ports.
"""

import ctypes
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

from amaranth.hdl import Shape, unsigned

from vmxswitch.hdl import interface
from vmxswitch.hdl.instruction_unit import Retired
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Answer, Event, Instruction, Mode, Sample

from .codec import Codec, Layout
from .verilator_build import library

__all__ = ["VerilatorPort"]

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


class VerilatorPort:
    """A processor made of the compiled unit; a backend for firmware.

    Implements :class:`vmxswitch.firmware.port.Port`. Between operations the clock stands still.

    Parameters
    ----------
    capabilities : Capabilities
        The processor to build; built on first use and then kept in a cache.
    """
    def __init__(self, capabilities: Capabilities):
        self.capabilities = capabilities
        self.watcher: Callable[[Sample], None] | None = None
        self._codec = Codec(capabilities)
        self._retired = Layout(Retired)
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
        self._library = ctypes.CDLL(str(library(capabilities, sizes)))
        self._library.vmx_new.restype = ctypes.c_void_p
        self._library.vmx_cycle.restype = ctypes.c_uint64
        self._library.vmx_cycle.argtypes = [ctypes.c_void_p]
        self._library.vmx_free.argtypes = [ctypes.c_void_p]
        self._library.vmx_watch.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._library.vmx_samples.restype = ctypes.c_uint32
        self._library.vmx_samples.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library.vmx_run.restype = ctypes.c_uint32
        self._library.vmx_run.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_char_p]
        self._handle = self._library.vmx_new()
        self._mode = Mode.OFF

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
        """Registers 0, outside VMX operation, memory all zero, cycle 0."""
        self._run([self._record(Kind.RESET)])

    def execute(self, instruction: Instruction) -> Answer:
        """Carry out one VMX instruction in the present environment."""
        return self.execute_many([instruction])[0]

    def execute_many(self, instructions: Iterable[Instruction]) -> list[Answer]:
        """Carry out instructions one after the other, in one call."""
        rows = self._run([
            self._record(Kind.REQUEST, self._codec.request(instruction))
            for instruction in instructions])
        return [self._answer(row, event=False) for row in rows]

    def report(self, event: Event) -> Answer:
        """Tell of a guest event; only in VMX non-root operation."""
        row, = self._run([self._record(Kind.EVENT, self._codec.event(event))])
        return self._answer(row, event=True)

    def read_registers(self) -> dict[str, int]:
        """The live environment: every register by name."""
        row, = self._run([self._record(Kind.LOOK)])
        return self._codec.registers(self._part(row, "LIVE"))

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Change registers through the unit's ``updates`` port, one per cycle.

        Raises :exc:`KeyError` for a register that the processor does not have and
        :exc:`ValueError` for a value wider than the register; then nothing has changed.
        """
        updates = [self._codec.update(name, value) for name, value in values.items()]
        self._run([self._record(Kind.UPDATE, update) for update in updates])

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

    def fail_at(self, address: int) -> None:
        """Let memory answer with an error at the 64-bit word of ``address`` until the reset."""
        self._run([self._record(Kind.FAULT, address)])

    def _record(self, kind, payload=0):
        return kind.to_bytes(WORD_BYTES, "little") + payload.to_bytes(
            self._record_bytes - WORD_BYTES, "little")

    def _run(self, records):
        """Run a batch; the rows of results."""
        results = ctypes.create_string_buffer(self._result_bytes * len(records))
        self._library.vmx_watch(self._handle, self.watcher is not None)
        done = self._library.vmx_run(self._handle, b"".join(records), len(records), results)
        if done < len(records):
            raise RuntimeError(f"the unit gave no answer in {RESPONSE_LIMIT_CYC} cycles")
        data = results.raw
        rows = [data[start:start + self._result_bytes]
                for start in range(0, len(data), self._result_bytes)]
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


def _words(shape) -> int:
    return -(-Shape.cast(shape).width // WORD_BITS)


def _check_access(address, size, value):
    if size not in (4, 8) or address % size or not 0 <= address < 1 << 64:
        raise ValueError(f"no access of {size} bytes at {address:#x}")
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"{value:#x} does not fit {size} bytes")

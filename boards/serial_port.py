"""Backend: a board, over its serial port."""

from collections.abc import Callable, Iterable, Mapping

from vmxswitch.hdl.codec import Codec, Layout
from vmxswitch.hdl.register_map import (
    IDENTITY,
    RESET_WORD,
    MemoryStatus,
    Status,
    board_registers,
    unit_registers,
)
from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Answer, Boundary, Event, Instruction, Mode, Sample

from .serial_link import LinkError, SerialLink

__all__ = ["SerialPort"]

WORD_BITS = 32
POLLS = 100  # times that the board may say that it is busy; an operation takes microseconds
STATUS, MEMORY_STATUS = Layout(Status), Layout(MemoryStatus)


class SerialPort:
    """A processor on a board: a :class:`~vmxswitch.hdl.serial_unit.SerialUnit`.

    Implements :class:`vmxswitch.firmware.port.Port`. The cycles of an answer were counted on the
    board. The watcher sees what is live after every operation, not in every cycle.

    Parameters
    ----------
    capabilities : Capabilities
        What the board must have been built for.
    port : str
        A device, or a URL that pyserial knows.
    baud : int
        Bits per second.

    Raises
    ------
    :exc:`~.serial_link.LinkError`
        Here and later: no such port, no board, another board, a line that does not work, or
        memory that is used up.
    """
    def __init__(self, capabilities: Capabilities, port: str, baud: int):
        self.capabilities = capabilities
        self.watcher: Callable[[Sample], None] | None = None
        self._name = port
        self._codec = Codec(capabilities)
        self._registers = unit_registers(capabilities) | board_registers()
        self._live: int | None = None  # what the board has shown since the last operation
        self._status: dict[str, int] = {}
        self._link = SerialLink(port, baud)
        self._link.resynchronize()
        self._identify()
        self.reset()

    def close(self) -> None:
        """Give the serial port back."""
        self._link.close()

    def _identify(self):
        if (found := self._read("ID")) != IDENTITY:
            raise LinkError(f"{self._name}: what answers is no board of ours (it says {found:#x}, "
                            f"not {IDENTITY:#x})")
        if self._read("CONFIGURATION") != self._registers["CONFIGURATION"].reset:
            raise LinkError(f"{self._name}: the board was built for another processor than "
                            f"{self.capabilities.name}, or from other tables; --config names one")

    def reset(self) -> None:
        """Registers 0, outside VMX operation, memory all zero, cycle 0."""
        self._write("RESET", RESET_WORD)
        self._wait("MEMORY_STATUS", MEMORY_STATUS)
        self._settle()

    @property
    def cycle(self) -> int:
        """Clock cycles of the board since reset."""
        return self._read("CYCLE")

    @property
    def mode(self) -> Mode:
        """Present mode."""
        return Mode(self._status["mode"])

    @property
    def current_vmcs(self) -> int:
        """Current-VMCS pointer; all ones if there is none."""
        return self._read("CURRENT_VMCS")

    @property
    def launched(self) -> bool:
        """Whether the current VMCS is launched; False if there is none."""
        return bool(self._status["launched"])

    def execute(self, instruction: Instruction) -> Answer:
        """Carry out one VMX instruction in the present environment."""
        return self._exchange("REQUEST", self._codec.request(instruction))

    def execute_many(self, instructions: Iterable[Instruction]) -> list[Answer]:
        """Carry out instructions one after the other."""
        return [self.execute(instruction) for instruction in instructions]

    def report(self, event: Event | Boundary) -> Answer:
        """Tell of a guest event; only in VMX non-root operation."""
        return self._exchange("EVENT", self._codec.event(event))

    def pass_time(self, ticks: int) -> None:
        """Let the VMX-preemption timer count, all ``ticks`` (32 bits) in one cycle."""
        self._write("TICKS", ticks)
        self._settle()

    def read_registers(self) -> dict[str, int]:
        """The live environment: every register by name."""
        if self._live is None:
            self._live = self._read("LIVE")
            self._link.check()
        return self._codec.registers(self._live)

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Change registers through the unit's ``updates`` port, one after the other.

        Raises :exc:`KeyError` for a register that the processor does not have and
        :exc:`ValueError` for a value wider than the register; then nothing has changed.
        """
        for update in [self._codec.update(name, value) for name, value in values.items()]:
            self._start("UPDATE", update)
        self._settle()

    def read_memory(self, address: int, size: int) -> int:
        """Read ``size`` bytes (4 or 8, naturally aligned), little-endian, of physical memory."""
        self._check_access(address, size, 0)
        self._access(address, 0, 0)
        word = self._read("MEMORY_R_DATA")
        self._link.check()
        return word >> address % 8 * 8 & (1 << 8 * size) - 1

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes (4 or 8, naturally aligned), little-endian."""
        self._check_access(address, size, value)
        self._access(address, value << address % 8 * 8, (1 << size) - 1 << address % 8)
        self._link.check()

    def _access(self, address, data, selected):
        """Write the three registers of an access at once, which starts it; wait for its end."""
        words = sum(self._registers[name].words
                    for name in ("MEMORY_ADDRESS", "MEMORY_W_DATA", "MEMORY_ACCESS"))
        self._link.write(self._registers["MEMORY_ADDRESS"],
                         address | data << 64 | selected << 128, words)
        status = self._wait("MEMORY_STATUS", MEMORY_STATUS)
        if status["full"]:
            raise LinkError(f"{self._name}: all {status['all']} frames of the board's memory are "
                            "in use; build the board with more")

    @staticmethod
    def _check_access(address, size, value):
        if size not in (4, 8) or address % size or not 0 <= address < 1 << 64:
            raise ValueError(f"no access of {size} bytes at {address:#x}")
        if not 0 <= value < 1 << 8 * size:
            raise ValueError(f"{value:#x} does not fit {size} bytes")

    # --- operations ---

    def _exchange(self, name, payload):
        """Hand an operation over; its answer."""
        self._start(name, payload)
        first, last = self._registers["STATUS"], self._registers["RESPONSE"]
        for _ in range(POLLS):
            answer = self._link.read(first, last.first + last.words - first.first)
            self._status = STATUS.unpack(answer & (1 << WORD_BITS) - 1)
            if not self._status["busy"]:
                break
        else:
            raise self._stuck()
        checked = self._status["checked"]
        diagnosis = self._read("DIAGNOSIS") if checked else 0
        self._settle()
        return self._codec.answer(
            answer >> 2 * WORD_BITS, event=name == "EVENT", diagnosis=diagnosis,
            cycles=answer >> WORD_BITS & (1 << WORD_BITS) - 1)

    def _start(self, name, payload):
        """Write a payload and, in the same burst, its START register."""
        register = self._registers[name]
        self._link.write(register, payload | 1 << WORD_BITS * register.words, register.words + 1)

    def _settle(self):
        """After an operation: see that the line is sound, and show the watcher what is live."""
        self._live = None
        self._status = self._wait("STATUS", STATUS)
        self._link.check()
        if self.watcher is not None:
            self.watcher(Sample(self.cycle, self.mode, self.read_registers()))

    def _wait(self, name, layout):
        """A status register, once it says no longer that something is being done."""
        for _ in range(POLLS):
            status = layout.unpack(self._read(name))
            if not status["busy"]:
                return status
        raise self._stuck()

    def _stuck(self):
        return LinkError(f"{self._name}: the board stays busy; start again: that resets the unit")

    def _read(self, name):
        return self._link.read(self._registers[name])

    def _write(self, name, value):
        self._link.write(self._registers[name], value)

"""Physical memory of a simulated processor, and what the unit's transfers meet there."""

from collections.abc import Mapping
from enum import Enum

__all__ = ["Bus", "BusError", "Fault", "Memory"]


class Memory:
    """Sparse memory, all zero at first; little-endian, in 64-bit words."""

    def __init__(self):
        self._words: dict[int, int] = {}

    def clear(self) -> None:
        """Make everything zero."""
        self._words.clear()

    def words(self) -> dict[int, int]:
        """Every 64-bit word that is not 0, by address."""
        return {address: word for address, word in self._words.items() if word}

    def read(self, address: int, size: int) -> int:
        """Read ``size`` bytes (4 or 8) at a naturally aligned byte address.

        Raises :exc:`ValueError` for another size or alignment.
        """
        word, shift = self._place(address, size)
        return self._words.get(word, 0) >> shift & (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes (4 or 8) at a naturally aligned byte address.

        Raises :exc:`ValueError` for another size or alignment, or a value that does not fit.
        """
        word, shift = self._place(address, size)
        mask = (1 << 8 * size) - 1
        if not 0 <= value <= mask:
            raise ValueError(f"{value:#x} does not fit {size} bytes")
        self._words[word] = self._words.get(word, 0) & ~(mask << shift) | value << shift

    @staticmethod
    def _place(address, size):
        if size not in (4, 8) or address % size or address < 0:
            raise ValueError(f"no access of {size} bytes at {address:#x}")
        return address & ~7, address % 8 * 8


class Fault(Enum):
    """What is wrong with a word of memory when the unit transfers it; software sees nothing."""
    ERROR = "error"  # memory answers with an error
    HANG = "hang"    # memory never answers


class BusError(Exception):
    """A transfer was answered with an error, or not at all."""


class Bus:
    """Memory as the unit reaches it: some words may be faulty."""

    def __init__(self, memory: Memory):
        self._memory = memory
        self._faults: dict[int, Fault] = {}

    def set_faults(self, faults: Mapping[int, Fault]) -> None:
        """From now on these 64-bit words, each named by the address of a byte, are faulty."""
        self._faults = {address & ~7: fault for address, fault in faults.items()}

    def fault(self, address: int) -> Fault | None:
        """What is wrong with the word at an address."""
        return self._faults.get(address & ~7)

    def read(self, address: int, size: int = 8) -> int:
        """As :meth:`Memory.read`, or :exc:`BusError`."""
        if self._faults and self.fault(address):
            raise BusError
        return self._memory.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """As :meth:`Memory.write`, or :exc:`BusError`."""
        if self._faults and self.fault(address):
            raise BusError
        self._memory.write(address, size, value)

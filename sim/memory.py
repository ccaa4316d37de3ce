"""Physical memory of a simulated processor, and how it fails."""

from enum import IntEnum

__all__ = ["BusError", "Fault", "Memory"]

WORD_BYTES = 8


class Fault(IntEnum):
    """What a 64-bit word of memory does to the unit instead of reading or being written."""
    ERROR = 1  # answers with an error
    HANG = 2   # gives no answer


class BusError(Exception):
    """A transfer of the unit met a :class:`Fault`."""


class Memory:
    """Sparse memory, all zero at first; little-endian, in 64-bit words.

    Attributes
    ----------
    faults : dict of int to Fault
        Words, by address, that fail in transfers of the unit. Software still gets at them.
    transfers : list of int
        Addresses of the words that were transferred or failed, in order; may be emptied.
    """

    def __init__(self):
        self._words: dict[int, int] = {}
        self.faults: dict[int, Fault] = {}
        self.transfers: list[int] = []

    def clear(self) -> None:
        """Make everything zero and without faults."""
        self._words.clear()
        self.faults.clear()

    def fail(self, address: int, fault: Fault | None) -> None:
        """Let the 64-bit word of an address fail, or no longer (None)."""
        word = address & -WORD_BYTES
        if fault is None:
            self.faults.pop(word, None)
        else:
            self.faults[word] = fault

    def transfer_read(self, address: int, size: int = WORD_BYTES) -> int:
        """Read as the unit does; :exc:`BusError` where memory fails."""
        self._transfer(address)
        return self.read(address, size)

    def transfer_write(self, address: int, value: int, size: int = WORD_BYTES) -> None:
        """Write as the unit does; :exc:`BusError` where memory fails."""
        self._transfer(address)
        self.write(address, size, value)

    def _transfer(self, address):
        word = address & -WORD_BYTES
        self.transfers.append(word)
        if word in self.faults:
            raise BusError(f"{address:#x}")

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

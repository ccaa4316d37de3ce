"""Physical memory of a simulated processor."""

__all__ = ["Memory"]


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

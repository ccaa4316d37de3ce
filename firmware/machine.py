"""The machine around the processor: its time, and what interrupts it from outside."""

import heapq

__all__ = ["Machine"]


class Machine:
    """Time in clock cycles, and interrupt lines.

    Attributes
    ----------
    now : int
        Time since the start. It passes where programs work or wait, not where the VMM does.
    nmi : bool
        An NMI is pending.
    masked : bool
        External interrupts do not reach the processor; the VMM asks for them itself.
    """
    def __init__(self):
        self.now, self.nmi, self.masked = 0, False, False
        self._due: list[tuple[int, int]] = []  # time and vector

    def schedule(self, delay: int, vector: int) -> None:
        """Let a device interrupt with ``vector`` after ``delay`` cycles."""
        heapq.heappush(self._due, (self.now + delay, vector))

    @property
    def pending(self) -> int | None:
        """Vector of the external interrupt that is pending, if any."""
        return self._due[0][1] if self._due and self._due[0][0] <= self.now else None

    @property
    def next_interrupt(self) -> int | None:
        """When the next device interrupts, if one is to."""
        return self._due[0][0] if self._due else None

    def acknowledge(self) -> int:
        """Take the external interrupt that is pending; returns its vector."""
        return heapq.heappop(self._due)[1]

"""The protocol between firmware and whatever carries out its operations.

The same firmware, tests and recorded cases run on every backend: reference model, RTL simulation,
compiled RTL, a board.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import Answer, Boundary, Event, Instruction, Mode, Sample

__all__ = ["Port"]


class Port(Protocol):
    """A processor with the unit.

    Attributes
    ----------
    capabilities : Capabilities
        What the processor supports.
    cycle : int
        Clock cycles since reset; a backend without a clock counts operations.
    watcher : callable, optional
        Called with a :class:`Sample` in every clock cycle (after every operation where there is no
        clock), for whoever wants to see that no cycle shows a mixed environment.
    """
    capabilities: Capabilities
    cycle: int
    watcher: Callable[[Sample], None] | None

    def reset(self) -> None:
        """Registers 0, outside VMX operation, memory all zero, cycle 0."""

    def execute(self, instruction: Instruction) -> Answer:
        """Carry out one VMX instruction in the present environment."""

    def execute_many(self, instructions: Iterable[Instruction]) -> list[Answer]:
        """Carry out instructions back to back; faster than one by one where there is a clock."""

    def report(self, event: Event | Boundary) -> Answer:
        """Tell of a guest event; only in VMX non-root operation."""

    def pass_time(self, ticks: int) -> None:
        """Let the VMX-preemption timer count, which it does in the guest.

        ``ticks`` (32 bits) is how often bit IA32_VMX_MISC[4:0] of the time-stamp counter changed.
        """

    @property
    def mode(self) -> Mode:
        """Present mode."""

    def read_registers(self) -> dict[str, int]:
        """The live environment: every register of ``capabilities.registers`` by name."""

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Change registers of the live environment, as the processor's own instructions would.

        Raises :exc:`KeyError` for a register that the processor does not have and
        :exc:`ValueError` for a value wider than the register.
        """

    def read_memory(self, address: int, size: int) -> int:
        """Read ``size`` bytes (4 or 8, naturally aligned), little-endian, of physical memory."""

    def write_memory(self, address: int, size: int, value: int) -> None:
        """Write ``size`` bytes (4 or 8, naturally aligned), little-endian."""

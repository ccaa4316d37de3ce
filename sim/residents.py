"""The VMCSs that the reference model's processor holds, and their regions in memory."""

from dataclasses import dataclass

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.operations import NO_VMCS
from vmxswitch.spec.region import LAUNCH_OFFSET, field_offsets

from .memory import Memory

__all__ = ["Residents", "Vmcs"]


@dataclass
class Vmcs:
    """A resident VMCS: where its region is, and what the processor holds of it."""
    pointer: int
    shadow: bool
    launched: bool
    fields: dict[str, int]


class Residents:
    """The resident VMCSs, one of which may be current; every other is in memory only.

    A VMCS that is not resident goes to the lowest free slot. If none is free it takes the place of
    a victim, which is written to its region: each slot in turn, but for the current VMCS's where
    there are several slots.

    Every method that reaches memory may raise :exc:`~.memory.BusError`; what it has stored by then
    stays in memory, a victim that was stored is gone, and nothing else has changed.

    Parameters
    ----------
    capabilities : Capabilities
        The processor; has the number of slots.
    memory : Memory
        Where the regions are.
    """

    def __init__(self, capabilities: Capabilities, memory: Memory):
        self._memory = memory
        self._offsets = field_offsets(capabilities)
        self._masks = {name: (1 << capabilities.bits(row)) - 1
                       for name, row in capabilities.fields.items()}
        self._count = capabilities.resident_vmcss
        self._none = Vmcs(NO_VMCS, False, False, dict.fromkeys(self._offsets, 0))
        self.forget()

    def forget(self) -> None:
        """No VMCS is resident."""
        self._slots: list[Vmcs | None] = [None] * self._count
        self._victim = 0
        self.current = self._none

    def state(self) -> tuple:
        """All that is held, to be compared with what is held at another time."""
        return self._slots, self._victim, self.current

    def find(self, pointer: int) -> Vmcs | None:
        """The resident VMCS with a pointer."""
        return next((vmcs for vmcs in self._slots if vmcs and vmcs.pointer == pointer), None)

    def load(self, pointer: int, shadow: bool) -> None:
        """Make a VMCS current; read it from its region if it is not resident."""
        vmcs = self.find(pointer)
        if vmcs is None:
            slot = self._make_room()
            launched = bool(self._memory.transfer_read(pointer + LAUNCH_OFFSET) & 1)
            vmcs = Vmcs(pointer, shadow, launched,
                        {field: self.read(pointer, field) for field in self._offsets})
            self._slots[slot] = vmcs
        self.current = vmcs

    def clear(self, pointer: int) -> None:
        """Write a VMCS, if resident, to its region, with the launch state clear."""
        if self.find(pointer):
            self.flush(pointer, launched=False)
        else:
            self._memory.transfer_write(pointer + LAUNCH_OFFSET, 0)

    def flush(self, pointer: int, launched: bool | None = None) -> None:
        """Write a VMCS, if resident, to its region; it is then no longer resident."""
        if vmcs := self.find(pointer):
            self._store(vmcs, vmcs.launched if launched is None else launched)
            self._free(self._slots.index(vmcs))

    def read(self, pointer: int, field: str) -> int:
        """A field of a VMCS that is not resident."""
        return self._memory.transfer_read(pointer + self._offsets[field]) & self._masks[field]

    def write(self, pointer: int, field: str, value: int) -> None:
        """Write a field of a VMCS that is not resident."""
        self._memory.transfer_write(pointer + self._offsets[field], value)

    def _make_room(self):
        """The slot for a VMCS that is not resident."""
        if None in self._slots:
            return self._slots.index(None)
        slot = self._victim
        if self._count > 1 and self._slots[slot] is self.current:
            slot = (slot + 1) % self._count
        self._store(self._slots[slot], self._slots[slot].launched)
        self._free(slot)
        self._victim = (slot + 1) % self._count
        return slot

    def _store(self, vmcs, launched):
        """Write all but the words that are software's."""
        self._memory.transfer_write(vmcs.pointer + LAUNCH_OFFSET, int(launched))
        for field, value in vmcs.fields.items():
            self.write(vmcs.pointer, field, value)

    def _free(self, slot):
        if self._slots[slot] is self.current:
            self.current = self._none
        self._slots[slot] = None

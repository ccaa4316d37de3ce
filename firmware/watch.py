"""Watches that every clock cycle shows exactly one whole environment."""

from collections.abc import Mapping
from typing import NamedTuple

from vmxswitch.spec.operations import Sample

__all__ = ["MIXED", "ORIGINAL", "TARGET", "OwnerChange", "Version", "Watch"]

ORIGINAL, TARGET, MIXED = "original", "target", "mixed"


class Version(NamedTuple):
    """All registers of an environment at one moment, as foretold from the tables."""
    owner: str
    registers: Mapping[str, int]


class OwnerChange(NamedTuple):
    """An edge at which ``live`` changed owner: the first cycle that showed the new one."""
    cycle: int
    owner: str


class Watch:
    """A :attr:`Port.watcher` that says of each cycle whose environment it shows.

    A cycle that shows none of the expected versions, or an older version of the same owner after a
    newer one, is *mixed*. Nothing is read back from the processor: what is expected was computed
    before.

    Attributes
    ----------
    owner : str
        Owner in the last cycle that was not mixed.
    checked_cycles : int
        Cycles compared.
    mixed_cycles : list of int
        Those that showed no whole environment.
    changes : list of OwnerChange
        Every edge at which the owner changed.
    """
    def __init__(self, owner: str):
        self.owner = owner
        self.checked_cycles = 0
        self.mixed_cycles: list[int] = []
        self.changes: list[OwnerChange] = []
        self._versions: tuple[Version, ...] = ()
        self._newest = 0

    def expect(self, *versions: Version) -> None:
        """From now on ``versions`` may be shown, those of one owner in the order given."""
        self._versions, self._newest = versions, 0

    def __call__(self, sample: Sample) -> None:
        self.checked_cycles += 1
        shown = [number for number, version in enumerate(self._versions)
                 if version.registers == sample.registers]
        mine = [number for number in shown if self._versions[number].owner == self.owner]
        if mine and mine[-1] >= self._newest:
            self._newest = mine[-1]
        elif shown and not mine:
            self._newest = shown[-1]
            self.owner = self._versions[self._newest].owner
            self.changes.append(OwnerChange(sample.cycle, self.owner))
        else:
            self.mixed_cycles.append(sample.cycle)

    def whose(self, registers: Mapping[str, int]) -> str:
        """Owner of ``registers`` among what is expected now, or ``mixed``; counts nothing."""
        owners = [version.owner for version in self._versions if version.registers == registers]
        return self.owner if self.owner in owners else (owners or [MIXED])[0]

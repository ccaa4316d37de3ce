"""A guest as its VMM keeps it."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmxswitch.spec.operations import Delivery

from .environment import Environment
from .ledger import Difference, Ledger
from .program import Cpu
from .refusal import Refusal

__all__ = ["SEEN", "Alarm", "Guest", "Refused", "Turn"]

#: Fields of guest state that decide whether it takes interrupts: :attr:`Guest.seen`.
SEEN = ("GUEST_RFLAGS", "GUEST_INTERRUPTIBILITY_STATE", "GUEST_ACTIVITY_STATE")


class Refused(Exception):
    """The processor does not enter a guest. ``refusals`` are the rows that refuse."""

    def __init__(self, guest: str, refusals: tuple[Refusal, ...]):
        super().__init__(f"{guest}: refused by {', '.join(row.id for row in refusals)}")
        self.guest, self.refusals = guest, refusals


@dataclass
class Alarm:
    """A timer that the VMM emulates: an interrupt at time ``due``, then again each ``period``."""
    vector: int
    due: int
    period: int = 0  # 0: once


@dataclass
class Guest:
    """A guest.

    Attributes
    ----------
    name, number : str, int
        The number is its VPID, from 1.
    environment : Environment
        As it was created.
    cpu : Cpu
        Its logical processor: program, registers that it knows of, general registers.
    region, msr_list, ept_root : int
        Its pages.
    controls : int
        Primary processor-based controls without the windows.
    ledger : Ledger
        What must be found where it goes on.
    writes : dict of str to int
        VMCS fields that the VMM writes before the next entry.
    injection : Delivery, optional
        Event for the next entry to deliver.
    pending : deque of int
        Vectors of virtual interrupts, oldest first.
    nmi : bool
        A virtual NMI is pending.
    blocked : bool
        Idle until an interrupt comes.
    stopped : str
        Why it will not run again; "" while it may.
    seen : mapping of str to int
        The fields of :data:`SEEN`, as last read.
    msrs : dict of int to int
        MSRs that the VMM keeps for it in software.
    console : list of str
        Characters that it has written by hypercall.
    """
    name: str
    number: int
    environment: Environment
    cpu: Cpu
    region: int
    msr_list: int
    ept_root: int
    controls: int
    ledger: Ledger
    seen: Mapping[str, int]
    writes: dict[str, int] = field(default_factory=dict)
    injection: Delivery | None = None
    pending: deque[int] = field(default_factory=deque)
    nmi: bool = False
    alarms: dict[int, Alarm] = field(default_factory=dict)
    blocked: bool = False
    stopped: str = ""
    launched: bool = False
    timer_end: int = -1  # when its preemption timer expires, as far as the VMCS knows
    windows: int = 0     # window-exiting controls that are set
    msrs: dict[int, int] = field(default_factory=dict)
    console: list[str] = field(default_factory=list)

    @property
    def runnable(self) -> bool:
        """Whether it may be entered."""
        return not self.stopped and not self.blocked


@dataclass(frozen=True)
class Turn:
    """One stay in a guest: a VM entry, what happened in the guest, the VM exit.

    Attributes
    ----------
    number, guest : int, str
    start, cycles_in : int
        When it began, in cycles of the machine, and how long the guest ran.
    delivered : int, optional
        Vector of the event that the entry injected.
    reason, why, done : int, str, str
        Basic exit reason; why the guest left; what the VMM did about it.
    load_cycles : int, optional
        VMPTRLD; None if the VMCS was current already.
    entry_cycles, exit_cycles : int
        0 where the backend has no clock.
    differences, host_differences : tuple of Difference
        What the guest did not find as it left it; what the VMM did not.
    """
    number: int
    guest: str
    start: int
    cycles_in: int
    delivered: int | None
    reason: int
    why: str
    done: str
    load_cycles: int | None
    entry_cycles: int
    exit_cycles: int
    differences: tuple[Difference, ...]
    host_differences: tuple[Difference, ...]

    @property
    def switch_cycles(self) -> int:
        """VM entry and VM exit together; 0 where the backend has no clock."""
        return self.entry_cycles + self.exit_cycles

    @property
    def intact(self) -> bool:
        """Whether guest and VMM found everything as they left it."""
        return not self.differences and not self.host_differences

    def as_dict(self) -> dict:
        """The form that JSON outputs use."""
        return {
            "turn": self.number, "guest": self.guest, "start": self.start,
            "delivered": self.delivered, "reason": self.reason, "why": self.why,
            "done": self.done, "cycles_in": self.cycles_in, "entry_cycles": self.entry_cycles,
            "exit_cycles": self.exit_cycles, "load_cycles": self.load_cycles,
            "differences": [difference._asdict() for difference in self.differences],
            "host_differences": [difference._asdict() for difference in self.host_differences],
        }

"""Virtual interrupts: where they come from, and when a guest takes them.

Ref: Intel SDM (325462), vol. 3C, "Event Injection" and "Interrupt-Window Exiting".
"""

from collections.abc import Mapping

from vmxswitch.spec.operations import Delivery

from .exits import NMI, VALID
from .guest import SEEN, Alarm, Guest
from .machine import Machine

__all__ = ["Interrupts"]

IF = 1 << 9                          # RFLAGS
STI_MOV_SS, NMI_BLOCKING = 0b11, 8   # interruptibility
HALTED = 1                           # activity state
NMI_VECTOR = 2
DEVICE_VECTORS = 0x40                # first vector of the real interrupt controller


class Interrupts:
    """Interrupts and NMIs of all guests.

    Parameters
    ----------
    machine : Machine
        Where real interrupts come from.
    guests : mapping of str to Guest
        All of them, at any time.
    """
    def __init__(self, machine: Machine, guests: Mapping[str, Guest]):
        self._machine, self._guests = machine, guests
        self._routes: dict[int, tuple[Guest, int]] = {}  # real vector: guest, virtual vector

    def post(self, guest: Guest, vector: int) -> None:
        """Make an interrupt pending; it wakes the guest."""
        if vector not in guest.pending:
            guest.pending.append(vector)
        guest.blocked &= self._halted_for_good(guest)

    def post_nmi(self, guest: Guest) -> None:
        """Make an NMI pending; it wakes the guest."""
        guest.nmi, guest.blocked = True, False

    def set_alarm(self, guest: Guest, alarm: Alarm) -> None:
        """Start or change a timer of the guest; vector 2 is an NMI."""
        guest.alarms[alarm.vector] = alarm

    def start_device(self, guest: Guest, vector: int, delay: int) -> None:
        """Let a device of the guest interrupt; the real interrupt may come in anybody's turn."""
        real = next((real for real, route in self._routes.items() if route == (guest, vector)),
                    max(self._routes, default=DEVICE_VECTORS - 1) + 1)
        self._routes[real] = guest, vector
        self._machine.schedule(delay, real)

    def route(self, real: int) -> str:
        """Hand a device's interrupt to the guest that it belongs to; says so in words."""
        if real not in self._routes:
            return f"vector {real:#x} is nobody's"
        guest, vector = self._routes[real]
        self.post(guest, vector)
        return f"to {guest.name}"

    def forget(self, guest: Guest) -> None:
        """The guest is gone; what its devices still do is nobody's."""
        self._routes = {real: route for real, route in self._routes.items()
                        if route[0] is not guest}

    def ring(self) -> None:
        """Turn alarms that are due, and interrupts that only the VMM sees, into virtual ones."""
        machine = self._machine
        while machine.masked and machine.pending is not None:
            self.route(machine.acknowledge())
        for guest in self._guests.values():
            for alarm in list(guest.alarms.values()):
                if alarm.due <= machine.now:
                    self._ring(guest, alarm)

    def _ring(self, guest, alarm):
        if alarm.vector == NMI_VECTOR:
            self.post_nmi(guest)
        else:
            self.post(guest, alarm.vector)
        if alarm.period:
            missed = (self._machine.now - alarm.due) // alarm.period
            alarm.due += (missed + 1) * alarm.period
        else:
            del guest.alarms[alarm.vector]

    def sleep(self) -> bool:
        """Let time pass to the next thing that may wake a guest; False if there is none."""
        machine = self._machine
        times = [alarm.due for guest in self._guests.values() if not guest.stopped
                 for alarm in guest.alarms.values()
                 if alarm.vector == NMI_VECTOR or not self._halted_for_good(guest)]
        if machine.next_interrupt is not None:
            times.append(machine.next_interrupt)
        if not times:
            return False
        machine.now = max(machine.now, min(times))
        while machine.pending is not None:
            self.route(machine.acknowledge())
        self.ring()
        return True

    def wakes(self, guest: Guest) -> bool:
        """Whether something is pending that wakes the guest."""
        return guest.nmi or bool(guest.pending) and not self._halted_for_good(guest)

    def taken(self, guest: Guest) -> Delivery | None:
        """The event that the guest takes now, which is then no longer pending."""
        flags, blocking = (guest.writes.get(field, guest.seen[field]) for field in SEEN[:2])
        if blocking & STI_MOV_SS:
            return None
        if guest.nmi and not blocking & NMI_BLOCKING:
            guest.nmi = False
            return Delivery(VALID | NMI | NMI_VECTOR)
        if guest.pending and flags & IF:
            return Delivery(VALID | guest.pending.popleft())
        return None

    @staticmethod
    def _halted_for_good(guest):
        """Whether only an NMI wakes the guest: it has halted with interrupts off."""
        flags, _, activity = (guest.seen[field] for field in SEEN)
        return activity == HALTED and not flags & IF

"""The VMM: guests in turn on one processor, and the canonical world switch.

A guest's turn is a VM entry, what happens in the guest, and the VM exit. The VMM enters with
whatever it has for the guest to deliver, and after the exit a handler
(:mod:`~vmxswitch.firmware.handlers`) says how to go on. Guests take turns when one idles or its
time slice is over.

At every VM entry what is live is compared with what the guest left, and after every VM exit with
the VMM's own environment, register by register (:mod:`~vmxswitch.firmware.ledger`).

Ref: Intel SDM (325462), vol. 3C, "VMM Setup & Tear Down", "Preparation and Launching a Virtual
Machine", "Handling of VM Exits".
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Delivery, Instruction, Outcome
from vmxswitch.spec.tables import CONTROL_WORDS, CONTROLS

from . import world_switch
from .core import Core
from .driver import Driver, VmxError, field_reads, field_writes, operand_bits
from .environment import Environment, listed
from .exits import ALWAYS_READ, Exit, Reason
from .guest import SEEN, Alarm, Guest, Refused, Turn
from .handlers import HANDLERS, Handler, Next, Verdict
from .host import Memory, VmcsWriter, host_environment, host_registers, is_on
from .interrupts import Interrupts
from .ledger import Difference, Ledger
from .machine import Machine
from .msrs import Msrs
from .plan import misfits
from .port import Port
from .prediction import Situation
from .program import Cpu, Program
from .refusal import explain, explain_checks

__all__ = ["Vmm"]

STI_MOV_SS = 0b11  # interruptibility
HALTED = 1         # activity state
#: Exceptions that exit, to be shown in the timeline and reflected: #DB, #PF, #AC.
WATCHED = 1 << 1 | 1 << 14 | 1 << 17
#: Controls that wait for a window, and what each needs.
WINDOWS = {"PROC1_INTR_WINDOW_EXITING": "", "PROC1_NMI_WINDOW_EXITING": "PIN_VIRTUAL_NMIS"}
PRIMARY = CONTROL_WORDS["proc1"].field


class Vmm:
    """Software that runs guests, or moves the processor between worlds.

    Parameters
    ----------
    port : Port
        The processor. The first guest, and every switch, resets it.
    quantum : int
        Time slice of a guest in cycles; kept only if the processor has a VMX-preemption timer.
    msr_lists : bool
        Switch by MSR lists what a VM entry and exit leave alone and a list may load, such as
        IA32_LSTAR. Without, the guests share these MSRs.
    handlers : mapping of Reason to Handler
        What to do about VM exits; each is asked for its reason.

    Attributes
    ----------
    machine : Machine
        Time and interrupts.
    guests : dict of str to Guest
        By name.
    interrupts : Interrupts
        Gives guests interrupts, now or later.
    has_timer : bool
        Time slices are kept: the processor has a VMX-preemption timer. Known once there was a
        guest, as is ``msrs``.
    msrs : Msrs
        Which MSRs are switched, and how.
    """
    def __init__(self, port: Port, *, quantum: int = 3_000, msr_lists: bool = True,
                 handlers: Mapping[Reason, Handler] = HANDLERS):
        if quantum < 1:
            raise UsageError(f"a time slice of {quantum} cycles is not above 0")
        self._port, self._quantum, self._handlers = port, quantum, handlers
        self._uses_lists = msr_lists
        self._capabilities = port.capabilities
        self._driver = Driver(port)
        self.machine = Machine()
        self.guests: dict[str, Guest] = {}
        self._numbers = count(1)
        self._turns = count(1)
        self.interrupts = Interrupts(self.machine, self.guests)
        self._memory: Memory | None = None  # None: not started
        self._running: Guest | None = None  # whose time slice it is
        self._slice_end = 0
        self._current: Guest | None = None  # whose VMCS is current

    def switch(self, original: Environment, target: Environment,
               settings: Mapping[str, int] | None = None) -> world_switch.SwitchResult:
        """Move the processor from ``original`` to ``target``: see :func:`.world_switch.switch`.

        Raises :exc:`UsageError` while there are guests, too.
        """
        if self.guests:
            raise UsageError(f"{listed(list(self.guests))} would be lost: a switch resets the "
                             "processor; destroy the guests first")
        self._memory = None
        return world_switch.switch(self._port, original, target, settings)

    # --- Guests come and go ---

    def create(self, environment: Environment, program: Program, name: str) -> Guest:
        """Make a guest of an environment, which will live by a program.

        Raises
        ------
        :exc:`Refused`
            If the tables say that the processor will not enter it.
        :exc:`UsageError`
            If the name is taken, or the processor cannot hold the environment.
        """
        if name in self.guests:
            raise UsageError(f"there is a guest {name!r} already; give this one another name")
        if self._memory is None:
            self._start()
        environment = environment.adjusted()
        pages = [self._memory.allocate() for _ in range(3)]
        try:
            guest = self._guest(environment, name, *pages)
        except (Refused, UsageError):
            self._memory.free(*pages)
            raise
        guest.cpu.start(program)
        for vector, period in guest.cpu.timers.items():
            self.interrupts.set_alarm(guest, Alarm(vector, self.machine.now + period, period))
        self.guests[name] = guest
        return guest

    def _guest(self, environment, name, region, msr_list, ept_root):
        """A guest whose VMCS is filled, and current."""
        capabilities, memory, number = self._capabilities, self._memory, next(self._numbers)
        fields = self._writer.fields(environment, number, self.machine.now, ept_root)
        fields["EXCEPTION_BITMAP"] = WATCHED
        fields |= self.msrs.fields(msr_list, memory.host_list)
        self._ask_tables(name, environment, fields, region)
        registers = {register: environment.registers.get(register, 0)
                     for register in capabilities.registers}
        ledger = Ledger(capabilities, *map(self.msrs.listed, (registers, self._host)))
        ledger.written(fields)
        memory.write_region(region)
        self.msrs.write_list(memory, msr_list, registers)
        self._driver.vmclear(region)
        self._driver.execute_many([Instruction("VMPTRLD", pointer=region), *self._writes(fields)])
        nested = set() if is_on(capabilities, fields, "PROC2_ENABLE_EPT") else None
        guest = self._current = Guest(
            name, number, environment, Cpu(number, registers, self.msrs.names, nested),
            region, msr_list, ept_root, fields[PRIMARY], ledger,
            {field: fields[field] for field in SEEN})
        guest.blocked = environment.registers["ACTIVITY"] == HALTED
        return guest

    def _start(self):
        """Switch the processor on, in the VMM's environment, and enter VMX operation."""
        capabilities, port = self._capabilities, self._port
        host = host_environment(capabilities)
        port.reset()
        self._memory = memory = Memory(port)
        self._host = host_registers(capabilities, host)
        port.write_registers(self._host)
        self._bits = operand_bits(capabilities, self._host)
        self._writer = VmcsWriter(capabilities, host, memory)
        like = self._writer.fields(host, 1, 0, memory.vmxon)  # what all guests have in common
        self.has_timer = is_on(capabilities, like, "PIN_ACTIVATE_PREEMPTION_TIMER")
        self._core = Core(port, self.machine, counts=self.has_timer,
                          acknowledges=is_on(capabilities, like, "EXIT_ACK_INTR_ON_EXIT"))
        self.machine.masked = not is_on(capabilities, like, "PIN_EXT_INTR_EXITING")
        self._saves_timer = is_on(capabilities, like, "EXIT_SAVE_PREEMPTION_TIMER")
        self._timer_rate = capabilities.msr("IA32_VMX_MISC") & 0x1F
        self._offered = [control for control, needs in WINDOWS.items()
                         if capabilities.allows(control) and (
                             not needs or is_on(capabilities, like, needs))]
        self.msrs = Msrs(port, like, self._uses_lists, self.read)
        memory.write_region(memory.vmxon)
        self.msrs.write_list(memory, memory.host_list, self._host)
        if is_on(capabilities, like, "PROC1_USE_MSR_BITMAPS"):
            memory.write_bitmaps(self.msrs.names.keys() - self.msrs.shared.keys())
        self._driver.vmxon(memory.vmxon)

    def _ask_tables(self, name, environment, fields, region):
        """Refuse what the processor would refuse."""
        capabilities = self._capabilities
        has_ept = is_on(capabilities, fields, "PROC2_ENABLE_EPT")
        situation = Situation(capabilities, fields, self._host, {
            "IN_VMX": 1, "CURRENT_VMCS": region, "VMXON_POINTER": self._memory.vmxon,
            **{f"PDPTE{n}": fields[f"GUEST_PDPTE{n}"] if has_ept else 0 for n in range(4)}})
        if failing := situation.failing():
            raise Refused(name, explain_checks(failing, situation, curable=False))
        if found := misfits(capabilities, environment):
            raise UsageError(f"{environment.source}: the {capabilities.name} processor lacks "
                             f"{listed(found)}, or has it narrower; choose another processor")

    def stop(self, guest: Guest, why: str) -> None:
        """Do not enter a guest again."""
        guest.stopped = why
        guest.alarms.clear()

    def destroy(self, guest: Guest) -> None:
        """Take a guest's VMCS from the processor, and give its memory back."""
        self._driver.vmclear(guest.region)
        self._memory.free(guest.region, guest.msr_list, guest.ept_root)
        self.stop(guest, "destroyed")
        del self.guests[guest.name]
        self.interrupts.forget(guest)
        if self._current is guest:
            self._current = None
        if self._running is guest:
            self._running = None

    # --- Turns ---

    def run(self, turns: int) -> Iterator[Turn]:
        """Give so many turns, and fewer only if no guest will ever run again.

        Raises
        ------
        :exc:`Refused`
            If the processor does not enter a guest.
        :exc:`~.core.Shutdown`
            If a VM exit ends in a VMX abort.
        """
        for _ in range(turns):
            if (guest := self._next()) is None:
                return
            yield self._turn(guest)

    @property
    def slice_over(self) -> bool:
        """Whether the guest that runs has had its time; true a tick of the timer early."""
        return self.machine.now + (1 << self._timer_rate) > self._slice_end

    def _next(self) -> Guest | None:
        """Whose turn it is; time passes if all are idle."""
        self.interrupts.ring()
        while True:
            guest = self._running
            if guest is not None and guest.runnable and self.machine.now < self._slice_end:
                return guest
            if (guest := self._after(guest)) is not None:
                self._running, self._slice_end = guest, self.machine.now + self._quantum
                return guest
            if not self.interrupts.sleep():
                return None

    def _after(self, guest):
        """The first guest that may run, in a circle from the one after ``guest``."""
        guests = list(self.guests.values())
        start = guests.index(guest) + 1 if guest in guests else 0
        return next((other for other in guests[start:] + guests[:start] if other.runnable), None)

    def _turn(self, guest: Guest) -> Turn:
        machine, start = self.machine, self.machine.now
        load, entry = self._enter(guest)
        differences = self._found(guest)
        cpu = guest.cpu
        answer = self._core.stay(cpu, entry.delivery)
        host_registers = self._port.read_registers()
        exit = self._read_exit(guest)
        guest.ledger.left(cpu.registers, exit)
        host_differences = guest.ledger.host_differences(host_registers)
        verdict = self._handle(guest, exit)
        return Turn(
            next(self._turns), guest.name, start, machine.now - start,
            None if entry.delivery is None else entry.delivery.information & 0xFF,
            exit.reason, exit.words, verdict.done,
            None if load is None else load.cycles, entry.cycles, answer.cycles,
            differences, host_differences)

    def _enter(self, guest):
        """VM entry; returns the answers to VMPTRLD, if there was one, and to the entry."""
        self._prepare(guest)
        loads = [] if guest is self._current else [Instruction("VMPTRLD", pointer=guest.region)]
        entry = Instruction("VMRESUME" if guest.launched else "VMLAUNCH")
        guest.ledger.written(guest.writes)
        try:
            answers = self._driver.execute_many(
                [*loads, *self._writes(guest.writes), entry], Outcome.ENTERED)
        except VmxError as error:
            self._current = guest
            self.stop(guest, "the processor does not enter it")
            situation = Situation(
                self._capabilities, guest.ledger.values, self._port.read_registers(), {})
            raise Refused(guest.name, explain(error, situation)) from error
        self._current, guest.launched = guest, True
        guest.writes, guest.injection = {}, None
        return answers[0] if loads else None, answers[-1]

    def _found(self, guest):
        """Compare what is live with what the guest left, and let it go on from there."""
        guest.cpu.registers = found = self._port.read_registers()
        return guest.ledger.guest_differences(found)

    def _read_exit(self, guest):
        fields = self._read_many(ALWAYS_READ)
        guest.seen = {field: fields[field] for field in SEEN}
        return Exit(fields)

    def _handle(self, guest, exit) -> Verdict:
        guest.injection = exit.interrupted
        if exit.reason in self._handlers:
            verdict = self._handlers[exit.reason](self, guest, exit)
        else:
            verdict = Verdict(Next.STOP, "stopped: no handler for it")
        self.interrupts.ring()
        match verdict.next:
            case Next.STOP:
                self.stop(guest, f"{exit.words}: {verdict.done}")
            case Next.YIELD:
                self._slice_end = self.machine.now
            case Next.BLOCK:
                guest.blocked = not self.interrupts.wakes(guest)
            case Next.RESUME if guest.seen["GUEST_ACTIVITY_STATE"] == HALTED:
                guest.blocked = not self.interrupts.wakes(guest) and guest.injection is None
        if guest.blocked:  # whoever wakes begins a new slice
            self._slice_end = self.machine.now
        return verdict

    def check(self, guest: Guest) -> tuple[Difference, ...]:
        """How the guest-state area differs from what the guest's last turn left there.

        What a guest finds in its registers is compared at its entries; this is for the end.
        """
        if guest is not self._current:
            self._driver.vmptrld(guest.region)
            self._current = guest
        return guest.ledger.area_differences(self._read_many(
            field for field, row in self._capabilities.fields.items()
            if row.area == "guest-state"))

    # --- What an entry brings with it ---

    def _prepare(self, guest):
        """Choose the event to inject, the windows to wait for and the timer's value."""
        if guest.injection is None:
            guest.injection = self.interrupts.taken(guest)
        if (event := guest.injection) is not None:
            guest.writes |= {
                "VM_ENTRY_INTR_INFO": event.information,
                "VM_ENTRY_EXCEPTION_ERROR_CODE": event.error_code,
                "VM_ENTRY_INSTRUCTION_LENGTH": event.length}
        wanted = zip(WINDOWS, (bool(guest.pending), guest.nmi), strict=True)
        windows = sum(1 << CONTROLS[control].low
                      for control, waits in wanted if waits and control in self._offered)
        if windows != guest.windows:
            guest.windows = windows
            guest.writes[PRIMARY] = guest.controls | windows
        if self.has_timer:
            end = min([self._slice_end, *(alarm.due for alarm in guest.alarms.values())])
            if end != guest.timer_end or not self._saves_timer:
                guest.timer_end = end
                ticks = end - self.machine.now >> self._timer_rate
                guest.writes["VMX_PREEMPTION_TIMER_VALUE"] = max(ticks, 1)  # 0: nothing runs

    # --- For handlers, and for whoever owns the VMM ---

    def inject(self, guest: Guest, event: Delivery) -> None:
        """Let the next entry deliver an event, whatever the guest is doing."""
        guest.injection, guest.blocked = event, False

    def skip(self, guest: Guest, exit: Exit) -> None:
        """Let the guest go on behind the instruction that exited."""
        mask = (1 << self._capabilities.natural_bits) - 1
        guest.writes["GUEST_RIP"] = exit.fields["GUEST_RIP"] + exit.length & mask
        blocking = exit.fields["GUEST_INTERRUPTIBILITY_STATE"]
        if blocking & STI_MOV_SS:
            guest.writes["GUEST_INTERRUPTIBILITY_STATE"] = blocking & ~STI_MOV_SS

    def read(self, guest: Guest, field: str) -> int:
        """A field of the guest that has just exited, as the next entry will find it."""
        if field in guest.writes:
            return guest.writes[field]
        return self._driver.vmread(field)

    def guest_tsc(self, guest: Guest) -> int:
        """The time-stamp counter as the guest sees it."""
        return self.machine.now + guest.ledger.values["TSC_OFFSET"] & (1 << 64) - 1

    def _read_many(self, fields: Iterable[str]) -> dict[str, int]:
        """VMREAD of several fields of the current VMCS."""
        reads = [(field, read) for field in fields for read in field_reads(self._bits, field)]
        answers = self._driver.execute_many([read for _, read in reads])
        found: dict[str, int] = {}
        for (field, read), answer in zip(reads, answers, strict=True):
            found[field] = found.get(field, 0) | answer.value << 32 * (read.encoding & 1)
        return found

    def _writes(self, fields):
        return [write for field, value in fields.items()
                for write in field_writes(self._bits, field, value)]

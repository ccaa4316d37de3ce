"""Guests in turn: what each finds, how they come and go, and what takes the processor from them."""

import pytest

from vmxswitch.firmware import programs
from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.exits import Reason
from vmxswitch.firmware.guest import Alarm, Refused
from vmxswitch.firmware.handlers import HANDLERS, Next, Verdict
from vmxswitch.firmware.program import Change, Work
from vmxswitch.firmware.readers import shipped
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.sim.model import Model
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.operations import Delivery, Event, Outcome

from .conftest import processor

LINUX, PAE, UEFI, XEN = ("linux-6.1-amd64-idle", "linux-6.1-686-pae-idle", "ovmf-x64-shell",
                         "xen-4.17-panic")
KINDS = (LINUX, PAE, UEFI, "linux-6.1-amd64-user")
IF = 1 << 9


def populate(vmm, sources, program=None):
    for number, source in enumerate(sources):
        environment = Environment.read(source)
        vmm.create(environment, program or programs.default_program(environment),
                   f"{source}#{number}")
    return vmm


# --- What a guest finds ---

@pytest.mark.parametrize(("name", "sources"), [
    ("skylake_x_64", KINDS * 4),
    ("full", KINDS * 4),
    ("compact", (PAE, "linux-6.1-686-nopae-pentium3-user") * 8),
])
def test_16_guests_that_change_everything_find_all_of_it(new_vmm, name, sources):
    vmm = populate(new_vmm(name), sources, programs.busy)
    turns = list(vmm.run(300))
    assert len(turns) == 300 and all(turn.intact for turn in turns)
    assert len({turn.guest for turn in turns}) == 16
    registers = [guest.cpu.registers for guest in vmm.guests.values()]
    for register in ("RSP", "CR3", "SYSENTER_EIP", "GDTR_BASE", "DR7"):
        assert len({found[register] for found in registers}) == 16
    assert not any(map(vmm.check, vmm.guests.values()))


@pytest.mark.parametrize("source", shipped())
def test_a_shipped_environment_lives_or_is_refused_with_its_rows(new_vmm, source):
    vmm, cpu = new_vmm(), 0 if source.endswith("smp2") else None
    environment = Environment.read(source, cpu)
    try:
        vmm.create(environment, programs.default_program(environment), source)
    except Refused as refused:
        rows = {refusal.id for refusal in refused.refusals}
        assert rows == REFUSED[source] and str(refused).startswith(f"{source}: refused by ")
    else:
        turns = list(vmm.run(60))
        assert source not in REFUSED and all(turn.intact for turn in turns)
        assert len(turns) == 60 and not vmm.guests[source].stopped


#: What Skylake does not enter, and why: 5-level paging and addresses, AMD's EFER.SVME, SMM.
REFUSED = {
    "linux-6.1-amd64-max-kernel-qemu10": {"G06", "G43"},
    "linux-6.1-amd64-max-user-qemu10": {"G06"}, "linux-6.12-amd64-la57-idle": {"G06", "G43"},
    "ovmf-x64-smm": {"N14"}, "xen-4.17-dom0-pv-kernel": {"G22"}, "xen-4.17-dom0-pv-user": {"G22"},
}


class Damaged(Model):
    """A processor that changes a register right after a VM entry or VM exit, from some turn on."""
    register, mask, outcome, skip = "", 0, Outcome.ENTERED, 2

    def execute(self, instruction):
        return self._damage(super().execute(instruction))

    def report(self, event):
        return self._damage(super().report(event))

    def _damage(self, answer):
        if answer.outcome is self.outcome:
            if self.skip == 0:
                self._registers[self.register] ^= self.mask
            self.skip -= 1
        return answer


def damaged(register, mask, outcome, **options):
    port = Damaged(processor("skylake_x_64"))
    port.register, port.mask, port.outcome = register, mask, outcome
    return populate(Vmm(port, **options), (LINUX, PAE))


#: Registers that VM entries leave alone, or are meant to.
NOT_SWITCHED = {"TSC", "IA32_FEATURE_CONTROL", "PERF_GLOBAL_CTRL"}
#: Those that only a guest with PAE paging has.
PAE_ONLY = {f"PDPTE{n}" for n in range(4)}


@pytest.mark.parametrize("register", [
    name for name in processor("skylake_x_64").registers if name not in NOT_SWITCHED])
@pytest.mark.parametrize("mask", [1, 0])
def test_one_wrong_bit_after_a_vm_entry_is_found(register, mask):
    bits = processor("skylake_x_64").bits(processor("skylake_x_64").registers[register])
    mask = mask or 1 << bits - 1
    if (register, mask) == ("CR0", 1 << 63):
        mask = 1 << 16
    vmm = damaged(register, mask, Outcome.ENTERED)
    turn = list(vmm.run(3))[-1]
    if register in PAE_ONLY:
        assert turn.guest.startswith(LINUX) and turn.intact
        return
    (difference,) = turn.differences
    assert difference.register == register and not turn.intact
    assert difference.left ^ difference.found == mask


@pytest.mark.parametrize("register", [
    "RIP", "CR3", "SS_AR", "GS_BASE", "LSTAR", "INTERRUPTIBILITY"])
def test_one_wrong_bit_after_a_vm_exit_is_found(register):
    turn = list(damaged(register, 8, Outcome.EXIT).run(3))[-1]
    (difference,) = turn.host_differences
    assert (difference.register, difference.left ^ difference.found) == (register, 8)
    assert turn.as_dict()["host_differences"] == [difference._asdict()]


def test_what_an_exit_saves_wrongly_is_found_at_the_next_entry():
    port = Model(processor("skylake_x_64"))
    vmm = populate(Vmm(port), (LINUX,), programs.busy)
    assert all(turn.intact for turn in vmm.run(1))
    port._vmcs.fields["GUEST_DR7"] ^= 1
    (turn,) = vmm.run(1)
    assert [difference.register for difference in turn.differences] == ["DR7"]


def test_what_is_wrong_in_the_end_is_found_in_the_vmcs():
    port = Model(processor("skylake_x_64"))
    vmm = populate(Vmm(port), (LINUX, PAE))
    list(vmm.run(20))
    linux, pae = vmm.guests.values()
    assert vmm.check(linux) == vmm.check(pae) == ()
    port._vmcs.fields["GUEST_CR3"] ^= 0x1000
    (difference,) = vmm.check(pae)
    assert difference.register == "GUEST_CR3" and difference.left ^ difference.found == 0x1000
    assert vmm.check(linux) == ()


def test_guests_share_what_no_msr_list_switches(new_vmm):
    assert list(new_vmm_with_msrs(new_vmm()).msrs.shared.values()) == [
        "PERF_GLOBAL_CTRL", "IA32_FEATURE_CONTROL", "TSC"]
    vmm = new_vmm_with_msrs(new_vmm(msr_lists=False))
    assert {"STAR", "LSTAR", "KERNEL_GS_BASE"} <= set(vmm.msrs.shared.values())
    assert len({guest.cpu.registers["LSTAR"] for guest in vmm.guests.values()}) == 1


def new_vmm_with_msrs(vmm):
    """Two guests that have each written IA32_LSTAR, and whose last entry came after that."""
    def writer(cpu):
        yield from cpu.wrmsr(0xC0000082, cpu.registers["RIP"])
        while True:
            yield from cpu.pause()

    populate(vmm, ("linux-6.1-amd64-panic", "linux-6.1-amd64-user"), writer)
    assert all(turn.intact for turn in vmm.run(12))
    return vmm


def test_each_guest_has_its_own_msrs_by_lists(new_vmm):
    vmm = new_vmm_with_msrs(new_vmm())
    for guest in vmm.guests.values():
        assert guest.cpu.registers["LSTAR"] == guest.environment.registers["RIP"]


# --- Taking turns ---

def working(cpu):
    while True:
        yield Work(1_000_000)


def test_the_preemption_timer_ends_a_slice(new_vmm):
    vmm = populate(new_vmm(quantum=512), ("linux-6.1-amd64-panic", "linux-6.1-amd64-user"), working)
    turns = list(vmm.run(6))
    assert {turn.reason for turn in turns} == {Reason.PREEMPTION_TIMER}
    assert [turn.guest[-1] for turn in turns] == list("010101")
    rate = 1 << (processor("skylake_x_64").msr("IA32_VMX_MISC") & 0x1F)
    assert all(abs(turn.cycles_in - 512) < rate for turn in turns)


def test_the_shortest_slice_lets_a_guest_do_something(live):
    turns, *_ = live(programs.kernel, 300, quantum=1)
    assert {Reason.PREEMPTION_TIMER, Reason.CPUID} <= {turn.reason for turn in turns}
    assert all(turn.cycles_in for turn in turns if turn.reason == Reason.PREEMPTION_TIMER)
    assert all(turn.intact for turn in turns)


def test_a_slice_goes_on_after_an_exit(new_vmm):
    def asking(cpu):
        while True:
            yield Work(200)
            yield from cpu.cpuid(0)

    vmm = populate(new_vmm(quantum=500), ("linux-6.1-amd64-panic", "linux-6.1-amd64-user"), asking)
    turns = list(vmm.run(6))
    assert [turn.why for turn in turns[:3]] == ["CPUID", "CPUID", "VMX-preemption timer expired"]
    assert [turn.guest[-1] for turn in turns] == list("000111")


def test_without_a_timer_a_guest_that_does_not_exit_is_an_error(new_vmm):
    vmm = populate(new_vmm("bare"), ("linux-6.1-amd64-panic",), working)
    assert not vmm.has_timer
    with pytest.raises(UsageError, match="works on for ever"):
        list(vmm.run(1))


def test_without_a_timer_guests_change_at_exits_after_their_slice(new_vmm):
    def asking(cpu):
        while True:
            yield Work(200)
            yield from cpu.cpuid(0)

    vmm = populate(new_vmm("bare", quantum=500),
                   ("linux-6.1-amd64-panic", "linux-6.1-amd64-user"), asking)
    assert [turn.guest[-1] for turn in vmm.run(6)] == list("000111")


def test_an_idle_guest_waits_for_its_alarm(live):
    def sleeper(cpu):
        cpu.timers[0x20] = 5_000
        yield from cpu.sti()
        while True:
            yield from cpu.hlt()

    turns, *_ = live(sleeper, 3)
    assert [turn.start for turn in turns] == [0, 5_000, 10_000]
    assert [turn.delivered for turn in turns] == [None, 0x20, 0x20]


def test_a_guest_that_was_recorded_in_hlt_begins_when_it_is_woken(new_vmm):
    vmm = populate(new_vmm(), (LINUX,))
    (turn,) = vmm.run(1)
    assert (turn.start, turn.delivered) == (16_384, 0x20)


def test_only_an_nmi_wakes_a_guest_that_halted_with_interrupts_off(live, new_vmm):
    def doomed(cpu):
        cpu.timers[0x20] = 1_000
        yield from cpu.cpuid(0)

    turns, guest, vmm = live(doomed, environment=XEN)
    assert turns == [] and guest.blocked
    vmm.interrupts.post_nmi(guest)
    turns = list(vmm.run(5))
    assert turns[0].delivered == 2 and turns[0].why == "CPUID"
    assert guest.stopped == "HLT: halted for good" # its program has ended


def test_nobody_left_ends_the_run(live):
    turns, guest, _ = live(programs.crash)
    assert len(turns) == 1 and turns[0].why == "Triple fault"
    assert guest.stopped == "Triple fault: shut down"


# --- Interrupts ---

def test_an_interrupt_waits_for_its_window(live):
    def program(cpu):
        cpu.gates[0x20] = programs.tick
        yield from cpu.cli()
        yield from cpu.cpuid(0)     # the alarm rings meanwhile
        yield Work(100)
        yield from cpu.sti()
        yield Work(100)             # blocked by STI for so long as this instruction
        yield from cpu.pause()

    vmm_turns, guest, vmm = live(program, 1)
    vmm.interrupts.post(guest, 0x20)
    turns = vmm_turns + list(vmm.run(4))
    assert [turn.why for turn in turns[:3]] == ["CPUID", "Interrupt window", "OUT 0x20"]
    assert turns[1].delivered is None and turns[2].delivered == 0x20
    assert all(turn.intact for turn in turns)


def test_nothing_comes_between_sti_and_the_next_instruction(live):
    seen = []

    def handler(cpu):
        seen.append(cpu.frames[-1].saved["RIP"])
        yield Work(1)

    def program(cpu):
        cpu.gates[0x20] = handler
        yield from cpu.cli()
        yield from cpu.cpuid(0)
        yield from cpu.sti()
        seen.append(cpu.registers["INTERRUPTIBILITY"])
        yield from cpu.set()
        seen.append(cpu.registers["RIP"])
        yield from cpu.cpuid(0)

    _, guest, vmm = live(program, 1)
    vmm.interrupts.post(guest, 0x20)
    list(vmm.run(3))
    blocking, first, second = seen
    assert blocking == 1 and first == second


def test_a_device_interrupts_whoever_runs_and_its_owner_gets_it(new_vmm):
    def reader(cpu):
        cpu.gates[0x2E] = programs.disk_done
        yield from cpu.sti()
        yield from cpu.out(0x1F7, 0x20)
        yield from cpu.hlt()
        yield from cpu.cpuid(0)

    vmm = new_vmm(quantum=50_000)
    vmm.create(Environment.read("linux-6.1-amd64-panic"), reader, "reader")
    vmm.create(Environment.read("linux-6.1-amd64-user"), working, "worker")
    turns = list(vmm.run(5))
    assert [(turn.guest, turn.why) for turn in turns[:3]] == [
        ("reader", "OUT 0x1f7"), ("reader", "HLT"), ("worker", "External interrupt")]
    assert turns[2].done == "to reader"
    assert (turns[4].guest, turns[4].delivered, turns[4].why) == ("reader", 0x2E, "IN 0x1f7")


def test_an_nmi_blocks_others_until_its_iret(live):
    depth = []

    def handler(cpu):
        depth.append(cpu.registers["INTERRUPTIBILITY"] & 8)
        yield from cpu.cpuid(0)
        yield from cpu.cpuid(0)

    def program(cpu):
        cpu.gates[2] = handler
        yield from cpu.cpuid(0)
        while True:
            yield Work(10)
            yield from cpu.cpuid(1)

    _, guest, vmm = live(program, 1)
    vmm.interrupts.post_nmi(guest)
    (first,) = vmm.run(1)
    vmm.interrupts.post_nmi(guest)
    turns = [first, *vmm.run(3)]
    assert [turn.why for turn in turns] == ["CPUID", "CPUID", "NMI window", "CPUID"]
    assert [turn.delivered for turn in turns] == [2, None, None, 2] and depth == [8, 8]
    assert all(turn.intact for turn in turns)


def test_an_nmi_from_outside_is_the_vmms(live):
    def program(cpu):
        yield from cpu.cpuid(0)
        yield Work(100)

    turns, _, vmm = live(program, 1)
    vmm.machine.nmi = True
    (turn,) = vmm.run(1)
    assert (turn.why, turn.done) == ("NMI", "noted") and turn.intact and not vmm.machine.nmi


def test_an_event_that_a_fault_interrupted_is_delivered_again(live):
    count = []

    def handler(cpu):
        count.append(1)
        yield Work(1)

    def program(cpu):
        cpu.gates[0x20] = handler
        yield from cpu.sti()
        yield from cpu.cpuid(0)
        # the stack of the interrupt's handler is not mapped by EPT
        yield Event(Reason.EPT_VIOLATION, 0x182, linear_address=0x1000, physical_address=0x1000,
                    vectoring=0x80000020)
        yield from cpu.cpuid(1)

    turns, *_ = live(program, 3)
    assert [turn.why for turn in turns] == ["CPUID", "EPT violation", "CPUID"]
    assert turns[2].delivered == 0x20 and count == [1]


# --- The owner's part ---

def test_a_handler_of_ones_own(live):
    leaves = []

    def handler(vmm, guest, exit):
        leaves.append(guest.cpu.general["RAX"])
        vmm.skip(guest, exit)
        return Verdict(Next.RESUME, "mine")

    def program(cpu):
        yield from cpu.cpuid(7)
        yield from cpu.cpuid(8)

    turns, *_ = live(program, 2, handlers={**HANDLERS, Reason.CPUID: handler})
    assert leaves == [7, 8] and [turn.done for turn in turns] == ["mine", "mine"]


def test_a_reason_without_a_handler_stops_the_guest(live):
    turns, guest, _ = live(lambda cpu: cpu.cpuid(0), handlers={})
    assert len(turns) == 1 and guest.stopped == "CPUID: stopped: no handler for it"


def test_an_event_is_injected_on_demand(live):
    def handler(cpu):
        yield Work(7)

    def program(cpu):
        cpu.gates[13] = handler
        yield from cpu.cpuid(0)
        yield from cpu.cpuid(0)

    _, guest, vmm = live(program, 1)
    vmm.inject(guest, Delivery(0x80000B0D, 0x18))
    (turn,) = vmm.run(1)
    assert (turn.delivered, turn.cycles_in) == (13, 8)


def test_guests_are_stopped_and_destroyed_and_their_memory_is_used_again(new_vmm):
    vmm = populate(new_vmm(), ("linux-6.1-amd64-panic", "linux-6.1-amd64-user"), programs.busy)
    first, second = vmm.guests.values()
    list(vmm.run(6))
    vmm.stop(first, "enough")
    assert {turn.guest for turn in vmm.run(6)} == {second.name}
    vmm.destroy(first)
    assert list(vmm.guests) == [second.name]
    third = vmm.create(Environment.read(PAE), programs.busy, "third")
    assert {third.region, third.msr_list, third.ept_root} == {
        first.region, first.msr_list, first.ept_root} and third.number == 3
    vmm.interrupts.set_alarm(third, Alarm(0x20, vmm.machine.now))
    turns = list(vmm.run(20))
    assert {turn.guest for turn in turns} == {second.name, "third"}
    assert all(turn.intact for turn in turns)


def test_a_switch_would_lose_the_guests(live):
    _, guest, vmm = live(programs.busy, 3)
    pair = Environment.read(LINUX), Environment.read(XEN)
    with pytest.raises(UsageError, match="guest would be lost"):
        vmm.switch(*pair)
    vmm.destroy(guest)
    assert vmm.switch(*pair).switched
    vmm.create(Environment.read("linux-6.1-amd64-panic"), programs.busy, "again")
    assert all(turn.intact for turn in vmm.run(5))


def test_a_name_is_given_once(live):
    _, _, vmm = live(programs.busy, 1)
    with pytest.raises(UsageError, match="there is a guest 'guest' already"):
        vmm.create(Environment.read(LINUX), programs.busy, "guest")


def test_a_slice_is_above_zero(new_vmm):
    with pytest.raises(UsageError, match="a time slice of 0 cycles"):
        new_vmm(quantum=0)


def test_a_guest_that_the_processor_cannot_hold(new_vmm):
    with pytest.raises(UsageError, match="the compact processor lacks EFER"):
        new_vmm("compact").create(Environment.read("grub-efi-ia32"), programs.busy, "grub")


def test_what_a_program_makes_impossible_is_refused_by_the_processor(live):
    def program(cpu):
        yield Change({"RFLAGS": cpu.registers["RFLAGS"] & ~2})
        yield from cpu.cpuid(0)

    with pytest.raises(Refused, match="guest: refused by G") as refused:
        live(program)
    assert refused.value.refusals[0].fields == ("GUEST_RFLAGS",)

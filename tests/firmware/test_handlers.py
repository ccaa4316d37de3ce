"""What the VMM does about each reason to exit, seen from the guest's program."""

import pytest

from vmxswitch.firmware import programs
from vmxswitch.firmware.exits import Reason, exception
from vmxswitch.firmware.handlers import HANDLERS
from vmxswitch.firmware.program import Work
from vmxswitch.spec.operations import Event, Instruction
from vmxswitch.spec.tables import EXIT_REASONS


@pytest.fixture
def told(live):
    """Runs a program and a CPUID after it; gives what the program returned, turns and guest."""
    def run(program, turns=6, **options):
        returned = []

        def wrapped(cpu):
            returned.append((yield from program(cpu)))
            yield from cpu.cpuid(0)

        turns, guest, _ = live(wrapped, turns, **options)
        assert all(turn.intact for turn in turns)
        return returned[0] if returned else None, turns, guest
    return run


@pytest.mark.parametrize(("event", "done"), [
    (Event(Reason.INVD, length=2), "skipped"),
    (Event(Reason.XSETBV, length=3), "skipped"),
    (Event(Reason.PAUSE, length=2), "next, please"),
    (Instruction("VMCALL"), "powered off"),
])
def test_an_instruction_is_done_for_the_guest(told, event, done):
    def program(cpu):
        yield event

    _, turns, guest = told(program, 1)
    assert turns[0].done == done
    assert guest.writes["GUEST_RIP"] == guest.environment.registers["RIP"] + event.length


@pytest.mark.parametrize("name", ["VMXON", "VMXOFF", "VMLAUNCH", "VMREAD", "INVEPT", "INVVPID"])
def test_vmx_instructions_are_undefined(told, name):
    def program(cpu):
        cpu.gates[6] = programs.oops
        yield from cpu.vmx(name)

    _, turns, guest = told(program, 3)
    assert turns[0].why == name and turns[1].delivered == 6 and guest.console == ["?"]


def test_cpuid_tells_of_the_hypervisor(told):
    def program(cpu):
        yield from cpu.cpuid(1)
        present = cpu.general["RCX"] >> 31
        yield from cpu.cpuid(0x4000_0000)
        name = b"".join(cpu.general[register].to_bytes(4, "little")
                        for register in ("RBX", "RCX", "RDX"))
        return present, name

    assert told(program)[0] == (1, b"vmxswitch   ")


def test_control_registers_are_as_the_guest_wrote_them_though_the_vmm_owns_bits(told):
    def program(cpu):
        before = yield from cpu.mov_from_cr(4)
        yield from cpu.mov_to_cr(4, before | 1 << 13)
        after = yield from cpu.mov_from_cr(4)
        yield from cpu.mov_to_cr(4, before)
        return before >> 13 & 1, after >> 13 & 1, (yield from cpu.mov_from_cr(4)) == before

    found, turns, guest = told(program)
    assert found == (0, 1, True) and guest.cpu.registers["CR4"] >> 13 & 1
    assert [turn.why for turn in turns[:2]] == ["MOV to CR4", "MOV to CR4"]


def test_ne_is_the_vmms_and_the_other_bits_of_cr0_the_guests(told):
    def program(cpu):
        value = yield from cpu.mov_from_cr(0)
        yield from cpu.mov_to_cr(0, value & ~0x20 | 8)       # NE exits, TS goes with it
        yield from cpu.clts()                                # does not
        return (yield from cpu.mov_from_cr(0)) == value & ~0x28

    found, turns, guest = told(program)
    assert found and [turn.why for turn in turns[:2]] == ["MOV to CR0", "CPUID"]
    assert guest.cpu.registers["CR0"] & 0x20


def test_without_ept_cr3_is_emulated(live):
    seen = []

    def program(cpu):
        yield from cpu.mov_to_cr(3, 0x12_3000)
        seen.append((yield from cpu.mov_from_cr(3)))

    turns, guest, _ = live(program, 3, "linux-6.1-686-nopae-pentium3-syscall", name="compact")
    assert [turn.why for turn in turns] == ["MOV to CR3", "MOV from CR3", "HLT"]
    assert seen == [0x12_3000] and guest.cpu.registers["CR3"] == 0x12_3000


@pytest.mark.parametrize("name", ["skylake_x_64", "bare"])  # with MSR bitmaps and without
def test_msrs_hold_what_the_guest_wrote(told, name):
    written = {0x174: 0x33, 0x176: 0x7000, 0xC0000082: 0x8000, 0x1B: 0xFEE0_0800}

    def program(cpu):
        for index, value in written.items():
            yield from cpu.wrmsr(index, value)
        found = {}
        for index in written:
            found[index] = yield from cpu.rdmsr(index)
        return found

    found, turns, guest = told(program, 12, name=name)
    assert found == written
    assert guest.cpu.registers["LSTAR"] == 0x8000 and guest.cpu.registers["SYSENTER_CS"] == 0x33
    exits = [turn.why for turn in turns].count("WRMSR")
    assert exits == (1 if name == "skylake_x_64" else 4)


@pytest.mark.parametrize("access", ["rdmsr", "wrmsr"])
def test_an_unknown_msr_is_gp(told, access):
    def program(cpu):
        cpu.gates[13] = programs.oops
        yield from getattr(cpu, access)(0x1234, *([0] if access == "wrmsr" else []))

    _, turns, guest = told(program)
    assert turns[0].done == "MSR 0x1234: #GP" and turns[1].delivered == 13


def test_a_shared_msr_is_written_in_the_processor(live):
    def program(cpu):
        yield from cpu.wrmsr(0xC0000082, 0x9000)
        yield from cpu.cpuid(0)

    _, guest, _ = live(program, 2, msr_lists=False)
    assert guest.cpu.registers["LSTAR"] == 0x9000


def test_ports_are_those_of_a_timer_and_a_disk(told):
    def program(cpu):
        yield from cpu.out(0x80, 1)     # does not exit
        yield from cpu.out(0x40, 4)
        yield from cpu.out(0x1F7, 1)
        yield from cpu.out(0x3F8, 65)
        return (yield from cpu.inp(0x60))

    found, turns, guest = told(program, 5)
    assert found == 0 and guest.alarms[0x20].period == 256
    assert [turn.done for turn in turns[:4]] == [
        "timer each 256 cycles", "disk started", "ignored", "reads 0"]


def test_the_guest_sees_its_own_time(told):
    def program(cpu):
        yield Work(500)
        return (yield from cpu.rdmsr(0x10))

    assert told(program)[0] == 500


def test_a_page_fault_is_the_guests_and_an_ept_violation_the_vmms(told):
    def program(cpu):
        cpu.gates[14] = programs.page_fault
        yield from cpu.touch(0x1234_5678)

    _, turns, guest = told(program)
    assert [turn.why for turn in turns[:3]] == ["#PF", "EPT violation", "CPUID"]
    assert turns[1].delivered == 14 and guest.cpu.pages == {0x1234_5000}
    assert guest.cpu.nested == {0x1234_5000}


def fault_during(first, second):
    """A program in which a fault comes while another is delivered."""
    def program(cpu):
        yield Event(Reason.EXCEPTION_NMI, interruption=exception(second).information,
                    vectoring=exception(first).information)
    return program


@pytest.mark.parametrize(("first", "second", "delivered"), [
    (14, 14, 8), (13, 14, 14), (14, 1, 1), (17, 14, 14),
])
def test_two_faults_make_a_double_fault_as_the_manual_has_it(told, first, second, delivered):
    _, turns, _ = told(fault_during(first, second))
    assert turns[1].delivered == delivered


def test_a_fault_in_the_delivery_of_a_double_fault_ends_the_guest(told):
    _, _, guest = told(fault_during(8, 14))
    assert guest.stopped == "#PF: shut down: third fault in a row"


def test_an_interrupt_that_meets_a_fault_comes_after_it(told):
    def program(cpu):
        yield from cpu.sti()
        yield from cpu.set()
        yield Event(Reason.EXCEPTION_NMI, interruption=exception(14).information,
                    vectoring=0x80000031)

    _, turns, guest = told(program)
    delivered = [turn.delivered for turn in turns if turn.delivered is not None]
    assert delivered == [14, 0x31]


def test_every_handler_has_a_reason_of_the_table():
    assert all(EXIT_REASONS[reason].symbol == reason.name for reason in HANDLERS)


# --- Programs ---

def test_boot_goes_from_the_reset_vector_to_64_bit_mode_and_a_kernel(live):
    turns, guest, _ = live(programs.boot, 40, "reset-vector")
    registers = guest.cpu.registers
    assert all(turn.intact for turn in turns) and len(turns) == 40
    assert registers["EFER"] & 0x500 == 0x500 and registers["CR0"] >> 31
    assert registers["LSTAR"] and "EPT violation" in {turn.why for turn in turns}


def test_boot_goes_to_protected_mode_where_there_is_no_other(live):
    turns, guest, _ = live(programs.boot, 40, "reset-vector", name="skylake_x_32")
    assert all(turn.intact for turn in turns) and len(turns) == 40
    assert guest.cpu.registers["CR0"] >> 31
    assert not guest.stopped


@pytest.mark.parametrize("environment", [
    "linux-6.1-amd64-panic", "linux-6.1-686-nopae-pentium3-syscall"])
def test_a_kernel_boots_runs_processes_and_sleeps(live, environment):
    turns, guest, _ = live(programs.kernel, 120, environment)
    assert all(turn.intact for turn in turns)
    assert {"CPUID", "OUT 0x40", "#PF", "EPT violation", "OUT 0x1f7", "IN 0x1f7", "HLT",
            "VMX-preemption timer expired"} <= {turn.why for turn in turns}
    assert {0x20, 0x2E, 14} <= {turn.delivered for turn in turns}


def test_a_hypervisor_finds_no_vmx(live):
    _, guest, _ = live(programs.hypervisor, 40, "xen-4.17-panic")
    assert "".join(guest.console) == "?no VMX"

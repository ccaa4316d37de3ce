"""Guest events: every rule that decides whether one exits, and what it leaves behind.

Rules: transitions of ``exit_reasons.csv``, ``boundary_events.csv``, ``exit_information.csv``,
``vmx_aborts.csv``. Sources: Intel SDM vol. 3C, "VMX Non-Root Operation", "VM Exits".
"""

import pytest

from vmxswitch.spec.operations import Boundary, Delivery, Event, Mode, Outcome
from vmxswitch.spec.tables import BOUNDARY_EVENTS, EXIT_REASONS

VALID, HAS_CODE, NMI_UNBLOCKING = 1 << 31, 1 << 11, 1 << 12
PIN, PROC1, PROC2 = "PIN_BASED_CTLS", "PRIMARY_PROC_BASED_CTLS", "SECONDARY_PROC_BASED_CTLS"
PIN_BASE, PROC1_BASE = 0x16, 0x8400_6172  # default1 bits, CR3 exiting off, secondary controls on
MSR_BITMAPS, IO_A, IO_B, APIC = 0x20_2000, 0x20_3000, 0x20_4000, 0x20_7000
STORE_LIST, LOAD_LIST = 0x24_0000, 0x24_1000
CR0 = 0x8000_0031
#: Allowed-1 settings that no recorded processor has: monitor trap flag, ENCLS exiting.
MORE = {0x482: 1 << 32 + 27, 0x48E: 1 << 32 + 27, 0x48B: 1 << 32 + 15}


def bits(*numbers):
    return sum(1 << number for number in numbers)


def pin(*numbers):
    return {PIN: PIN_BASE | bits(*numbers)}


def proc1(*numbers):
    return {PROC1: PROC1_BASE | bits(*numbers)}


def proc2(*numbers):
    return {PROC1: PROC1_BASE, PROC2: bits(*numbers)}


def cr(number, access, value=0, gpr=0, source=0):
    return Event(28, number | access << 4 | gpr << 8 | source << 16, length=3, value=value)


def io(port, size=1, *, read=True):
    return Event(30, size - 1 | read << 3 | port << 16, length=1)


def exception(vector, kind=3, code=None, **others):
    info = VALID | kind << 8 | vector | (0 if code is None else HAS_CODE)
    return Event(0, interruption=info, error_code=code or 0, **others)


def outcome(machine, fields, event, live=(), memory=(), **world):
    where = machine("guest", msrs=MORE, **world, **fields)
    for address, word in memory:
        where.port.write_memory(address, 8, word)
    where.port.write_registers(dict(live))
    return where, where.port.report(event)


NOTHING = None
MASKS = {"CR0_GUEST_HOST_MASK": 0x0000_0008, "CR0_READ_SHADOW": 0x0000_0008}
#: fields, registers, memory words, event, exit reason or None.
DECISIONS = [
    # exceptions and NMI: bitmap, page-fault mask and match, software events
    ({"EXCEPTION_BITMAP": bits(6)}, {}, (), exception(6), 0),
    ({"EXCEPTION_BITMAP": ~bits(6) & 0xFFFFFFFF}, {}, (), exception(6), NOTHING),
    ({"EXCEPTION_BITMAP": bits(3)}, {}, (), exception(3, 6, length=1), 0),
    ({"EXCEPTION_BITMAP": bits(1)}, {}, (), exception(1, 5, length=1), 0),
    ({"EXCEPTION_BITMAP": bits(3)}, {}, (), exception(3, 4, length=2), NOTHING),
    ({"EXCEPTION_BITMAP": bits(14)}, {}, (), exception(14, code=2), 0),
    ({"EXCEPTION_BITMAP": bits(14), "PAGE_FAULT_ERROR_CODE_MASK": 2}, {}, (),
     exception(14, code=2), NOTHING),
    ({"EXCEPTION_BITMAP": 0, "PAGE_FAULT_ERROR_CODE_MASK": 2}, {}, (), exception(14, code=2), 0),
    ({"EXCEPTION_BITMAP": bits(14), "PAGE_FAULT_ERROR_CODE_MASK": 3,
      "PAGE_FAULT_ERROR_CODE_MATCH": 2}, {}, (), exception(14, code=6), 0),
    ({"EXCEPTION_BITMAP": bits(14), "PAGE_FAULT_ERROR_CODE_MASK": 3,
      "PAGE_FAULT_ERROR_CODE_MATCH": 2}, {}, (), exception(14, code=7), NOTHING),
    (pin(3), {}, (), exception(2, 2), 0),
    (pin(), {}, (), exception(2, 2), NOTHING),
    ({}, {}, (), Event(2), 2),
    # control registers: masks and shadows, CR3 targets, CLTS, LMSW
    (MASKS, {}, (), cr(0, 0, CR0 | 8), NOTHING),
    (MASKS, {}, (), cr(0, 0, CR0), 28),
    (MASKS, {}, (), cr(0, 0, CR0 | 8 | 2), NOTHING),
    (MASKS, {}, (), cr(0, 1), NOTHING),
    ({"CR4_GUEST_HOST_MASK": 0x2000, "CR4_READ_SHADOW": 0}, {}, (), cr(4, 0, 0x0620), NOTHING),
    ({"CR4_GUEST_HOST_MASK": 0x2000, "CR4_READ_SHADOW": 0}, {}, (), cr(4, 0, 0x2620), 28),
    (proc1(15), {}, (), cr(3, 0, 0x1000), 28),
    (proc1(), {}, (), cr(3, 0, 0x1000), NOTHING),
    (proc1(15) | {"CR3_TARGET_COUNT": 2, "CR3_TARGET_VALUE1": 0x1000}, {}, (),
     cr(3, 0, 0x1000), NOTHING),
    (proc1(15) | {"CR3_TARGET_COUNT": 1, "CR3_TARGET_VALUE1": 0x1000}, {}, (),
     cr(3, 0, 0x1000), 28),
    (proc1(15) | {"CR3_TARGET_COUNT": 4, "CR3_TARGET_VALUE3": 0x1000}, {}, (),
     cr(3, 0, 0x1000), NOTHING),
    (proc1(16), {}, (), cr(3, 1), 28),
    (proc1(), {}, (), cr(3, 1), NOTHING),
    (proc1(19), {}, (), cr(8, 0), 28),
    (proc1(20), {}, (), cr(8, 0), NOTHING),
    (proc1(20), {}, (), cr(8, 1), 28),
    (proc1(19), {}, (), cr(8, 1), NOTHING),
    (MASKS, {}, (), cr(0, 2), 28),
    (MASKS | {"CR0_READ_SHADOW": 0}, {}, (), cr(0, 2), NOTHING),
    ({"CR0_GUEST_HOST_MASK": 0}, {}, (), cr(0, 2), NOTHING),
    ({"CR0_GUEST_HOST_MASK": 2, "CR0_READ_SHADOW": 0}, {}, (), cr(0, 3, source=2), 28),
    ({"CR0_GUEST_HOST_MASK": 2, "CR0_READ_SHADOW": 2}, {}, (), cr(0, 3, source=2), NOTHING),
    ({"CR0_GUEST_HOST_MASK": 1, "CR0_READ_SHADOW": 0}, {}, (), cr(0, 3, source=1), 28),
    ({"CR0_GUEST_HOST_MASK": 1, "CR0_READ_SHADOW": 1}, {}, (), cr(0, 3, source=0), NOTHING),
    ({"CR0_GUEST_HOST_MASK": 0x10, "CR0_READ_SHADOW": 0}, {}, (), cr(0, 3, source=0x10), NOTHING),
    (proc1(23), {}, (), Event(29, 7, length=3), 29),
    (proc1(), {}, (), Event(29, 7, length=3), NOTHING),
    # ports
    (proc1(24), {}, (), io(0x80), 30),
    (proc1(), {}, (), io(0x80), NOTHING),
    (proc1(24, 25), {}, (), io(0x80), NOTHING),
    (proc1(25), {}, ((IO_A + 0x10, 1),), io(0x80), 30),
    (proc1(25), {}, ((IO_A + 0x10, 1),), io(0x81), NOTHING),
    (proc1(25), {}, ((IO_A + 0x10, 1),), io(0x7D, 4), 30),
    (proc1(25), {}, ((IO_A + 0x10, 1),), io(0x7D, 2), NOTHING),
    (proc1(25), {}, ((IO_B, 1),), io(0x7FFE, 4), 30),
    (proc1(25), {}, ((IO_B, 2),), io(0x7FFE, 2), NOTHING),
    (proc1(25), {}, ((IO_B + 0xFF8, bits(63)),), io(0xFFFF), 30),
    (proc1(25), {}, (), io(0xFFFF), NOTHING),
    (proc1(25), {}, (), io(0xFFFF, 2), 30),
    # MSRs
    (proc1(), {}, (), Event(31, length=2, number=0x10), 31),
    (proc1(28), {}, (), Event(31, length=2, number=0x10), NOTHING),
    (proc1(28), {}, ((MSR_BITMAPS, bits(16)),), Event(31, length=2, number=0x10), 31),
    (proc1(28), {}, ((MSR_BITMAPS, bits(16)),), Event(32, length=2, number=0x10), NOTHING),
    (proc1(28), {}, ((MSR_BITMAPS + 0x800, bits(16)),), Event(32, length=2, number=0x10), 32),
    (proc1(28), {}, ((MSR_BITMAPS + 0x410, bits(1)),), Event(31, number=0xC000_0081), 31),
    (proc1(28), {}, ((MSR_BITMAPS + 0xFF8, bits(63)),), Event(32, number=0xC000_1FFF), 32),
    (proc1(28), {}, (), Event(31, length=2, number=0x2000), 31),
    (proc1(28), {}, (), Event(32, length=2, number=0xC000_2000), 32),
    (proc1(28), {}, (), Event(31, length=2, number=0x4000_0000), 31),
    # others
    (proc1(30), {}, (), Event(40, length=2), 40),
    (proc2(10), {}, (), Event(40, length=2, value=1), 40),
    (proc2(10), {}, (), Event(40, length=2), NOTHING),
    (proc2(10), {"SS_AR": 0xC0F3}, (), Event(40, length=2, value=1), NOTHING),
    (proc2(20) | {"XSS_EXITING_BITMAP": 0x100}, {}, (), Event(63, value=0x100), 63),
    (proc2(20) | {"XSS_EXITING_BITMAP": 0x100}, {}, (), Event(64, value=0xFF), NOTHING),
    (proc2(15) | {"ENCLS_EXITING_BITMAP": bits(63)}, {}, (), Event(60, number=64), 60),
    (proc2(15) | {"ENCLS_EXITING_BITMAP": bits(63)}, {}, (), Event(60, number=0), NOTHING),
    (proc2(15) | {"ENCLS_EXITING_BITMAP": 1}, {}, (), Event(60, number=0), 60),
]


@pytest.mark.parametrize("fields, live, memory, event, reason", DECISIONS)
def test_an_event_exits_by_its_rule(machine, fields, live, memory, event, reason):
    where, answer = outcome(machine, fields, event, live, memory)
    if reason is NOTHING:
        assert answer.outcome == Outcome.NO_EXIT
        assert where.port.mode == Mode.NON_ROOT
    else:
        assert (answer.outcome, answer.reason) == (Outcome.EXIT, reason)
        assert where.read("VM_EXIT_REASON") == reason


VALUES = [
    (MASKS, {}, cr(0, 0, CR0 | 8 | 2), CR0 | 2),            # TS is the host's, MP the guest's
    (MASKS, {"CR0": CR0 | 8}, cr(0, 0, CR0 | 8 | 2), CR0 | 8 | 2),
    (MASKS, {"CR0": CR0 | 2}, cr(0, 1), CR0 | 2 | 8),
    ({"CR4_GUEST_HOST_MASK": 0x2000, "CR4_READ_SHADOW": 0}, {}, cr(4, 1), 0x0620),
    ({"CR4_GUEST_HOST_MASK": 0x2000, "CR4_READ_SHADOW": 0}, {}, cr(4, 0, 0x06A0), 0x26A0),
    (proc1(), {"CR3": 0x5000}, cr(3, 1), 0x5000),
    ({"CR0_GUEST_HOST_MASK": 0}, {"CR0": CR0 | 8}, cr(0, 2), CR0),
    ({"CR0_GUEST_HOST_MASK": 8, "CR0_READ_SHADOW": 0}, {"CR0": CR0 | 8}, cr(0, 2), CR0 | 8),
    ({"CR0_GUEST_HOST_MASK": 8, "CR0_READ_SHADOW": 0}, {"CR0": CR0 | 8}, cr(0, 3, source=6),
     CR0 | 8 | 6),
    (proc1(3) | {"TSC_OFFSET": 0xFFFF_FFFF_FFFF_FFFF}, {}, Event(16, length=2, value=5), 4),
    (proc1() | {"TSC_OFFSET": 1}, {}, Event(16, length=2, value=5), 5),
    (proc1(3) | {PROC2: bits(25), "TSC_OFFSET": 3, "TSC_MULTIPLIER": 3 << 47}, {},
     Event(16, length=2, value=1 << 40), (3 << 39) + 3),
    (proc1(3, 28) | {"TSC_OFFSET": 7}, {}, Event(31, length=2, number=0x10, value=5), 12),
    (proc1(3, 28) | {"TSC_OFFSET": 7}, {}, Event(31, length=2, number=0x174, value=5), 5),
]


@pytest.mark.parametrize("fields, live, event, value", VALUES)
def test_an_access_reads_or_writes_this_value(machine, fields, live, event, value):
    _, answer = outcome(machine, fields, event, live)
    assert (answer.outcome, answer.value) == (Outcome.NO_EXIT, value)


def test_mov_from_cr8_reads_the_virtual_tpr(machine):
    fields = proc1(21) | {"VIRTUAL_APIC_ADDR": APIC, PROC2: 0, "TPR_THRESHOLD": 0}
    _, answer = outcome(machine, fields, cr(8, 1), (), ((APIC + 0x80, 0x12A7),))
    assert answer.value == 0xA


@pytest.mark.parametrize("event", [cr(0, 0, CR0 & ~0x20), cr(0, 0, CR0 | 1 << 32),
                                   cr(4, 0, 0x0620), cr(4, 0, 0x2620 | 1 << 40)])
def test_a_value_that_vmx_does_not_allow_is_a_fault(machine, event):
    fields = {"CR0_GUEST_HOST_MASK": 0, "CR4_GUEST_HOST_MASK": 0}
    where, answer = outcome(machine, fields, event)
    assert (answer.outcome, answer.vector, answer.error_code) == (Outcome.FAULT, 13, 0)
    assert where.port.mode == Mode.NON_ROOT


def test_the_exit_comes_before_the_fault(machine):
    _, answer = outcome(machine, MASKS, cr(0, 0, CR0 & ~0x20))
    assert answer.reason == 28


@pytest.mark.parametrize("reason, control", [(51, 3), (58, 12), (63, 20), (64, 20)])
def test_an_instruction_that_is_not_enabled_is_undefined(machine, reason, control):
    fields = proc1(12, 9)
    _, answer = outcome(machine, fields | {PROC2: 0}, Event(reason, length=3, value=~0 & 0xFF))
    assert (answer.outcome, answer.vector) == (Outcome.FAULT, 6)
    fields |= {PROC2: bits(control)} | (
        {"XSS_EXITING_BITMAP": 0xFF} if reason > 60 else {})
    assert outcome(machine, fields, Event(reason, length=3, value=1))[1].reason == reason


# --- Exit information ---

INJECTED = {"VM_ENTRY_INTR_INFO": VALID | 0x306}
UNBLOCKED = exception(13, code=0x33)


@pytest.mark.parametrize("fields, event, expected", [
    ({"EXCEPTION_BITMAP": bits(13)}, exception(13, code=0x33),
     {"VM_EXIT_INTR_INFO": VALID | HAS_CODE | 0x30D, "VM_EXIT_INTR_ERROR_CODE": 0x33,
      "IDT_VECTORING_INFO": 0}),
    ({"EXCEPTION_BITMAP": bits(14)}, exception(14, code=2, qualification=0x1234),
     {"VM_EXIT_INTR_INFO": VALID | HAS_CODE | 0x30E, "EXIT_QUALIFICATION": 0x1234}),
    ({"EXCEPTION_BITMAP": bits(3)}, exception(3, 6, length=1),
     {"VM_EXIT_INTR_INFO": VALID | 0x603, "VM_EXIT_INSTRUCTION_LENGTH": 1}),
    # IRET had removed blocking by NMI
    ({"EXCEPTION_BITMAP": bits(13)}, Event(0, interruption=VALID | NMI_UNBLOCKING | 0x30D),
     {"VM_EXIT_INTR_INFO": VALID | NMI_UNBLOCKING | 0x30D}),
    ({"EXCEPTION_BITMAP": bits(8)}, Event(0, interruption=VALID | NMI_UNBLOCKING | 0x308),
     {"VM_EXIT_INTR_INFO": VALID | 0x308}),
    ({"EXCEPTION_BITMAP": bits(13)},
     Event(0, interruption=VALID | NMI_UNBLOCKING | 0x30D, vectoring=VALID | 0x20),
     {"VM_EXIT_INTR_INFO": VALID | 0x30D, "IDT_VECTORING_INFO": VALID | 0x20}),
    # event delivery
    ({"EXCEPTION_BITMAP": bits(13)},
     exception(13, code=0x33, vectoring=VALID | HAS_CODE | 0x30A, vectoring_error_code=0x44),
     {"IDT_VECTORING_INFO": VALID | HAS_CODE | 0x30A, "IDT_VECTORING_ERROR_CODE": 0x44}),
    ({"EXCEPTION_BITMAP": bits(8)}, exception(8, code=0, vectoring=VALID | 0x30D),
     {"IDT_VECTORING_INFO": 0}),
    ({}, Event(2, vectoring=VALID | 0x308), {"IDT_VECTORING_INFO": 0}),
    ({}, Event(9, 0xC000_0020, length=2, vectoring=VALID | 0x480),
     {"IDT_VECTORING_INFO": VALID | 0x480, "VM_EXIT_INSTRUCTION_LENGTH": 2}),
    # EPT violations: bit 12 of the qualification only outside event delivery
    ({}, Event(48, 0x1181), {"EXIT_QUALIFICATION": 0x1181}),
    ({}, Event(48, 0x1181, vectoring=VALID | 0x20), {"EXIT_QUALIFICATION": 0x0181}),
    # external interrupt: vector only if it is acknowledged
    (pin(0) | {"VM_EXIT_CTLS": 0x36FFF}, Boundary(interrupt=True, vector=0x21),
     {"VM_EXIT_INTR_INFO": 0}),
    (pin(0) | {"VM_EXIT_CTLS": 0x3EFFF}, Boundary(interrupt=True, vector=0x21),
     {"VM_EXIT_INTR_INFO": VALID | 0x21}),
    (pin(3), Boundary(nmi=True), {"VM_EXIT_INTR_INFO": VALID | 0x202}),
])
def test_an_exit_says_what_happened(machine, fields, event, expected):
    where, answer = outcome(machine, fields, event)
    assert answer.outcome == Outcome.EXIT
    assert {name: where.read(name) for name in expected} == expected
    assert answer.qualification == where.read("EXIT_QUALIFICATION")


RF = 1 << 16


@pytest.mark.parametrize("fields, event, before, after", [
    ({"EXCEPTION_BITMAP": bits(6)}, exception(6), 0x2, 0x2 | RF),
    ({"EXCEPTION_BITMAP": bits(1)}, exception(1), 0x2, 0x2),
    ({"EXCEPTION_BITMAP": bits(3)}, exception(3, 6, length=1), 0x2, 0x2),
    ({"EXCEPTION_BITMAP": bits(3)}, exception(3, 6, length=1), 0x2 | RF, 0x2 | RF),
    ({}, Event(10, length=2), 0x2 | RF, 0x2),
    ({}, Event(48, 0x181), 0x2, 0x2 | RF),
    ({}, Event(48, 0x181, vectoring=VALID | 0x20), 0x2, 0x2),
    ({}, Event(48, 0x181, vectoring=VALID | 0x30D), 0x2, 0x2 | RF),
    (pin(0), Boundary(interrupt=True), 0x2, 0x2),
])
def test_the_resume_flag_is_saved_by_cause(machine, fields, event, before, after):
    where, _ = outcome(machine, fields, event, {"RFLAGS": before})
    assert where.read("GUEST_RFLAGS") == after


@pytest.mark.parametrize("event, live, saved", [
    (Boundary(init=True), {"PENDING_DBG": 0x1000}, 0x1000),
    (Event(10, length=2), {"PENDING_DBG": 0x1000}, 0),
    (Event(10, length=2), {"PENDING_DBG": 0x1000, "INTERRUPTIBILITY": 2}, 0x1000),
    (exception(1), {"PENDING_DBG": 0x1000, "INTERRUPTIBILITY": 2}, 0),
])
def test_pending_debug_exceptions_are_saved_by_cause(machine, event, live, saved):
    where, _ = outcome(machine, {"EXCEPTION_BITMAP": 2}, event, live)
    assert where.read("GUEST_PENDING_DBG_EXCEPTIONS") == saved


@pytest.mark.parametrize("controls, before, event, blocking", [
    (pin(3), 0, Boundary(nmi=True), 8),
    (pin(3, 5), 0, Boundary(nmi=True), 8),
    (pin(0), 8, Boundary(interrupt=True), 8),
    (pin(0, 3, 5), 8, Boundary(interrupt=True), 0),
    (pin(0), 1, Boundary(interrupt=True), 0),
])
def test_the_host_is_blocked_by_nmi_after_an_nmi(machine, controls, before, event, blocking):
    where, _ = outcome(machine, controls, event, {"INTERRUPTIBILITY": before})
    assert where.port.read_registers()["INTERRUPTIBILITY"] == blocking
    assert where.read("GUEST_INTERRUPTIBILITY_STATE") == before


# --- Boundaries ---

TPR = proc1(21, 2, 22, 27) | pin(0, 3, 5, 6) | {
    PROC2: bits(0), "VIRTUAL_APIC_ADDR": APIC, "APIC_ACCESS_ADDR": 0x20_8000, "TPR_THRESHOLD": 3}
ALL_PENDING = Boundary(first=False, nmi=True, interrupt=True, init=True, vector=0x33)


def test_priorities_at_a_boundary(machine):
    """With everything pending, taking away the first of the rest, one after the other."""
    ladder = [
        (Boundary(True, True, True, True, vector=0x33), {}, 43),
        (ALL_PENDING, {}, 3),
        (Boundary(nmi=True, interrupt=True), {}, 37),
        (Boundary(True, True, True), {"TPR_THRESHOLD": 0}, 0),     # pending debug exception
        (Boundary(True, True, True), {"TPR_THRESHOLD": 0, "dbg": 0}, 52),
        (Boundary(True, True, True), {"TPR_THRESHOLD": 0, "dbg": 0, "timer": 9}, 8),
        (Boundary(True, True, True),
         {"TPR_THRESHOLD": 0, "dbg": 0, "timer": 9, PROC1: PROC1_BASE | bits(2)}, 0),  # NMI
        (Boundary(True, False, True),
         {"TPR_THRESHOLD": 0, "dbg": 0, "timer": 9, PROC1: PROC1_BASE | bits(2)}, 7),
        (Boundary(True, False, True),
         {"TPR_THRESHOLD": 0, "dbg": 0, "timer": 9, PROC1: PROC1_BASE}, 1),
    ]
    for event, changes, reason in ladder:
        fields = {name: value for name, value in changes.items() if name not in ("dbg", "timer")}
        where = machine("guest", msrs=MORE, **{**TPR, **fields}, EXCEPTION_BITMAP=2)
        where.port.write_registers({
            "PENDING_DBG": changes.get("dbg", 0x4000), "RFLAGS": 0x202,
            "PREEMPTION_TIMER": changes.get("timer", 0)})
        answer = where.port.report(event)
        assert (answer.outcome, answer.reason) == (Outcome.EXIT, reason), (event, changes)


@pytest.mark.parametrize("fields, live, event, delivered", [
    ({"EXCEPTION_BITMAP": 0}, {"PENDING_DBG": 0x4001}, Boundary(), VALID | 0x301),
    ({"EXCEPTION_BITMAP": 0}, {"PENDING_DBG": 0x4001, "INTERRUPTIBILITY": 2}, Boundary(), 0),
    ({"EXCEPTION_BITMAP": 0}, {"PENDING_DBG": 0x0001}, Boundary(), 0),
    (pin(), {}, Boundary(nmi=True), VALID | 0x202),
    (pin(), {"INTERRUPTIBILITY": 8}, Boundary(nmi=True), 0),
    (pin(), {"INTERRUPTIBILITY": 2}, Boundary(nmi=True), 0),
    (pin(), {"RFLAGS": 0x202}, Boundary(interrupt=True, vector=0x41), VALID | 0x41),
    (pin(), {"RFLAGS": 0x002}, Boundary(interrupt=True, vector=0x41), 0),
    (pin(), {"RFLAGS": 0x202, "INTERRUPTIBILITY": 1}, Boundary(interrupt=True, vector=0x41), 0),
    (pin(), {"RFLAGS": 0x202, "ACTIVITY": 2}, Boundary(interrupt=True, vector=0x41), 0),
    (pin(), {"RFLAGS": 0x202, "ACTIVITY": 1}, Boundary(interrupt=True, vector=0x41), VALID | 0x41),
])
def test_a_pending_event_that_does_not_exit_is_delivered(machine, fields, live, event, delivered):
    _, answer = outcome(machine, fields, event, live)
    assert answer.outcome == Outcome.NO_EXIT
    assert answer.delivery == (Delivery(delivered) if delivered else None)


@pytest.mark.parametrize("fields, live, event, reason", [
    (pin(0), {"RFLAGS": 0x002}, Boundary(interrupt=True), 1),   # RFLAGS.IF does not count
    (pin(3, 5), {"INTERRUPTIBILITY": 8}, Boundary(nmi=True), 0),  # virtual blocking does not count
    (pin(3), {"INTERRUPTIBILITY": 8}, Boundary(nmi=True), NOTHING),
    (proc1(2), {"RFLAGS": 0x202}, Boundary(), 7),
    (proc1(2), {"RFLAGS": 0x202, "INTERRUPTIBILITY": 1}, Boundary(), NOTHING),
    (proc1(2), {"RFLAGS": 0x202, "INTERRUPTIBILITY": 2}, Boundary(), NOTHING),
    (proc1(2), {"RFLAGS": 0x202, "ACTIVITY": 2}, Boundary(), NOTHING),
    (proc1(2), {"RFLAGS": 0x202, "ACTIVITY": 1}, Boundary(), 7),
    (pin(3, 5) | proc1(22), {}, Boundary(), 8),
    (pin(3, 5) | proc1(22), {"INTERRUPTIBILITY": 8}, Boundary(), NOTHING),
    (pin(3, 5) | proc1(22), {"INTERRUPTIBILITY": 2}, Boundary(), NOTHING),
    (pin(6), {"PREEMPTION_TIMER": 0}, Boundary(), 52),
    (pin(6), {"PREEMPTION_TIMER": 1}, Boundary(), NOTHING),
    (pin(), {"PREEMPTION_TIMER": 0}, Boundary(), NOTHING),
    (pin(6), {"PREEMPTION_TIMER": 0, "ACTIVITY": 3}, Boundary(), NOTHING),
    (proc1(27), {}, Boundary(), 37),
    (proc1(27), {}, Boundary(first=True), NOTHING),
    (proc1(27), {"ACTIVITY": 2}, Boundary(), NOTHING),
    (proc1(27) | INJECTED, {}, Boundary(first=True), 37),
    ({"VM_ENTRY_INTR_INFO": VALID | 0x700}, {}, Boundary(first=True), 37),
    ({"VM_ENTRY_INTR_INFO": VALID | 0x700}, {}, Boundary(), NOTHING),
    ({}, {"ACTIVITY": 3}, Boundary(init=True), NOTHING),
    ({}, {"ACTIVITY": 3}, Boundary(sipi=True, vector=0x9A), 4),
    ({}, {}, Boundary(sipi=True, vector=0x9A), NOTHING),
    (pin(0, 3), {"ACTIVITY": 3}, Boundary(nmi=True, interrupt=True), NOTHING),
])
def test_what_a_boundary_comes_to(machine, fields, live, event, reason):
    _, answer = outcome(machine, fields, event, live)
    found = answer.reason if answer.outcome == Outcome.EXIT else NOTHING
    assert found == reason
    assert answer.delivery is None


def test_every_boundary_row_is_of_a_reason_with_a_condition():
    assert all(EXIT_REASONS[row.reason].condition is not None for row in BOUNDARY_EVENTS)


# --- Injection and timer ---

@pytest.mark.parametrize("fields, delivery", [
    ({"VM_ENTRY_INTR_INFO": VALID | 0x20}, Delivery(VALID | 0x20)),
    ({"VM_ENTRY_INTR_INFO": VALID | HAS_CODE | 0x30D, "VM_ENTRY_EXCEPTION_ERROR_CODE": 0x18},
     Delivery(VALID | HAS_CODE | 0x30D, 0x18)),
    ({"VM_ENTRY_INTR_INFO": VALID | 0x480, "VM_ENTRY_INSTRUCTION_LENGTH": 2},
     Delivery(VALID | 0x480, 0, 2)),
    ({"VM_ENTRY_INTR_INFO": VALID | 0x700}, None),
    ({}, None),
])
def test_the_answer_to_an_entry_says_what_to_deliver(machine, fields, delivery):
    where = machine("loaded", **{"GUEST_RFLAGS": 0x202, **fields})
    assert where.do("VMLAUNCH").delivery == delivery


def test_the_timer_counts_in_the_guest_and_stops_at_0(machine):
    where = machine("guest", **pin(6), VMX_PREEMPTION_TIMER_VALUE=10, VM_EXIT_CTLS=0x436FFF)
    where.port.pass_time(7)
    assert where.port.read_registers()["PREEMPTION_TIMER"] == 3
    where.port.pass_time(9)
    assert where.port.report(Boundary()).reason == 52
    where.port.pass_time(1)
    assert where.read("VMX_PREEMPTION_TIMER_VALUE") == 0


@pytest.mark.parametrize("fields, live", [(pin(), {}), (pin(6), {"ACTIVITY": 3})])
def test_the_timer_does_not_count(machine, fields, live):
    where = machine("guest", **fields)
    where.port.write_registers({"PREEMPTION_TIMER": 10, **live})
    where.port.pass_time(7)
    assert where.port.read_registers()["PREEMPTION_TIMER"] == 10


@pytest.mark.parametrize("save, value", [(0, 1000), (1 << 22, 900)])
def test_an_exit_saves_the_timer_if_told_so(machine, save, value):
    where = machine("guest", **pin(6), VMX_PREEMPTION_TIMER_VALUE=1000, VM_EXIT_CTLS=0x36FFF | save)
    where.port.pass_time(100)
    where.do("VMCALL")
    assert where.read("VMX_PREEMPTION_TIMER_VALUE") == value


# --- MSR lists at an exit, page-directory pointers of the host, VMX aborts ---

LISTS = {"VM_EXIT_MSR_STORE_ADDR": STORE_LIST, "VM_EXIT_MSR_LOAD_ADDR": LOAD_LIST}


def listed(where, address, *entries):
    for number, (index, data) in enumerate(entries):
        where.port.write_memory(address + 16 * number, 8, index)
        where.port.write_memory(address + 16 * number + 8, 8, data)


def test_an_exit_stores_and_loads_msrs(machine):
    where = machine("guest", **LISTS, VM_EXIT_MSR_STORE_COUNT=3, VM_EXIT_MSR_LOAD_COUNT=2)
    listed(where, STORE_LIST, (0x174, 0), (0xC000_0100, 0), (0x480, 0))
    listed(where, LOAD_LIST, (0x174, 0x77), (0x174, 0x88))
    where.port.write_registers({"SYSENTER_CS": 0x55, "FS_BASE": 0x1234})
    assert where.do("VMCALL").outcome == Outcome.EXIT
    stored = [where.port.read_memory(STORE_LIST + 16 * n + 8, 8) for n in range(3)]
    assert stored == [0x55, 0x1234, where.capabilities.msr("IA32_VMX_BASIC")]
    assert where.port.read_registers()["SYSENTER_CS"] == 0x88
    assert where.read("GUEST_IA32_SYSENTER_CS") == 0x55


def test_a_failed_entry_goes_through_the_load_list_only(machine):
    where = machine("loaded", **LISTS, VM_EXIT_MSR_STORE_COUNT=1, VM_EXIT_MSR_LOAD_COUNT=1,
                    GUEST_RFLAGS=0)
    listed(where, STORE_LIST, (0x174, 0x11))
    listed(where, LOAD_LIST, (0x174, 0x99))
    assert where.do("VMLAUNCH").outcome == Outcome.ENTRY_FAILURE
    assert where.port.read_memory(STORE_LIST + 8, 8) == 0x11
    assert where.port.read_registers()["SYSENTER_CS"] == 0x99


def aborted(where, code, live):
    """The processor is in shutdown, its environment whole and the indicator in the region."""
    assert where.port.mode == Mode.ABORT
    assert where.port.read_memory(where.VMCS + 4, 4) == code
    assert where.port.read_registers() == live
    answer = where.do("VMREAD", encoding=0x681E)
    assert (answer.outcome, answer.error) == (Outcome.ABORT, code)
    where.port.reset()
    assert where.port.mode == Mode.OFF


@pytest.mark.parametrize("entry", [(0x800, 0), (0x174 | 1 << 32, 0), (0x9E, 0)])
def test_a_bad_entry_of_the_store_list_aborts(machine, entry):
    where = machine("guest", **LISTS, VM_EXIT_MSR_STORE_COUNT=2)
    listed(where, STORE_LIST, (0x175, 0), entry)
    live = where.port.read_registers()
    answer = where.do("VMCALL")
    assert (answer.outcome, answer.error) == (Outcome.ABORT, 1)
    assert where.port.read_memory(STORE_LIST + 8, 8) == live["SYSENTER_ESP"]
    aborted(where, 1, live)


@pytest.mark.parametrize("entry", [
    (0xC000_0100, 0), (0x808, 0), (0x174 | 1 << 32, 0), (0x175, 1 << 63), (0x277, 2)])
def test_a_bad_entry_of_the_load_list_aborts(machine, entry):
    where = machine("guest", **LISTS, VM_EXIT_MSR_LOAD_COUNT=2)
    listed(where, LOAD_LIST, (0x174, 1), entry)
    live = where.port.read_registers()
    answer = where.do("VMCALL")
    assert (answer.outcome, answer.error) == (Outcome.ABORT, 4)
    aborted(where, 4, live)


def test_leaving_long_mode_for_a_32_bit_host_aborts(machine):
    where = machine("guest", "skylake_x_32", "prot32_A")
    where.port.write_registers({"EFER": 0x500})
    live = where.port.read_registers()
    assert where.do("VMCALL").error == 6
    aborted(where, 6, live)


PAE_HOST = {"HOST_CR4": 0x2620, "HOST_CR3": 0x25_0020}


def test_a_pae_host_gets_its_page_directory_pointers(machine):
    where = machine("guest", "skylake_x_32", "prot32_A", **PAE_HOST)
    for number in range(4):
        where.port.write_memory(0x25_0020 + 8 * number, 8, 0x1000 * number | 1)
    assert where.do("VMCALL").outcome == Outcome.EXIT
    registers = where.port.read_registers()
    assert [registers[f"PDPTE{number}"] for number in range(4)] == [1, 0x1001, 0x2001, 0x3001]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("entry, aborts", [(0x3, True), (0x1E1, True), (1 | 1 << 51, True),
                                           (0x1E0, False), (0x1001, False)])
def test_a_bad_page_directory_pointer_of_the_host_aborts(machine, number, entry, aborts):
    where = machine("guest", "skylake_x_32", "prot32_A", **PAE_HOST)
    where.port.write_memory(0x25_0020 + 8 * number, 8, entry)
    live = where.port.read_registers()
    answer = where.do("VMCALL")
    if aborts:
        assert answer.error == 2
        aborted(where, 2, live)
    else:
        assert answer.outcome == Outcome.EXIT

"""Programs in which a wrong table row shows: an entry or an exit where right and wrong differ.

What differs is an expression over fields, registers and the cause of an exit;
:meth:`.row_cases.Search.reaching` looks for a VMCS that passes every check with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import islice, product

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import Binary, Const, Expression, Symbol, bind, symbols
from vmxswitch.spec.operations import Event, Instruction
from vmxswitch.spec.proof import Undecided, witness
from vmxswitch.spec.tables import EXIT_REASONS, SYMBOL_WIDTHS

from .fuzz.program import Region, operations, revision
from .mutants import PROOF_CASES, Mutant, differences
from .observation import MemoryWrite, Operation, RegisterWrites
from .row_cases import VMCS_POINTER, VMXON_POINTER, Search, State, Subject

__all__ = ["counterexamples", "values_that_differ"]

CASES = 2  #: tried for each bit, exit reason and start
BITS = 4   #: that differ, tried from each end of the value
CPUID, TRIPLE_FAULT = 10, 2  #: events that exit always; one of them is caused by an instruction
#: Where the search starts: as a baseline is; waiting for SIPI; with an event to inject.
STARTS = (
    {}, {"GUEST_ACTIVITY_STATE": 3}, {"VM_ENTRY_INTR_INFO": 0x8000_0202},
    {"VM_ENTRY_INTR_INFO": 0x8000_0603, "VM_ENTRY_INSTRUCTION_LENGTH": 1})
#: Width by symbol of what an event tells, in the order of :class:`Event`; first is the reason.
CAUSE = {name: SYMBOL_WIDTHS[name] for name in (
    f"CAUSE_{field.name.upper()}" for field in fields(Event)[1:])}
GUEST_PREFIX = "NOW_"  # of live registers at the exit; LIVE_: those at the entry


def counterexamples(subject: Subject, mutant: Mutant) -> Iterator[list[Operation]]:
    """Programs for a mutant of kind "register", "information" or "event"."""
    capabilities = subject.capabilities
    registers = {name: capabilities.bits(row) for name, row in capabilities.registers.items()}
    search = Search(subject, CAUSE | {
        f"{GUEST_PREFIX}{name}": bits for name, bits in registers.items()})
    at_entry = mutant.kind == "register" and mutant.part == "entry"
    bits = [*filter(_can_be, differences(capabilities, mutant))]
    for start, differ in product(STARTS, dict.fromkeys((*bits[:BITS], *bits[-BITS:]))):
        for reason in _reasons(mutant, differ):
            goal = differ if at_entry else _at_exit(capabilities, registers, differ, reason, mutant)
            for case, state in islice(search.reaching(goal, start), CASES):
                yield [*_program(subject, case, state, reason, symbols(goal))]


def values_that_differ(capabilities: Capabilities, mutant: Mutant) -> Mapping[str, int] | None:
    """Values of symbols with which a wrong check says something else than the right one."""
    differ, = differences(capabilities, mutant)
    try:
        return witness(differ, PROOF_CASES)
    except Undecided:
        return None


def _can_be(differ):
    """Whether right and wrong can differ at all in a bit, as far as one can say."""
    try:
        return witness(differ, PROOF_CASES) is not None
    except Undecided:
        return True


def _reasons(mutant, differ):
    """Reasons of the exits to try."""
    if mutant.kind == "event":
        return [int(mutant.row)]
    if "EXIT_REASON" in symbols(differ):
        return [number for number, row in EXIT_REASONS.items() if row.condition is not None]
    return [CPUID, TRIPLE_FAULT]


def _at_exit(capabilities, registers, differ, reason, mutant) -> Expression:
    """That right and wrong differ in an exit with this reason, and that there is such an exit."""
    row = EXIT_REASONS[reason]
    if mutant.kind != "event":
        differ = Binary(1, "&", capabilities.bind(row.condition), differ)
    return bind(differ, {
        "EXIT_REASON": Const(16, reason), "NON_ROOT": 1, "IN_VMX": 1, "FIRST_BOUNDARY": 0,
        "EXIT_BY_INSTRUCTION": int(row.instruction_length_saved == "yes")} | {
        f"LIVE_{name}": Symbol(bits, f"{GUEST_PREFIX}{name}") for name, bits in registers.items()})


def _program(subject, case, state: State, reason, reads) -> Iterator[Operation]:
    word = revision(subject.capabilities)
    environment = {**subject.environment, **dict(case.registers)}
    yield RegisterWrites(tuple(environment.items()))
    yield MemoryWrite(VMXON_POINTER, 4, word)
    yield Instruction("VMXON", pointer=VMXON_POINTER)
    yield from operations(Region(VMCS_POINTER, word, 0, case.baseline, case.writes), subject)
    for place in case.memory:
        yield MemoryWrite(*place)
    yield Instruction("VMPTRLD", pointer=VMCS_POINTER)
    yield Instruction("VMLAUNCH")
    yield RegisterWrites(tuple(
        (symbol.removeprefix(GUEST_PREFIX), state[symbol]) for symbol in sorted(reads)
        if symbol.startswith(GUEST_PREFIX)))
    yield Event(reason, *(state[name] for name in CAUSE))
    yield RegisterWrites(tuple(environment.items()))
    yield Instruction("VMCLEAR", pointer=VMCS_POINTER)

"""Wrong variants of the unit's hardware, all in one unit and chosen by an input.

:func:`mutants` lists them: wrong table rows, as the hardware is compiled from their expressions,
and wrong control logic, which is named by the assignment that is wrong (:data:`CONTROL`).
:class:`MutantUnit` holds them all.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

from amaranth import Const, Mux, Signal, Value
from amaranth.hdl import Fragment
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Signature

from vmxswitch.hdl.entry_checker import PDPTES, Wants
from vmxswitch.hdl.expression import Input
from vmxswitch.hdl.instruction_unit import Decision
from vmxswitch.hdl.interface import INSTRUCTION_ROWS, Event, Response
from vmxswitch.hdl.memory_unit import Command
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec import difference
from vmxswitch.spec import expression as ir
from vmxswitch.spec.capabilities import BoundCheck, Capabilities
from vmxswitch.spec.operations import Mode
from vmxswitch.spec.tables import EVENT_EXITS, EXIT_INFORMATION, INSTRUCTIONS, STAGES

__all__ = [
    "CONTROL", "KINDS", "Control", "Mutant", "MutantUnit", "differences", "mutants",
    "passed_stages", "right_expression", "wrong_expression",
]

NUMBER_BITS = 16
#: What is wrong in a mutant: the table of its row, or the control logic.
KINDS = ("check", "register", "information", "event", "instruction", "outcome", "control")
FAILURE_STAGES = ("control", "host")  # passed by a VM entry that ends in an entry failure, too


@dataclass(frozen=True)
class Mutant:
    """One wrong variant.

    Attributes
    ----------
    number : int
        What the unit's input ``mutant`` says to choose it.
    id : str
    kind : str
        One of :data:`KINDS`.
    row : str
        Id of the table row, or component of the control logic.
    part : str
        Column of the row, if it has several that can be wrong; else "".
    words : str
        What is wrong.
    """
    number: int
    id: str
    kind: str
    row: str
    part: str
    words: str


# --- Wrong expressions ---

@dataclass(frozen=True)
class _Site:
    """An expression of a table row, as it is bound to the processor.

    Attributes
    ----------
    kind, row, part : str
        Which expression it is.
    key : Check or Expression
        What the capabilities are asked for: a check, or the expression as the table has it.
    right : Expression
    whole : tuple of (name, words, Expression)
        Wrong variants of the whole expression.
    seen : callable
        From a variant of the expression: all that comes of it, as an expression for proofs.
    passed : tuple of str
        Stages of the checks that the VMCS has passed wherever the expression matters.
    """
    kind: str
    row: str
    part: str
    key: object
    right: ir.Expression
    whole: tuple[tuple[str, str, ir.Expression], ...]
    seen: Callable[[ir.Expression], ir.Expression] = lambda variant: variant
    passed: tuple[str, ...] = ()

    def variants(self) -> Iterator[tuple[str, str, ir.Expression]]:
        """Every wrong variant: name, words, expression."""
        yield from (variant for variant in self.whole if variant[2] != self.right)
        changes: list[str] = []
        _walk(self.right, lambda words, right, wrong: changes.append(words) or right)
        for number, words in enumerate(changes):
            yield f"off{number + 1}", words, _walk(self.right, _Nth(number))

    def combined(self, choose: Callable[[], Input]) -> ir.Expression:
        """The expression with all variants in it; ``choose`` gives the condition of the next."""
        wholes = [(choose(), wrong) for _, _, wrong in self.whole if wrong != self.right]
        result = _walk(self.right, lambda words, right, wrong: ir.Mux(
            right.width, choose(), wrong, right))
        for chosen, wrong in wholes:
            result = ir.Mux(result.width, chosen, wrong, result)
        return result


class _Nth:
    """Takes the wrong node at one place only."""
    def __init__(self, number):
        self._left = number

    def __call__(self, words, right, wrong):
        self._left -= 1
        return wrong if self._left == -1 else right


def _walk(node, alter, mask=False) -> ir.Expression:
    """The tree with ``alter(words, right, wrong)`` in place of all that can be off by one.

    ``mask`` tells that the bits of the node count one by one.
    """
    parts = {}
    for field in fields(node):
        part = getattr(node, field.name)
        if isinstance(part, ir.Expression):
            match node, field.name:
                case ir.Binary(_, "<<", _, _), "right":
                    continue  # hardware shifts by a constant
                case ir.Binary(width, "&" | "|" | "^", _, _), _:
                    below = width > 1
                case (ir.Mux(), "yes" | "no") | (ir.Invert() | ir.Extend(), _):
                    below = mask
                case _:
                    below = False
            parts[field.name] = _walk(part, alter, below)
    right = replace(node, **parts)
    for words, wrong in _off_by_one(node, right, mask):
        right = alter(words, right, wrong)
    return right


def _off_by_one(node, right, mask):
    """Variants of a node; ``right`` is the node with its operands as they are to be."""
    match node:
        case ir.Const(width, value):
            wrong = (value ^ (value & -value or 1) if mask else value + 1) & (1 << width) - 1
            yield f"{value:#x} is {wrong:#x}", ir.Const(width, wrong)
        case ir.Slice(width, value, low):
            bits = f"bits {low + width - 1}:{low}" if width > 1 else f"bit {low}"
            bits += f" of {value.name}" if isinstance(value, ir.Symbol) else ""
            if low + width < value.width:
                yield f"{bits} one higher", replace(right, low=low + 1)
            elif width > 1:
                upper = ir.Slice(width - 1, right.value, low + 1)
                yield f"{bits} without the lowest", ir.Extend(width, upper)
            else:
                yield f"{bits} one lower", replace(right, low=low - 1)
        case ir.Binary(_, "<" | "<=" as operator, _, _):
            other = {"<": "<=", "<=": "<"}[operator]
            yield f"{operator} is {other}", replace(right, operator=other)
        case ir.Member(_, value, numbers):
            top = max(numbers)
            wrong = (top + 1) % (1 << value.width)
            if wrong not in numbers:
                yield f"{top:#x} in the set is {wrong:#x}", replace(right, numbers=tuple(
                    wrong if number == top else number for number in numbers))


# --- The table rows of a processor ---

def _sites(capabilities: Capabilities) -> Iterator[_Site]:
    for row in capabilities.checks.values():
        yield _Site("check", row.id, "", row.check, row.fails, (
            ("never", "never fails", ir.NEVER),
            ("inverted", "fails where it should pass and the other way round",
             ir.Invert(1, row.fails))))
    yield from _register_sites(capabilities)
    yield from _information_sites(capabilities)
    for number, row in EVENT_EXITS.items():
        right = capabilities.bind(row.condition)
        defined = ir.Invert(1, capabilities.bind(row.undefined))
        yield _Site(
            "event", str(number), "", row.condition, right, _inverted(right),
            lambda variant, defined=defined: ir.Binary(1, "&", defined, variant), STAGES)
    for rows in INSTRUCTIONS.values():
        yield from _instruction_sites(capabilities, rows)


def _inverted(right):
    """The variants of a condition."""
    if isinstance(right, ir.Const):
        return (("never", "never holds", ir.NEVER),)
    return (("never", "never holds", ir.NEVER), ("inverted", "inverted", ir.Invert(1, right)))


def _register_sites(capabilities):
    def bound(value, bits):
        value = capabilities.bind(value)
        return value if value.width == bits else ir.bind(ir.Slice(bits, value, 0), {})

    for name, row in capabilities.registers.items():
        bits = capabilities.bits(row)
        old = ("keeps", "keeps its value", ir.Symbol(bits, row.symbol))
        entry, leave = bound(row.entry, bits), bound(row.exit, bits)
        yield _Site("register", name, "entry", row.entry, entry, (
            old, ("host", "an entry loads what an exit would load", leave)), passed=STAGES)
        yield _Site("register", name, "exit", row.exit, leave, (
            old, ("guest", "an exit loads what an entry would load", entry)), passed=FAILURE_STAGES)
        if row.field in capabilities.fields:
            bits = capabilities.bits(capabilities.fields[row.field])
            yield _Site("register", name, "save", row.save, bound(row.save, bits), (
                ("keeps", f"an exit does not change {row.field}", ir.Symbol(bits, row.field)),))


def _information_sites(capabilities):
    for name, row in EXIT_INFORMATION.items():
        if name not in capabilities.fields:
            continue
        bits = capabilities.bits(capabilities.fields[name])
        when, value = (capabilities.bind(part) for part in (row.when, row.value))
        value = value if value.width == bits else ir.bind(ir.Slice(bits, value, 0), {})
        old = ir.Symbol(bits, name)
        yield _Site(
            "information", name, "when", row.when, when, _inverted(when),
            lambda variant, value=value, old=old: ir.Mux(value.width, variant, value, old),
            FAILURE_STAGES)
        yield _Site("information", name, "value", row.value, value, (
            ("keeps", "never written", old),),
            lambda variant, when=when, old=old: ir.Mux(variant.width, when, variant, old),
            FAILURE_STAGES)


def _instruction_sites(capabilities, rows):
    met = [*capabilities.met(rows)]
    conditions = [condition for _, condition in met]
    for position, (row, condition) in enumerate(met):
        if condition == ir.ALWAYS:
            continue

        def decides(variant, position=position):
            """Number of the row that decides."""
            result = ir.Const(8, len(met))
            for number in reversed(range(len(met))):
                this = variant if number == position else conditions[number]
                result = ir.Mux(8, this, ir.Const(8, number), result)
            return result

        yield _Site("instruction", row.id, "", row.condition, condition, _inverted(condition),
                    decides)


# --- Wrong control logic: assignments of a component with another right side ---

Wrong = Callable[[Any, Fragment], Value]  #: from an assignment and its component: the right side


def _keeps(assignment, fragment):
    return assignment.lhs


def _zero(assignment, fragment):
    return Const(0, len(assignment.lhs))


def _one(assignment, fragment):
    return Const(1, len(assignment.lhs))


def _plus(number):
    return lambda assignment, fragment: assignment.rhs + number


def _flipped(bit):
    return lambda assignment, fragment: assignment.rhs ^ 1 << bit


def _doubled(assignment, fragment):
    return assignment.rhs << 1


def _late(assignment, fragment):
    before = Signal(len(assignment.lhs))
    fragment.add_statements("sync", before.eq(assignment.rhs))
    return before


def _same_as(name):
    """What another signal of the component is assigned."""
    return lambda assignment, fragment: next(
        found.rhs for found in _assignments(fragment) if getattr(found.lhs, "name", "") == name)


def _other(name):
    """Another signal of the component."""
    def wrong(assignment, fragment):
        return next(signal for found in _assignments(fragment)
                    for signal in (*found._lhs_signals(), *found._rhs_signals())
                    if signal.name == name)
    return wrong


@dataclass(frozen=True)
class Control:
    """Wrong control logic.

    Attributes
    ----------
    id : str
    component : str
        Name of the submodule of the unit; "": the unit itself.
    assignment : str
        Pattern of the assignment as Amaranth prints it, from the name of the signal on.
    wrong : Wrong
    words : str
    which : tuple of int
        Which of the assignments that match.
    of : int
        How many match.
    needs : str
        Control bit without which the logic has no work.
    reads : str
        Pattern of the symbols, one of which a check must read to give the logic work.
    """
    id: str
    component: str
    assignment: str
    wrong: Wrong
    words: str
    which: tuple[int, ...] = (0,)
    of: int = 1
    needs: str = ""
    reads: str = ""

    def has_work(self, capabilities: Capabilities) -> bool:
        """Whether the logic matters on a processor."""
        pattern = re.compile(self.reads)
        return (not self.needs or capabilities.allows(self.needs)) and any(
            pattern.match(symbol) for row in capabilities.checks.values()
            for symbol in ir.symbols(row.fails))

    def find(self, fragment: Fragment) -> list:
        """The assignments in the component; :exc:`LookupError` if others match, or none."""
        pattern = re.compile(r"\(eq (\(slice )?\(sig " + self.assignment)
        found = [each for each in _assignments(fragment) if pattern.match(repr(each))]
        if len(found) != self.of:
            raise LookupError(f"{self.id}: {len(found)} assignments of the unit, instead of "
                              f"{self.of}, match {self.assignment}")
        return [found[number] for number in self.which]


#: What can be wrong in the outcome of a row of instructions.csv: by part of the decision.
OUTCOME: dict[str, tuple[Wrong, str]] = {
    "code": (_plus(1), "another kind of outcome"),
    "number": (_plus(1), "error number or exit reason one too high"),
    "vector": (_plus(1), "vector one too high"),
    "has_code": (_flipped(0), "an error code for #UD, none for #GP"),
}


def _outcomes(capabilities) -> Iterator[tuple[str, str]]:
    """Id of a row that can be met, and key of :data:`OUTCOME`."""
    for rows in INSTRUCTIONS.values():
        for row, _ in capabilities.met(rows):
            yield row.id, "code"
            if row.kind in ("#UD", "#GP"):
                yield row.id, "vector"
                yield row.id, "has_code"
            elif row.number:
                yield row.id, "number"


def _part(signal, layout, name):
    """Pattern of an assignment to a part of a signal with a layout."""
    part = data.Layout.cast(layout)[name]
    return rf"{signal}\) {part.offset}:{part.offset + part.width}\)"


def _command(command):
    """Pattern of an assignment of a command to the memory unit."""
    return rf"memory__command\) \(const \d+'d{command.value}\)"


def _mode(mode):
    """Pattern of a change to a mode."""
    return rf"mode\) \(const \d+'d{mode.value}\)"


NO_VMCS = r"has_current\) \(const 1'd0"  # assignments: VMXON and VMXOFF, VMCLEAR
#: Assignments: eviction, VMXON, VMXOFF, VMPTRLD, VMCLEAR, VM entry.
CHANGE = r"change_stb\) \(const"
QUALIFICATION = _part("other", Event, "qualification")
LIST_ADDRESS = (
    r"memory__address\) \(\+ \(slice \(sig fields\) [\d:]+\) \(\* \(sig _position\)")

CONTROL = (
    # launch state
    Control("launched-kept", "sequencer", CHANGE, _zero,
            "VM entry does not set the launch state", (6,), 7),
    Control("launched-by-load", "", r"w_launched\)", _one,
            "every VMCS counts as launched once it is loaded"),
    Control("launched-not-loaded", "", r"w_launched_stb\)", _zero,
            "a VMCS that is loaded has the launch state of the one before"),
    Control("launched-not-cleared", "sequencer", r"store_launched\)", _other("slot_launched"),
            "VMCLEAR does not clear the launch state"),
    Control("launched-not-stored", "", r"r_launched\)", _zero,
            "a VMCS that makes room is stored as not launched"),
    # pointers and regions
    Control("current-kept-off", "pointers", NO_VMCS, _keeps,
            "the current VMCS outlives VMXOFF and VMXON", (0,), 2),
    Control("current-kept-cleared", "pointers", NO_VMCS, _keeps,
            "VMCLEAR of the current VMCS leaves it current", (1,), 2),
    Control("current-not-set", "pointers", r"has_current\) \(const 1'd1", _keeps,
            "VMPTRLD does not change the current-VMCS pointer"),
    Control("vmxon-pointer-kept", "pointers", r"vmxon_pointer\)", _keeps,
            "VMXON does not note its pointer"),
    Control("shadow-not-noticed", "", r"w_shadow\)", _zero,
            "a shadow VMCS is taken for an ordinary one", needs="PROC2_VMCS_SHADOWING"),
    Control("no-eviction", "sequencer", _command(Command.STORE), _zero,
            "a VMCS that makes room is not written back", (0, 1), 3),
    Control("no-load", "sequencer", _command(Command.LOAD), _zero,
            "VMPTRLD does not load the fields"),
    Control("no-clear", "sequencer", _command(Command.WRITE), _zero,
            "VMCLEAR of another VMCS does not reach its region", of=3),
    Control("region-number", "memory_unit", r"number\)", _plus(1),
            "a region's words go to the fields one further"),
    Control("region-short", "memory_unit", r"last\) \(const \d'd\d{2,}", _plus(-1),
            "the last field of a region is left out"),
    Control("region-launch-word", "memory_unit", r"bus__dat_w\) \(switch-value", _other("r_field"),
            "a region's launch word is not written"),
    # errors, and the answer
    Control("error-number", "sequencer", r"error_number\)", _plus(1),
            "VM-instruction error in the VMCS one too high"),
    Control("error-not-written", "sequencer", r"error_stb\)", _zero,
            "VM-instruction error not written to the VMCS"),
    Control("value", "sequencer", _part("response", Response, "value"), _plus(1),
            "what VMREAD and VMPTRST give is one too high"),
    Control("vmwrite-lost", "sequencer", r"w_stb\)", _zero, "VMWRITE writes nothing"),
    Control("high-read", "bank", r"r_data\)", _other("whole"),
            "VMREAD of a high half gives the low one"),
    Control("operands-64", "instructions", r"wide\)", _one,
            "operands outside 64-bit mode are 64 bits wide"),
    # commit
    Control("commit-late", "", r"next\)", _late,
            "what goes live is what the cycle before would have loaded"),
    Control("save-late", "", r"load\) \(sig saved", _late,
            "an exit saves what it would have saved the cycle before"),
    Control("failure-without-host", "sequencer", r"leave\)", _same_as("save"),
            "an entry failure does not load the host state"),
    Control("failure-saves", "sequencer", r"save\)", _same_as("leave"),
            "an entry failure saves guest state"),
    Control("exit-not-saved", "sequencer", r"save\)", _zero,
            "an exit saves no guest state"),
    Control("exit-loads-guest", "", r"exit\) \(sig to_host", _zero,
            "an exit loads the guest state"),
    Control("exit-reason", "", r"cause\) \(sig cause", _flipped(1),
            "what an exit saves depends on another exit reason", (1,), 2),
    Control("exit-no-instruction", "", r"by_instruction\) \(sig by_instruction", _zero,
            "every exit is saved as one that no instruction caused"),
    Control("exit-instruction", "", r"by_instruction\) \(sig by_instruction", _one,
            "every exit is saved as one that an instruction caused"),
    Control("live-kept", "live", r"incoming\) \(sig next", _other("live"),
            "a commit changes the mode only"),
    Control("cause-qualification", "sequencer", QUALIFICATION + r" \(slice \(sig request",
            _zero, "a VMX instruction's exit has no qualification"),
    Control("cause-length", "sequencer", _part("other", Event, "length"), _plus(1),
            "a VMX instruction's exit has a length one too high"),
    Control("cause-information", "sequencer", _part("other", Event, "information"), _zero,
            "a VMX instruction's exit has no instruction information"),
    Control("mode-vmxon", "mode", _mode(Mode.ROOT), _keeps, "VMXON leaves the mode", (0,), 2),
    Control("mode-vmxoff", "mode", _mode(Mode.OFF), _keeps, "VMXOFF leaves the mode"),
    Control("mode-entry", "mode", _mode(Mode.NON_ROOT), _keeps, "VM entry leaves the mode"),
    Control("mode-exit", "mode", _mode(Mode.ROOT), _keeps, "VM exit leaves the mode", (1,), 2),
    # MSR-load list
    Control("list-index", "sequencer", r"_position\) \(\+", _plus(1),
            "every other entry of the MSR-load list is left out"),
    Control("list-address", "sequencer", LIST_ADDRESS, _plus(16),
            "entries of the MSR-load list are taken one further"),
    Control("list-qualification", "sequencer", QUALIFICATION + r" \(switch-value", _plus(1),
            "exit qualification of an entry failure one too high"),
    Control("list-failure-lost", "sequencer", r"list_failed\) \(~", _keeps,
            "a failed entry of the MSR-load list does not count"),
    Control("staged-kept", "", r"unstage\)", _zero,
            "MSRs from a list are loaded by later entries too"),
    Control("staged-lost", "", r"stage_stb\)", _zero,
            "MSRs from a list are not loaded"),
    Control("staged-late", "commit", r"staged_SYSENTER_CS\)", _keeps,
            "IA32_SYSENTER_CS from a list is the one loaded first"),
    # checks
    Control("not-waited", "checker", r"settled\)", _one,
            "an entry does not wait until its checks are settled"),
    Control("pointer-not-waited", "sequencer", r"moving\)", _zero,
            "an entry does not wait after a change of pointer",
            reads="CURRENT_VMCS|VMXON_POINTER"),
    Control("register-not-waited", "live", r"changing\)", _zero,
            "an entry does not wait after a register write", reads="LIVE_"),
    Control("write-not-waited", "bank", r"changing\)", _zero,
            "an entry does not wait after a VMWRITE"),
    Control("control-stage", "checker", r"controls_fail\)", _zero,
            "checks of controls do not count"),
    Control("host-stage", "checker", r"host_fails\)", _zero,
            "checks of the host area do not count"),
    Control("guest-stage", "checker", r"guest_fails\)", _zero,
            "checks of the guest area do not count"),
    Control("guest-qualification", "", r"qualification\) \(sig qualification", _zero,
            "exit qualification of a guest-state failure is always 0"),
    Control("diagnosis-shifted", "", r"diagnosis\)", _doubled, "diagnosis is one row further"),
    Control("diagnosis-kept", "sequencer", r"checked\) \(&", _zero, "diagnosis never changes"),
    Control("link-not-read", "checker", _part("wants", Wants, "link"), _zero,
            "the word at the VMCS link pointer is not read", reads="LINK_WORD"),
    Control("pdptes-not-read", "checker", _part("wants", Wants, "pdptes"), _zero,
            "page-directory-pointer-table entries are not read", reads="PDPTE"),
    Control("vtpr-not-read", "checker", _part("wants", Wants, "vtpr"), _zero,
            "VTPR is not read", reads="VTPR"),
    Control("words-kept", "sequencer", r"_fetched\) \(const 1'd0", _keeps,
            "words read for one operation serve the next"),
    Control("pdpte-address", "memory_unit", r"offset\) \(\+ \(&", _flipped(5),
            "page-directory-pointer-table entries are read from another place"),
    Control("pdpte-order", "checker", _part("pdptes", PDPTES, "PDPTE0"), _flipped(63),
            "PDPTE0 has another bit 63"),
    # guest functions
    Control("eptp-kept", "sequencer", r"eptp_stb\)", _zero, "VMFUNC changes nothing",
            needs="PROC2_ENABLE_VM_FUNCTIONS"),
    Control("eptp-index", "sequencer", r"eptp_index\)", _plus(1),
            "VMFUNC: EPTP_INDEX one too high", needs="PROC2_EPT_VIOLATION_VE"),
    Control("shadow-write", "sequencer", _command(Command.WRITE), _zero,
            "VMWRITE to a shadow VMCS writes nothing", (1,), 3, "PROC2_VMCS_SHADOWING"),
    Control("shadow-error", "sequencer", _command(Command.WRITE), _zero,
            "an error of an access to a shadow VMCS is not stored", (2,), 3,
            "PROC2_VMCS_SHADOWING"),
)


def _assignments(fragment) -> Iterator:
    """The assignments of a component, in order."""
    for statements in _lists(fragment):
        yield from (statement for statement in statements if hasattr(statement, "rhs"))


def _lists(fragment) -> Iterator:
    """The lists of statements of a component, inner ones too."""
    def inner(statements):
        yield statements
        for statement in statements:
            for _, branch, *_ in getattr(statement, "cases", ()):
                yield from inner(branch)
    for statements in list(fragment.statements.values()):
        yield from inner(statements)


# --- All of them ---

@dataclass(frozen=True)
class _Plan:
    """The mutants of a processor, and what they are made from."""
    mutants: tuple[Mutant, ...]
    sites: tuple[_Site, ...]
    outcomes: tuple[tuple[str, str], ...]
    controls: tuple[Control, ...]
    variants: Mapping[int, tuple[_Site, ir.Expression]]  # of an expression, by number


@cache
def _plan(capabilities: Capabilities) -> _Plan:
    found, variants = [], {}

    def add(id, kind, row, part, words):
        found.append(Mutant(len(found) + 1, id, kind, row, part, words))

    sites = tuple(_sites(capabilities))
    for site in sites:
        for name, words, variant in site.variants():
            add("-".join(filter(None, (site.row, site.part, name))), site.kind, site.row, site.part,
                words)
            variants[len(found)] = site, variant
    outcomes = tuple(_outcomes(capabilities))
    for row, part in outcomes:
        add(f"{row}-{part}", "outcome", row, part, OUTCOME[part][1])
    controls = tuple(control for control in CONTROL if control.has_work(capabilities))
    for control in controls:
        add(control.id, "control", control.component or "unit", "", control.words)
    assert len(found) < 1 << NUMBER_BITS
    return _Plan(tuple(found), sites, outcomes, controls, variants)


def mutants(capabilities: Capabilities) -> tuple[Mutant, ...]:
    """The mutants of the unit of a processor, by number from 1."""
    return _plan(capabilities).mutants


def differences(capabilities: Capabilities, mutant: Mutant) -> Iterator[ir.Expression]:
    """For each bit that comes of a wrong row whether it is wrong."""
    site, variant = _plan(capabilities).variants[mutant.number]
    return difference.differences(site.seen(site.right), site.seen(variant))


def right_expression(capabilities: Capabilities, mutant: Mutant) -> ir.Expression:
    """What comes of a mutant's row if it is right; not of an outcome or control logic."""
    site, _ = _plan(capabilities).variants[mutant.number]
    return site.seen(site.right)


def wrong_expression(capabilities: Capabilities, mutant: Mutant) -> ir.Expression:
    """What a mutant has in place of its row's expression; not of an outcome or control logic."""
    _, variant = _plan(capabilities).variants[mutant.number]
    return variant


def passed_stages(capabilities: Capabilities, mutant: Mutant) -> tuple[str, ...]:
    """Stages of the checks that a VMCS has passed wherever a mutant's row matters."""
    site, _ = _plan(capabilities).variants[mutant.number]
    return site.passed


class _Mutated(Capabilities):
    """A processor whose table rows are others; they come by the identity of the right ones."""
    def __init__(self, right: Capabilities, rows: Mapping[int, ir.Expression]):
        super().__init__(*(getattr(right, field.name) for field in fields(right)))
        object.__setattr__(self, "_right", right)
        object.__setattr__(self, "_rows", rows)

    @cached_property
    def checks(self) -> dict[str, BoundCheck]:
        return {id_: replace(row, fails=self._rows[id(row.check)])
                for id_, row in self._right.checks.items()}

    def bind(self, expression: ir.Expression) -> ir.Expression:
        return self._rows.get(id(expression)) or super().bind(expression)


class MutantUnit(wiring.Component):
    """The unit with all its mutants; its ports, and one more.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.

    Members
    -------
    mutant : In(16)
        Number of the mutant that the unit is, constant from reset on; 0: none.
    """
    def __init__(self, capabilities: Capabilities):
        self._plan = _plan(capabilities)
        mutant = Signal(NUMBER_BITS, name="mutant")
        self._conditions = (mutant == found.number for found in self._plan.mutants)
        rows = {id(site.key): site.combined(lambda: Input(1, self._choose()))
                for site in self._plan.sites}
        self._unit = VmxUnit(_Mutated(capabilities, rows))
        ports = self._unit.signature.members
        super().__init__(Signature({**ports, "mutant": In(NUMBER_BITS)}))
        self.__dict__ |= {name: getattr(self._unit, name) for name in ports} | {"mutant": mutant}

    def _choose(self) -> Value:
        """Whether it is the next mutant of the plan."""
        return next(self._conditions)

    def elaborate(self, platform):
        unit = Fragment.get(self._unit, platform)
        components = {"": unit} | {name: part for part, name, _ in unit.subfragments}
        instructions = components["instructions"]
        places = [  # all of them before the first is changed
            (instructions, _of_row(instructions, row, part), OUTCOME[part][0])
            for row, part in self._plan.outcomes]
        places += [
            (components[control.component], control.find(components[control.component]),
             control.wrong) for control in self._plan.controls]
        for place in places:
            self._alter(*place)
        return unit

    def _alter(self, fragment, assignments, wrong):
        """Let assignments be wrong in the next mutant of the plan."""
        chosen = self._choose()
        for assignment in assignments:  # Amaranth has no public way to change one
            assignment._rhs = Mux(chosen, wrong(assignment, fragment), assignment.rhs)


def _of_row(instructions, row, part):
    """The assignments to a part of the decision where a row of instructions.csv decides."""
    number = [row.id for row in INSTRUCTION_ROWS].index(row)
    places = {name: (field.offset, field.offset + field.width)
              for name, field in data.Layout.cast(Decision)}
    for statements in _lists(instructions):
        found = {(each.lhs.start, each.lhs.stop): each for each in statements
                 if hasattr(each, "rhs") and hasattr(each.lhs, "start")}
        decides = found.get(places["row"])
        if decides is not None and decides.rhs.value == number:
            return [found[places[part]]]
    raise LookupError(f"{row}: the unit has no assignment of {part}")

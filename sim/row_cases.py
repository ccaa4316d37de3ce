"""For each entry check two VMCSs: one that fails it and no other, and its nearest neighbour.

:class:`Search` starts from valid VMCSs (the baselines of the recorded profiles), makes the check's
expression true by small steps that :mod:`.solver` reads off it, and puts right whatever else fails
then. The neighbour is the nearest VMCS that passes every check; mostly it differs in one bit. A
:class:`RowCase` runs on any ``Port`` (:mod:`vmxswitch.firmware.port`).

Facts: entry_checks.csv; unreachable.csv lists the checks that no processor here can fail alone.
"""

import csv
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from importlib.resources import files
from itertools import islice, product

from vmxswitch import spec
from vmxswitch.spec.capabilities import PRESETS, WRMSR_RULES, Capabilities
from vmxswitch.spec.expression import (
    NEVER,
    Binary,
    Expression,
    Extend,
    Invert,
    Mux,
    Symbol,
    symbols,
    to_function,
)
from vmxswitch.spec.operations import Answer, Instruction, Outcome
from vmxswitch.spec.proof import Known, witness
from vmxswitch.spec.structures import LIST_ENTRY_BYTES, VTPR_OFFSET
from vmxswitch.spec.tables import (
    CAPABILITY_MSRS,
    CHECKS,
    CONTROL_WORDS,
    CONTROLS,
    FIELDS,
    REGISTERS,
    SYMBOL_WIDTHS,
    SYMBOLS,
    expression,
)

from .cases import Profile
from .processor import AR_L, CR4_PAE, EFER_LMA, EFER_LME
from .solver import Changes, Solver, distance, evaluate

__all__ = [
    "SYNTHETIC", "RowCase", "RowPair", "Search", "Subject", "Unreachable", "everything", "run_pair",
    "subjects", "synthetic", "unreachable",
]

VMXON_POINTER, VMCS_POINTER = 0x200000, 0x201000
REGION_BYTES = 4096
HARMLESS_MSR = REGISTERS["SYSENTER_CS"].msr  # a list may load it on every processor here
#: IA32_FS_BASE, an x2APIC MSR, IA32_SMM_MONITOR_CTL, IA32_BIOS_UPDT_TRIG: WRMSR may accept them, a
#: list must not name them; and indices one bit from them.
UNLISTED_MSRS = (0xC0000100, 0x808, 0x908, 0x9B, 0x9A, 0x79, 0x78)
AR_DB = 1 << 14


# --- Processors and their valid VMCSs ---

@dataclass(frozen=True, eq=False)
class Subject:
    """A processor, the environment that it enters guests from, and VMCSs that pass every check.

    Attributes
    ----------
    name : str
    capabilities : Capabilities
    environment : mapping of str to int
        Live registers at the time of VMLAUNCH.
    baselines : mapping of str to mapping of str to int
        Value of every field by name of the VMCS. Memory is all zero with them.
    """
    name: str
    capabilities: Capabilities
    environment: Mapping[str, int]
    baselines: Mapping[str, Mapping[str, int]]

    @classmethod
    def from_profile(cls, profile: Profile, capabilities: Capabilities | None = None) -> "Subject":
        """The processor of a profile, or another one with what of the profile it can take.

        For another processor control words get the bits that must be 1 and lose those that must be
        0, fields that do not exist are dropped, and so are baselines that then fail a check or
        say the same as an earlier one.
        """
        own = capabilities or profile.capabilities
        environment = {name: _adapted(own, name, profile.environment.get(name, 0))
                       for name in own.registers}
        baselines = {}
        for name, pairs in profile.baselines.items():
            values = dict.fromkeys(own.fields, 0)
            values |= {field: value for field, value in pairs if field in own.fields}
            values = {field: _adapted(own, field, value) for field, value in values.items()}
            if own.constants["IN_SMM"]:
                values["EXECUTIVE_VMCS_POINTER"] = VMXON_POINTER
            if values not in baselines.values():
                baselines[name] = values
        subject = cls(own.name, own, environment, baselines)
        search = Search(subject)
        valid = {name: values for name, values in baselines.items()
                 if not search.failing(search.start(name))}
        return replace(subject, baselines=valid)

    def environments(self) -> dict[int, dict[str, int]]:
        """The environment by value of IA32_EFER; the first is the usual one.

        The other is outside IA-32e mode if the usual one is in it, and the other way round.
        """
        usual = dict(self.environment)
        if "EFER" not in usual:
            return {0: usual}
        efer = usual["EFER"]
        if efer & EFER_LMA:
            other = {"EFER": efer & ~(EFER_LMA | EFER_LME), "CS_AR": usual["CS_AR"] & ~AR_L | AR_DB}
        else:
            other = {"EFER": efer | EFER_LMA | EFER_LME, "CR4": usual["CR4"] | CR4_PAE,
                     "CS_AR": usual["CS_AR"] & ~AR_DB | AR_L}
        return {efer: usual, other["EFER"]: usual | other}

    def writing_environment(self) -> dict[str, int]:
        """The environment in which the VMCS is written: with 64-bit operands if there are any."""
        return max(self.environments().items())[1]


def _adapted(capabilities, name, value):
    """A field or register with the bits that it must and may have on a processor."""
    row = capabilities.fields.get(name) or capabilities.registers[name]
    constants = capabilities.constants
    for word in CONTROL_WORDS.values():
        if word.field == name:
            allowed = constants[word.capability_symbol]
            must = 0 if word.bits == 64 else allowed & 0xFFFFFFFF
            value = value & allowed >> word.allowed_1_low | must
    register = name.removeprefix("HOST_").removeprefix("GUEST_")
    if register in ("CR0", "CR4"):
        must = 0 if name == "GUEST_CR0" else constants[f"{register}_FIXED0"]
        value = value & constants[f"{register}_FIXED1"] | must
    return value & (1 << capabilities.bits(row)) - 1


#: Processors that no configuration is, by name: :func:`everything` with these facts.
SYNTHETIC = {
    "everything": {},
    "smm": {"IN_SMM": 1, "EXECUTIVE_WORD": PRESETS["full"].msr("IA32_VMX_BASIC") & 0x7FFFFFFF,
            "EXECUTIVE_LAUNCHED": 1, "EXECUTIVE_CONTROLS_VALID": 1},
}
SYNTHETIC["smm_not_launched"] = SYNTHETIC["smm"] | {"EXECUTIVE_LAUNCHED": 0}
SYNTHETIC["smm_not_valid"] = SYNTHETIC["smm"] | {"EXECUTIVE_CONTROLS_VALID": 0}


@dataclass(frozen=True)
class Unreachable:
    """A check that cannot fail alone: row of ``unreachable.csv``."""
    id: str
    subjects: tuple[str, ...]    # processors on which it cannot; empty: on every one
    implied_by: tuple[str, ...]  # checks one of which fails whenever it does
    reached_by: str              # synthetic processor on which it can; "": none
    reason: str


def unreachable() -> list[Unreachable]:
    """The rows of ``unreachable.csv``."""
    with files(spec).joinpath("unreachable.csv").open(encoding="utf-8", newline="") as file:
        return [Unreachable(
            row["id"], tuple(row["subjects"].split()), tuple(row["implied_by"].split()),
            row["reached_by"], row["reason"]) for row in csv.DictReader(file)]


def synthetic(name: str, profile: Profile) -> "Subject":
    """A processor of :data:`SYNTHETIC`; its VMCSs are those of a profile."""
    return Subject.from_profile(profile, everything(name, **SYNTHETIC[name]))


def subjects(profiles: Mapping[str, Profile]) -> dict[str, Subject]:
    """The processors of some recorded profiles and our presets, by name.

    The presets take their VMCSs from the profiles that fit them best.
    """
    result = {name: Subject.from_profile(profile) for name, profile in profiles.items()}
    for name, capabilities in PRESETS.items():
        profile = profiles["skylake_x_64" if capabilities.intel64 else "skylake_x_32"]
        result[name] = Subject.from_profile(profile, capabilities)
    return result


class _Decided(Capabilities):
    """A processor on which some facts hold that no real configuration has."""
    def __init__(self, *values, decided: Mapping[str, int]):
        super().__init__(*values)
        object.__setattr__(self, "_decided", decided)

    @cached_property
    def constants(self):
        return super().constants | self._decided


def everything(name: str = "everything", **decided: int) -> Capabilities:
    """A processor that allows every control bit the tables name and has every feature.

    It exists to show that a check is right where no processor of ours can: see unreachable.csv.
    ``decided`` gives symbols of source "capability" in symbols.csv other values.
    """
    allowed, must = dict.fromkeys(CONTROL_WORDS, 0), dict.fromkeys(CONTROL_WORDS, 0)
    for control in CONTROLS.values():
        if control.default1 or "_RESERVED_" not in control.symbol:
            allowed[control.word] |= 1 << control.low
        if control.default1 and "clearable only" not in control.dependencies:
            must[control.word] |= 1 << control.low
    preset = PRESETS["full"]
    values = {symbol: preset.msr(symbol) for symbol in CAPABILITY_MSRS} | {
        "IA32_VMX_MISC": preset.msr("IA32_VMX_MISC") | 4 << 16 | 1 << 14,
        "CR4_FIXED1": 0x1_FFFF_FFFF, "IA32_VMX_VMFUNC": 1, "IA32_VMX_EPT_VPID_CAP": (1 << 64) - 1,
    }
    for word, row in CONTROL_WORDS.items():
        for symbol in filter(None, (row.capability, row.true_capability)):
            values[symbol] = allowed[word] << row.allowed_1_low | must[word]
    features = {name: 1 for name, row in SYMBOLS.items()
                if row.source == "capability" and name.endswith("_SUPPORTED")}
    return _Decided(
        name, {CAPABILITY_MSRS[symbol].msr: value for symbol, value in values.items()},
        preset.physical_address_width, preset.linear_address_width, preset.efer_bits,
        preset.wrmsr_rules | dict.fromkeys(UNLISTED_MSRS, "any"), decided=features | decided)


# --- Cases ---

@dataclass(frozen=True)
class RowCase:
    """A VMCS and what VMLAUNCH has to answer.

    Attributes
    ----------
    row : str
        Id of the entry check that it is about.
    subject, baseline : str
        Names of the processor and of the VMCS that ``writes`` start from.
    writes : tuple of (field, value)
        Fields that differ from the baseline.
    memory : tuple of (address, size, value)
        Words of memory that the entry reads, but for the revision identifiers of the two regions.
    registers : tuple of (register, value)
        Live registers that differ from the environment at VMLAUNCH.
    expected : Answer
        ``outcome``, ``error``, ``reason``, ``qualification`` and ``failing`` count.
    """
    row: str
    subject: str
    baseline: str
    writes: tuple[tuple[str, int], ...]
    memory: tuple[tuple[int, int, int], ...]
    registers: tuple[tuple[str, int], ...]
    expected: Answer

    def agrees(self, answer: Answer) -> bool:
        """Whether an answer is what it has to be."""
        return all(getattr(answer, name) == getattr(self.expected, name)
                   for name in ("outcome", "error", "reason", "qualification", "failing"))


@dataclass(frozen=True)
class RowPair:
    """Two cases about a row, as near each other as can be.

    Attributes
    ----------
    fails : RowCase
        In it the row fails and no other.
    passes : RowCase
        In it every row passes.
    changed : tuple of str
        Symbols (fields, memory words, registers) whose values differ.
    distance : int
        Bits in which they differ; a step by 1 counts as one bit.
    applies : bool
        The row applies to both; so its condition is what makes the difference.
    """
    fails: RowCase
    passes: RowCase
    changed: tuple[str, ...]
    distance: int
    applies: bool

    @property
    def is_nearest(self) -> bool:
        """Whether no nearer pair can exist: one bit decides, and it decides the condition."""
        return self.distance == 1 and self.applies


def run_pair(pair: RowPair, subject: Subject, port) -> tuple[Answer, Answer]:
    """Run the two cases one after the other on the same VMCS; the answers of their VMLAUNCH.

    The first entry fails, so the second one only needs what differs.
    """
    port.reset()
    writing = subject.writing_environment()
    revision = subject.capabilities.constants["IA32_VMX_BASIC"] & 0x7FFFFFFF
    _set_up(port, writing)
    for region in (VMXON_POINTER, VMCS_POINTER):
        port.write_memory(region, 4, revision)
    _all_succeed(port, [
        Instruction("VMXON", pointer=VMXON_POINTER), Instruction("VMCLEAR", pointer=VMCS_POINTER),
        Instruction("VMPTRLD", pointer=VMCS_POINTER)])
    answers, written = [], {}
    for case in (pair.fails, pair.passes):
        for address, size, value in case.memory:
            port.write_memory(address, size, value)
        _set_up(port, writing)
        values = {**subject.baselines[case.baseline], **dict(case.writes)}
        _all_succeed(port, [
            instruction for field, value in values.items() if value != written.get(field, 0)
            for instruction in _vmwrites(subject, field, value)])
        written = values
        _set_up(port, {**subject.environment, **dict(case.registers)})
        answers.append(port.execute(Instruction("VMLAUNCH")))
    return answers[0], answers[1]


def _set_up(port, environment):
    now = port.read_registers()
    port.write_registers({name: value for name, value in environment.items() if value != now[name]})


def _vmwrites(subject, field, value) -> Iterator[Instruction]:
    encoding = FIELDS[field].encoding
    if subject.capabilities.intel64 or FIELDS[field].width_class != "64":
        yield Instruction("VMWRITE", encoding=encoding, value=value)
    else:
        yield Instruction("VMWRITE", encoding=encoding, value=value & 0xFFFFFFFF)
        yield Instruction("VMWRITE", encoding=encoding + 1, value=value >> 32)


def _all_succeed(port, instructions):
    many = getattr(port, "execute_many", None)
    answers = many(instructions) if many else map(port.execute, instructions)
    for instruction, answer in zip(instructions, answers, strict=True):
        if answer.outcome != Outcome.SUCCEED:
            raise RuntimeError(f"{instruction}: {answer}")


# --- The search ---

# What the search may do for one row.
ALTERNATIVES = 60                   # solutions of one expression looked at in one state
PHASES = ((0, 0), (2, 20), (5, 120))  # repairs in a row, and states put right, for each baseline
FRUITLESS = 4                       # states in a row that cannot be put right before giving up
FAILING_STATES = 40                 # failing states whose neighbours are compared
LONGEST_LIST = 4                    # entries of an MSR-load list

State = dict[str, int]  # value of every symbol that a check reads, and of every field


GOAL = ""               # stands for the id of a row, in :meth:`Search.reaching`


@dataclass(frozen=True)
class _Rows:
    """The checks of a processor over the symbols of a :data:`State`, by id."""
    fails: Mapping[str, Expression]
    applies: Mapping[str, Expression]
    functions: Mapping[str, Callable[[State], int]]  # compiled ``fails``
    readers: Mapping[str, Sequence[str]]             # by symbol: rows that read it
    listed: frozenset[str]                           # rows about an entry of the MSR-load list
    order: Mapping[str, int]


@cache
def _rows(capabilities: Capabilities) -> _Rows:
    listed = frozenset(id for id, row in capabilities.checks.items() if row.stage == "msr-load")
    meanings = _meanings(capabilities)
    there = expression("VM_ENTRY_MSR_LOAD_COUNT != 0")

    def decided(node, id):
        node = _replaced(node, meanings)
        return Binary(1, "&", there, node) if id in listed else node

    fails = {id: decided(row.fails, id) for id, row in capabilities.checks.items()}
    readers: dict[str, list[str]] = {}
    for id, node in fails.items():
        for symbol in sorted(symbols(node)):
            readers.setdefault(symbol, []).append(id)
    return _Rows(
        fails,
        {id: decided(capabilities.bind(row.check.applies), id)
         for id, row in capabilities.checks.items()},
        {id: to_function(node) for id, node in fails.items()}, readers, listed,
        {id: number for number, id in enumerate(fails)})


def _meanings(capabilities) -> dict[str, Expression]:
    """Symbols that follow from fields and memory words, as expressions over those."""
    ept = capabilities.bind(expression("PROC2_ENABLE_EPT"))
    accepted = [f"(LIST_INDEX == {msr} and {WRMSR_RULES[rule]})"
                for msr, rule in sorted(capabilities.wrmsr_rules.items())]
    return {
        f"PDPTE{number}":
            Mux(64, ept, Symbol(64, f"GUEST_PDPTE{number}"), Symbol(64, f"PDPTE{number}"))
        for number in range(4) if f"GUEST_PDPTE{number}" in capabilities.fields
    } | {
        name: Extend(row.bits, Symbol(capabilities.bits(row), name))
        for name, row in capabilities.fields.items() if capabilities.bits(row) < row.bits
    } | {
        "WRMSR_ACCEPTED": capabilities.bind(expression(" or ".join(accepted))),
    }


class Search:
    """Looks for the cases of one processor. Deterministic. It remembers what it found.

    Parameters
    ----------
    subject : Subject
    free : mapping of str to int
        Width by name of symbols that no check reads, for :meth:`reaching`. They may have any value.
    """

    def __init__(self, subject: Subject, free: Mapping[str, int] | None = None):
        self._subject = subject
        self._free = free or {}
        rows = _rows(subject.capabilities)
        self._expressions, self._applies, self._functions = rows.fails, rows.applies, rows.functions
        self._readers, self._listed, self._order = rows.readers, rows.listed, rows.order
        self._environments = subject.environments()
        self._solver = Solver(self._settle)
        self._passing: dict[RowPair, State] = {}
        self._starts = {name: self.start(name) for name in subject.baselines}

    # -- states --

    def start(self, baseline: str) -> State:
        """The state of a baseline."""
        subject = self._subject
        revision = subject.capabilities.constants["IA32_VMX_BASIC"] & 0x7FFFFFFF
        state = {name: 0 for name, row in SYMBOLS.items() if row.source == "memory"}
        state |= {"LINK_WORD": revision, "LIST_INDEX": HARMLESS_MSR}
        state |= {f"LIVE_{name}": value for name, value in subject.environment.items()}
        state |= {"CURRENT_VMCS": VMCS_POINTER, "VMXON_POINTER": VMXON_POINTER}
        return state | dict.fromkeys(self._free, 0) | subject.baselines[baseline]

    def failing(self, state: State) -> tuple[str, ...]:
        """Ids of the failing rows, in table order: of the list only if no other fails."""
        return self._visible(self._all_failing(state))

    def _all_failing(self, state) -> frozenset[str]:
        return frozenset(id for id, fails in self._functions.items() if fails(state))

    def _failing_after(self, failing, state, changes) -> frozenset[str]:
        """All failing rows of ``state``, which has come about by changes; before, ``failing``."""
        reread = {id for symbol in changes for id in self._readers.get(symbol, ())}
        return frozenset(id for id in reread if self._functions[id](state)) | failing - reread

    def _visible(self, failing) -> tuple[str, ...]:
        """Of all failing rows those that an answer names."""
        rest = failing - self._listed
        return tuple(sorted(rest or failing, key=self._order.__getitem__))

    def _settle(self, symbol, value) -> int | None:
        if symbol == "LIVE_EFER":
            return next(efer for efer in self._environments if not (efer ^ value) & EFER_LMA)
        capabilities = self._subject.capabilities
        if symbol in capabilities.fields:
            bits = capabilities.bits(capabilities.fields[symbol])
        elif symbol in self._free:
            bits = self._free[symbol]
        elif symbol == "LIVE_RTIT_CTL" or symbol in SYMBOLS and SYMBOLS[symbol].source == "memory":
            bits = SYMBOL_WIDTHS[symbol]
        else:
            return None
        return value if value < 1 << bits else None

    # -- pairs --

    def pair(self, row: str) -> RowPair | None:
        """The best pair of a row, or None if none was found."""
        best = None
        for pair in islice(self.pairs(row), FAILING_STATES):
            if best is None or _rank(pair) < _rank(best):
                best = pair
            if best.is_nearest:
                break
        return best

    def pairs(self, row: str) -> Iterator[RowPair]:
        """Pairs of a row, simplest first: for each failing state that the search comes to."""
        if row not in self._expressions:
            return
        for depth, states in PHASES:
            for baseline, start in self._starts.items():
                for state in self._alone(row, start, depth, states):
                    pair = self._nearest(row, baseline, state)
                    if pair is None:
                        continue
                    yield pair
                    if not pair.is_nearest:
                        yield from self._from_passing(row, baseline, self._passing[pair])

    def variants(self, pair: RowPair) -> Iterator[RowPair]:
        """All pairs of the row whose passing VMCS is that of ``pair``: each bit and bound."""
        yield from self._from_passing(
            pair.passes.row, pair.passes.baseline, self._passing[pair], depth=0)

    def _from_passing(self, row, baseline, passing, depth=1):
        """Pairs whose failing state is near a passing one."""
        for state in self._alone(row, passing, depth, 20):
            pair = self._nearest(row, baseline, state)
            if pair is not None:
                yield pair

    def _alone(self, row, start, depth, states) -> Iterator[State]:
        """States in which the row fails and no other, by at most ``depth`` repairs."""
        heap, seen = [], set()

        def reached(changes, failing, repairs):
            """Note a state in which the row fails; True if it is the only one."""
            key = frozenset(changes.items())
            visible = self._visible(failing)
            if row not in visible or key in seen:
                return False
            seen.add(key)
            if len(visible) == 1:
                return True
            if repairs < depth:
                heapq.heappush(
                    heap, (len(visible) + repairs, len(seen), changes, failing, repairs, visible))
            return False

        before = self._all_failing(start)
        for changes in islice(self._solver.solve(self._expressions[row], 1, start), ALTERNATIVES):
            state = {**start, **changes}
            if reached(changes, self._failing_after(before, state, changes), 0):
                yield state
        fruitless = 0
        for _ in range(states):
            if not heap or fruitless == FRUITLESS:
                return
            _, _, changes, failing, repairs, visible = heapq.heappop(heap)
            broken = {**start, **changes}
            other = next(id for id in visible if id != row)
            known = len(seen)
            for more in islice(
                    self._solver.solve(self._expressions[other], 0, broken), ALTERNATIVES):
                state = {**broken, **more}
                if reached(changes | more, self._failing_after(failing, state, more), repairs + 1):
                    yield state
            fruitless = fruitless + 1 if len(seen) == known else 0

    def _nearest(self, row, baseline, state) -> RowPair | None:
        """The pair of a state in which the row fails alone and the nearest that passes."""
        fails = self._case(row, baseline, state, (row,))
        if fails is None:
            return None
        best = None
        failing = self._all_failing(state)
        for changes in self._near(row, state):
            passing = {**state, **changes}
            if self._failing_after(failing, passing, changes):
                continue
            passes = self._case(row, baseline, passing, ())
            if passes is None:
                continue
            changed = [symbol for symbol in sorted(changes) if passing[symbol] != state[symbol]]
            pair = RowPair(
                *_sharing_memory(fails, passes), tuple(changed),
                sum(distance(state[symbol], passing[symbol]) for symbol in changed),
                CHECKS[row].condition == NEVER or bool(evaluate(self._applies[row], passing)))
            if best is None or _rank(pair) < _rank(best):
                best = pair
                self._passing[pair] = passing
            if pair.is_nearest:
                break
        return best

    def _near(self, row, state) -> Iterator[Changes]:
        """Changes of a failing state that let the row pass."""
        yield from islice(self._solver.solve(self._expressions[row], 0, state), ALTERNATIVES)
        yield from self._inverted(symbols(self._expressions[row]), state)

    def _inverted(self, names, state) -> Iterator[Changes]:
        """Changes that invert one bit of a symbol, of those that it may have."""
        for symbol in sorted(names):
            bits = self._free.get(symbol) or SYMBOL_WIDTHS[symbol]
            for bit in range(bits):
                value = self._settle(symbol, state[symbol] ^ 1 << bit)
                if value is not None:
                    yield {symbol: value}

    def implied(self, row: str, others: Iterable[str]) -> bool:
        """Whether one of the other rows fails whenever the row does. Proved, not searched.

        Raises :exc:`vmxswitch.spec.proof.Undecided` if that takes too many cases.
        """
        alone = self._expressions.get(row, NEVER)
        for other in others:
            if other in self._expressions:
                alone = Binary(1, "&", alone, Invert(1, self._expressions[other]))
        return witness(alone) is None

    def reaching(
        self, expression: Expression, starts: Sequence[Mapping[str, int | Known]],
        phases: Iterable[tuple[int, int]] = PHASES,
    ) -> Iterator[tuple[RowCase, State]]:
        """Cases that pass every check, in a state in which a one-bit expression is 1.

        The search begins at the baselines, each with the changes of one of ``starts``: values, or
        some bits. ``phases``: repairs in a row and states put right, as in :data:`PHASES`.
        """
        goal = Search(self._subject, self._free)
        node = _replaced(expression, _meanings(self._subject.capabilities))
        goal._expressions = {**self._expressions, GOAL: node}
        goal._functions = {**self._functions, GOAL: to_function(node)}
        goal._readers = {**self._readers} | {
            symbol: [*self._readers.get(symbol, ()), GOAL] for symbol in symbols(node)}
        goal._order = {**self._order, GOAL: -1}
        for (depth, states), changes in product(phases, starts):
            for baseline, start in self._starts.items():
                for state in goal._alone(GOAL, _changed(start, changes), depth, states):
                    case = goal._case(GOAL, baseline, state, ())
                    if case is not None:
                        yield case, state

    def near(
        self, baseline: str, state: State, names: Iterable[str],
    ) -> Iterator[tuple[RowCase, State]]:
        """Cases and states with one bit of a symbol inverted, of those that pass every check."""
        failing = self._all_failing(state)
        for changes in self._inverted(state.keys() & names, state):
            changed = {**state, **changes}
            if self._failing_after(failing, changed, changes):
                continue
            case = self._case(GOAL, baseline, changed, ())
            if case is not None:
                yield case, changed

    # -- cases --

    def _case(self, row, baseline, state, failing) -> RowCase | None:
        """The case of a state, or None if memory cannot be as the state wants it."""
        memory = self._memory(state, bool(failing) and failing[0] not in self._listed)
        if memory is None:
            return None
        start = self._subject.baselines[baseline]
        environment = self._environments[state.get("LIVE_EFER", 0)]
        registers = {name: value for name, value in environment.items()
                     if value != self._subject.environment[name]}
        if state.get("LIVE_RTIT_CTL"):
            registers["RTIT_CTL"] = state["LIVE_RTIT_CTL"]
        if failing:
            failure = CHECKS[row].failure
            if failure.error is not None:
                expected = Answer(Outcome.FAIL_VALID, error=failure.error, failing=failing)
            else:
                qualification = failure.qualification
                if qualification is None:
                    qualification = state["VM_ENTRY_MSR_LOAD_COUNT"]
                expected = Answer(Outcome.ENTRY_FAILURE, reason=failure.reason,
                                  qualification=qualification, failing=failing)
        else:
            expected = Answer(Outcome.ENTERED)
        return RowCase(
            row, self._subject.name, baseline,
            tuple((field, state[field]) for field in start if state[field] != start[field]),
            memory, tuple(registers.items()), expected)

    def _memory(self, state, ends_before_list) -> tuple[tuple[int, int, int], ...] | None:
        """The words that give the memory symbols of a state their values.

        None if two of them, or one of them and a region, are in each other's way, or the list is
        too long.
        """
        words: dict[int, tuple[int, int]] = {}

        def put(address, size, value):
            old = words.setdefault(address, (size, value))
            overlaps = any(address < other + words[other][0] and other < address + size
                           for other in words if other != address)
            return old == (size, value) and not overlaps and address % size == 0

        read = _Recorder(state)
        for function in self._functions.values():
            function(read)
        good = True
        for symbol in sorted(read.symbols):
            if symbol == "VTPR":
                good &= put(state["VIRTUAL_APIC_ADDR"] + VTPR_OFFSET, 4, state[symbol])
            elif symbol == "LINK_WORD":
                good &= put(state["VMCS_LINK_POINTER"], 4, state[symbol])
            elif symbol.startswith("PDPTE"):
                table = state["GUEST_CR3"] & 0xFFFFFFE0
                good &= put(table + 8 * int(symbol.removeprefix("PDPTE")), 8, state[symbol])
        count, address = state["VM_ENTRY_MSR_LOAD_COUNT"], state["VM_ENTRY_MSR_LOAD_ADDR"]
        if count and not ends_before_list:
            if count > LONGEST_LIST:
                return None
            for number in range(count - 1):
                good &= put(address + LIST_ENTRY_BYTES * number, 8, HARMLESS_MSR)
            last = address + LIST_ENTRY_BYTES * (count - 1)
            good &= put(last, 8, state["LIST_INDEX"] | state["LIST_RESERVED"] << 32)
            good &= put(last + 8, 8, state["LIST_DATA"])
        revision = self._subject.capabilities.constants["IA32_VMX_BASIC"] & 0x7FFFFFFF
        for region in (VMXON_POINTER, VMCS_POINTER):
            for place in list(words):
                if region <= place < region + REGION_BYTES:
                    good &= place == region and words.pop(place) == (4, revision)
        if not good:
            return None
        return tuple((place, *word) for place, word in sorted(words.items()))


def _changed(state: State, changes: Mapping[str, int | Known]) -> State:
    """The state with other values; of symbols of which some bits are known, with these bits."""
    return state | {
        name: state[name] & ~value.mask | value.bits if isinstance(value, Known) else value
        for name, value in changes.items()}


class _Recorder(dict):
    """A state that remembers which symbols were read."""
    def __init__(self, state):
        super().__init__(state)
        self.symbols = set()

    def __getitem__(self, symbol):
        self.symbols.add(symbol)
        return super().__getitem__(symbol)


def _sharing_memory(first: RowCase, second: RowCase) -> tuple[RowCase, RowCase]:
    """Two cases with the words of both in the memory of both, where they do not collide."""
    a, b = ({address: (size, value) for address, size, value in case.memory}
            for case in (first, second))
    def merged(own, other):
        extra = {place: word for place, word in other.items()
                 if not any(place < mine + size and mine < place + word[0]
                            for mine, (size, _) in own.items())}
        return tuple((place, *word) for place, word in sorted((own | extra).items()))
    return replace(first, memory=merged(a, b)), replace(second, memory=merged(b, a))


def _rank(pair: RowPair):
    return len(pair.changed), not pair.applies, pair.distance


def _replaced(node: Expression, meanings: Mapping[str, Expression]) -> Expression:
    """The expression with other expressions in place of some symbols."""
    if isinstance(node, Symbol):
        return meanings.get(node.name, node)
    parts = {field.name: _replaced(part, meanings) for field in fields(node)
             if isinstance(part := getattr(node, field.name), Expression)}
    return replace(node, **parts)

"""Entry checks of a VMCS of which not every field is known: failed, passed or undecided.

A check fails if it fails whatever the unknown values are, and passes if it passes whatever they
are; :mod:`vmxswitch.spec.proof` decides. Facts: entry_checks.csv, msrs.csv.
"""

from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property

from vmxswitch.spec.capabilities import LIST_STAGE, WRMSR_RULES
from vmxswitch.spec.expression import Expression, Invert, bind, symbols
from vmxswitch.spec.proof import Known, Undecided, know, known_bits, witness
from vmxswitch.spec.tables import CHECKS, FIELDS, MSRS, SYMBOL_WIDTHS, expression

from .knowledge import Knowledge

__all__ = ["ListEntry", "Situation"]

CASES = 2000  # of unknown bits, before a row counts as undecided
TRIES = 16    # guesses of all that is unknown, which settle most rows before


@dataclass(frozen=True)
class ListEntry:
    """An entry of the VM-entry MSR-load list, as far as it is known.

    ``place`` counts from 1, as the exit qualification does; ``named``: the processor itself says
    that loading it failed.
    """
    index: int
    data: int
    reserved: int | None = None
    place: int | None = None
    named: bool = False

    @property
    def values(self) -> dict[str, int]:
        """The symbols of the tables that it gives a value."""
        known = {"LIST_INDEX": self.index, "LIST_DATA": self.data}
        return known if self.reserved is None else known | {"LIST_RESERVED": self.reserved}


class Situation:
    """A VMCS as far as it is known, and a processor as far as it is known.

    As :class:`vmxswitch.firmware.cures.Situation`, where *fails* means: does not pass for certain.

    Parameters
    ----------
    knowledge : Knowledge
        The processor.
    values : mapping of str to int
        VMCS fields, and other symbols that are known.
    entries : sequence of ListEntry
        The VM-entry MSR-load list, as far as it is known.
    """
    def __init__(self, knowledge: Knowledge, values: Mapping[str, int],
                 entries: tuple[ListEntry, ...] = ()):
        self.knowledge, self.entries = knowledge, entries
        self.values = dict(values)
        self._known = knowledge.bits | _known(values)
        self._results: dict[str, bool | None] = {}

    @cached_property
    def _tries(self) -> list[dict[str, int]]:
        return [self.knowledge.guess(number) | self.values for number in range(TRIES)]

    def forget_guesses(self) -> None:
        """Free memory; what was worked out stays."""
        self.__dict__.pop("_tries", None)

    def result(self, check: str) -> bool | None:
        """True if the check passes, False if it fails, None if that is undecided."""
        if check not in self._results:
            whole = self._list if CHECKS[check].stage == LIST_STAGE else self._plain
            self._results[check] = whole(check)
        return self._results[check]

    def with_result(self, result: bool | None) -> tuple[str, ...]:
        """Ids of the checks that have a result, in table order."""
        return tuple(check for check in CHECKS if self.result(check) is result)

    def having(self, changes: Mapping[str, int]) -> "Situation":
        """The same with some values changed."""
        changed = copy(self)
        changed.forget_guesses()
        changed.values = self.values | changes
        changed._known = self._known | _known(changes)
        changed._results = dict(self._results)
        for symbol in changes:
            for check in _readers().get(symbol, ()):
                changed._results.pop(check, None)
        return changed

    def fails(self, check: str) -> bool:
        """Whether a check does not pass for certain."""
        return self.result(check) is not True

    def failing(self) -> tuple[str, ...]:
        """Ids of the checks that do not pass for certain, in table order."""
        return tuple(check for check in CHECKS if self.fails(check))

    def expression(self, check: str) -> Expression:
        """What is 1 if the check fails."""
        return self.knowledge.fails[check]

    def width(self, symbol: str) -> int:
        """Bits of a VMCS field whose value is known; 0 for anything else."""
        return SYMBOL_WIDTHS[symbol] if symbol in self.values and symbol in FIELDS else 0

    def unknown(self, check: str) -> tuple[str, ...]:
        """Names of what an undecided check depends on."""
        return tuple(sorted(symbols(bind(self.knowledge.fails[check], self.values))))

    def refused(self, check: str) -> ListEntry | None:
        """The first entry of the list that a failing check of the list refuses."""
        if CHECKS[check].stage != LIST_STAGE:
            return None
        return next((entry for entry in self.entries if self._entry(check, entry) is False), None)

    def _plain(self, check: str) -> bool | None:
        return self._decide(check, {})

    def _list(self, check: str) -> bool | None:
        """A row of the MSR-load list: it passes only if every entry is known."""
        results = [self._entry(check, entry) for entry in self.entries]
        if False in results:
            return False
        whole = self.values.get("VM_ENTRY_MSR_LOAD_COUNT") == len(self.entries)
        return True if whole and None not in results else None

    def _entry(self, check: str, entry: ListEntry) -> bool | None:
        accepted = self._accepted(entry)
        known = {} if accepted is None else {"WRMSR_ACCEPTED": int(accepted)}
        return self._decide(check, entry.values | known)

    def _accepted(self, entry: ListEntry) -> bool | None:
        """Whether WRMSR accepts an entry's data, if one can know."""
        capabilities = self.knowledge.capabilities
        if capabilities and entry.index in capabilities.wrmsr_rules:
            rule = expression(WRMSR_RULES[capabilities.wrmsr_rules[entry.index]])
            return bool(self._number(rule, entry))
        for msr in MSRS:
            if msr.first <= entry.index <= msr.last:
                rules = [msr.accepted, msr.doubtful if entry.named else None]
                if any(rule is not None and not self._number(rule, entry) for rule in rules):
                    return False
        return None

    def _number(self, rule: Expression, entry: ListEntry) -> int:
        return bind(rule, {**self.knowledge.numbers, **entry.values}).value

    def _decide(self, check: str, more: Mapping[str, int]) -> bool | None:
        fails, known = self.knowledge.fails[check], self._known | _known(more)
        result = know(fails, known)
        if result.mask:
            return not result.bits
        function = self.knowledge.function(check)
        seen = {function(values | more) for values in self._tries}
        try:
            if 1 not in seen and witness(fails, CASES, known) is None:
                return True
            if 0 not in seen and witness(Invert(1, fails), CASES, known) is None:
                return False
        except Undecided:
            pass
        return None


@cache
def _readers() -> dict[str, list[str]]:
    """For each symbol, the checks that may read it."""
    readers = defaultdict(list)
    for check in CHECKS.values():
        for symbol in check.symbols:
            readers[symbol].append(check.id)
            if symbol.startswith("PDPTE"):  # with EPT
                readers[f"GUEST_{symbol}"].append(check.id)
    return readers


def _known(values: Mapping[str, int]) -> dict[str, Known]:
    return {name: known_bits(SYMBOL_WIDTHS[name], (1 << SYMBOL_WIDTHS[name]) - 1, value)
            for name, value in values.items() if name in SYMBOL_WIDTHS}

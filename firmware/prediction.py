"""What a VM entry, a VM exit and the entry checks will do, computed from the tables.

Software knows the VMCS that it wrote and the environment that it runs in; from these the tables say
what the processor must show next. The processor is not asked.

Facts: registers.csv (``entry``, ``exit``), entry_checks.csv.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import copy
from functools import cache

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import Expression, Slice, to_function

__all__ = ["Function", "Situation", "moves"]

Function = Callable[[Mapping[str, int]], int]  # from the values of symbols


@cache
def _checks(capabilities: Capabilities) -> dict[str, Function]:
    return {name: to_function(check.fails) for name, check in capabilities.checks.items()
            if check.stage != "msr-load"}


@cache
def moves(capabilities: Capabilities, column: str) -> dict[str, Function]:
    """What a column of registers.csv, ``entry`` or ``exit``, loads into each register."""
    return {name: to_function(Slice(capabilities.bits(row), value, 0))
            for name, row in capabilities.registers.items()
            for value in [capabilities.bind(getattr(row, column))]}


class Situation:
    """A VMCS, the running environment, and what else the tables' expressions may ask for.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    fields : mapping of str to int
        The current VMCS; a field that is missing is 0.
    live : mapping of str to int
        The running environment.
    state : mapping of str to int
        Other symbols of symbols.csv; one that is missing is 0.
    """
    def __init__(self, capabilities: Capabilities, fields: Mapping[str, int],
                 live: Mapping[str, int], state: Mapping[str, int]):
        self.capabilities = capabilities
        self.values = defaultdict(
            int, {**fields, **state, **{f"LIVE_{name}": value for name, value in live.items()}})

    def having(self, changes: Mapping[str, int]) -> "Situation":
        """The same with some values, such as fields of the VMCS, changed."""
        result = copy(self)
        result.values = self.values | changes
        return result

    def running(self, live: Mapping[str, int]) -> "Situation":
        """The same in another environment."""
        return self.having({f"LIVE_{name}": value for name, value in live.items()})

    def entered(self) -> dict[str, int]:
        """The environment after a VM entry that passes."""
        return self._move("entry")

    def left(self) -> dict[str, int]:
        """The environment after a VM exit from the running one."""
        return self.having({"NON_ROOT": 1})._move("exit")

    def failed(self) -> dict[str, int]:
        """The environment after an entry that fails when the host checks have passed."""
        return self.having({"NON_ROOT": 0})._move("exit")

    def failing(self) -> tuple[str, ...]:
        """Ids of the failing entry checks, without those of MSR lists, in table order."""
        return tuple(check for check in _checks(self.capabilities) if self.fails(check))

    def fails(self, check: str) -> bool:
        """Whether one check fails; False for those of MSR lists."""
        fails = _checks(self.capabilities).get(check)
        return fails is not None and bool(fails(self.values))

    def expression(self, check: str) -> Expression | None:
        """What is 1 if one check fails; None if it cannot fail on this processor."""
        bound = self.capabilities.checks.get(check)
        return None if bound is None else bound.fails

    def width(self, symbol: str) -> int:
        """Bits of a field of this processor; 0 for what is none."""
        field = self.capabilities.fields.get(symbol)
        return 0 if field is None else self.capabilities.bits(field)

    def _move(self, column) -> dict[str, int]:
        functions = moves(self.capabilities, column)
        return {name: value(self.values) for name, value in functions.items()}

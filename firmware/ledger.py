"""What must be found when a guest, or the VMM, goes on: foretold from the tables, bit by bit.

Of each register the bits count that VMX switches: those that a VM entry (for the VMM: a VM exit)
loads alike whatever was live before. Which they are follows from the column ``entry`` (``exit``) of
registers.csv and the VMCS, so nothing is excepted by hand; what an exit changes about what the
guest left follows from the column ``save``.

Facts: registers.csv, exit_information.csv.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import Slice, symbols, to_function
from vmxswitch.spec.tables import EXIT_INFORMATION, EXIT_REASONS, FIELDS, expression

from .exits import Exit
from .prediction import Function, moves

__all__ = ["Difference", "Ledger"]


class Difference(NamedTuple):
    """A register or field not found as it was left; bits that are not switched are 0 in both."""
    register: str
    left: int
    found: int


@cache
def _saves(capabilities: Capabilities) -> dict[str, Function]:
    """What a VM exit saves, by field."""
    return {row.field: to_function(Slice(capabilities.bits(capabilities.fields[row.field]),
                                         capabilities.bind(row.save), 0))
            for row in capabilities.registers.values() if row.field in capabilities.fields}


@cache
def _controls(capabilities: Capabilities) -> dict[str, tuple[Function, Function]]:
    """Control fields that a VM exit changes: whether, and to what."""
    return {field: (to_function(capabilities.bind(row.when)),
                    to_function(capabilities.bind(row.value)))
            for field, row in EXIT_INFORMATION.items()
            if FIELDS[field].access == "rw" and field in capabilities.fields}


@cache
def _dependent(capabilities: Capabilities, column: str) -> dict[str, Function]:
    """The moves of a column that look at what is live."""
    return {name: move for name, move in moves(capabilities, column).items()
            if any(symbol.startswith("LIVE_") for symbol in symbols(
                capabilities.bind(getattr(capabilities.registers[name], column))))}


class Ledger:
    """What one VMCS holds, by what software wrote and what the tables say of exits.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    guest_lists, host_lists : mapping of str to int
        Registers that MSR lists load, and their values: at a VM entry, where the VM exit stores
        what they then hold, and at a VM exit.

    Attributes
    ----------
    values : mapping of str to int
        Every symbol: the fields, and the environment at the last exit.
    """
    def __init__(self, capabilities: Capabilities, guest_lists: Mapping[str, int],
                 host_lists: Mapping[str, int]):
        self._capabilities = capabilities
        self.values: dict[str, int] = defaultdict(int, {"IN_VMX": 1})
        self._guest_lists, self._host_lists = dict(guest_lists), host_lists
        self._has_ept = to_function(capabilities.bind(expression("PROC2_ENABLE_EPT")))
        self._full = {f"LIVE_{name}": (1 << capabilities.bits(row)) - 1
                      for name, row in capabilities.registers.items()}
        self._zeros = dict.fromkeys(self._full, 0)

    def written(self, fields: Mapping[str, int]) -> None:
        """Software has written fields."""
        self.values |= fields

    def listed(self, register: str, value: int) -> None:
        """Software has written what the guest's MSR list loads."""
        self._guest_lists[register] = value

    def left(self, registers: Mapping[str, int], exit: Exit) -> None:
        """The guest exited with ``registers`` live."""
        values = self.values
        values |= {f"LIVE_{name}": value for name, value in registers.items()}
        values |= {
            "NON_ROOT": 1, "EXIT_REASON": exit.reason,
            "EXIT_BY_INSTRUCTION": int(EXIT_REASONS[exit.reason].by_instruction),
            "CAUSE_INTERRUPTION": exit.interruption, "CAUSE_VECTORING": exit.vectoring}
        saved = {field: save(values) for field, save in _saves(self._capabilities).items()}
        saved |= {field: value(values)
                  for field, (when, value) in _controls(self._capabilities).items()
                  if when(values)}
        values |= saved
        self._guest_lists = {name: registers[name] for name in self._guest_lists}

    def guest_differences(self, found: Mapping[str, int]) -> tuple[Difference, ...]:
        """How an environment right after a VM entry differs from what must be live then."""
        if self._has_ept(self.values):  # else they are in memory, where these guests have zeros
            self.values |= {f"PDPTE{n}": self.values[f"GUEST_PDPTE{n}"] for n in range(4)}
        return self._differences("entry", found, self._guest_lists)

    def host_differences(self, found: Mapping[str, int]) -> tuple[Difference, ...]:
        """How an environment right after the VM exit differs from the host's."""
        return self._differences("exit", found, self._host_lists)

    def area_differences(self, found: Mapping[str, int]) -> tuple[Difference, ...]:
        """How fields differ from what software wrote and VM exits saved."""
        return tuple(Difference(field, self.values[field], value)
                     for field, value in found.items() if value != self.values[field])

    def _differences(self, column, found, lists):
        values = self.values
        values |= self._zeros
        expected = {name: move(values) for name, move in moves(self._capabilities, column).items()}
        if found == expected | lists:
            return ()
        kept = {name: bits for name, bits in self._kept(column).items() if name not in lists}
        return tuple(
            Difference(name, value & ~kept.get(name, 0), found[name] & ~kept.get(name, 0))
            for name, value in (expected | lists).items()
            if (value ^ found[name]) & ~kept.get(name, 0))

    def shared(self) -> dict[str, int]:
        """Registers of which a VM entry keeps bits as they were, and these bits."""
        return {name: bits for name, bits in self._kept("entry").items() if bits}

    def _kept(self, column):
        functions, values = _dependent(self._capabilities, column), self.values
        values |= self._zeros
        without = {name: move(values) for name, move in functions.items()}
        values |= self._full
        return {name: move(values) ^ without[name] for name, move in functions.items()}

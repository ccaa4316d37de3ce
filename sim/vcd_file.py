"""Reads a VCD file of Amaranth's simulator or Verilator: its variables and all their changes.

Not pyvcd's reader, because that refuses the names that Amaranth gives to nameless signals
(``$signal$9``).
"""

from bisect import bisect_right
from typing import NamedTuple

__all__ = ["Variable", "VcdFile"]


class Variable(NamedTuple):
    """A variable as the file declares it: structure members are named ``\\live.RIP``."""
    scope: tuple[str, ...]
    name: str
    bits: int
    is_text: bool


class VcdFile:
    """The content of a VCD file.

    Attributes
    ----------
    variables : dict of str to Variable
        By full name, without the backslashes of escaped names: ``bench.top.live.RIP``.
    changes : dict of str to list of (time, value)
        By full name, in order; a value is a number, or a text.
    end : int
        Last time of the file.
    """
    def __init__(self, text: str):
        self.variables: dict[str, Variable] = {}
        self.changes: dict[str, list[tuple[int, int | str]]] = {}
        self.end = 0
        header, body = text.split("$enddefinitions $end\n", 1)
        by_code = self._declarations(header)
        for line in filter(None, body.splitlines()):
            kind, rest = line[0], line[1:]
            if kind == "#":
                self.end = int(rest)
            elif kind in "01":
                by_code[rest].append((self.end, int(kind)))
            elif kind in "bs":
                value, code = rest.split(" ")
                by_code[code].append((self.end, int(value, 2) if kind == "b" else value))

    def _declarations(self, header):
        """Read the variables; return the lists of changes by the variables' codes."""
        by_code, scope = {}, []
        for line in header.splitlines():
            match line.split():
                case ["$scope", _, name, "$end"]:
                    scope.append(name)
                case ["$upscope", "$end"]:
                    scope.pop()
                case ["$var", kind, bits, code, name, *_, "$end"]:  # Verilator gives a range too
                    full = ".".join([*scope, name.removeprefix("\\")])
                    self.variables[full] = Variable(tuple(scope), name, int(bits), kind == "string")
                    self.changes[full] = by_code.setdefault(code, [])
        return by_code

    def at(self, name: str, time: int) -> int | str:
        """Value of a variable at ``time``, changes at that time included."""
        changes = self.changes[name]
        return changes[bisect_right(changes, time, key=lambda change: change[0]) - 1][1]

"""Which mutants can show in a program: those that compute something else while it runs.

This is weak mutation: wherever the reference model computes a row of a table, the wrong variants
are computed from the same values. A mutant that never differs there does what the unit does, so
that program need not be run on it.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import to_function
from vmxswitch.spec.tables import REGISTERS, SYMBOLS

from .memory import BusError
from .model import Inputs, Model
from .mutants import Mutant, wrong_expression
from .rules import Function, Rules, rules

__all__ = ["WatchedModel"]

#: Sources of symbols (symbols.csv) that the model may be asked for at any time.
WITHOUT_EFFECT = ("state", "request")
REGISTER_BY_FIELD = {row.field: name for name, row in REGISTERS.items()}


class WatchedModel(Model):
    """The reference model; it notes which mutants differ from it in what they compute.

    Parameters
    ----------
    capabilities : Capabilities
        The processor.
    chosen : iterable of Mutant
        Mutants to watch.

    Attributes
    ----------
    differing : set of int
        Numbers of the mutants that have differed since the last reset. Wrong control logic is
        always among them; a wrong outcome of an instruction where its row has decided.
    """

    def __init__(self, capabilities: Capabilities, chosen: Iterable[Mutant]):
        self.differing: set[int] = set()
        self._always: set[int] = set()
        self._outcomes: dict[str, set[int]] = {}
        self._wrong: dict[tuple[str, ...], list[tuple[int, Function]]] = {}
        super().__init__(capabilities)
        for mutant in chosen:
            match mutant.kind:
                case "control":
                    self._always.add(mutant.number)
                case "outcome":
                    self._outcomes.setdefault(mutant.row, set()).add(mutant.number)
                case _:
                    place = (mutant.kind, mutant.row, mutant.part)
                    self._wrong.setdefault(place, []).append(
                        (mutant.number, to_function(wrong_expression(capabilities, mutant))))
        self._rules = _watched(rules(capabilities), self._watch)
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.differing = {*self._always}

    def _watch(self, right: Function, kind: str, row: str, part: str = "") -> Function:
        """The function of a row, with an eye on its mutants."""
        wrong = self._wrong.get((kind, row, part), ())
        outcomes = self._outcomes.get(row, ()) if kind == "instruction" else ()
        if not wrong and not outcomes:
            return right

        def function(inputs):
            try:
                value = right(inputs)
            except BusError:
                self.differing.update(number for number, _ in wrong)
                raise
            values = _Values(self, inputs)
            for number, other in wrong:
                if number not in self.differing and values.differ(other, value):
                    self.differing.add(number)
            if value:
                self.differing.update(outcomes)
            return value

        return function


class _Values:
    """The values of an operation, for expressions that the model does not compute."""

    def __init__(self, model: Model, inputs: Inputs):
        self._model, self._inputs = model, inputs

    def __getitem__(self, symbol):
        if symbol in self._inputs:
            return self._inputs[symbol]
        if symbol in SYMBOLS and SYMBOLS[symbol].source not in WITHOUT_EFFECT:
            raise LookupError(symbol)
        return self._model.value_of(symbol, self._inputs)

    def differ(self, wrong: Function, right: int) -> bool:
        """Whether a wrong expression has another value, or may have: it may need memory."""
        try:
            return wrong(self) != right
        except LookupError:
            return True


def _watched(right: Rules, watch: Callable[..., Function]) -> Rules:
    """The rules with each function of a row that has mutants replaced by ``watch`` of it."""
    def checks(rows):
        return tuple((row, watch(fails, "check", row.id)) for row, fails in rows)

    def registers(functions, part, name_of=lambda name: name):
        return {name: watch(function, "register", name_of(name), part)
                for name, function in functions.items()}

    return replace(
        right, checks=checks(right.checks), list_checks=checks(right.list_checks),
        entry=registers(right.entry, "entry"), host=registers(right.host, "exit"),
        save=registers(right.save, "save", REGISTER_BY_FIELD.__getitem__),
        information={
            name: tuple(watch(function, "information", name, part)
                        for part, function in zip(("when", "value"), functions, strict=True))
            for name, functions in right.information.items()},
        events={number: replace(row, exits=watch(row.exits, "event", str(number)))
                for number, row in right.events.items()},
        instructions={
            name: tuple((row, watch(condition, "instruction", row.id)) for row, condition in rows)
            for name, rows in right.instructions.items()})

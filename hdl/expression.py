"""Second compiler of the expression language: bound expressions to Amaranth values."""

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth import Cat, Const, Mux, Value

from vmxswitch.spec import expression as ir

__all__ = ["Input", "lower"]


@dataclass(frozen=True, eq=False)
class Input(ir.Expression):
    """A signal as an operand, which no symbol names; see :mod:`vmxswitch.sim.mutants`."""
    signal: Value


def lower(expression: ir.Expression, signals: Mapping[str, Value]) -> Value:
    """Combinational value of an expression.

    Parameters
    ----------
    expression : :class:`vmxswitch.spec.expression.Expression`
        Bound to the processor's capabilities.
    signals : mapping of str to value
        Input for every symbol, as wide as the symbol is on this processor.

    Returns
    -------
    :class:`~amaranth.hdl.Value`, as wide as the expression

    Raises
    ------
    :exc:`KeyError`
        If a symbol has no signal.
    :exc:`ValueError`
        If a signal is not as wide as its symbol.
    """
    def compile(node) -> Value:
        match node:
            case ir.Const(width, value):
                return Const(value, width)
            case ir.Symbol(width, name):
                value = Value.cast(signals[name])
                if len(value) != width:
                    raise ValueError(f"{name}: {len(value)} bits, not {width}")
                return value
            case ir.Slice(width, value, low):
                return compile(value)[low:low + width]
            case ir.Invert(_, value):
                return ~compile(value)
            case ir.Binary(_, "&", left, right):
                return compile(left) & compile(right)
            case ir.Binary(_, "|", left, right):
                return compile(left) | compile(right)
            case ir.Binary(_, "^", left, right):
                return compile(left) ^ compile(right)
            case ir.Binary(_, "==", left, right):
                return compile(left) == compile(right)
            case ir.Binary(_, "!=", left, right):
                return compile(left) != compile(right)
            case ir.Binary(_, "<", left, right):
                return compile(left) < compile(right)
            case ir.Binary(_, "<=", left, right):
                return compile(left) <= compile(right)
            case ir.Binary(width, "+", left, right):
                return _exactly(compile(left) + compile(right), width)
            case ir.Binary(width, "-", left, right):
                return (compile(left) - compile(right))[:width]
            case ir.Binary(width, "*", left, right):
                return _exactly(compile(left) * compile(right), width)
            case ir.Binary(_, "<<", left, ir.Const(_, count)):
                return Cat(Const(0, count), compile(left))
            case ir.Member(_, value, numbers):
                return compile(value).matches(*numbers)
            case ir.Mux(_, condition, yes, no):
                return Mux(compile(condition), compile(yes), compile(no))
            case ir.Extend(width, value):
                return _exactly(compile(value), width)
            case Input(_, signal):
                return signal
        raise TypeError(f"{node!r} is not a bound expression")
    return compile(expression)


def _exactly(value: Value, width: int) -> Value:
    """The value cut or zero-extended to ``width`` bits."""
    return Cat(value, Const(0, width - len(value))) if len(value) < width else value[:width]

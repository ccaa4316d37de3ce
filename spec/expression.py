"""Conditions and values as expressions: one text in a table, two compilers.

A table row writes a condition or a value once, in Python syntax over typed symbols. :func:`parse`
turns the text into a small typed tree and refuses unknown names, missing bits and width mismatches;
:func:`bind` puts one processor's capabilities in and folds what they decide; :func:`to_function`
compiles the rest to a Python function on integers. The other compiler, to Amaranth values, is
``vmxswitch.hdl.expression``.

The language
------------
``x[hi:lo]``, ``x[b]``
    Bit field and single bit, in the manual's order (high bit first, both included).
``~ & | ^ + - * << >>``
    Arithmetic on unsigned values. ``&``, ``|`` and ``^`` want equal widths; ``+`` and ``*`` grow,
    so nothing wraps; ``-`` and ``>>`` keep the width of their left side. ``<<`` wants a number.
``== != < <= > >=``, ``in {..}``, ``not in {..}``
    Comparisons; both sides equally wide, or one of them a number that fits.
``and or not``, ``a if c else b``
    On single bits; a condition is a value one bit wide.
``implies(a, b)``, ``ALIGN(x, n)``, ``PAT(x)``, ``zext(x, n)``
    ``b`` holds if ``a`` does; low n bits clear; eight memory types of IA32_PAT; zero extension.
``PHYSICAL(x)``, ``PA(x)``
    No bit at or above the physical-address width; the same, at or above 32 if IA32_VMX_BASIC[48].
``CANON(x)``, ``UPPER(x)``
    Bits 63:N-1 all equal (canonical, N linear-address bits); bits 63:N all equal.

Architectural widths are those of a 64-bit processor: a 32-bit one supplies its natural-width
values zero-extended.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from string import Template

__all__ = [
    "ALWAYS", "NEVER", "Binary", "Bound", "Const", "Expression", "ExpressionError", "Extend",
    "Invert", "Member", "Mux", "Slice", "Symbol", "bind", "parse", "symbols",
    "to_function", "to_python",
]


class ExpressionError(Exception):
    """A text that is not an expression over the symbols it may use."""


@dataclass(frozen=True)
class Expression:
    """A node of the tree; ``width`` is the number of bits of its unsigned value."""
    width: int


@dataclass(frozen=True)
class Const(Expression):
    """A number of known width."""
    value: int


@dataclass(frozen=True)
class Symbol(Expression):
    """A named input: field, register, capability or fact about the request."""
    name: str


@dataclass(frozen=True)
class Slice(Expression):
    """Bits ``low`` to ``low + width - 1`` of a value."""
    value: Expression
    low: int


@dataclass(frozen=True)
class Invert(Expression):
    """Every bit of the value inverted; on one bit, *not*."""
    value: Expression


@dataclass(frozen=True)
class Binary(Expression):
    """An operator of ``& | ^ + - * << >> == != < <=`` and its operands."""
    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Member(Expression):
    """Whether the value is one of some numbers."""
    value: Expression
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Mux(Expression):
    """``yes`` if the condition is 1, else ``no``."""
    condition: Expression
    yes: Expression
    no: Expression


@dataclass(frozen=True)
class Extend(Expression):
    """The value with zeros above it."""
    value: Expression


@dataclass(frozen=True)
class Bound(Expression):
    """An address rule whose bit positions :func:`bind` takes from the processor's widths."""
    rule: str
    value: Expression


#: Conditions that are decided.
NEVER, ALWAYS = Const(1, 0), Const(1, 1)

#: The constant that gives each address rule its width.
ADDRESS_RULES = {
    "PHYSICAL": "PHYSICAL_WIDTH",
    "PA": "ADDRESS_WIDTH",
    "CANON": "LINEAR_WIDTH",
    "UPPER": "LINEAR_WIDTH",
}
PAT_TYPES = (0, 1, 4, 5, 6, 7)

_COMPARE = {
    ast.Eq: ("==", False), ast.NotEq: ("!=", False), ast.Lt: ("<", False), ast.LtE: ("<=", False),
    ast.Gt: ("<", True), ast.GtE: ("<=", True),
}
_ARITHMETIC = {
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.Add: "+", ast.Sub: "-", ast.Mult: "*",
    ast.LShift: "<<", ast.RShift: ">>",
}


def parse(
    text: str, scope: Mapping[str, int], macros: Mapping[tuple[str, int], "Macro"],
    width: int | None = None,
) -> Expression:
    """Compile one text to a typed tree.

    Parameters
    ----------
    text : str
        Expression in the language above.
    scope : mapping of str to int
        Width in bits of every symbol that the text may use.
    macros : mapping of (name, number of parameters) to :class:`Macro`
        Abbreviations that the text may use.
    width : int, optional
        Width in bits that the result must have; a plain number is fitted to it.

    Raises
    ------
    :exc:`ExpressionError`
        If the text has a syntax error, an unknown name, a bit that its value does not have, or
        operands of different widths. The message quotes the offending part.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(f"{text!r}: {error.msg}") from None
    return _Parser(text, scope, macros).result(tree, width)


@dataclass(frozen=True)
class Macro:
    """An abbreviation: ``text`` with ``$name`` standing for each parameter's spelling."""
    parameters: tuple[str, ...]
    text: str


class _Parser:
    def __init__(self, text, scope, macros):
        self._text, self._scope, self._macros = text, scope, macros

    def _error(self, node, message):
        part = ast.unparse(node)
        where = "" if part == self._text else f" in {self._text!r}"
        return ExpressionError(f"{part!r}{where}: {message}")

    def result(self, node, width) -> Expression:
        """The node as a value of the given width, or of its own if that is None."""
        return self.typed(node) if width is None else self._fit(node, self._visit(node), width)

    def typed(self, node) -> Expression:
        """The node as a value of known width."""
        value = self._visit(node)
        if isinstance(value, int):
            raise self._error(node, "a number here needs a value beside it that gives it a width")
        return value

    def _visit(self, node) -> Expression | int:
        """The node as a tree, or as an int as long as only numbers are involved."""
        method = getattr(self, f"_visit_{type(node).__name__}", None)
        if method is None:
            raise self._error(node, "not part of the expression language")
        return method(node)

    def _bit(self, node) -> Expression:
        value = self._visit(node)
        if isinstance(value, int) and value in (0, 1):
            return Const(1, value)
        if isinstance(value, int) or value.width != 1:
            raise self._error(node, "a condition must be one bit wide")
        return value

    def _fit(self, node, value, width) -> Expression:
        """A number or value as exactly ``width`` bits."""
        if isinstance(value, int):
            if not -(1 << width) <= value < 1 << width:
                raise self._error(node, f"{value:#x} does not fit {width} bits")
            return Const(width, value & (1 << width) - 1)
        if isinstance(value, Mux) and isinstance(value.yes, Const) and isinstance(value.no, Const):
            return Mux(width, value.condition, *(
                self._fit(node, number.value, width) for number in (value.yes, value.no)))
        if value.width != width:
            raise self._error(node, f"{value.width} bits meet {width} bits")
        return value

    def _pair(self, node, left, right):
        a, b = self._visit(left), self._visit(right)
        if isinstance(a, int) and isinstance(b, int):
            return a, b
        width = b.width if isinstance(a, int) else a.width
        return self._fit(node, a, width), self._fit(node, b, width)

    def _visit_Constant(self, node):
        if isinstance(node.value, bool):
            return Const(1, int(node.value))
        if not isinstance(node.value, int):
            raise self._error(node, "only whole numbers are values")
        return node.value

    def _visit_Name(self, node):
        if macro := self._macros.get((node.id, 0)):
            return self._expand(macro, ())
        if node.id not in self._scope:
            raise self._error(node, "unknown symbol")
        return Symbol(self._scope[node.id], node.id)

    def _expand(self, macro, arguments):
        text = Template(macro.text).substitute(dict(zip(macro.parameters, arguments, strict=True)))
        return parse(text, self._scope, self._macros)

    def _visit_Subscript(self, node):
        match node.slice:
            case ast.Slice(ast.expr() as high, ast.expr() as low, None):
                high, low = self._visit(high), self._visit(low)
            case ast.Slice():
                high = low = None
            case bit:
                high = low = self._visit(bit)
        if not (isinstance(high, int) and isinstance(low, int) and 0 <= low <= high):
            raise self._error(node, "bits are numbers, the higher one first")
        return self._bits(node, self.typed(node.value), high, low)

    def _bits(self, node, value, high, low) -> Expression:
        if high >= value.width:
            raise self._error(node, f"no bit {high} in {value.width} bits")
        return Slice(high - low + 1, value, low)

    def _count(self, node, least) -> int:
        """A number of bits."""
        value = self._visit(node)
        if not isinstance(value, int) or value < least:
            raise self._error(node, f"a number of bits, {least} or more, is wanted here")
        return value

    def _visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            value = self._bit(node.operand)
            return Invert(1, value)
        value = self._visit(node.operand)
        if isinstance(node.op, ast.Invert):
            return ~value if isinstance(value, int) else Invert(value.width, value)
        raise self._error(node, "not part of the expression language")

    def _visit_BoolOp(self, node):
        operator = "&" if isinstance(node.op, ast.And) else "|"
        result, *others = map(self._bit, node.values)
        for other in others:
            result = Binary(1, operator, result, other)
        return result

    def _visit_BinOp(self, node):
        operator = _ARITHMETIC.get(type(node.op))
        if operator is None:
            raise self._error(node, "not part of the expression language")
        if operator in ("&", "|", "^"):
            a, b = self._pair(node, node.left, node.right)
        else:
            a, b = self._visit(node.left), self._visit(node.right)
        if operator == "<<":
            b = self._count(node.right, 0)
        if isinstance(a, int) and isinstance(b, int):
            return eval(f"{a}{operator}{b}")  # two numbers and an operator of the table above
        if operator in ("&", "|", "^"):
            return Binary(a.width, operator, a, b)
        if operator == "<<":
            return Binary(a.width + b, "<<", a, Const(max(b.bit_length(), 1), b))
        if any(isinstance(x, int) and x < 0 for x in (a, b)):
            raise self._error(node, "no negative numbers")
        a, b = (Const(max(x.bit_length(), 1), x) if isinstance(x, int) else x for x in (a, b))
        width = {
            "+": max(a.width, b.width) + 1, "-": a.width, ">>": a.width, "*": a.width + b.width,
        }[operator]
        return Binary(width, operator, a, b)

    def _visit_Compare(self, node):
        result, left = None, node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                term = self._member(node, left, right)
                if isinstance(operator, ast.NotIn):
                    term = Invert(1, term)
            elif type(operator) in _COMPARE:
                name, swapped = _COMPARE[type(operator)]
                a, b = self._pair(node, left, right)
                if isinstance(a, int) and isinstance(b, int):
                    raise self._error(node, "compares two numbers")
                term = Binary(1, name, b, a) if swapped else Binary(1, name, a, b)
            else:
                raise self._error(node, "not part of the expression language")
            result = term if result is None else Binary(1, "&", result, term)
            left = right
        return result

    def _member(self, node, left, right):
        value = self.typed(left)
        if not isinstance(right, ast.Set):
            raise self._error(node, "'in' wants a set of numbers")
        numbers = [self._visit(element) for element in right.elts]
        if not all(isinstance(number, int) for number in numbers):
            raise self._error(node, "'in' wants a set of numbers")
        return Member(1, value, tuple(
            self._fit(node, number, value.width).value for number in numbers))

    def _visit_IfExp(self, node):
        condition = self._bit(node.test)
        yes, no = self._pair(node, node.body, node.orelse)
        if isinstance(yes, int):  # two numbers: as wide as the wider one; _fit widens it
            width = max(yes.bit_length(), no.bit_length(), 1)
            yes, no = self._fit(node, yes, width), self._fit(node, no, width)
        return Mux(yes.width, condition, yes, no)

    def _visit_Call(self, node):
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if node.keywords:
            raise self._error(node, "unknown function, or wrong number of arguments")
        if macro := self._macros.get((name, len(node.args))):
            return self._expand(macro, [ast.unparse(argument) for argument in node.args])
        match name, node.args:
            case "implies", [premise, conclusion]:
                return Binary(1, "|", Invert(1, self._bit(premise)), self._bit(conclusion))
            case "ALIGN", [value, count]:
                bits = self._bits(node, self.typed(value), self._count(count, 1) - 1, 0)
                return Binary(1, "==", bits, Const(bits.width, 0))
            case "PAT", [value]:
                value, result = self._fit(value, self.typed(value), 64), ALWAYS
                for low in range(0, 64, 8):
                    result = Binary(1, "&", result, Member(1, Slice(8, value, low), PAT_TYPES))
                return result
            case "zext", [value, width]:
                value = self.typed(value)
                return Extend(self._count(width, value.width), value)
            case _, [value] if name in ADDRESS_RULES:
                return Bound(1, name, self.typed(value))
        raise self._error(node, "unknown function, or wrong number of arguments")


def symbols(expression: Expression) -> frozenset[str]:
    """Names of all symbols that the expression reads."""
    if isinstance(expression, Symbol):
        return frozenset([expression.name])
    return frozenset().union(*map(symbols, _children(expression).values()))


def _children(expression) -> dict[str, Expression]:
    """The operands of a node, by the name of their attribute."""
    return {name: getattr(expression, name) for name in _operands(type(expression))}


@cache
def _operands(kind: type[Expression]) -> tuple[str, ...]:
    """Names of the attributes of a kind of node that are expressions."""
    return tuple(field.name for field in fields(kind) if field.type is Expression)


def bind(expression: Expression, known: Mapping[str, int | Expression]) -> Expression:
    """Put numbers or expressions in place of some symbols and fold everything that they decide.

    ``known`` must hold the widths of :data:`ADDRESS_RULES` if the expression has an address
    rule. In place of a physical width that nobody knows it may hold a value 64 bits wide: those
    bits that are beyond the width.
    """
    match expression:
        case Symbol(width, name):
            value = known.get(name, expression)
            return Const(width, value) if isinstance(value, int) else value
        case Const():
            return expression
        case Bound(_, rule, value):
            return bind(_address_rule(rule, value, known[ADDRESS_RULES[rule]]), known)
    children = _children(expression)
    if not children:  # an input that is no symbol
        return expression
    parts = {name: bind(child, known) for name, child in children.items()}
    if any(part is not children[name] for name, part in parts.items()):
        expression = replace(expression, **parts)
    return _fold(expression)


def _address_rule(rule, value, width) -> Expression:
    if isinstance(width, Expression):
        return _none_of(value, width)
    low = width - 1 if rule == "CANON" else width
    if low >= value.width:
        return ALWAYS
    upper = Slice(value.width - low, value, low)
    zero = Binary(1, "==", upper, Const(upper.width, 0))
    if rule in ("PHYSICAL", "PA"):
        return zero
    ones = Binary(1, "==", upper, Const(upper.width, (1 << upper.width) - 1))
    return Binary(1, "|", zero, ones)


def _none_of(value, beyond) -> Expression:
    """Whether a value has none of the bits of ``beyond``, nor any above these."""
    bits = min(value.width, beyond.width)
    masked = Binary(bits, "&", Slice(bits, value, 0), Slice(bits, beyond, 0))
    none = Binary(1, "==", masked, Const(bits, 0))
    if value.width == bits:
        return none
    above = Slice(value.width - bits, value, bits)
    return Binary(1, "&", none, Binary(1, "==", above, Const(above.width, 0)))


def _fold(node) -> Expression:
    match node:
        case Slice(width, value, 0) if width == value.width:
            return value
        case Slice(width, Slice(_, value, below), low):
            return Slice(width, value, low + below)
        case Slice(width, Extend(_, value), low) if low >= value.width:
            return Const(width, 0)
        case Slice(width, Extend(_, value), low) if low + width <= value.width:
            return _fold(Slice(width, value, low))
        case Binary(width, "&", Extend(_, value), Const(_, number)):
            low = Const(value.width, number & (1 << value.width) - 1)
            return _fold(Extend(width, _fold(Binary(value.width, "&", value, low))))
        case Invert(_, Invert(_, value)):
            return value
        case Mux(_, Const(_, chosen), yes, no):
            return yes if chosen else no
        case Mux(_, _, yes, no) if yes == no:
            return yes
        case Binary(width, "&" | "|" as operator, left, right):
            ones = (1 << width) - 1
            for this, other in ((left, right), (right, left)):
                if isinstance(this, Const) and this.value in (0, ones):
                    decides = this.value == (0 if operator == "&" else ones)
                    return this if decides else other
    if all(isinstance(child, Const) for child in _children(node).values()):
        return Const(node.width, to_function(node)({}))
    return node


def to_python(expression: Expression) -> str:
    """Python source that computes the expression from a mapping ``v`` of symbols to integers."""
    match expression:
        case Const(_, value):
            return hex(value)
        case Symbol(_, name):
            return f"v[{name!r}]"
        case Slice(width, value, low):
            return f"({to_python(value)}>>{low}&{(1 << width) - 1:#x})"
        case Invert(width, value):
            return f"({to_python(value)}^{(1 << width) - 1:#x})"
        case Binary(_, "==" | "!=" | "<" | "<=" as operator, left, right):
            return f"(1 if {to_python(left)}{operator}{to_python(right)} else 0)"
        case Binary(width, "-", left, right):
            return f"({to_python(left)}-{to_python(right)}&{(1 << width) - 1:#x})"
        case Binary(1, "&", left, right):
            return f"({to_python(left)} and {to_python(right)})"
        case Binary(1, "|", left, right):
            return f"({to_python(left)} or {to_python(right)})"
        case Binary(_, operator, left, right):
            return f"({to_python(left)}{operator}{to_python(right)})"
        case Member(_, value, numbers):
            return f"(1 if {to_python(value)} in {numbers!r} else 0)"
        case Mux(_, condition, yes, no):
            return f"({to_python(yes)} if {to_python(condition)} else {to_python(no)})"
        case Extend(_, value):
            return to_python(value)
    raise ExpressionError(f"{expression!r} must be bound to a processor's widths first")


def to_function(expression: Expression) -> Callable[[Mapping[str, int]], int]:
    """Compile a bound expression to a function from symbol values (unsigned ints) to an int."""
    return eval(f"lambda v: {to_python(expression)}")  # the source is made of checked nodes only

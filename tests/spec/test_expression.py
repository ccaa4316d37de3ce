"""The expression language: typing, folding and the values that it computes on integers."""

import random

import pytest

from vmxswitch.spec.expression import (
    Binary,
    Bound,
    Const,
    ExpressionError,
    Extend,
    Invert,
    Macro,
    Member,
    Mux,
    Slice,
    Symbol,
    bind,
    parse,
    symbols,
    to_function,
    to_python,
)

SCOPE = {"f": 1, "g": 1, "h": 1, "n": 4, "a": 8, "b": 8, "v": 16, "w": 64, "x": 64,
         "GUEST_CS_AR": 32, "GUEST_SS_AR": 32}
MACROS = {
    ("TYPE", 0):   Macro((), "v[10:8]"),
    ("TYPE", 1):   Macro(("r",), "GUEST_${r}_AR[3:0]"),
    ("TOP", 1):    Macro(("p",), "($p)[7:4]"),
    ("SAME", 2):   Macro(("p", "q"), "TOP($p) == TOP($q)"),
    ("EITHER", 0): Macro((), "f or g"),
    ("STALE", 0):  Macro((), "gone[3]"),
}


def parsed(text, width=None):
    return parse(text, SCOPE, MACROS, width)


def value(text, /, width=None, **values):
    """Compile the text and run it on the values."""
    return to_function(parsed(text, width))(values)


@pytest.mark.parametrize("text, values, expected", [
    ("a",                      {"a": 0xA5},              0xA5),
    ("a[7]",                   {"a": 0x80},              1),
    ("a[6:1]",                 {"a": 0b1010_1010},       0b010101),
    ("a[6:1][2:1]",            {"a": 0b0000_1100},       0b11),
    ("~a",                     {"a": 0x0F},              0xF0),
    ("~f",                     {"f": 1},                 0),
    ("a & b",                  {"a": 0xCC, "b": 0xAA},   0x88),
    ("a | b",                  {"a": 0xCC, "b": 0xAA},   0xEE),
    ("a ^ b",                  {"a": 0xCC, "b": 0xAA},   0x66),
    ("a & ~3",                 {"a": 0xFF},              0xFC),
    ("f & g",                  {"f": 1, "g": 0},         0),
    ("f | g",                  {"f": 1, "g": 0},         1),
    ("f ^ g",                  {"f": 1, "g": 1},         0),
    ("a + b",                  {"a": 0xFF, "b": 0xFF},   0x1FE),
    ("a + 8*n",                {"a": 0xFF, "n": 15},     0xFF + 120),
    ("a - b",                  {"a": 1, "b": 2},         0xFF),
    ("a - 1",                  {"a": 0},                 0xFF),
    ("a * n",                  {"a": 0xFF, "n": 15},     0xFF * 15),
    ("a << 4",                 {"a": 0xFF},              0xFF0),
    ("a == b",                 {"a": 7, "b": 7},         1),
    ("a == 7",                 {"a": 6},                 0),
    ("7 != a",                 {"a": 6},                 1),
    ("a < b",                  {"a": 6, "b": 7},         1),
    ("a <= b",                 {"a": 8, "b": 7},         0),
    ("a > b",                  {"a": 7, "b": 7},         0),
    ("a >= b",                 {"a": 7, "b": 7},         1),
    ("1 <= a <= 15",           {"a": 15},                1),
    ("1 <= a <= 15",           {"a": 0},                 0),
    ("1 <= a <= 15",           {"a": 16},                0),
    ("a in {1, 3, 0x80}",      {"a": 0x80},              1),
    ("a in {1, 3, 0x80}",      {"a": 2},                 0),
    ("a not in {1, 3}",        {"a": 2},                 1),
    ("f and g and h",          {"f": 1, "g": 1, "h": 1}, 1),
    ("f and g and h",          {"f": 1, "g": 1, "h": 0}, 0),
    ("f or g or h",            {"f": 0, "g": 0, "h": 1}, 1),
    ("not f",                  {"f": 0},                 1),
    ("not (f or g) and h",     {"f": 0, "g": 0, "h": 1}, 1),
    ("True",                   {},                       1),
    ("False",                  {},                       0),
    ("f == True",              {"f": 0},                 0),
    ("1 and f",                {"f": 1},                 1),
    ("a if f else b",          {"f": 1, "a": 3, "b": 4}, 3),
    ("a if f else b",          {"f": 0, "a": 3, "b": 4}, 4),
    ("a if f else 9",          {"f": 0, "a": 3},         9),
    ("implies(f, g)",          {"f": 0, "g": 0},         1),
    ("implies(f, g)",          {"f": 1, "g": 0},         0),
    ("implies(f, g)",          {"f": 1, "g": 1},         1),
    ("zext(a, 8)",             {"a": 0xFF},              0xFF),
    ("zext(a, 16) == v",       {"a": 0xFF, "v": 0x00FF}, 1),
    ("zext(a, 16) == v",       {"a": 0xFF, "v": 0xFFFF}, 0),
    ("zext(v << 4, 64) == w",  {"v": 0xFFFF, "w": 0xFFFF0}, 1),
])
def test_a_text_computes(text, values, expected):
    assert value(text, **values) == expected


@pytest.mark.parametrize("text, width", [
    ("a", 8), ("~a", 8), ("a[6:1]", 6), ("a & b", 8), ("a + b", 9), ("a + v", 17), ("a - v", 8),
    ("a * n", 12), ("a << 4", 12), ("5 * a", 11), ("a == b", 1), ("a in {1}", 1), ("not f", 1),
    ("a if f else b", 8), ("zext(a, 16)", 16), ("PAT(w)", 1), ("ALIGN(w, 12)", 1), ("CANON(w)", 1),
    ("5 if f else 300", 9),
])
def test_a_result_has_its_width(text, width):
    assert parsed(text).width == width


@pytest.mark.parametrize("text, width, expected", [
    ("5",                      8,  5),
    ("~0",                     16, 0xFFFF),
    ("~0xF & 0xFF",            8,  0xF0),
    ("0x8B if f else 0x1008B", 32, 0x8B),
    ("1 << 5 | 3 + 2*4 - 1",   8,  42),
])
def test_a_number_takes_the_width_it_is_given(text, width, expected):
    assert parsed(text, width).width == width
    assert value(text, width=width, f=1) == expected


@pytest.mark.parametrize("text, message", [
    ("gone",            "'gone': unknown symbol"),
    ("f and gone[2]",   "'gone' in 'f and gone[2]': unknown symbol"),
    ("a[8]",            "'a[8]': no bit 8 in 8 bits"),
    ("a[8:1]",          "'a[8:1]': no bit 8 in 8 bits"),
    ("a[7:4][4]",       "'a[7:4][4]': no bit 4 in 4 bits"),
    ("a[1:2]",          "'a[1:2]': bits are numbers, the higher one first"),
    ("a[b]",            "'a[b]': bits are numbers, the higher one first"),
    ("a & v",           "'a & v': 16 bits meet 8 bits"),
    ("a == v",          "'a == v': 16 bits meet 8 bits"),
    ("a if f else v",   "'a if f else v': 16 bits meet 8 bits"),
    ("a == 0x100",      "'a == 256' in 'a == 0x100': 0x100 does not fit 8 bits"),
    ("a & 0x1FF",       "'a & 511' in 'a & 0x1FF': 0x1ff does not fit 8 bits"),
    ("a in {1, 256}",   "'a in {1, 256}': 0x100 does not fit 8 bits"),
    ("a and f",         "'a' in 'a and f': a condition must be one bit wide"),
    ("not a",           "'a' in 'not a': a condition must be one bit wide"),
    ("f or 2",          "'2' in 'f or 2': a condition must be one bit wide"),
    ("f if a else g",   "'a' in 'f if a else g': a condition must be one bit wide"),
    ("implies(a, f)",   "'a' in 'implies(a, f)': a condition must be one bit wide"),
    ("a in {1, b}",     "'a in {1, b}': 'in' wants a set of numbers"),
    ("a in b",          "'a in b': 'in' wants a set of numbers"),
    ("a not in (1, 2)", "'a not in (1, 2)': 'in' wants a set of numbers"),
    ("1 == 2",          "'1 == 2': compares two numbers"),
    ("a == b == 3 < 4", "'a == b == 3 < 4': compares two numbers"),
    ("7",               "'7': a number here needs a value beside it that gives it a width"),
    ("PHYSICAL(7)",     "'7' in 'PHYSICAL(7)': a number here needs a value beside it that gives it "
                        "a width"),
    ("a << n",          "'n' in 'a << n': a number of bits, 0 or more, is wanted here"),
    ("zext(v, 8)",      "'8' in 'zext(v, 8)': a number of bits, 16 or more, is wanted here"),
    ("zext(v, n)",      "'n' in 'zext(v, n)': a number of bits, 16 or more, is wanted here"),
    ("v[:3]",           "'v[:3]': bits are numbers, the higher one first"),
    ("v[7:0:2]",        "'v[7:0:2]': bits are numbers, the higher one first"),
    ("PAT(w, x=1)",     "'PAT(w, x=1)': unknown function, or wrong number of arguments"),
    ("ALIGN(v, 100)",   "'ALIGN(v, 100)': no bit 99 in 16 bits"),
    ("ALIGN(v, 0)",     "'0' in 'ALIGN(v, 0)': a number of bits, 1 or more, is wanted here"),
    ("ALIGN(v, n)",     "'n' in 'ALIGN(v, n)': a number of bits, 1 or more, is wanted here"),
    ("1 << ~1",         "'~1' in '1 << ~1': a number of bits, 0 or more, is wanted here"),
    ("v + ~1",          "'v + ~1': no negative numbers"),
    ("1.5",             "'1.5': only whole numbers are values"),
    ("a == 'b'",        "\"'b'\" in \"a == 'b'\": only whole numbers are values"),
    ("nothing(a)",      "'nothing(a)': unknown function, or wrong number of arguments"),
    ("PAT(w, x)",       "'PAT(w, x)': unknown function, or wrong number of arguments"),
    ("TOP(a, b)",       "'TOP(a, b)': unknown function, or wrong number of arguments"),
    ("a.bit(3)",        "'a.bit(3)': unknown function, or wrong number of arguments"),
    ("a.b",             "'a.b': not part of the expression language"),
    ("lambda: a",       "'lambda: a': not part of the expression language"),
    ("[a]",             "'[a]': not part of the expression language"),
    ("a / 2",           "'a / 2': not part of the expression language"),
    ("-a",              "'-a': not part of the expression language"),
    ("a is b",          "'a is b': not part of the expression language"),
    ("STALE",           "'gone' in 'gone[3]': unknown symbol"),
    ("a +",             "'a +': invalid syntax"),
    ("",                "'': invalid syntax"),
])
def test_a_bad_text_is_refused(text, message):
    with pytest.raises(ExpressionError) as error:
        parsed(text)
    assert str(error.value) == message


@pytest.mark.parametrize("text, width, message", [
    ("a",               4, "'a': 8 bits meet 4 bits"),
    ("16",              4, "'16': 0x10 does not fit 4 bits"),
    ("16 if f else 1",  4, "'16 if f else 1': 0x10 does not fit 4 bits"),
])
def test_a_result_of_another_width_is_refused(text, width, message):
    with pytest.raises(ExpressionError) as error:
        parsed(text, width)
    assert str(error.value) == message


@pytest.mark.parametrize("text, tree", [
    ("a",             Symbol(8, "a")),
    ("a[6:1]",        Slice(6, Symbol(8, "a"), 1)),
    ("~a",            Invert(8, Symbol(8, "a"))),
    ("a & 1",         Binary(8, "&", Symbol(8, "a"), Const(8, 1))),
    ("f or g",        Binary(1, "|", Symbol(1, "f"), Symbol(1, "g"))),
    ("a > 3",         Binary(1, "<", Const(8, 3), Symbol(8, "a"))),
    ("a not in {2}",  Invert(1, Member(1, Symbol(8, "a"), (2,)))),
    ("a if f else b", Mux(8, Symbol(1, "f"), Symbol(8, "a"), Symbol(8, "b"))),
    ("zext(a, 9)",    Extend(9, Symbol(8, "a"))),
    ("UPPER(w)",      Bound(1, "UPPER", Symbol(64, "w"))),
])
def test_a_text_becomes_a_tree(text, tree):
    assert parsed(text) == tree


@pytest.mark.parametrize("text, constants, folded", [
    ("a + b == v[8:0]",            {},                     "a + b == v[8:0]"),
    ("a",                          {"a": 5},               Const(8, 5)),
    ("a + b",                      {"a": 255, "b": 1},     Const(9, 256)),
    ("f and a == 3",               {"f": 0},               Const(1, 0)),
    ("f and a == 3",               {"f": 1},               "a == 3"),
    ("a == 3 or f",                {"f": 1},               Const(1, 1)),
    ("a == 3 or f",                {"f": 0},               "a == 3"),
    ("a & b",                      {"a": 0},               Const(8, 0)),
    ("a & b",                      {"a": 0xFF},            "b"),
    ("a & b",                      {"a": 0x0F},            "0x0F & b"),
    ("a | b",                      {"b": 0},               "a"),
    ("a | b",                      {"b": 0xFF},            Const(8, 0xFF)),
    ("not not f",                  {},                     "f"),
    ("not (not f or g)",           {"g": 0},               "f"),
    ("implies(f, a == 3)",         {"f": 0},               Const(1, 1)),
    ("implies(f, a == 3)",         {"f": 1},               "a == 3"),
    ("a if f else b",              {"f": 1},               "a"),
    ("a if f else b",              {"f": 0},               "b"),
    ("a if f else b",              {"a": 3, "b": 3},       Const(8, 3)),
    ("a[7:0]",                     {},                     "a"),
    ("v[11:4][5:2]",               {},                     "v[9:6]"),
    ("a in {1, 2}",                {"a": 2},               Const(1, 1)),
    ("zext(a, 16)",                {"a": 2},               Const(16, 2)),
    ("(a & b) == 0 or g",          {"a": 0},               Const(1, 1)),
    ("a == b",                     {"other": 1},           "a == b"),
])
def test_known_symbols_are_folded(text, constants, folded):
    expected = parsed(folded) if isinstance(folded, str) else folded
    assert bind(parsed(text), constants) == expected


def test_symbols_are_named():
    assert symbols(parsed("implies(f, (a if g else b) in {3}) and CANON(w)")) == set("fgabw")
    assert symbols(parsed("True")) == set()
    assert symbols(bind(parsed("f and a == 3"), {"f": 0})) == set()


#: Address rule, constant that gives its width, and what it says about the bits of a value.
RULES = [
    ("PHYSICAL", "PHYSICAL_WIDTH", lambda bits, width: not any(bits[width:])),
    ("PA",       "ADDRESS_WIDTH",  lambda bits, width: not any(bits[width:])),
    ("CANON",    "LINEAR_WIDTH",   lambda bits, width: len(set(bits[width - 1:])) == 1),
    ("UPPER",    "LINEAR_WIDTH",   lambda bits, width: len(set(bits[width:])) == 1),
]


@pytest.mark.parametrize("width", [32, 40, 48, 52, 57])
@pytest.mark.parametrize("rule, constant, holds", RULES, ids=[rule for rule, *_ in RULES])
def test_an_address_rule_follows_the_width(rule, constant, holds, width):
    check = to_function(bind(parsed(f"{rule}(w)"), {constant: width}))
    ones = (1 << 64) - 1
    values = {0, ones, 1 << 63, ones >> 1}
    for bit in range(width - 2, min(width + 2, 64)):
        values |= {1 << bit, (1 << bit) - 1, ones ^ (1 << bit), ones ^ ((1 << bit) - 1)}
    for number in values:
        bits = [number >> bit & 1 for bit in range(64)]
        assert check({"w": number}) == holds(bits, width), f"{number:#x}"


@pytest.mark.parametrize("rule", ["PHYSICAL", "PA", "CANON", "UPPER"])
def test_an_address_rule_holds_for_a_value_below_the_width(rule):
    widths = {"PHYSICAL_WIDTH": 40, "ADDRESS_WIDTH": 32, "LINEAR_WIDTH": 48}
    assert bind(parsed(f"{rule}(v)"), widths) == Const(1, 1)


def test_an_address_rule_sees_a_carry():
    check = to_function(bind(parsed("PA(w + 16*v - 1)"), {"ADDRESS_WIDTH": 52}))
    assert check({"w": (1 << 52) - 16, "v": 1}) == 1
    assert check({"w": (1 << 52) - 16, "v": 2}) == 0
    assert check({"w": (1 << 64) - 16, "v": 2}) == 0  # bit 64, which a 64-bit sum would lose


def test_an_address_rule_must_be_bound_first():
    with pytest.raises(ExpressionError, match="must be bound to a processor's widths first"):
        to_function(parsed("CANON(w)"))


@pytest.mark.parametrize("index", range(8))
def test_pat_wants_a_memory_type_in_every_byte(index):
    others = 0x0706_0504_0100_0406 & ~(0xFF << 8 * index)
    accepted = [kind for kind in range(256) if value("PAT(w)", w=others | kind << 8 * index)]
    assert accepted == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize("count", [1, 4, 12])
def test_align_wants_low_bits_clear(count):
    text = f"ALIGN(w, {count})"
    ones = (1 << 64) - 1
    assert [value(text, w=w) for w in (0, 1 << count, ones >> count << count)] == [1, 1, 1]
    assert [value(text, w=1 << bit) for bit in range(count)] == [0] * count


@pytest.mark.parametrize("text, plain", [
    ("TYPE == 3",           "v[10:8] == 3"),
    ("TYPE(CS) == 3",       "GUEST_CS_AR[3:0] == 3"),
    ("TYPE(SS)[3]",         "GUEST_SS_AR[3:0][3]"),
    ("TOP(a ^ b)",          "(a ^ b)[7:4]"),
    ("SAME(a & b, v[7:0])", "(a & b)[7:4] == v[7:0][7:4]"),
    ("EITHER and h",        "(f or g) and h"),
])
def test_a_macro_stands_for_its_text(text, plain):
    assert parsed(text) == parsed(plain)


class Trees:
    """Random well-typed trees over symbols that it makes up: ``s8_0`` has 8 bits."""

    def __init__(self, seed):
        self._random = random.Random(seed)
        self.values = {}

    def leaf(self, width):
        number = self._random.getrandbits(width)
        if self._random.random() < 0.4:
            return Const(width, self._random.choice([0, (1 << width) - 1, number]))
        name = f"s{width}_{self._random.randrange(3)}"
        self.values.setdefault(name, self._random.choice([0, (1 << width) - 1, number]))
        return Symbol(width, name)

    def tree(self, width, depth):
        if not depth:
            return self.leaf(width)
        kinds = [self._bitwise, self._bitwise, self._invert, self._mux, self._slice, self._subtract]
        if width == 1:
            kinds += [self._compare, self._compare, self._member]
        else:
            kinds += [self._extend, self._add, self._multiply, self._shift]
        return self._random.choice(kinds)(width, depth - 1)

    def _bitwise(self, width, depth):
        operator = self._random.choice("&|^")
        return Binary(width, operator, self.tree(width, depth), self.tree(width, depth))

    def _invert(self, width, depth):
        return Invert(width, self.tree(width, depth))

    def _mux(self, width, depth):
        return Mux(width, self.tree(1, depth), self.tree(width, depth), self.tree(width, depth))

    def _slice(self, width, depth):
        low, above = self._random.randrange(4), self._random.randrange(4)
        return Slice(width, self.tree(low + width + above, depth), low)

    def _subtract(self, width, depth):
        return Binary(width, "-", self.tree(width, depth), self.tree(self._some_width(), depth))

    def _compare(self, width, depth):
        operator, operands = self._random.choice(["==", "!=", "<", "<="]), self._some_width()
        return Binary(width, operator, self.tree(operands, depth), self.tree(operands, depth))

    def _member(self, width, depth):
        operand = self._some_width()
        count = self._random.randint(1, 4)
        numbers = tuple(self._random.getrandbits(operand) for _ in range(count))
        return Member(width, self.tree(operand, depth), numbers)

    def _extend(self, width, depth):
        return Extend(width, self.tree(self._random.randrange(1, width), depth))

    def _add(self, width, depth):
        widths = [width - 1, self._random.randrange(1, width)]
        self._random.shuffle(widths)
        return Binary(width, "+", *(self.tree(operand, depth) for operand in widths))

    def _multiply(self, width, depth):
        left = self._random.randrange(1, width)
        return Binary(width, "*", self.tree(left, depth), self.tree(width - left, depth))

    def _shift(self, width, depth):
        count = self._random.randrange(width)
        return Binary(width, "<<", self.tree(width - count, depth),
                      Const(max(count.bit_length(), 1), count))

    def _some_width(self):
        return self._random.choice([1, 2, 4, 8, 16])


@pytest.mark.parametrize("seed", range(400))
def test_binding_some_symbols_leaves_the_value(seed):
    trees = Trees(seed)
    chance = random.Random(seed)
    width = chance.choice([1, 1, 1, 2, 8, 16])
    tree = trees.tree(width, depth=5)
    expected = to_function(tree)(trees.values)
    assert 0 <= expected < 1 << width
    known = {name: number for name, number in trees.values.items() if chance.random() < 0.5}
    rest = {name: number for name, number in trees.values.items() if name not in known}
    bound = bind(tree, known)
    assert bound.width == width
    assert symbols(bound) <= rest.keys()
    assert to_function(bound)(rest) == expected, to_python(tree)
    assert bind(tree, trees.values) == Const(width, expected)

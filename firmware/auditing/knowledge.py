"""What an audit takes as known of a processor, and what it leaves open.

A symbol of the tables is known, known in some bits, or unknown. By default almost nothing is known
(see :meth:`Knowledge.assumed`); a preset or profile gives everything, capability MSRs that were
read on the processor give what follows from them.

Ref: Intel SDM (325462), vol. 3D, appendix A, "VMX Capability Reporting Facility".
Facts: control_words.csv, controls.csv (``clearable``), symbols.csv.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from random import Random

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.expression import (
    Const,
    Expression,
    Mux,
    Symbol,
    bind,
    to_function,
)
from vmxswitch.spec.proof import Known, known_bits
from vmxswitch.spec.tables import (
    CAPABILITY_MSRS,
    CHECKS,
    CONTROL_WORDS,
    CONTROLS,
    FIELDS,
    SYMBOL_WIDTHS,
    expression,
)

__all__ = ["Knowledge"]

ONES = (1 << 64) - 1
BASIC, SHORT_ADDRESSES, NO_ERROR_CODE_CHECK = "IA32_VMX_BASIC", 1 << 48, 1 << 56
MOST_PHYSICAL_BITS, LEAST_PHYSICAL_BITS = 52, 32
CR4_CET, CR4_FRED = 23, 32
#: The address bits beyond a physical width that is not known.
BEYOND = Symbol(64, "BEYOND_PHYSICAL_WIDTH")


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known of a processor.

    Parameters
    ----------
    name : str
        For people.
    numbers : mapping of str to int
        Symbols that are known. ``LINEAR_WIDTH`` is missing if the dump shall say it.
    bits : mapping of str to Known
        Symbols of which some bits are known.
    capabilities : Capabilities or None
        The processor, if everything is known of it.
    """
    name: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    bits: Mapping[str, Known] = field(default_factory=dict)
    capabilities: Capabilities | None = None
    _functions: dict[str, Callable[[Mapping[str, int]], int]] = field(
        default_factory=dict, init=False, repr=False)
    _guesses: dict[int, dict[str, int]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def assumed(cls, name: str = "any Intel 64 processor", msrs: Mapping[int, int] = {},
                **numbers: int) -> "Knowledge":
        """What is true of every Intel 64 processor, and what capability MSRs add to it.

        A 64-bit processor, not in SMM; a control bit that is 1 is one that it has (if it has not,
        a row of reserved control bits decides that); a control bit that no processor can clear must
        be 1; ``IA32_VMX_BASIC`` bits 48 and 56 are 0; physical addresses have 32 to 52 bits.
        """
        known = {"INTEL64": 1, "IN_SMM": 0}
        known |= {word.allowed_symbol: ONES for word in CONTROL_WORDS.values()}
        never = ONES & ~((1 << MOST_PHYSICAL_BITS) - 1)
        bits = {BEYOND.name: known_bits(64, never | (1 << LEAST_PHYSICAL_BITS) - 1, never),
                BASIC: known_bits(64, SHORT_ADDRESSES | NO_ERROR_CODE_CHECK, 0)}
        for word, row in CONTROL_WORDS.items():
            must = sum(1 << control.low for control in CONTROLS.values()
                       if control.word == word and control.default1 and not control.clearable)
            if must:
                bits[row.capability_symbol] = known_bits(64, must, must)
        known |= _from_msrs(msrs) | {key: value for key, value in numbers.items()
                                     if value is not None}
        return cls(name, known, bits)

    @classmethod
    def of(cls, capabilities: Capabilities) -> "Knowledge":
        """Everything, of a preset or a recorded profile."""
        return cls(capabilities.name, capabilities.constants, {}, capabilities)

    @property
    def measured(self) -> bool:
        """Whether capabilities of a certain processor were given."""
        return self.numbers.keys() & CAPABILITY_MSRS.keys() != set()

    def with_physical_width(self, bits: int) -> "Knowledge":
        """The same with another physical-address width."""
        if not LEAST_PHYSICAL_BITS <= bits <= MOST_PHYSICAL_BITS:
            raise UsageError(f"a physical-address width is {LEAST_PHYSICAL_BITS} to "
                             f"{MOST_PHYSICAL_BITS} bits, not {bits}")
        if self.capabilities is None:
            return Knowledge(self.name, {**self.numbers, "PHYSICAL_WIDTH": bits}, self.bits)
        return Knowledge.of(replace(self.capabilities, physical_address_width=bits))

    def with_linear_width(self, bits: int) -> "Knowledge":
        """The same, with a linear-address width if none is known."""
        return self if "LINEAR_WIDTH" in self.numbers else _with_linear_width(self, bits)

    @cached_property
    def fails(self) -> Mapping[str, Expression]:
        """For each check, what is 1 if it fails; the dump's fields are still symbols."""
        if self.capabilities:
            bound = self.capabilities.checks
            rows = {name: bound[name].fails if name in bound else Const(1, 0) for name in CHECKS}
        else:
            width = self.numbers.get("PHYSICAL_WIDTH", BEYOND)
            known = {**self.numbers, "PHYSICAL_WIDTH": width, "ADDRESS_WIDTH": width}
            if self.numbers.get(BASIC, 0) & SHORT_ADDRESSES:
                known["ADDRESS_WIDTH"] = LEAST_PHYSICAL_BITS
            rows = {check.id: bind(check.violated, known) for check in CHECKS.values()}
        return {name: bind(row, _pdptes(self.numbers)) for name, row in rows.items()}

    def function(self, check: str) -> Callable[[Mapping[str, int]], int]:
        """:attr:`fails` of one check as a function on values of symbols."""
        if check not in self._functions:
            self._functions[check] = to_function(self.fails[check])
        return self._functions[check]

    def guess(self, number: int) -> dict[str, int]:
        """Values of all symbols that agree with what is known: 0 for number 0, ones, random ones.
        """
        if number not in self._guesses:
            source = Random(number)
            values = {}
            for name, width in {**SYMBOL_WIDTHS, BEYOND.name: BEYOND.width}.items():
                ones = (1 << width) - 1
                value = {0: 0, 1: ones}.get(number, source.getrandbits(width))
                if known := self.bits.get(name):
                    value = value & ~known.mask | known.bits
                values[name] = value
            self._guesses[number] = values
        return self._guesses[number]

    def check_widths(self, fields: Mapping[str, int], source: str) -> None:
        """Refuse fields that the processor cannot hold."""
        for symbol, value in fields.items() if self.capabilities else ():
            bits = self.capabilities.bits(FIELDS[symbol])
            if value >> bits:
                raise UsageError(f"{source}: {symbol} = {value:#x} does not fit the {bits} bits "
                                 f"that it has on {self.name}; give other --capabilities")


@cache
def _with_linear_width(knowledge: Knowledge, bits: int) -> Knowledge:
    """Always the same object, for it keeps what it has worked out."""
    return replace(knowledge, numbers={**knowledge.numbers, "LINEAR_WIDTH": bits})


def _pdptes(numbers: Mapping[str, int]) -> dict[str, Expression]:
    """The PDPTEs that are checked: with EPT those of the VMCS, else those in memory."""
    ept = bind(expression("PROC2_ENABLE_EPT"), numbers)
    return {f"PDPTE{n}": Mux(64, ept, Symbol(64, f"GUEST_PDPTE{n}"), Symbol(64, f"PDPTE{n}"))
            for n in range(4)}


def _from_msrs(msrs: Mapping[int, int]) -> dict[str, int]:
    """What follows from capability MSRs; one that is missing is unknown."""
    known = {row.symbol: msrs[row.msr] for row in CAPABILITY_MSRS.values() if row.msr in msrs}
    for word in CONTROL_WORDS.values():
        symbol = word.capability
        if word.true_capability and known.get(BASIC, 0) >> 55 & 1:
            symbol = word.true_capability
        if symbol in known and (not word.true_capability or BASIC in known):
            known[word.capability_symbol] = known[symbol]
            known[word.allowed_symbol] = known[symbol] >> word.allowed_1_low
    if "CR4_FIXED1" in known:
        known["CET_SUPPORTED"] = known["CR4_FIXED1"] >> CR4_CET & 1
        known["FRED_SUPPORTED"] = known["CR4_FIXED1"] >> CR4_FRED & 1
    return known

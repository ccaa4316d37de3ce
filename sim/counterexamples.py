"""VM entries and exits made for a mutant: in which what its row says and what it should say differ.

That they differ is an expression (:func:`.mutants.differences`), which :class:`.Transitions` looks
for like for any other.
"""

from collections.abc import Iterator, Mapping
from itertools import islice

from vmxswitch.spec.capabilities import Capabilities
from vmxswitch.spec.expression import bind, symbols
from vmxswitch.spec.proof import Undecided, witness
from vmxswitch.spec.tables import FIELDS, REGISTERS

from .equivalence import PROOF_CASES
from .mutants import Mutant, differences, right_expression
from .transitions import Attempt, Question, Transitions

__all__ = ["counterexamples", "question", "values_that_differ"]

CASES = 3  #: for each bit and cause
BITS = 4   #: that differ, tried from each end of the value
WAYS = 2   #: causes for each bit that does not depend on the cause


def question(capabilities: Capabilities, mutant: Mutant) -> Question:
    """What a mutant of kind "register", "information" or "event" answers in another way."""
    right = right_expression(capabilities, mutant)
    match mutant.kind, mutant.part:
        case "event", _:
            return Question("event", right, reason=int(mutant.row))
        case "register", "entry":
            return Question("entry", right)
        case "register", part:
            saves = part == "save"
            return Question("exit", right, field=REGISTERS[mutant.row].field if saves else None)
        case "information", _:
            return Question("exit", bind(right, _before(mutant)), field=mutant.row)
    raise ValueError(f"{mutant.id} is not about an entry, an exit or an event")


def counterexamples(
    capabilities: Capabilities, transitions: Transitions, mutant: Mutant,
) -> Iterator[Attempt]:
    """Attempts for a mutant of one of these kinds."""
    asked = question(capabilities, mutant)
    bits = [bind(differ, _before(mutant)) for differ in differences(capabilities, mutant)]
    for differ in dict.fromkeys((*bits[:BITS], *bits[-BITS:])):
        ways = transitions.ways(asked, differ)
        for way in ways if "EXIT_REASON" in symbols(differ) else islice(ways, WAYS):
            yield from islice(transitions.reaching(way), CASES)


def values_that_differ(capabilities: Capabilities, mutant: Mutant) -> Mapping[str, int] | None:
    """Values of symbols with which a wrong check says something else than the right one."""
    differ, = differences(capabilities, mutant)
    try:
        return witness(differ, PROOF_CASES)
    except Undecided:
        return None


def _before(mutant):
    """What an information field holds that software cannot write: 0, as after VMCLEAR."""
    writable = mutant.kind != "information" or FIELDS[mutant.row].access == "rw"
    return {} if writable else {mutant.row: 0}

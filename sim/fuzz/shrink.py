"""Makes a program in which the two sides differ as small as it gets.

First whole steps are left out (delta debugging), then steps are replaced by simpler ones, bits of
values by 0, until nothing more can go. What remains still differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from vmxswitch.spec.operations import Boundary, Event, Instruction
from vmxswitch.spec.region import LAUNCH_OFFSET, field_offsets

from ..observation import PROMPT, MemoryWrite, RegisterWrites, TimePasses
from ..row_cases import Subject
from .differential import Differential, Run
from .program import FieldWrites, Region, Step, vmwrites

__all__ = ["shrink"]

MOST_RUNS = 5000
FEW = 8  # changes that become steps of their own


def shrink(run: Run, sides: Differential) -> Run:
    """Run smaller and smaller programs; the smallest in which the sides differ.

    There are at most :data:`MOST_RUNS`. A difference in an answer stays one without further failing
    checks, so it is about those that it was about before.
    """
    shrinker = _Shrinker(run, sides)
    shrinker.shrink()
    return shrinker.run


class _Shrinker:
    def __init__(self, run, sides):
        self.run, self._sides, self._subject = run, sides, sides.subject
        self._runs = 0

    @property
    def _program(self):
        return self.run.program

    def shrink(self):
        while True:
            before = self._program
            self._simplify_timing()
            self._leave_out()
            self._simplify()
            if self._program == before or self._runs >= MOST_RUNS:
                return

    def _holds(self, program):
        """Keep a program if the sides differ in it."""
        if self._runs >= MOST_RUNS or program == self._program:
            return False
        self._runs += 1
        run = self._sides.run(program)
        if run.difference is None or _checks(run.difference) > _checks(self.run.difference):
            return False
        self.run = run
        return True

    def _with(self, steps):
        return replace(self._program, steps=tuple(steps))

    def _simplify_timing(self):
        for name in ("back_to_back", "bus_wait_cyc", "stall_cyc"):
            timing = replace(self._program.timing, **{name: getattr(PROMPT, name)})
            self._holds(replace(self._program, timing=timing))

    def _leave_out(self):
        """Leave out runs of steps, long ones first, from the end."""
        length = len(self._program.steps)
        while length:
            end = len(self._program.steps)
            while end > 0:
                steps = self._program.steps
                start = max(0, end - length)
                self._holds(self._with(steps[:start] + steps[end:]))
                end = start
            length //= 2

    def _simplify(self):
        """Replace steps by simpler ones, the last step first."""
        for number in reversed(range(len(self._program.steps))):
            again = True
            while again and number < len(self._program.steps):  # of which some may be left out
                again = any(
                    self._holds(self._with(steps))
                    for steps in _simpler(self._program.steps, number, self._subject))


def _checks(difference):
    """Failing checks in the answers that differ."""
    if difference.what != "answer":
        return 0
    return len(difference.model.failing) + len(difference.port.failing)


def _simpler(steps: Sequence[Step], number: int, subject: Subject) -> Iterator[Sequence[Step]]:
    """Programs with something simpler in place of a step."""
    before, step, after = steps[:number], steps[number], steps[number + 1:]
    for others in _replacements(step, subject):
        yield (*before, *others, *after)
    if isinstance(step, Instruction) and step.name == "VMRESUME":
        launches = [place for place, earlier in enumerate(before)
                    if isinstance(earlier, Instruction) and earlier.name == "VMLAUNCH"]
        for place in launches:  # the first entry instead of a later one: without it and the exit
            yield (*before[:place], *before[place + 2:], replace(step, name="VMLAUNCH"), *after)
    if isinstance(step, Region) and step.launch & 1:
        resume = next((place for place, later in enumerate(after)
                       if isinstance(later, Instruction) and later.name == "VMRESUME"), None)
        if resume is not None:
            yield (*before, replace(step, launch=0), *after[:resume],
                   replace(after[resume], name="VMLAUNCH"), *after[resume + 1:])
    if isinstance(step, Region) and step.baseline is not None:
        load = next((place for place, later in enumerate(after) if later == Instruction(
            "VMPTRLD", pointer=step.pointer)), None)
        if load is not None:  # VMWRITEs instead of a region that is there already
            bare = MemoryWrite(step.pointer, 4, step.word)
            writes = FieldWrites(step.baseline, step.changes)
            yield (*before, bare, *after[:load + 1], writes, *after[load + 1:])


def _replacements(step, subject) -> Iterator[Sequence[Step]]:
    match step:
        case Instruction() | Event() | Boundary():
            for attribute in fields(step):
                now = getattr(step, attribute.name)
                if attribute.name in ("name", "reason") or now == attribute.default:
                    continue
                yield [replace(step, **{attribute.name: attribute.default})]
                if type(now) is int:
                    yield from ([replace(step, **{attribute.name: value})] for value in _lower(now))
        case TimePasses(ticks):
            yield from ([TimePasses(lower)] for lower in _lower(ticks))
        case RegisterWrites(values):
            yield from ([RegisterWrites(fewer)] for fewer in _fewer(values))
            for fewer in _lower_pairs(values, subject.environment):
                yield [RegisterWrites(fewer)]
        case MemoryWrite(address, size, value):
            yield from ([MemoryWrite(address, size, lower)] for lower in _lower(value))
        case Region(pointer, word, launch, baseline, changes):
            offsets = field_offsets(subject.capabilities)
            if baseline is None and len(changes) <= FEW:
                yield [MemoryWrite(pointer, 4, word),
                       *([MemoryWrite(pointer + LAUNCH_OFFSET, 8, launch)] if launch else []),
                       *(MemoryWrite(pointer + offsets[field], 8, value)
                         for field, value in changes)]
            yield from ([replace(step, launch=lower)] for lower in _lower(launch))
            if baseline is not None:
                yield [replace(step, baseline=None)]
            yield from ([replace(step, changes=fewer)] for fewer in _fewer(changes))
            base = subject.baselines.get(baseline, {})
            yield from ([replace(step, changes=lower)] for lower in _lower_pairs(changes, base))
        case FieldWrites(baseline, changes):
            if len(changes) <= FEW:
                yield [instruction for field, value in changes
                       for instruction in vmwrites(field, value, halves=False)]
            yield from ([replace(step, changes=fewer)] for fewer in _fewer(changes))
            base = subject.baselines[baseline]
            yield from ([replace(step, changes=lower)] for lower in _lower_pairs(changes, base))


def _fewer(pairs):
    """The pairs without some of them."""
    length = len(pairs)
    while length:
        for start in range(0, len(pairs), length):
            yield pairs[:start] + pairs[start + length:]
        length //= 2


def _lower_pairs(pairs, usual):
    """The pairs with a value nearer to what it usually is."""
    for number, (name, value) in enumerate(pairs):
        base = usual.get(name, 0)
        for bits in _lower(value ^ base):
            yield (*pairs[:number], (name, base ^ bits), *pairs[number + 1:])


def _lower(value):
    """The number with fewer bits: none, or one less."""
    if value:
        yield 0
    if value.bit_count() > 1:
        for bit in reversed(range(value.bit_length())):
            if value >> bit & 1:
                yield value ^ 1 << bit

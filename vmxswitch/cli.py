"""Command line: ``vmxswitch VERB``.

A verb's code is ``run(arguments)`` in the module of the verb's name, or the one in
:data:`MODULES`, imported when it runs. It
prints results on stdout and progress on stderr, and returns the exit status: 0 done, 1 refused or
disagreed, 2 bad input.
"""

import argparse
import difflib
import importlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import vmxswitch
from vmxswitch import extras
from vmxswitch.backends import BACKENDS, SERIAL
from vmxswitch.spec.errors import UsageError

__all__ = ["main", "parser"]

BACKENDS_IN_WORDS = ("reference model, hardware simulated in Python, the same hardware compiled by "
                     "Verilator, or after FPGA synthesis")


def main(argv=None):
    """Runs one command and returns its exit status; ``argv`` is ``sys.argv[1:]`` by default."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = parse(argv)
        module = MODULES.get(arguments.verb, arguments.verb)
        status = importlib.import_module(f"vmxswitch.{module}").run(arguments)
        sys.stdout.flush() # here, where a reader that has gone away is still handled
        return status
    except UsageError as error:
        if isinstance(error, extras.MissingExtra):
            extras.install_and_restart(error, argv)
        print(f"vmxswitch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130 # 128 + SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()) # Python flushes once more
        return 141 # 128 + SIGPIPE


def parse(argv):
    """The arguments of one command; only ``test`` may have further ones, which go to pytest."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    if verb and verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no verb {verb!r}{meant} (`vmxswitch --help` lists all)")
    arguments, further = parser().parse_known_args(argv)
    if arguments.verb == "test":
        arguments.further = further
    elif further:
        raise UsageError(f"unknown argument {further[0]!r}; see `vmxswitch {verb} --help`")
    if arguments.verb == "switch" and arguments.original and not arguments.target:
        raise UsageError("give both FROM and TO, or neither; see `vmxswitch switch --help`")
    return arguments


def parser():
    """The parser of all verbs."""
    top = Parser(
        prog="vmxswitch", description="Moves a processor between environments with a VMX unit.",
        epilog="`vmxswitch VERB --help` explains a verb. "
               "Exit status: 0 done, 1 refused or disagreed, 2 bad input.")
    top.add_argument("--version", action=Version, help="print our version and those of the tools")
    verbs = top.add_subparsers(metavar="VERB", dest="verb", required=True)
    for name, add in VERBS.items():
        add(name, verbs)
    return top


def add_config(verb):
    verb.add_argument("--config", metavar="NAME[:N]", default="full",
                      help="processor: full (64-bit), compact (32-bit) or the file of a profile; "
                           "with N resident VMCSs, 1 to 16 (default: %(default)s)")


def add_backend(verb, default):
    verb.add_argument("--backend", choices=[*BACKENDS, SERIAL], default=default,
                      help=f"{BACKENDS_IN_WORDS}; serial: a board (default: %(default)s)")
    verb.add_argument("--port", metavar="DEVICE",
                      help="serial port of the board, such as /dev/ttyUSB0")
    verb.add_argument("--baud", metavar="N", type=positive, default=115_200,
                      help="bits per second on it (default: %(default)s)")


def add_switch(name, verbs):
    verb = verbs.add_parser(
        name, help="move a processor from one environment to another, in one clock edge",
        description="Moves a processor from environment FROM to environment TO and shows each\n"
                    "step, the one edge at which the state changes owner, and what a switch\n"
                    "cannot carry. Without files: a shipped 64-bit Linux and another system.",
        epilog="""examples:
  vmxswitch switch
  vmxswitch switch linux.txt xen.txt --cpu 0 --waves waves
  vmxswitch switch linux.txt other.txt --set HOST_TR_SELECTOR=0x40 --backend model --json
  vmxswitch switch --backend serial --port /dev/ttyUSB0""")
    verb.add_argument("original", metavar="FROM", nargs="?", type=Path,
                      help="environment to leave: QEMU `info registers`, a KVM or Xen VMCS "
                           "dump (its guest area; append :host for the other), our JSON, or the "
                           "name of one that is shipped")
    verb.add_argument("target", metavar="TO", nargs="?", type=Path,
                      help="environment to go to, in any of these forms")
    add_backend(verb, "pysim")
    add_config(verb)
    verb.add_argument("--set", metavar="FIELD=VALUE", type=assignment, action="append", default=[],
                      help="set a VMCS field after the switch software has filled them all "
                           "(GUEST_...: FROM, HOST_...: TO); may be repeated")
    verb.add_argument("--cpu", metavar="N", type=natural,
                      help="processor to take where a dump holds several (default: the only one)")
    verb.add_argument("--waves", metavar="DIR", type=Path,
                      help="write waves for GTKWave and Surfer, and a timing picture, to DIR "
                           "(default: none)")
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_audit(name, verbs):
    verb = verbs.add_parser(
        name, help="say why a VM entry failed, from a log with VMCS dumps",
        description="Checks every VMCS dump in a log against all VM-entry checks and names each\n"
                    "one that fails, with values, what the manual demands and what to set. What\n"
                    "the log does not show is left undecided. Needs no hardware.",
        epilog="""exit status: 0 no check fails for certain, 1 one fails, 2 no dump or bad input

examples:
  vmxswitch audit kern.log
  dmesg | vmxswitch audit -
  vmxswitch audit mail.txt --maxphyaddr 39 --explain --html report.html
  vmxswitch audit dump.txt --capabilities rdmsr.txt --json
  vmxswitch audit dump.txt --capabilities skylake_x_64 --backend verilator""")
    verb.add_argument("files", metavar="FILE", nargs="+",
                      help="log with dumps of KVM, Xen or HAXM, or our JSON; - is standard input")
    verb.add_argument("--json", action="store_true", help="print a JSON array, one object a dump")
    verb.add_argument("--capabilities", metavar="PROFILE|FILE",
                      help="the processor: a preset or recorded profile, a file of rdmsr output, "
                           "or JSON (default: only what is true of every Intel 64 processor)")
    verb.add_argument("--maxphyaddr", metavar="N", type=positive,
                      help="physical-address width in bits (default: not known, 32 to 52)")
    verb.add_argument("--explain", action="store_true",
                      help="list the undecided checks, and what they depend on")
    verb.add_argument("--html", metavar="FILE", type=Path,
                      help="write one self-contained page for a bug report to FILE")
    verb.add_argument("--backend", choices=["model", "verilator"],
                      help="also execute VMLAUNCH with a whole dump on a processor of "
                           "--capabilities and compare the rows (default: none)")


def add_explain(name, verbs):
    verb = verbs.add_parser(
        name, help="explain a check, field, exit reason, error or control bit",
        description="Prints one entry of the tables in words, with its neighbours.",
        epilog="""examples:
  vmxswitch explain G64
  vmxswitch explain GUEST_DS_AR
  vmxswitch explain 0x80000021
  vmxswitch explain "error 7"
  vmxswitch explain PROC2_UNRESTRICTED_GUEST""")
    verb.add_argument("entry", metavar="ROW|FIELD|REASON|ERROR|CONTROL", nargs="+",
                      help="id of a check, name or encoding of a VMCS field, `reason N` or its "
                           "name, `error N` or its name, name of a control bit")


def add_run(name, verbs):
    verb = verbs.add_parser(
        name, help="run several guests in turn on one processor",
        description="Runs guests in turn under the VMM and shows each turn: why the guest left,\n"
                    "how long it ran, what the switch took. At every VM entry each register is\n"
                    "compared with what the guest left in it. Without guests: shipped systems.",
        epilog="""examples:
  vmxswitch run
  vmxswitch run linux-6.1-amd64-idle reset-vector:boot xen-4.17-panic:crash --turns 100
  vmxswitch run linux-6.1-amd64-idle:busy linux-6.1-686-pae-idle:busy --turns 10000 --json""")
    verb.add_argument("guests", metavar="GUEST", nargs="*",
                      help="environment, in any form that `switch` takes, and after a colon the "
                           "program that it lives by: kernel, firmware, hypervisor, boot, "
                           "process, busy or crash (default: what suits it)")
    verb.add_argument("--turns", metavar="N", type=positive, default=40,
                      help="VM entries, each with its VM exit (default: %(default)s)")
    verb.add_argument("--quantum", metavar="CYCLES", type=positive, default=3_000,
                      help="time slice of a guest (default: %(default)s)")
    add_backend(verb, "model")
    add_config(verb)
    verb.add_argument("--cpu", metavar="N", type=natural,
                      help="processor to take where a dump holds several (default: the only one)")
    verb.add_argument("--shared-msrs", action="store_true",
                      help="use no MSR lists: faster, but guests share IA32_LSTAR and the like "
                           "(default: each has its own)")
    verb.add_argument("--svg", metavar="FILE", type=Path,
                      help="draw the timeline (default: none)")
    verb.add_argument("--waves", metavar="DIR", type=Path,
                      help="write waves, and the timeline, to DIR (default: none)")
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_replay(name, verbs):
    verb = verbs.add_parser(
        name, help="compare with cases recorded on another implementation",
        description="Replays recorded cases and prints the first disagreements; the exit status\n"
                    "is 0 only if all agree.",
        epilog="""examples:
  vmxswitch replay entries.jsonl.gz
  vmxswitch replay entries.jsonl.gz instructions.jsonl.gz --backend pysim --sample 150""")
    verb.add_argument("cases", metavar="CASES.jsonl[.gz]", nargs="+", type=Path,
                      help="files of cases, one JSON object per line")
    verb.add_argument("--profiles", metavar="DIR", type=Path,
                      help="capability profiles of the cases (default: `profiles` beside a file)")
    add_backend(verb, "model")
    verb.add_argument("--profile", metavar="NAME",
                      help="replay the cases of this profile only: a board is one processor "
                           "(default: all)")
    verb.add_argument("--results", metavar="FILE", type=Path,
                      help="write one line per case to FILE (default: none)")
    verb.add_argument("--sample", metavar="N", type=positive,
                      help="replay N cases only, always the same ones (default: all)")
    verb.add_argument("--jobs", metavar="N", type=positive, default=os.cpu_count() or 1,
                      help="processes to use (default: one per processor, here %(default)s)")


def add_fuzz(name, verbs):
    verb = verbs.add_parser(
        name, help="compare model and hardware with random programs",
        description="Runs random programs on the reference model and on the hardware and compares\n"
                    "them after every operation. The first program in which they differ is made\n"
                    "as small as possible, written as a case for `replay` and printed. The same\n"
                    "seed gives the same programs everywhere.",
        epilog="""examples:
  vmxswitch fuzz
  vmxswitch fuzz --config compact --minutes 10 --coverage coverage.json
  vmxswitch fuzz --seed 7 --first 1200 --count 1 --backend pysim
  vmxswitch fuzz --minutes 60 --cluster tcp://192.0.2.1:8786""")
    add_config(verb)
    verb.add_argument("--backend", choices=["verilator", "pysim", "netlist"], default="verilator",
                      help="hardware compiled by Verilator, simulated in Python, some hundred "
                           "times slower, or after FPGA synthesis (default: %(default)s)")
    verb.add_argument("--seed", metavar="N", type=natural, default=1,
                      help="what the programs follow from (default: %(default)s)")
    verb.add_argument("--first", metavar="N", type=natural, default=0,
                      help="number of the first program (default: %(default)s)")
    length = verb.add_mutually_exclusive_group()
    length.add_argument("--count", metavar="N", type=positive, help="programs to run")
    length.add_argument("--minutes", metavar="M", type=above_zero, default=1.0,
                        help="time to run for, if no count is given (default: 1)")
    verb.add_argument("--jobs", metavar="N", type=positive, default=os.cpu_count() or 1,
                      help="processes to use (default: one per processor, here %(default)s)")
    verb.add_argument("--cluster", metavar="ADDRESS",
                      help="run on the workers of a Dask scheduler instead (default: none)")
    verb.add_argument("--coverage", metavar="FILE", type=Path,
                      help="write how often each row was hit, as JSON (default: none)")
    verb.add_argument("--found", metavar="DIR", type=Path, default=Path("disagreements"),
                      help="where to write a case that disagrees (default: %(default)s)")


def add_bench(name, verbs):
    verb = verbs.add_parser(
        name, help="measure cycles per operation, and the speed of the backends",
        description="Measures how many cycles operations take, and what each backend does in a\n"
                    "second on one core. Speeds of one run can be compared with each other.",
        epilog="""examples:
  vmxswitch bench
  vmxswitch bench --backend model --backend verilator --seconds 10 --json""")
    verb.add_argument("--backend", choices=BACKENDS, action="append",
                      help=f"{BACKENDS_IN_WORDS}; may be repeated (default: all but netlist)")
    verb.add_argument("--seconds", metavar="S", type=above_zero, default=3.0,
                      help="time for each figure (default: %(default)s)")
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_mutate(name, verbs):
    verb = verbs.add_parser(
        name, help="make the hardware wrong in one place and see whether the tests notice",
        description="Builds the unit with all its mutants, chosen by an input, and shows each to\n"
                    "the row tests, the recorded cases of the processor and the fuzzer, until one\n"
                    "of them notices it. The exit status is 0 only if every mutant is noticed,\n"
                    "proved to do what the unit does, or explained.",
        epilog="""examples:
  vmxswitch mutate --config compact
  vmxswitch mutate --config tests/cases/profiles/skylake_x_32.json --json
  vmxswitch mutate --list""")
    add_config(verb)
    verb.add_argument("--programs", metavar="N", type=natural, default=600,
                      help="programs of the fuzzer for each mutant (default: %(default)s)")
    verb.add_argument("--jobs", metavar="N", type=positive, default=os.cpu_count() or 1,
                      help="processes to use (default: one per processor, here %(default)s)")
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    verb.add_argument("--list", action="store_true", help="print the mutants and stop")


def add_verilog(name, verbs):
    verb = verbs.add_parser(
        name, help="write the unit as one Verilog file",
        description="Prints the unit as Verilog, clean under Verilator's lint; its head says what\n"
                    "it was made from. With -o, a FuseSoC core file is written beside it, and\n"
                    "with --bus wishbone a C header of the registers.",
        epilog="""examples:
  vmxswitch verilog -o vmx_unit.v
  vmxswitch verilog --bus wishbone -o vmx_wishbone.v
  vmxswitch verilog --config compact > vmx_unit.v""")
    add_config(verb)
    verb.add_argument("--bus", choices=["streams", "wishbone"], default="streams",
                      help="what drives the unit: its own streams, or registers on a Wishbone bus "
                           "(default: %(default)s)")
    verb.add_argument("-o", "--output", metavar="FILE", type=Path,
                      help="write to FILE, and what goes with it beside it (default: print)")


def add_boards(name, verbs):
    verbs.add_parser(
        name, help="list the boards that a bitstream can be built for",
        description="Lists every board with its device, the configuration that is built for it,\n"
                    "its clock, and the size and speed that `build --record` last measured.")


def add_build(name, verbs):
    verb = verbs.add_parser(
        name, help="build a bitstream for a board and print its size and speed",
        description="Builds a bitstream with open tools and prints one line: size, speed, and\n"
                    "whether the clock is met. Logs and reports lie beside the bitstream. The\n"
                    "tools come from pip; they take minutes for `compact` and half an hour or\n"
                    "more for `full`.",
        epilog="""exit status: 0 the clock is met, 1 it is not, or the unit does not fit

examples:
  vmxswitch build ulx3s-25f --seeds 4
  vmxswitch build icebreaker --no-route
  vmxswitch build ulx3s-85f --config full:16 --freq 70 --native""")
    add_built(verb)
    verb.add_argument("--config", metavar="NAME[:N]",
                      help="processor, as for other verbs (default: what fits the board)")
    verb.add_argument("--freq", metavar="MHZ", type=above_zero,
                      help="clock that must be met (default: that of the board)")
    verb.add_argument("--seed", metavar="N", type=natural, default=1,
                      help="seed of the placement (default: %(default)s)")
    verb.add_argument("--seeds", metavar="N", type=positive, default=1,
                      help="place with N seeds from --seed on, as many at a time as there are "
                           "processors, and keep the fastest (default: %(default)s)")
    verb.add_argument("--no-route", action="store_true",
                      help="stop after synthesis: the size, in minutes")
    verb.add_argument("--native", action="store_true",
                      help="use yosys, nextpnr and the packer from the PATH, all of them "
                           "(default: the packages from pip)")
    verb.add_argument("--record", action="store_true",
                      help="write the result to the table of measured builds")


def add_built(verb):
    verb.add_argument("board", metavar="BOARD", help="the board; `vmxswitch boards` lists them")
    verb.add_argument("--output", metavar="DIR", type=Path,
                      help="folder of the build (default: build/BOARD-CONFIG)")


def add_program(name, verbs):
    verb = verbs.add_parser(
        name, help="load the bitstream that was built into a board",
        description="Hands the bitstream of the last build to openFPGALoader.",
        epilog="""examples:
  vmxswitch program ulx3s-25f""")
    add_built(verb)
    verb.add_argument("--config", metavar="NAME[:N]",
                      help="processor that was built (default: as for build)")


def add_test(name, verbs):
    verbs.add_parser(
        name, help="run the tests of the checkout",
        usage="vmxswitch test [-h] [PYTEST ARGUMENT]...", allow_abbrev=False,
        description="Runs pytest on the checkout, lint included, in two processes. Every argument\n"
                    "is passed on to pytest.",
        epilog="""examples:
  vmxswitch test
  vmxswitch test -n 8
  vmxswitch test tests/test_cli.py -k version""")


#: Every verb and the function that adds its arguments.
VERBS = {
    "switch": add_switch, "run": add_run, "audit": add_audit, "explain": add_explain,
    "replay": add_replay, "fuzz": add_fuzz, "mutate": add_mutate, "bench": add_bench,
    "verilog": add_verilog, "boards": add_boards, "build": add_build, "program": add_program,
    "test": add_test,
}
#: Module of a verb whose name is that of a package.
MODULES = {"boards": "board_list"}


def assignment(text):
    """``FIELD=VALUE`` as a pair of name and integer; VALUE may be 0x..., 0b... or decimal."""
    field, _, value = text.partition("=")
    try:
        number = int(value, 0)
    except ValueError:
        number = None
    if not field or number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE, such as HOST_CR4=0x26f0")
    return field, number


def above_zero(text):
    """A number above 0, such as 1.5."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def natural(text):
    """A count from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def positive(text):
    """A count from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


class Parser(argparse.ArgumentParser):
    """Keeps the layout of examples, suggests the verb that was meant, and raises `UsageError`."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        raise UsageError(f"{message}; see `{self.prog} --help`")


class Version(argparse.Action):
    """Prints the versions that a bug report needs."""

    def __init__(self, **options):
        super().__init__(nargs=0, **options)

    def __call__(self, top, *_):
        print(f"vmxswitch {vmxswitch.__version__} (Python {platform.python_version()}, "
              f"amaranth {metadata.version('amaranth')})")
        top.exit()

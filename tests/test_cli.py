"""The frame of the command line: help, versions, errors and exit statuses."""

import os
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from vmxswitch import __version__, checkout, cli, extras
from vmxswitch.spec.errors import UsageError


@pytest.fixture
def verb(monkeypatch):
    """Puts a function in place of the verb `switch`."""
    def replace(run):
        monkeypatch.setitem(sys.modules, "vmxswitch.switch", SimpleNamespace(run=run))
    return replace


def python(*arguments, stdout=subprocess.PIPE):
    """Runs a Python of its own."""
    return subprocess.run([sys.executable, "-P", *arguments], text=True,
                          stdout=stdout, stderr=subprocess.PIPE)


def refused(capsys, *argv):
    """Runs a command that must be refused; returns its one line."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("vmxswitch: ")
    return err.removeprefix("vmxswitch: ").rstrip()


@pytest.mark.parametrize("argv", [["--help"], *([verb, "--help"] for verb in cli.VERBS)])
def test_help_is_at_every_level(capsys, argv):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: vmxswitch") and err == ""


def test_help_names_every_verb_and_the_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    words = capsys.readouterr().out.split()
    assert set(cli.VERBS) <= set(words)
    with pytest.raises(SystemExit):
        cli.main(["switch", "--help"])
    assert "(default: pysim)" in " ".join(capsys.readouterr().out.split())


def test_version_names_the_tools():
    done = python("-m", "vmxswitch", "--version")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (f"vmxswitch {__version__} (Python {sys.version.split()[0]}, "
                           f"amaranth {metadata.version('amaranth')})\n")


def test_help_imports_no_hardware():
    code = ("import sys; from vmxswitch import cli\n"
            "try: cli.main(['--help'])\n"
            "except SystemExit: sys.exit('amaranth' in sys.modules)")
    assert python("-c", code).returncode == 0


def test_an_unknown_verb_gets_a_suggestion(capsys):
    assert refused(capsys, "swich") == (
        "no verb 'swich'; did you mean 'switch'? (`vmxswitch --help` lists all)")
    assert refused(capsys, "zzz") == "no verb 'zzz' (`vmxswitch --help` lists all)"


@pytest.mark.parametrize("argv, message", [
    ([],                                "arguments are required: VERB; see `vmxswitch --help`"),
    (["--loud"],                        "arguments are required: VERB; see `vmxswitch --help`"),
    (["switch", "--loud"],              "unknown argument '--loud'; see `vmxswitch switch --help`"),
    (["switch", "a"],                   "give both FROM and TO, or neither"),
    (["switch", "--backend", "qemu"],   "invalid choice: 'qemu'"),
    (["switch", "--set", "CR4"],        "'CR4' is not FIELD=VALUE, such as HOST_CR4=0x26f0"),
    (["switch", "--set", "CR4=high"],   "'CR4=high' is not FIELD=VALUE, such as HOST_CR4=0x26f0"),
    (["switch", "--cpu", "-1"],         "see `vmxswitch switch --help`"),
    (["switch", "--cpu", "x"],          "'x' is not a number from 0"),
    (["replay"],                        "CASES.jsonl[.gz]; see `vmxswitch replay --help`"),
    (["replay", "a", "--sample", "0"],  "'0' is not a number from 1"),
])
def test_bad_arguments_end_in_one_line(capsys, argv, message):
    assert message in refused(capsys, *argv)


def test_arguments_reach_the_verb(verb):
    seen = []
    verb(lambda arguments: seen.append(arguments) or 1)
    command = "switch a.txt b.txt --set CR4=0x6f0 --set RIP=16 --cpu 1"
    assert cli.main(command.split()) == 1
    assert [seen[0].original.name, seen[0].target.name, seen[0].cpu] == ["a.txt", "b.txt", 1]
    assert seen[0].set == [("CR4", 0x6f0), ("RIP", 16)]


def test_further_arguments_of_test_stay_in_order():
    further = ["a.py", "-k", "one", "-x", "--lf"]
    assert cli.parse(["test", *further]).further == further


def test_a_usage_error_ends_in_one_line(capsys, verb):
    def run(_):
        raise UsageError("x.txt: no such file; give a dump")
    verb(run)
    assert refused(capsys, "switch") == "x.txt: no such file; give a dump"


def test_an_interrupt_ends_quietly(capsys, verb):
    def run(_):
        raise KeyboardInterrupt
    verb(run)
    assert cli.main(["switch"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_gone_away_is_no_error():
    code = ("import sys, types; from vmxswitch import cli\n"
            "verb = types.SimpleNamespace(run=lambda _: print('x'))\n"
            "sys.modules['vmxswitch.switch'] = verb\n"
            "sys.exit(cli.main(['switch']))")
    reader, writer = os.pipe()
    os.close(reader)
    done = python("-c", code, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_verb_that_needs_the_source_tree_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert refused(capsys, "test") == "`test` needs the source tree; run `./vmx test` in a checkout"


@pytest.fixture
def uninstalled(monkeypatch):
    """No distribution but ours is installed."""
    requirements = ["amaranth>=0.5", 'ziglang<1; extra == "compiled"']
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    def distribution(name):
        raise metadata.PackageNotFoundError(name)
    monkeypatch.setattr(metadata, "distribution", distribution)


@pytest.mark.usefixtures("uninstalled")
def test_a_missing_extra_outside_a_checkout_is_named(capsys, monkeypatch, verb, tmp_path):
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    verb(lambda _: extras.need("compiled"))
    assert refused(capsys, "switch") == (
        "this needs the extra 'compiled'; install it with "
        "`pip install 'vmxswitch[compiled]'` and start again")


@pytest.mark.usefixtures("uninstalled")
def test_a_missing_extra_in_a_checkout_goes_back_to_the_launcher(monkeypatch, verb, tmp_path):
    (tmp_path / "vmx").touch()
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    started = []
    monkeypatch.setattr(os, "execv", lambda path, argv: started.append([path, *argv]))
    verb(lambda _: extras.need("compiled"))
    cli.main(["switch", "--json"])
    launcher = tmp_path / "vmx"
    assert started == [[launcher, launcher, "--extra=compiled", "switch", "--json"]]


def test_an_installed_extra_is_not_missing():
    extras.need("test")


@pytest.mark.parametrize("here, given, passed_on", [
    ("tests", "test_cli.py",       str(checkout.ROOT / "tests/test_cli.py")),
    ("tests", "test_cli.py::test", str(checkout.ROOT / "tests/test_cli.py::test")),
    ("tests", "nothing.py",        "nothing.py"),
    (".",     "spec",              "spec"), # as in `-k spec`
])
def test_files_for_pytest_are_taken_from_where_the_user_is(monkeypatch, here, given, passed_on):
    monkeypatch.chdir(checkout.ROOT / here)
    def run(command, cwd):
        assert command[2:] == ["-m", "pytest", "-n", "2", passed_on]
        assert cwd == checkout.ROOT
        return SimpleNamespace(returncode=5)
    monkeypatch.setattr(subprocess, "run", run)
    assert cli.main(["test", given]) == 5

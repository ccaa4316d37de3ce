"""The verb ``test``: the tests of the checkout, lint included."""

import os
import subprocess
import sys
from pathlib import Path

from vmxswitch import checkout, extras

__all__ = ["run"]


def run(arguments):
    """Runs pytest in two processes and returns its exit status."""
    checkout.require("test")
    extras.need("test")
    extras.need("compiled")
    further = map(_seen_from_root, arguments.further)
    command = [sys.executable, "-P", "-m", "pytest", "-n", "2", *further]
    return subprocess.run(command, cwd=checkout.ROOT).returncode


def _seen_from_root(argument):
    """``argument`` for a pytest that runs in the root: a file named from here in full."""
    path, *inside = argument.split("::")
    if Path.cwd() != checkout.ROOT and os.path.exists(path):
        return "::".join([os.path.abspath(path), *inside])
    return argument

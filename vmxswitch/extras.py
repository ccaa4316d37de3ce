"""Optional parts of the installation: the extras of ``pyproject.toml``."""

import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from vmxswitch import checkout
from vmxswitch.spec.errors import UsageError

__all__ = ["MissingExtra", "install_and_restart", "need"]


class MissingExtra(UsageError):
    """A verb needs an extra that is not installed. ``extra`` is its name."""

    def __init__(self, extra):
        super().__init__(f"this needs the extra '{extra}'; install it with "
                         f"`pip install 'vmxswitch[{extra}]'` and start again")
        self.extra = extra


def need(extra):
    """Call first where a verb uses an optional part, before anything is printed or written.

    The compiled simulation needs a C++ compiler too: where there is none, one from pip.

    Raises
    ------
    :exc:`MissingExtra`
        If a distribution of ``extra`` is not installed. Under ``./vmx`` the launcher then
        installs it and starts the verb again.
    """
    for requirement in metadata.requires("vmxswitch"):
        wanted = re.fullmatch(r"([\w.-]+)[^;]*; extra == \"(.+)\"", requirement)
        if wanted and wanted[2] == extra and not _installed(wanted[1]):
            raise MissingExtra(extra)
    if extra == "compiled" and not shutil.which("c++"):
        need("compiler")


def install_and_restart(missing, arguments):
    """Hands over to ``./vmx`` if this is its environment; returns if it is not."""
    launcher = checkout.ROOT / "vmx"
    if launcher.exists() and Path(sys.prefix).resolve() == (checkout.ROOT / ".venv").resolve():
        sys.stdout.flush()
        os.execv(launcher, [launcher, f"--extra={missing.extra}", *arguments])


def _installed(distribution):
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True

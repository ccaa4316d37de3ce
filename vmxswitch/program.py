"""The verb ``program``: hands a bitstream to openFPGALoader."""

import shlex
import shutil
import subprocess

from vmxswitch.build import folder
from vmxswitch.spec.errors import UsageError

__all__ = ["run"]

LOADER = "openFPGALoader"


def run(arguments):
    """Loads the bitstream of the last build; the exit status of the loader, 0 or 1."""
    from vmxswitch.boards.flow import bitstream
    from vmxswitch.boards.table import board

    chosen = board(arguments.board)
    config = arguments.config or chosen.config
    place = arguments.output or folder(chosen.name, config)
    file = bitstream(place)
    if not file:
        raise UsageError(f"no bitstream in {place}; run `vmxswitch build {chosen.name}` first")
    if not chosen.loader:
        raise UsageError(f"{LOADER} does not know {chosen.name}; copy {file} to the drive "
                         "that the board shows on USB")
    command = [LOADER, *chosen.loader, str(file)]
    if not shutil.which(LOADER):
        raise UsageError(f"no {LOADER}; install it (https://trabucayre.github.io/openFPGALoader/) "
                         f"and run `{shlex.join(command)}`")
    return 1 if subprocess.run(command).returncode else 0

"""Waves of a simulated run, with views for GTKWave and Surfer and a timing picture.

What the files hold and how to open them: ``docs/waves.md``.
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vmxswitch.spec.errors import UsageError

from .compiled_waves import in_words
from .narrator import NONE, Narrator
from .pysim import CLOCK_PERIOD_S, PysimPort
from .timing_svg import timing_svg
from .vcd_file import VcdFile
from .verilator import VerilatorPort
from .wave_view import gtkwave_save, surfer_state, view

__all__ = ["recording"]

PERIOD_FS = round(CLOCK_PERIOD_S * 1e15)


@contextmanager
def recording(port: PysimPort | VerilatorPort, directory: Path | str) -> Iterator[None]:
    """Record what ``port`` does in the body and write the files to ``directory``.

    The port must be fresh, and the body must not reset it once it has run. If the body raises an
    exception, nothing is written.

    Parameters
    ----------
    port : PysimPort or VerilatorPort
        The latter made with ``waves=True``.
    directory : Path or str
        Made if it does not exist; ``switch.vcd``, ``switch.gtkw``, ``switch.surf.ron`` and
        ``switch.svg`` in it are replaced, all or none.

    Raises
    ------
    :exc:`UsageError`
        If ``directory`` cannot be written; before the body where that shows before.
    """
    directory = Path(directory)
    with _reported(directory):
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        nearest = directory if directory.is_dir() else directory.parent
        folder = TemporaryDirectory(prefix=".waves-", dir=nearest)
    with folder as temporary:
        record = _simulated if isinstance(port, PysimPort) else _compiled
        with record(port, Path(temporary)) as text:
            port.read_registers()  # starts the simulation, even if the body does nothing
            yield
            port.read_registers()  # so that the last cycle is seen whole
        files = _files(port, text())
        with _reported(directory):
            for name, text in files.items():
                Path(temporary, name).write_text(text, encoding="utf-8")
            directory.mkdir(exist_ok=True)
            for name in files:
                os.replace(Path(temporary, name), directory / name)


@contextmanager
def _simulated(port, _):
    """Record Amaranth's simulation; gives a function to call after it, for the VCD file's text."""
    stream = io.StringIO()
    narrator = Narrator(port.unit)
    narrator.attach(port.simulator)
    with port.simulator.write_vcd(stream, traces=narrator.signals):
        yield stream.getvalue


@contextmanager
def _compiled(port, folder):
    """Likewise, the compiled simulation."""
    path = folder / "verilator.vcd"
    with port.recorded(path):
        yield lambda: in_words(path.read_text(), port.capabilities, PERIOD_FS // 2)


@contextmanager
def _reported(directory):
    """Turn an error of the file system into one about ``directory``."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write waves to {directory}: {error.strerror}") from None


def _files(port, text):
    """Contents of all files by name."""
    vcd = VcdFile(text)
    groups = view(port.capabilities)
    edge = _edge(vcd)
    return {
        "switch.vcd": text,
        "switch.gtkw": gtkwave_save(groups, vcd, edge, PERIOD_FS),
        "switch.surf.ron": surfer_state(groups, vcd, edge, PERIOD_FS),
        "switch.svg": timing_svg(vcd, edge, PERIOD_FS),
    }


def _edge(vcd):
    """When ``live`` last changed owner; when the last operation ended, if it never did."""
    owners = [time for time, _ in vcd.changes["bench.owner"]]
    ends = [time for time, outcome in vcd.changes["bench.outcome"] if outcome != NONE]
    return owners[-1] or (ends or [0])[-1]

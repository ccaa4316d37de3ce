"""Finding an environment: a file in one of the known formats, or the name of a shipped one."""

import difflib
import re
from importlib.resources import files
from pathlib import Path

from vmxswitch.spec.errors import UsageError

from ..environment import Environment
from . import json_form, qemu, vmcs_area, vmcs_text

__all__ = ["MAX_BYTES", "dumps", "read", "shipped"]

#: Longer input is refused, in bytes. A dump has some thousand.
MAX_BYTES = 16 << 20

_SHIPPED = files("vmxswitch.firmware").joinpath("environments")
_SECTION = re.compile(f"(.+):({'|'.join(vmcs_area.SECTIONS)})", re.DOTALL)
_FORMATS = "QEMU `info registers`, a KVM, Xen or HAXM VMCS dump, or JSON"


def shipped() -> tuple[str, ...]:
    """Names of the environments that come with the package, sorted."""
    return tuple(
        sorted(
            entry.name.removesuffix(".txt")
            for entry in _SHIPPED.iterdir()
            if entry.name.endswith(".txt")
        )
    )


def read(source: str, cpu: int | None = None, section: str | None = None) -> Environment:
    """Read one environment.

    Parameters
    ----------
    source : str
        Path of a file, or a name from :func:`shipped` if there is no such file. ``:guest`` or
        ``:host`` at its end chooses the section of a VMCS dump (guest, if nothing does).
    cpu : int, optional
        Which processor, if the text has several: n of ``CPU#n``, or for VMCS dumps the position
        in the text, from 0.
    section : str, optional
        ``guest`` or ``host``; the same as the ending of ``source``.

    Raises
    ------
    :exc:`UsageError`
        If the file cannot be read, is in none of the formats, or does not hold what is asked for.
    """
    name, text, ending = _load(str(source))
    if section not in {None, *vmcs_area.SECTIONS}:
        raise UsageError(
            f"no section {section!r} in a VMCS dump; there are {' and '.join(vmcs_area.SECTIONS)}"
        )
    if section and ending and section != ending:
        raise UsageError(
            f"{source}: asks for the {ending} section and for the {section} section; choose one"
        )
    section = section or ending
    is_json = json_form.recognises(text)
    if not is_json and vmcs_text.recognises(text):
        return _from_vmcs(vmcs_text.parse(text, name), name, cpu, section or "guest")
    if not is_json and not qemu.recognises(text):
        raise UsageError(f"{name}: no register dump in it; give {_FORMATS}")
    if section:
        raise UsageError(
            f"{name} is no VMCS dump and has no {section} section; leave ':{section}' out"
        )
    if not is_json:
        return qemu.parse(text, name, cpu)
    if cpu:
        raise UsageError(f"{name} holds one processor only; leave --cpu {cpu} out")
    return json_form.parse(text, name)


def dumps(source: str) -> list[vmcs_text.VmcsDump]:
    """Every VMCS dump of a file, in order, with all fields that the text states."""
    name, text, _ = _load(str(source))
    return vmcs_text.parse(text, name)


def _from_vmcs(
    found: list[vmcs_text.VmcsDump], name: str, cpu: int | None, section: str
) -> Environment:
    if cpu is None and len(found) > 1:
        choices = ", ".join(f"--cpu {index} ({dump.label})" for index, dump in enumerate(found))
        raise UsageError(f"{name} holds {len(found)} VMCS dumps; give one of {choices}")
    if not 0 <= (cpu or 0) < len(found):
        raise UsageError(f"{name} has no VMCS dump {cpu}; it holds {len(found)}, counted from 0")
    label = f" {found[cpu or 0].label}" if len(found) > 1 else ""
    return vmcs_area.environment(found[cpu or 0], section, f"{name}{label} {section}")


def _load(source: str) -> tuple[str, str, str | None]:
    """Name for messages, text, and the section that the source's ending asks for."""
    path, ending = Path(source), None
    try:
        if not path.exists() and (match := _SECTION.fullmatch(source)):
            source, ending = match.groups()
            path = Path(source)
        name = source
        if not path.exists() and source.removesuffix(".txt") in shipped():
            name = source.removesuffix(".txt")
            path = _SHIPPED.joinpath(f"{name}.txt")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(
            f"no file {source!r} and no shipped environment of that name{_near(source)}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {source!r}: {reason}") from None
    return name, _text(data, name), ending


def _near(source: str) -> str:
    near = difflib.get_close_matches(source.removesuffix(".txt"), shipped(), 1, cutoff=0.5)
    return (
        f"; did you mean {near[0]!r}?" if near else "; firmware/environments/README.md lists those"
    )


def _text(data: bytes, name: str) -> str:
    if not data.strip():
        raise UsageError(f"{name}: the file is empty; give {_FORMATS}")
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name}: longer than {MAX_BYTES >> 20} MiB; cut out the dump")
    if b"\0" in data:
        raise UsageError(f"{name}: not a text; give {_FORMATS}")
    return data.decode("utf-8-sig", "replace")

"""The verb ``audit``: why did my VM entry fail?"""

import difflib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vmxswitch.checkout import PROFILES
from vmxswitch.firmware.auditing import (
    Audit,
    Knowledge,
    audit,
    audit_lines,
    capability_files,
    report,
)
from vmxswitch.firmware.readers import MAX_BYTES, vmcs_json
from vmxswitch.spec.capabilities import PRESETS, Capabilities
from vmxswitch.spec.errors import UsageError

__all__ = ["run"]

LINE_BYTES = 1 << 16  # longer lines are read in pieces
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def run(arguments):
    """Audits every file; 0 if no check fails in any dump, else 1."""
    knowledge = _knowledge(arguments.capabilities, arguments.maxphyaddr)
    found = [(source, item) for source in arguments.files for item in _audits(source, knowledge)]
    trials = _trials(found, arguments.backend) if arguments.backend else None
    if arguments.html:
        from vmxswitch.firmware.auditing import page
        _write(arguments.html, page.page([item for _, item in found],
                                         [_name(source) for source, _ in found]))
    if arguments.json:
        print(json.dumps([
            {"file": source, **item.as_dict(),
             **({"backend": trial.as_dict()} if trial else {})}
            for (source, item), trial in zip(found, trials or [None] * len(found), strict=True)],
            indent=2))
    else:
        for number, (source, item) in enumerate(found):
            words = report.text(item, _name(source), arguments.explain)
            print(f"\n{words}" if number else words)
            if trials:
                print(trials[number].text)
    disagreed = trials and not all(trial.agrees for trial in trials)
    return 1 if disagreed or any(item.failed for _, item in found) else 0


def _name(source: str) -> str:
    return "standard input" if source == "-" else source


def _audits(source: str, knowledge: Knowledge) -> Iterator[Audit]:
    """The audits of one file, or of standard input."""
    name = _name(source)
    empty = True
    try:
        with _open(source) as file:
            start = file.peek(4096)[:4096]
            if vmcs_json.recognises(start.decode("utf-8-sig", "replace")):
                content = file.read(MAX_BYTES + 1)
                if len(content) > MAX_BYTES:
                    raise UsageError(f"{name}: JSON of more than {MAX_BYTES >> 20} MiB")
                found = audit(content.decode("utf-8-sig", "replace"), knowledge, name)
            else:
                found = audit_lines(_lines(file, start), knowledge, name)
            for item in found:
                empty = False
                yield item
    except OSError as error:
        raise UsageError(f"cannot read {source!r}: {error.strerror}") from None
    if empty:
        raise UsageError(
            f"{name}: no VMCS dump in it (KVM and Xen: lines '*** Guest State ***', HAXM: lines "
            "'haxm_error: 4000 ...'); KVM prints one with the module parameter "
            "kvm_intel.dump_invalid_vmcs=1")


def _open(source: str):
    try:
        return sys.stdin.buffer if source == "-" else Path(source).open("rb")
    except FileNotFoundError:
        raise UsageError(f"no file {source!r}; give a log, or - for standard input") from None
    except ValueError as error:  # a path with a null character
        raise UsageError(f"cannot read {source!r}: {error}") from None


def _lines(file, start: bytes) -> Iterator[bytes]:
    if start.startswith(UTF_16):  # as Windows redirects
        for line in file.read(MAX_BYTES).decode("utf-16", "replace").splitlines(keepends=True):
            yield line.encode()
    while line := file.readline(LINE_BYTES):
        yield line


def _knowledge(source: str | None, physical_bits: int | None) -> Knowledge:
    knowledge = Knowledge.assumed() if source is None else _named(source)
    return knowledge.with_physical_width(physical_bits) if physical_bits else knowledge


def _named(source: str) -> Knowledge:
    """A preset, a recorded profile, or what a file says."""
    profiles = {path.stem: path for path in PROFILES.glob("*.json")}
    if source in PRESETS:
        return Knowledge.of(PRESETS[source])
    if source in profiles:
        return Knowledge.of(Capabilities.from_profile(profiles[source]))
    if not Path(source).exists():
        names = [*PRESETS, *sorted(profiles)]
        near = difflib.get_close_matches(source, names, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"no capabilities {source!r}{meant} There are {', '.join(names)}; or give "
                         "a file of rdmsr output or JSON")
    return capability_files.read(Path(source))


def _write(path: Path, text: str) -> None:
    """The whole file or nothing."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except OSError as error:
        os.unlink(name)
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _trials(found, backend):
    from vmxswitch import backends
    from vmxswitch.firmware.auditing import trial
    return [trial.on(lambda capabilities: backends.port(backend, capabilities), item, source,
                     backend)
            for source, item in found]

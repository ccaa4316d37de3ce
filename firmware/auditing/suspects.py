"""Undecided checks worth a look where nothing fails for certain but the entry did fail.

Suspect is a check whose qualification is the reported one, and a check that only capabilities keep
undecided and that fails on a plain processor of ours, the preset ``full``: a bit of CR4 that not
every processor has, say.
"""

from collections.abc import Iterator

from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.tables import CHECKS, CONTROL_WORDS, FIELDS

from .audits import Audit
from .words import shown

__all__ = ["suspects"]

_PLAIN = PRESETS["full"].constants
#: Which control bits exist differs too much to suspect anything.
_CONTROLS = {name for word in CONTROL_WORDS.values()
             for name in (word.capability_symbol, word.allowed_symbol, word.capability)}


def suspects(audit: Audit) -> list[tuple[str, str]]:
    """Ids of suspect checks, and why, in words."""
    if audit.failed or audit.printed in (None, "enters"):
        return []
    return [*_by_qualification(audit), *_by_capabilities(audit)]


def _by_qualification(audit: Audit) -> Iterator[tuple[str, str]]:
    """The only checks with the qualification that is reported, if that is not 0."""
    for check in audit.undecided:
        failure = CHECKS[check].failure
        if (audit.qualification and audit.printed == f"reason {failure.reason}"
                and failure.qualification == audit.qualification):
            yield check, (f"it ends in {audit.printed} with qualification {audit.qualification}, "
                          "as is reported; depends on "
                          + ", ".join(audit.situation.unknown(check)))


def _by_capabilities(audit: Audit) -> Iterator[tuple[str, str]]:
    for check in audit.undecided:
        unknown = audit.situation.unknown(check)
        if all(name in _PLAIN and name not in FIELDS and name not in _CONTROLS
               for name in unknown):
            plain = audit.situation.having({name: _PLAIN[name] for name in unknown})
            if plain.result(check) is False:
                values = ", ".join(f"{name} = {_PLAIN[name]:#x}" for name in unknown)
                fields = "; ".join(shown(name, plain.values.get(name))
                                   for name in CHECKS[check].fields)
                yield check, (f"{fields}; fails on a processor with {values}; "
                              "--capabilities decides")

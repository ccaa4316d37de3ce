"""Undecided checks worth a look where nothing fails for certain but the entry did fail.

Suspect is a check that only capabilities keep undecided and that fails on a plain processor of
ours, the preset ``full``: a bit of CR4 that not every processor has, say.
"""

from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.tables import CHECKS, CONTROL_WORDS, FIELDS

from .audit import Audit
from .rows import Situation

__all__ = ["suspects"]

_PLAIN = PRESETS["full"].constants
#: Which control bits exist differs too much to suspect anything.
_CONTROLS = {name for word in CONTROL_WORDS.values()
             for name in (word.capability_symbol, word.allowed_symbol, word.capability)}


def suspects(audit: Audit) -> list[tuple[str, str]]:
    """Ids of suspect checks, and what they depend on, in words."""
    if audit.failed or audit.printed in (None, "enters"):
        return []
    found = []
    for check in audit.undecided:
        unknown = audit.situation.unknown(check)
        if all(name in _PLAIN and name not in FIELDS and name not in _CONTROLS
               for name in unknown):
            plain = Situation(audit.knowledge, audit.situation.values
                              | {name: _PLAIN[name] for name in unknown})
            if plain.result(check) is False:
                values = ", ".join(f"{name} = {_PLAIN[name]:#x}" for name in unknown)
                fields = ", ".join(f"{name} = {value:#x}" for name, value in plain.values.items()
                                   if name in CHECKS[check].fields)
                found.append((check, f"{fields}; fails on a processor with {values}; "
                                     "--capabilities decides"))
    return found

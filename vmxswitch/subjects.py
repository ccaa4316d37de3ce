"""The processors that ``--config`` of ``fuzz`` and ``mutate`` names."""

from pathlib import Path

from vmxswitch.checkout import PROFILES
from vmxswitch.sim.cases import read_profile
from vmxswitch.sim.row_cases import Subject
from vmxswitch.spec.capabilities import PRESETS
from vmxswitch.spec.errors import UsageError

__all__ = ["subject_of"]


def subject_of(config: str) -> Subject:
    """The processor of a preset's name, or of the file of a profile."""
    if config not in PRESETS:
        path = Path(config)
        if not path.exists():
            raise UsageError(f"no configuration {config!r}: {', '.join(PRESETS)}, or the file of "
                             "a profile")
        return Subject.from_profile(read_profile(path))
    name = "skylake_x_64" if PRESETS[config].intel64 else "skylake_x_32"
    return Subject.from_profile(read_profile(PROFILES / f"{name}.json"), PRESETS[config])

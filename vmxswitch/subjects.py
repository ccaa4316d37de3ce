"""The processors that ``--config`` of ``fuzz`` and ``mutate`` names."""

from pathlib import Path

from vmxswitch import checkout
from vmxswitch.sim.cases import read_profile
from vmxswitch.sim.row_cases import Subject
from vmxswitch.spec.capabilities import configuration

__all__ = ["PROFILES", "subject_of"]

PROFILES = checkout.ROOT / "tests" / "cases" / "profiles"


def subject_of(config: str) -> Subject:
    """The processor of a configuration's name, or of the file of a profile."""
    if config.endswith(".json") or Path(config).is_file():
        return Subject.from_profile(read_profile(Path(config)))
    capabilities = configuration(config)
    name = "skylake_x_64" if capabilities.intel64 else "skylake_x_32"
    return Subject.from_profile(read_profile(PROFILES / f"{name}.json"), capabilities)

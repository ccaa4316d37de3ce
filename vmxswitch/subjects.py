"""The processors that ``--config`` of ``fuzz`` and ``mutate`` names."""

from pathlib import Path

from vmxswitch.checkout import PROFILES
from vmxswitch.sim.cases import read_profile
from vmxswitch.sim.row_cases import Subject
from vmxswitch.spec.capabilities import PRESETS, configuration, split_configuration

__all__ = ["subject_of"]


def subject_of(config: str) -> Subject:
    """The processor of a configuration (:func:`~vmxswitch.spec.capabilities.configuration`)."""
    capabilities = configuration(config)
    profile, _ = split_configuration(config)
    if profile in PRESETS:
        profile = PROFILES / f"skylake_x_{capabilities.natural_bits}.json"
    return Subject.from_profile(read_profile(Path(profile)), capabilities)

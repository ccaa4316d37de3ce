"""Environments that a command line names."""

from collections.abc import Sequence

from vmxswitch.firmware.environment import Environment
from vmxswitch.spec.errors import UsageError

__all__ = ["read_environments"]


def read_environments(sources: Sequence[str], cpu: int | None) -> list[Environment]:
    """The environments; ``cpu`` counts for the dumps that hold several processors."""
    found, used = [], cpu in (None, 0)
    for source in sources:
        try:
            found.append(Environment.read(source))
        except UsageError:
            if cpu is None:
                raise
            found.append(Environment.read(source, cpu))
            used = True
    if not used:
        raise UsageError(f"--cpu {cpu}: no dump given holds several processors; leave it out")
    return found

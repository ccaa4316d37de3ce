"""Where this copy of the package lies: in a checkout, or installed without one."""

from pathlib import Path

from vmxswitch.spec.errors import UsageError

__all__ = ["PROFILES", "ROOT", "require"]

#: Root of the checkout; without one, the folder that the package is installed in.
ROOT = Path(__file__).resolve().parents[1]
#: Recorded profiles of processors; there only in a checkout.
PROFILES = ROOT / "tests" / "cases" / "profiles"


def require(verb):
    """Refuses ``verb`` where the package is installed without its source tree.

    Raises
    ------
    :exc:`UsageError`
        If there is no checkout around the package.
    """
    if not (ROOT / "pyproject.toml").is_file():
        raise UsageError(f"`{verb}` needs the source tree; run `./vmx {verb}` in a checkout")

"""What the fuzzer found: programs that once showed a defect; `expect` is what the model does."""

from pathlib import Path

import pytest

from vmxswitch import cli

FOUND = Path(__file__).parent / "found"
PROFILES = {"vmfunc-eptp-index": Path(__file__).parent / "cases" / "profiles"}


@pytest.mark.parametrize("path", sorted(FOUND.glob("*.jsonl")), ids=lambda path: path.stem)
@pytest.mark.parametrize("backend", ["model", "pysim"])
def test_a_defect_stays_mended(path, backend, capsys):
    profiles = PROFILES.get(path.stem, FOUND / "profiles")
    assert cli.main(["replay", str(path), "--profiles", str(profiles), "--backend", backend]) == 0
    assert "cases=1 compared=1 disagree=0" in capsys.readouterr().out

"""The lint, as a test: what it finds stands in the same summary."""

import subprocess
import sys
from pathlib import Path


def test_ruff_finds_nothing():
    ruff = subprocess.run([sys.executable, "-P", "-m", "ruff", "check", "--output-format=concise"],
                          cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr

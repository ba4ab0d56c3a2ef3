"""What every test may use: the folder of real public jets, if there is one."""

import os

# Before torch is loaded: see jetrep.cli.main.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from pathlib import Path

import pytest

REAL_DATA = "JETREP_TEST_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with ``toptagging/``, ``jetclass/`` …; tests that need it are skipped where it is not at hand."""
    folder = os.environ.get(REAL_DATA)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"needs real jets: set {REAL_DATA} to the folder that holds toptagging/, jetclass/ …")
    return Path(folder)

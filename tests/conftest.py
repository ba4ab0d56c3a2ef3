"""What every test may use: the folder of real public jets, if there is one."""

import os

# Before torch is loaded: see jetrep.cli.main. Workers share the cores, so their threads never spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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

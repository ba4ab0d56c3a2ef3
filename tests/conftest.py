"""What holds for every test: the folder of real public jets, if there is one, and figures that are drawn quickly."""

import os

# Before torch is loaded: see jetrep.cli.main. Workers share the cores, so their threads never spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

# A suite that a shell runs in the background inherits an ignored SIGINT, and commands that tests interrupt would, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_DATA = "JETREP_TEST_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with ``toptagging/``, ``jetclass/`` …; tests that need it are skipped where it is not at hand."""
    folder = os.environ.get(REAL_DATA)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"needs real jets: set {REAL_DATA} to the folder that holds toptagging/, jetclass/ …")
    return Path(folder)


@pytest.fixture(scope="module", autouse=True)
def quick_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures without minor ticks, and without making room for labels, which take most of their time.

    How figures look is for tests/report, which draws them in full.
    """
    if "report" in request.path.parts:
        yield
        return
    from jetrep.report import style

    with pytest.MonkeyPatch.context() as patch:
        full, minor = style._parameters, ("xtick.minor.visible", "ytick.minor.visible")
        patch.setattr(style, "_parameters", lambda: full() | dict.fromkeys(minor, False))
        patch.setattr(style, "Figure", lambda **size: Figure(**{**size, "layout": "none"}))
        yield

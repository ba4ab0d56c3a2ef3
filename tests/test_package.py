import subprocess
import sys

import pytest

import jetrep
from jetrep.cli import VERBS


def test_every_verb_is_a_function_of_the_package():
    for verb, (module, _) in VERBS.items():
        # One verb is a keyword of Python.
        function = getattr(jetrep, {"import": "import_weights"}.get(verb, verb))
        assert callable(function)
        assert function.__module__ == module


def test_every_public_name_exists():
    for name in jetrep.__all__:
        assert getattr(jetrep, name) is not None


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("jetrep", "torch numba matplotlib"), ("jetrep.training.pretrain", "sklearn ot"), ("jetrep.sources", "torch")],
)
def test_nothing_heavy_is_imported_that_may_not_be_needed(module, heavy):
    script = f"import {module}, sys; print(*{set(heavy.split())} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "jetrep", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"jetrep {jetrep.__version__}\n"

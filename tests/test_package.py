import subprocess
import sys

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


def test_importing_the_package_loads_nothing_heavy():
    script = "import jetrep, sys; sys.exit(any(name in sys.modules for name in ('torch', 'numba', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "jetrep", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"jetrep {jetrep.__version__}\n"

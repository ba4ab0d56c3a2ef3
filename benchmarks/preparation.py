"""Preparing a store from ROOT files of the JetClass schema: read, select, cluster, write, hash.

The peer is the floor under all of it: uproot alone, which reads the same branches into arrays and throws them away. The
ratio says which share of the time is left for everything else. CPU time, one process, one thread.

``memory`` is the peak of the resident memory of any process while a larger input is prepared by two workers, which
start anew for it. ``shares`` are parts of the CPU time of one preparation, from a profile.

Jets: real top-tagging jets if the folder named by JETREP_TEST_DATA (or --data) has them, else showers made up here, in
a file with all particle, jet and label branches of JetClass, compressed as uproot does it by default (zlib). Charges,
particle types and impact parameters are drawn at random.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

from _harness import alternate, command_line, outcome, publish
from clustering import made_up_jets, real_jets
from jetrep.jets import Jets
from jetrep.physics import fourvector as fv
from jetrep.sources.jetclass import CLASSES
from jetrep.store.prepare import prepare

TREE = "tree"
BASKET = 10_000
"""Jets of a basket, about as many as in the public files."""

_PREPARE = """
import sys
from pathlib import Path
from jetrep.store.prepare import prepare
out, workers, *files = sys.argv[1:]
prepare("jetclass", [Path(file) for file in files], out=Path(out), workers=int(workers), quiet=True)
"""
_STAGES = {
    "reading ROOT": ("jetclass.py", "read"),
    "selection": ("selection.py", "apply"),
    "checks": ("build.py", "accepted"),
    "looking whether pT falls": ("build.py", "_in_order"),
    "clustering": ("clustering.py", "cluster"),
    "writing and syncing": ("build.py", "write"),
    "hashing of input and output": ("manifest.py", "file_hash"),
}


def jets_for(data: Path | None, n_jets: int) -> tuple[Jets, bool]:
    """Jets, and whether they are real."""
    real = data is not None and (Path(data) / "toptagging").is_dir()
    return (real_jets(Path(data), n_jets) if real and data else made_up_jets(n_jets)), real


def write_root(path: Path, jets: Jets, *, seed: int = 0) -> None:
    """Write jets as a ROOT file with the particle, jet and label branches of JetClass.

    Args:
        path: the file.
        jets: the jets; labels are drawn at random.
        seed: start of the random numbers.
    """
    rng = np.random.default_rng(seed)
    with uproot.recreate(path) as file:
        for start in range(0, len(jets), BASKET):
            branches = _branches(jets[start : start + BASKET], rng)
            if start == 0:
                file.mktree(TREE, {name: _kind(values) for name, values in branches.items()})
            file[TREE].extend(branches)


def _kind(values: ak.Array | np.ndarray) -> str | np.dtype:
    return f"var * {ak.flatten(values).type.content}" if isinstance(values, ak.Array) else values.dtype


def _branches(jets: Jets, rng: np.random.Generator) -> dict[str, ak.Array | np.ndarray]:
    """One basket of every branch."""
    n, counts, total = len(jets.p4), jets.counts, jets.jet_p4
    axis = np.repeat(total, counts, axis=0)
    kind = rng.choice(5, n, p=[0.55, 0.12, 0.31, 0.01, 0.01])  # charged and neutral hadrons, photons, electrons, muons
    charge = np.where(np.isin(kind, [0, 3, 4]), rng.choice([-1, 1], n), 0)
    error = np.abs(rng.normal(0.1, 0.05, n)) * (charge != 0)
    delta_eta = (fv.eta(jets.p4) - fv.eta(axis)) * np.sign(fv.eta(axis))
    particles = {
        "energy": jets.p4[:, 0],
        "px": jets.p4[:, 1],
        "py": jets.p4[:, 2],
        "pz": jets.p4[:, 3],
        "deta": delta_eta,
        "dphi": fv.delta_phi(fv.phi(jets.p4), fv.phi(axis)),
        "d0val": rng.standard_t(2, n) * error,
        "d0err": error,
        "dzval": rng.standard_t(2, n) * error,
        "dzerr": error,
        "charge": charge,
    }
    lists = {f"part_{name}": values.astype(np.float32) for name, values in particles.items()}
    for number, name in enumerate(("ChargedHadron", "NeutralHadron", "Photon", "Electron", "Muon")):
        lists[f"part_is{name}"] = kind == number
    numbers = {
        "pt": fv.pt(total),
        "eta": fv.eta(total),
        "phi": fv.phi(total),
        "energy": total[:, 0],
        "nparticles": counts,
        "sdmass": fv.mass(total) * rng.random(len(jets)),
        **{f"tau{i}": rng.random(len(jets)) / i for i in (1, 2, 3, 4)},
    }
    label = rng.integers(0, len(CLASSES), len(jets))
    return {
        **{name: ak.unflatten(values, counts) for name, values in lists.items()},
        **{f"jet_{name}": values.astype(np.float32) for name, values in numbers.items()},
        **{f"label_{name}": label == number for number, name in enumerate(CLASSES)},
    }


def preparation(file: Path, out: Path) -> Callable[[], object]:
    """What is timed: from the file to a store, in this process."""
    return lambda: prepare("jetclass", [file], out=out, workers=1, overwrite=True, quiet=True)


def reading(file: Path) -> Callable[[], object]:
    """The peer: the branches that the preparation needs, read by uproot alone in as many pieces."""

    def run() -> int:
        with uproot.open({str(file): None}) as root:
            tree = root[TREE]
            names = [name for name in tree.keys() if not name.startswith("n") and name not in _NOT_READ]  # noqa: SIM118
            return sum(len(part) for part in tree.iterate(names, step_size=BASKET))

    return run


_NOT_READ = ("part_deta", "part_dphi")


def shares(work: Callable[[], object]) -> dict[str, float]:
    """Parts of the CPU time of one call."""
    profile = cProfile.Profile()
    profile.runcall(work)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = max(cumulated for _, _, _, cumulated, _ in stats.values())
    spent = {}
    for stage, (file, function) in _STAGES.items():
        spent[stage] = sum(
            times[3] for (where, _, name), times in stats.items() if Path(where).name == file and name == function
        )
    return {stage: seconds / total for stage, seconds in spent.items()}


def peak_memory(files: list[Path], out: Path, workers: int) -> float:
    """Largest resident memory, in MB, of any process of a preparation."""
    command = [sys.executable, "-c", _PREPARE, str(out), str(workers), *map(str, files)]
    subprocess.run(command, check=True, env={**os.environ, "NUMBA_NUM_THREADS": "1"})
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3


def main() -> None:
    parser = command_line(__doc__, repetitions=3)
    parser.add_argument("--jets", type=int, default=50_000, help="number of jets (50000)")
    parser.add_argument("--data", type=Path, default=os.environ.get("JETREP_TEST_DATA"), help="folder of real jets")
    parser.add_argument("--copies", type=int, default=8, help="how many times the file is read for the memory (8)")
    args = parser.parse_args()
    os.environ["NUMBA_NUM_THREADS"] = "1"

    jets, real = jets_for(args.data, args.jets)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "jets.root"
        write_root(file, jets)
        work = preparation(file, folder / "store")
        timings = alternate({"ours": work, "peer": reading(file)}, repetitions=args.repetitions, clock="cpu")
        rates = {name: len(jets) / timing.seconds for name, timing in timings.items()}
        more = {"shares": shares(work)}
        memory = {
            "jets": len(jets) * args.copies,
            "workers": 2,
            "peak_MB": peak_memory(
                [shutil.copy(file, folder / f"{i}.root") for i in range(args.copies)], folder / "all", 2
            ),
        }
        size = file.stat().st_size
    publish(
        outcome(
            "preparation",
            rates["ours"],
            rates["peer"],
            "jets/s/core",
            settings={
                "work": "JetClass ROOT file to a store: 14 particle branches, 10 of the jet, 10 labels; kT clustering",
                "jets": len(jets),
                "source": "top tagging, real" if real else "made-up showers",
                "mean_constituents": float(jets.counts.mean()),
                "file": "zlib, as uproot writes by default",
                "file_bytes_per_jet": size / len(jets),
                "clock": "CPU time, one process",
                "peer": "uproot reading the same branches, nothing else",
            },
            timings=timings,
            packages=("uproot", "awkward", "numba", "pyarrow"),
            memory=memory,
            **more,
        ),
        args,
    )


if __name__ == "__main__":
    main()

"""Clustering beside FastJet's vectorised interface: cluster every jet once with kT, then extract six scales.

Both get the same jets and return the four-momenta of the subjets at N = 2, 3, 4, 6, 8 and 16, on one thread. FastJet
gets packed, unmasked double-precision arrays and one ClusterSequence, which is its fastest use; ours reads the float32
table of the store. Only jets with at least 16 constituents take part, since FastJet refuses fewer than N.

FastJet runs at two radii. The peer is R = 1000, at which nothing is lost to the beam and the subjets are ours: they
are compared before anything is timed. R = 0.8 is what users set; there FastJet is slower and gives other subjets where
a jet is wider than that. Then ours alone on one, two, … threads, in wall time; only an idle machine
shows scaling, and the CPU time of the same work says what threads cost on any.

Jets: real top-tagging jets if the folder named by JETREP_TEST_DATA (or --data) has them, else showers made up here.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import awkward as ak
import fastjet
import numpy as np
from numpy.typing import NDArray

from _harness import Timing, alternate, command_line, outcome, publish, silenced
from jetrep.jets import Jets
from jetrep.physics.clustering import cluster
from jetrep.physics.fourvector import from_ptetaphim

SCALES = (2, 3, 4, 6, 8, 16)
R = 0.8
# Large enough that no beam recombination occurs (see jetrep.physics.clustering); it changes no distance's rank.
LARGE_R = 1000.0


def real_jets(folder: Path, n_jets: int) -> Jets:
    parts = []
    for path in sorted((folder / "toptagging").glob("top_train_*.npz")):
        with np.load(path) as file:
            counts = file["n"].astype(np.int64)
            parts.append(Jets(file["p4"], np.concatenate([[0], np.cumsum(counts)])))
        if sum(len(part) for part in parts) >= n_jets:
            break
    return Jets.concatenate(parts)[:n_jets]


def made_up_jets(n_jets: int, seed: int = 1) -> Jets:
    """Soft and collinear cascades with about the multiplicities of top-tagging jets."""
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.negative_binomial(7, 0.125, n_jets), 16, 200)
    z, y, phi = [], [], []
    for n in counts:
        share, dy, dphi, opening = np.ones(1), np.zeros(1), np.zeros(1), np.full(1, 0.8)
        while len(share) < n:
            # Each step splits the parton of largest opening angle times momentum share, softly and collinearly.
            i = int(np.argmax(share * opening))
            x, angle, turn = 0.5 * rng.random() ** 2 + 1e-3, opening[i] * rng.random() ** 1.5, rng.uniform(0, 2 * np.pi)
            dy = np.append(dy, dy[i] + angle * np.cos(turn))
            dphi = np.append(dphi, dphi[i] + angle * np.sin(turn))
            share, opening = np.append(share, share[i] * x), np.append(opening, angle)
            share[i], opening[i] = share[i] * (1 - x), angle
        z.append(share)
        y.append(dy + rng.normal(0, 1))
        phi.append(dphi + rng.uniform(-np.pi, np.pi))
    pt = np.concatenate(z) * 600
    p4 = from_ptetaphim(pt, np.concatenate(y), np.concatenate(phi), np.zeros(len(pt)))
    return Jets(p4.astype(np.float32), np.concatenate([[0], np.cumsum(counts)]))


def ours(jets: Jets, threads: int) -> Callable[[], list[NDArray[np.float32]]]:
    def run() -> list[NDArray[np.float32]]:
        history = cluster(jets.p4, jets.offsets, algorithm="kt", R=R, threads=threads)
        return [history.subjets(jets.p4, n=n, threads=threads)[0] for n in SCALES]

    return run


def fastjet_at(radius: float, jets: Jets) -> Callable[[], list[ak.Array]]:
    columns = {name: jets.p4[:, i].astype(np.float64) for i, name in enumerate(("E", "px", "py", "pz"))}
    array = ak.to_packed(ak.unflatten(ak.zip(columns, with_name="Momentum4D"), jets.counts))
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, radius)

    def run() -> list[ak.Array]:
        sequence = fastjet.ClusterSequence(array, definition)
        return [sequence.exclusive_jets(n_jets=n) for n in SCALES]

    return run


def largest_difference(mine: list[NDArray[np.float32]], theirs: list[ak.Array]) -> float:
    """Largest difference of any subjet's momentum, relative to its energy. Each jet's subjets in descending pT."""
    worst = 0.0
    for subjets, array in zip(mine, theirs, strict=True):
        array = array[ak.argsort(array.px**2 + array.py**2, ascending=False)]
        reference = np.stack([ak.to_numpy(ak.flatten(array[name])) for name in ("E", "px", "py", "pz")], -1)
        worst = max(worst, float(np.max(np.abs(subjets - reference) / reference[:, :1])))
    return worst


def relative_cpu_time(timings: Mapping[str, Timing]) -> dict[str, float]:
    """CPU time of the same work, relative to the first: what threads waste, whoever else uses the machine."""
    medians = {name: statistics.median(timing.cpu) for name, timing in timings.items()}
    first = next(iter(medians.values()))
    return {name: seconds / first for name, seconds in medians.items()}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--jets", type=int, default=10_000, help="number of jets before the cut on size (10000)")
    parser.add_argument("--data", type=Path, default=os.environ.get("JETREP_TEST_DATA"), help="folder of real jets")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of the scaling test (1 2)")
    args = parser.parse_args()

    real = args.data is not None and (Path(args.data) / "toptagging").is_dir()
    jets = real_jets(Path(args.data), args.jets) if real else made_up_jets(args.jets)
    jets = jets[jets.counts >= max(SCALES)]
    same, usual = fastjet_at(LARGE_R, jets), fastjet_at(R, jets)
    with silenced():
        difference = largest_difference(ours(jets, 1)(), same())

    one = alternate(
        {"ours": ours(jets, 1), "fastjet": same, f"fastjet R={R}": usual}, repetitions=args.repetitions, clock="cpu"
    )
    # More jets than above, so that handing out the work is as small a part as it is in real use.
    many = Jets.concatenate([jets] * 4)
    scaling = alternate(
        {f"{t} thread{'s' * (t > 1)}": ours(many, t) for t in args.threads}, repetitions=args.repetitions, clock="wall"
    )
    rates = {name: len(jets) / timing.seconds for name, timing in one.items()}
    wall = {name: len(many) / timing.seconds for name, timing in scaling.items()}
    base = next(iter(wall.values())) / args.threads[0]
    result = outcome(
        "clustering",
        rates["ours"],
        rates["fastjet"],
        "jets/s",
        settings={
            "work": "kT clustering once, then four-momenta of the subjets at N = " + ", ".join(map(str, SCALES)),
            "jets": len(jets),
            "source": "top tagging, real" if real else "made-up showers",
            "mean_constituents": float(jets.counts.mean()),
            "threads": 1,
            "clock": "CPU time",
            "peer": f"fastjet awkward interface, one ClusterSequence, R = {LARGE_R:g} (no beam recombination)",
        },
        timings=one | scaling,
        packages=("fastjet", "awkward", "numba"),
        largest_relative_difference=difference,
        peer_at_usual_radius=rates[f"fastjet R={R}"],
        ratio_at_usual_radius=rates["ours"] / rates[f"fastjet R={R}"],
        jets_per_s_by_threads=wall,
        scaling={name: rate / base for name, rate in wall.items()},
        cpu_time_relative=relative_cpu_time(scaling),
    )
    publish(result, args)


if __name__ == "__main__":
    main()

"""Loading beside weaver's: from files to shuffled, padded training batches, on one thread.

Everybody gets the same jets: 50,000 real top-tagging jets of at most 128 constituents, if the folder named by
JETREP_TEST_DATA (or --data) has them, else jets made up here. Ours reads a store of five shards, weaver's
`SimpleIterDataset` a ROOT file with JetClass's branches (LZ4, 2,500 jets a basket), at several fetch steps and from
memory, with the configuration of the kinematic features. Each contender is a process of its own, so that its memory is
its own; they run epochs in turn. Rates are jets per second of processor time, and include the processor time of threads
that read ahead. Ours are given for batches padded to 128, as weaver's, and to the longest jet, as in training.

The ratio is that of the same work: four-vectors, mask and 7 standardised features, padded to 128, ours against
weaver's fastest.

Then a store several times as large in small windows, evicted from the page cache before each epoch and not: rates, and
how far memory grows. How well windows mix a store that is sorted by class. And the rate at which such jets are prepared
from ROOT files with clustering (see preparation.py).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from _harness import Timing, alternate, command_line, outcome, publish

BATCH, WIDTH = 512, 128
SCALES = (6, 8, 16, 2, 3, 4)
CLASSES = ("qcd", "top")
LAGS = (1, BATCH, 4 * BATCH)

# Contenders, by name: what is computed, and settings of the loader.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "four-vectors, 128": ("p4", {"width": WIDTH}),
    "four-vectors": ("p4", {}),
    "four-vectors, history": ("history", {}),
    "7 features, 128": ("features", {"width": WIDTH}),
    "7 features": ("features", {}),
    "7 features, bucketed": ("features", {"bucket": 16}),
    "7 features, 6 views, 128": ("views", {"width": WIDTH}),
    "7 features, 6 views": ("views", {}),
    "7 features, 6 views with theirs": ("view features", {}),
    "7 features, windows of 16": ("features", {"window": 16}),
}
WEAVER: dict[str, dict[str, Any]] = {
    "weaver, fetch 0.01": {"fetch_step": 0.01},
    "weaver, fetch 0.1": {"fetch_step": 0.1},
    "weaver, fetch 1": {"fetch_step": 1.0},
    "weaver, in memory": {"fetch_step": 1.0, "in_memory": True},
}

WEAVER_CONFIG = """
treename: tree
new_variables:
  pf_mask: ak.ones_like(part_energy)
  part_pt: np.hypot(part_px, part_py)
  part_pt_log: np.log(part_pt)
  part_e_log: np.log(part_energy)
  part_logptrel: np.log(part_pt/jet_pt)
  part_logerel: np.log(part_energy/jet_energy)
  part_deltaR: np.hypot(part_deta, part_dphi)
preprocess: {method: manual, data_fraction: null}
inputs:
  pf_points: {length: 128, pad_mode: wrap, vars: [[part_deta, null], [part_dphi, null]]}
  pf_features:
    length: 128
    pad_mode: wrap
    vars:
      - [part_pt_log, 1.7, 0.7]
      - [part_e_log, 2.0, 0.7]
      - [part_logptrel, -4.7, 0.7]
      - [part_logerel, -4.7, 0.7]
      - [part_deltaR, 0.2, 4.0]
      - [part_deta, null]
      - [part_dphi, null]
  pf_vectors:
    length: 128
    pad_mode: wrap
    vars: [[part_px, null], [part_py, null], [part_pz, null], [part_energy, null]]
  pf_mask: {length: 128, pad_mode: constant, vars: [[pf_mask, null]]}
labels: {type: simple, value: [label_qcd, label_top]}
observers: []
"""


def jets_for(data: Path | None, n_jets: int) -> tuple[Any, bool]:
    """Labelled jets of at most 128 constituents, and whether they are real."""
    from jetrep.jets import Jets

    files = sorted((data / "toptagging").glob("top_train_*.npz")) if data is not None else []
    parts: list[Jets] = []
    for path in files:
        with np.load(path) as file:
            offsets = np.concatenate([[0], np.cumsum(file["n"].astype(np.int64))])
            parts.append(Jets(file["p4"], offsets, file["y"].astype(np.int64), CLASSES))
        if sum(map(len, parts)) >= n_jets:
            break
    if parts:
        return Jets.concatenate(parts)[:n_jets].leading(WIDTH), True
    rng = np.random.default_rng(1)
    counts = np.clip(rng.negative_binomial(7, 0.125, n_jets), 2, WIDTH)
    jet = np.repeat(np.arange(n_jets), counts)
    pt = rng.exponential(1, len(jet)) ** 2
    pt *= (600 / np.bincount(jet, pt))[jet]
    eta = rng.normal(0, 1, n_jets)[jet] + 0.2 * rng.standard_normal(len(jet))
    phi = rng.uniform(-np.pi, np.pi, n_jets)[jet] + 0.2 * rng.standard_normal(len(jet))
    p4 = np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], -1).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Jets(p4, offsets, rng.integers(0, 2, n_jets), CLASSES).sorted_by_pt(), False


def write_store(path: Path, jets: Any, copies: int) -> None:
    from jetrep.store import StoreWriter

    with StoreWriter(path, classes=CLASSES, provenance={}, jets_per_shard=10_000) as writer:
        for _ in range(copies):
            writer.write(jets)


def write_root(path: Path, jets: Any) -> None:
    """The jets with the names of JetClass."""
    import awkward as ak
    import uproot

    from jetrep.physics import fourvector as fv

    p4, jet = jets.p4, jets.jet_p4
    axis = jet[np.repeat(np.arange(len(jets)), jets.counts)]
    columns = {"px": p4[:, 1], "py": p4[:, 2], "pz": p4[:, 3], "energy": p4[:, 0]}
    columns["deta"] = (fv.eta(p4) - fv.eta(axis)).astype(np.float32)
    columns["dphi"] = fv.delta_phi(fv.phi(p4), fv.phi(axis)).astype(np.float32)
    branches = {f"part_{name}": ak.unflatten(values, jets.counts) for name, values in columns.items()}
    branches |= {"jet_pt": fv.pt(jet).astype(np.float32), "jet_energy": jet[:, 0].astype(np.float32)}
    branches |= {f"label_{name}": (jets.truth == i).astype(np.int32) for i, name in enumerate(CLASSES)}
    with uproot.recreate(path, compression=uproot.LZ4(4)) as file:
        tree = file.mktree("tree", {name: ak.type(values).content for name, values in map(_typed, branches.items())})
        for start in range(0, len(jets), 2500):
            tree.extend({name: values[start : start + 2500] for name, values in branches.items()})


def _typed(item: tuple[str, Any]) -> tuple[str, Any]:
    import awkward as ak

    return item[0], ak.Array(item[1])


# In the process of a contender.


def ours(folder: Path, name: str, **more: Any) -> Iterator[int]:
    """Numbers of jets of one batch after the other, for ever; 0 ends an epoch."""
    import torch

    from jetrep.features import FeatureConfig, Features
    from jetrep.training.batches import LoadingConfig, ShuffledBatches
    from jetrep.training.data import open_pool
    from jetrep.views.rg import subjets

    work, settings = OURS[name]
    features = Features(FeatureConfig())
    pool = open_pool([folder], history=work not in ("p4", "features"))
    batches = ShuffledBatches(pool, BATCH, loading=LoadingConfig(**settings, **more))
    with torch.inference_mode():
        for step, batch in enumerate(batches.from_step(0), 1):
            if work in ("features", "views", "view features"):
                features(batch)
            if work == "views":
                for n in SCALES:
                    subjets(batch, n)
            if work == "view features":
                for n in SCALES:
                    features(subjets(batch, n))
            yield len(batch)
            if step % batches.steps_per_epoch == 0:
                yield 0


def weaver(folder: Path, name: str, n_jets: int) -> Iterator[int]:
    import logging

    from torch.utils.data import DataLoader
    from weaver.utils.dataset import SimpleIterDataset

    logging.getLogger("weaver").setLevel(logging.ERROR)
    dataset = SimpleIterDataset({"jets": [str(folder / "jets.root")]}, str(folder / "kin.yaml"), **WEAVER[name])
    while True:
        shown = 0
        for inputs, _, _ in DataLoader(dataset, batch_size=BATCH, num_workers=0):
            yield len(inputs["pf_features"])
            shown += len(inputs["pf_features"])
            if shown > n_jets - BATCH and "in_memory" in WEAVER[name]:  # it goes on for ever
                break
        yield 0


def contend(folder: Path, name: str, n_jets: int, large: bool) -> None:
    """An epoch for each line on standard input; answers with its cost. Imports are over before the first."""
    if name not in WEAVER:
        # The tests' package vector hooks sympy into numba's compiler, 57 MB that no user of ours has.
        sys.modules["vector"] = None  # type: ignore[assignment]
    import torch

    torch.set_num_threads(1)
    small = {"window": 16} if large else {}
    store = folder / ("large" if large else "store")
    stream = weaver(folder, name, n_jets) if name in WEAVER else ours(store, name, **small)
    for line in sys.stdin:
        if line.strip() == "evict":
            evict(store)
        start = time.perf_counter(), time.process_time()
        n = sum(iter(lambda: next(stream), 0))
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        print(json.dumps({"jets": n, "wall": wall, "cpu": cpu, "rss": memory("VmHWM")}), flush=True)


def memory(key: str) -> float:
    """Megabytes (10⁶ bytes) of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the peak alone, in kB or bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def evict(store: Path) -> None:
    """Drop the files of a store from the page cache, so that they are read from the disk again."""
    for file in sorted(store.glob("*.arrow")):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


# In the process that compares them.


class Contender:
    """A process that runs an epoch whenever it is asked to."""

    def __init__(self, folder: Path, name: str, n_jets: int, *, large: bool = False) -> None:
        command = [sys.executable, __file__, "--contend", name, "--folder", str(folder), "--jets", str(n_jets)]
        command += ["--large"] * large
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.name = name

    def epoch(self, first: str = "") -> dict[str, float]:
        """Jets, seconds, and peak memory so far; ``first`` is what is to be done before."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{first}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(
    folder: Path, names: list[str], n_jets: int, repetitions: int
) -> tuple[dict[str, Timing], dict[str, dict[str, float]]]:
    """Timings of epochs in turn, and jets and peak memory of each."""
    contenders = [Contender(folder, name, n_jets) for name in names]
    # The first epoch compiles, opens and checks; memory counts from its beginning.
    found: dict[str, list[dict[str, float]]] = {c.name: [c.epoch()] for c in contenders}
    for _ in range(repetitions):
        for contender in contenders:
            found[contender.name].append(contender.epoch())
    for contender in contenders:
        contender.close()
    timings = {
        name: Timing(tuple(e["wall"] for e in epochs[1:]), tuple(e["cpu"] for e in epochs[1:]), "cpu")
        for name, epochs in found.items()
    }
    return timings, {name: {"jets": epochs[-1]["jets"], "rss": epochs[-1]["rss"]} for name, epochs in found.items()}


def beyond_memory(folder: Path, n_jets: int, repetitions: int) -> dict[str, float]:
    """A store read in windows much smaller than it: rates from the disk and from the page cache, growth of memory."""
    store = folder / "large"
    size = sum(file.stat().st_size for file in store.glob("*.arrow")) / 1e6
    raw = []
    for _ in range(repetitions):
        evict(store)
        start = time.perf_counter()
        for file in store.glob("*.arrow"):
            with file.open("rb", buffering=0) as stream:
                while stream.read(1 << 22):
                    pass
        raw.append(time.perf_counter() - start)
    contender = Contender(folder, "four-vectors, history", n_jets, large=True)
    first = contender.epoch()
    epochs = {what: [contender.epoch(what) for _ in range(repetitions)] for what in ("evict", "")}
    contender.close()
    cold, warm = (float(np.median([epoch["wall"] for epoch in epochs[what]])) for what in ("evict", ""))
    return {
        "store_mb": size,
        "windows": first["jets"] / (16 * 1024),
        "from_disk_jets_per_wall_s": first["jets"] / cold,
        "from_disk_mb_per_s": size / cold,
        "from_cache_jets_per_wall_s": first["jets"] / warm,
        "disk_alone_mb_per_s": size / float(np.median(raw)),
        "rss_mb": epochs[""][-1]["rss"],
        "rss_growth_after_first_epoch_mb": epochs[""][-1]["rss"] - first["rss"],
    }


_IMPORTS = """
from loading import memory
import torch
parts = {"torch": memory("VmRSS")}
import jetrep.features, jetrep.training.batches, jetrep.training.data
parts["torch, jetrep and what it needs"] = memory("VmRSS")
from numba.core import entrypoints, registry
entrypoints._already_initialized = True
registry.cpu_target.typing_context.refresh(), registry.cpu_target.target_context.refresh()
parts["and numba's compiler"] = memory("VmRSS")
entrypoints._already_initialized = False
entrypoints.init_all()
parts["and what other packages hook into numba"] = memory("VmRSS")
import json
print(json.dumps(parts))
"""


def imports() -> dict[str, float]:
    """Megabytes before a store is opened, as they add up."""
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", _IMPORTS], cwd=folder, capture_output=True, text=True, check=True)
    parts: dict[str, float] = json.loads(done.stdout)
    return parts


def preparing(folder: Path, jets: Any, repetitions: int) -> float:
    """Jets prepared from ROOT with the whole schema of JetClass, per second of processor time."""
    from preparation import preparation, write_root

    write_root(folder / "full.root", jets)
    work = preparation(folder / "full.root", folder / "prepared")
    return len(jets) / alternate({"": work}, repetitions=repetitions, clock="cpu")[""].seconds


def mixing(seed: int = 0) -> dict[str, dict[str, float]]:
    """Autocorrelation and spread in the order of a million jets in 20 files, sorted by class. Nothing is read."""
    from jetrep.evaluation.mixing import autocorrelation, batch_spread
    from jetrep.jets import Jets
    from jetrep.store.gather import JetPool, Part
    from jetrep.training.order import Order

    n_files, n = 20, 50_000
    nothing = Jets(np.zeros((0, 4), np.float32), np.zeros(1, np.int64))
    blocks = JetPool([Part(n, nothing)] * n_files).blocks(1024)
    rng = np.random.default_rng(seed)

    def order(window: int) -> Any:
        epoch = Order(blocks, window * 1024, seed).epoch(0)
        return np.concatenate([epoch.jets(w)[epoch.picks(w)] for w in range(epoch.order.n_windows)])

    def at_random(window: int) -> Any:
        drawn, shown = rng.permutation(len(blocks)), []
        for start in range(0, len(drawn), window):
            own = blocks[drawn[start : start + window]]
            spans = [np.arange(first, first + size) for first, size in zip(own.first, own.sizes, strict=True)]
            shown.append(rng.permutation(np.concatenate(spans)))
        return np.concatenate(shown)

    orders: dict[str, Callable[[], Any]] = {f"{w} blocks": lambda w=w: order(w) for w in (1, 4, 16, 64, 256)}
    orders |= {
        "all blocks": lambda: order(0),
        "64 blocks at random": lambda: at_random(64),
        "complete permutation": lambda: rng.permutation(n_files * n),
        "as it stands": lambda: np.arange(n_files * n),
    }
    table = {}
    for name, make in orders.items():
        files = make() // n
        row = {"batch_spread": batch_spread(files // (n_files // 2), BATCH)}
        for kind, values in (("label", files // (n_files // 2)), ("file", files)):
            rho, error = autocorrelation(values, LAGS)
            row |= {f"{kind}_lag_{lag}": float(value) for lag, value in zip(LAGS, rho, strict=True)}
            row[f"{kind}_error"] = error
        table[name] = row
    return table


def draw(table: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Autocorrelation at lag 1 against the size of a window."""
    from jetrep.report import style

    windows = [name for name in table if name.endswith("blocks")]
    sizes = [int(name.split()[0]) if name[0] != "a" else 980 for name in windows]
    with style.style():
        figure = style.new_figure()
        axes = figure.add_subplot()
        for i, kind in enumerate(("label", "file")):
            values = [abs(table[name][f"{kind}_lag_1"]) for name in windows]
            axes.plot(sizes, values, style.marker(i), ls=style.line(i), label=f"windows, {kind}")
            axes.axhline(table["complete permutation"][f"{kind}_error"], ls=":", c=style.colour(i))
        other = abs(table["64 blocks at random"]["label_lag_1"])
        axes.plot([64], [other], style.marker(2), label="64 blocks at random, label")
        axes.set(xscale="log", yscale="log", xlabel="Blocks of a window", ylabel="|Autocorrelation| at lag 1")
        axes.legend()
        style.save(figure, path)


def main() -> None:
    parser = command_line(__doc__, repetitions=5)
    parser.add_argument("--jets", type=int, default=50_000, help="number of jets (50000)")
    parser.add_argument("--data", type=Path, default=os.environ.get("JETREP_TEST_DATA"), help="folder of real jets")
    parser.add_argument("--copies", type=int, default=10, help="size of the large store, in units of the other (10)")
    parser.add_argument("--figure", type=Path, help="draw how windows mix to this file")
    for name in ("--contend", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contend:
        contend(Path(args.folder), args.contend, args.jets, args.large)
        return
    jets, real = jets_for(None if args.data is None else Path(args.data), args.jets)
    clustered = jets.clustered()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_store(folder / "store", clustered, 1)
        write_store(folder / "large", clustered, args.copies)
        write_root(folder / "jets.root", jets)
        (folder / "kin.yaml").write_text(WEAVER_CONFIG)
        timings, found = compare(folder, [*OURS, *WEAVER], len(jets), args.repetitions)
        large = beyond_memory(folder, len(jets), min(3, args.repetitions))
        prepared = preparing(folder, jets, min(3, args.repetitions))
    rates = {name: found[name]["jets"] / timing.seconds for name, timing in timings.items()}
    wall = {name: found[name]["jets"] / float(np.median(timing.wall)) for name, timing in timings.items()}
    fastest = max(WEAVER, key=rates.__getitem__)
    table = mixing()
    if args.figure:
        draw(table, args.figure)
    result = outcome(
        "loading",
        rates["7 features, 128"],
        rates[fastest],
        "jets/s",
        settings={
            "work": "shuffled batches: four-vectors, mask, 7 standardised features, padded to 128",
            "jets": len(jets),
            "source": "top tagging, real" if real else "made up",
            "mean_constituents": float(jets.counts.mean()),
            "batch": BATCH,
            "threads": 1,
            "clock": "CPU time, of reading ahead too",
            "views": list(SCALES),
            "peer": f"weaver-core, SimpleIterDataset, {fastest.removeprefix('weaver, ')}, one process",
        },
        timings=timings,
        packages=("torch", "numba", "weaver-core", "uproot", "awkward"),
        jets_per_cpu_s=rates,
        jets_per_wall_s=wall,
        rss_mb={name: record["rss"] for name, record in found.items()},
        rss_of_imports_mb=imports(),
        beyond_memory=large,
        preparation_jets_per_cpu_s=prepared,
        mixing=table,
    )
    publish(result, args)


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    main()

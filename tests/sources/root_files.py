"""What the tests of readers of ROOT files share: small files, and what every reader must hold."""

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources import _root
from jetrep.sources.chunks import Chunk, Source, every_chunk

JETCLASS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
JET = ("pt", "eta", "phi", "energy", "nparticles", "sdmass", "tau1", "tau2", "tau3", "tau4")
FLAGS = ("isChargedHadron", "isNeutralHadron", "isPhoton", "isElectron", "isMuon")


def lists(values: np.ndarray, counts: np.ndarray) -> ak.Array:
    """Flat values as lists of these lengths."""
    return ak.unflatten(ak.Array(np.ascontiguousarray(values)), np.asarray(counts))


def write_tree(file: Path, branches: dict[str, object], tree: str = "tree", per_basket: int | None = None) -> Path:
    """Branches that are not None as a TTree, with a basket for every ``per_basket`` entries."""
    columns = {name: column for name, column in branches.items() if column is not None}
    types = {
        name: ak.type(column).content if isinstance(column, ak.Array) else np.asarray(column).dtype
        for name, column in columns.items()
    }
    n = len(next(iter(columns.values())))
    with uproot.recreate(file) as root:
        written = root.mktree(tree, types)
        for start in range(0, n, per_basket or n or 1):
            written.extend({name: column[start : start + (per_basket or n)] for name, column in columns.items()})
    return file


def jetclass_branches(jets: Jets, seed: int = 0) -> dict[str, object]:
    """The branches that JetClass and JetClass-II share, with measured columns unless the jets have them."""
    rng = np.random.default_rng(seed)
    n, counts = len(jets.p4), jets.counts
    kind = rng.integers(0, 5, n)
    measured = {
        **{flag: kind == i for i, flag in enumerate(FLAGS)},
        "charge": np.where(np.isin(kind, (1, 2)), 0, rng.choice([-1, 1], n)).astype(np.float32),
        **{name: rng.normal(size=n).astype(np.float32) for name in ("d0val", "d0err", "dzval", "dzerr")},
        **{name: rng.normal(size=n).astype(np.float32) for name in ("deta", "dphi")},
    }
    momenta = {name: jets.p4[:, i] for i, name in enumerate(("energy", "px", "py", "pz"))}
    branches: dict[str, object] = {f"part_{k}": lists(v, counts) for k, v in {**momenta, **measured}.items()}
    branches |= {f"jet_{name}": rng.normal(size=len(jets)).astype(np.float32) for name in JET}
    branches["jet_nparticles"] = counts.astype(np.float32)
    return branches


def one_hot(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {f"label_{name}": labels == i for i, name in enumerate(JETCLASS)}


def read(source: Source) -> tuple[Jets, dict[str, np.ndarray]]:
    return joined(list(every_chunk(source)))


def joined(chunks: list[Chunk]) -> tuple[Jets, dict[str, np.ndarray]]:
    """The jets and flags of all chunks; a flag that a chunk does not have is False."""
    names = sorted({name for chunk in chunks for name in chunk.flags})
    flags = {
        name: np.concatenate([chunk.flags.get(name, np.zeros(len(chunk.jets), bool)) for chunk in chunks])
        for name in names
    }
    return Jets.concatenate([chunk.jets for chunk in chunks]), flags


def assert_same(a: Jets, b: Jets) -> None:
    """Every array of two samples is the same, type included."""
    assert a.classes == b.classes
    assert (a.labels is None) == (b.labels is None)
    pairs = [(a.p4, b.p4), (a.offsets, b.offsets)]
    if a.labels is not None and b.labels is not None:
        pairs.append((a.labels, b.labels))
    for mine, other in ((a.measured, b.measured), (a.observers, b.observers)):
        assert list(mine) == list(other)
        pairs += [(mine[name], other[name]) for name in mine]
    for one, two in pairs:
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def check_pieces(source: Source, monkeypatch, modules: dict[str, int]) -> None:
    """A source out of a pickle, in small chunks and ranges of rows, gives the jets of the whole.

    Args:
        source: with one file.
        monkeypatch: of the test.
        modules: the constants that bound a chunk, and what to set them to.
    """
    whole, flags = read(source)
    for constant, rows in modules.items():
        monkeypatch.setattr(constant, rows)
    n = source.rows[0]
    cuts = [0, 1, n // 3, n // 3, n - 1, n]
    again = pickle.loads(pickle.dumps(source))
    chunks = [chunk for start, stop in itertools.pairwise(cuts) for chunk in again.read(0, start, stop)]
    assert len(chunks) > len(cuts) - 2
    starts = [chunk.start for chunk in chunks]
    assert starts == sorted(starts)
    jets, flags_again = joined(chunks)
    assert_same(jets, whole)
    assert flags_again.keys() == flags.keys()
    for name in flags:
        np.testing.assert_array_equal(flags_again[name], flags[name])
    monkeypatch.undo()


def check_mutations(file: Path, folder: Path, make: Callable[[Path], Source], seeds: range) -> None:
    """Bits flipped, ranges zeroed, bytes changed near head and tail, the end cut off: jets, or one line of why."""
    content, damaged = file.read_bytes(), folder / file.name
    complaints = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        data = bytearray(content)
        match seed % 4:
            case 0:
                for place in rng.integers(0, len(data), rng.integers(1, 20)):
                    data[place] ^= 1 << int(rng.integers(8))
            case 1:
                place, n = int(rng.integers(0, len(data) - 400)), int(rng.integers(1, 400))
                data[place : place + n] = bytes(n)
            case 2:
                del data[int(rng.integers(len(data))) :]
            case 3:
                # The directory stands in front, the tree and its branches at the end.
                place = int(
                    rng.integers(300) if rng.random() < 0.5 else len(data) - 1 - rng.integers(min(60_000, len(data)))
                )
                data[place] = int(rng.integers(256))
        damaged.write_bytes(data)
        complaint = _complaint(lambda: make(damaged))
        assert complaint is None or (str(damaged) in complaint and "\n" not in complaint), seed
        complaints += complaint is not None
    assert len(seeds) // 4 <= complaints <= len(seeds)


def _complaint(make: Callable[[], Source]) -> str | None:
    try:
        for chunk in every_chunk(make()):
            assert len(chunk.jets) >= 0
    except InputError as problem:
        return str(problem)
    return None


CHUNK = f"{_root.__name__}.CHUNK"

"""What the tests of all readers of HDF5 and npz files share: writing small files, and what every reader must hold."""

import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources.chunks import Chunk, Source, every_chunk


def write_hdf5(file: Path, attributes: dict[str, tuple[str, ...]] | None = None, **datasets) -> Path:
    """Datasets that are not None; ``attributes`` are the names in ``cols`` of each."""
    with h5py.File(file, "w") as hdf5:
        for name, values in datasets.items():
            if values is not None:
                hdf5.create_dataset(name, data=values, compression="gzip" if np.size(values) > 100 else None)
        for name, cols in (attributes or {}).items():
            if name in hdf5:
                hdf5[name].attrs["cols"] = np.array(cols, "S")
    return file


def write_npz(file: Path, **arrays) -> Path:
    np.savez_compressed(file, **{name: values for name, values in arrays.items() if values is not None})
    return file


def joined(chunks: list[Chunk]) -> tuple[Jets, dict[str, np.ndarray]]:
    """The jets of all chunks, and their flags."""
    flags = {name: np.concatenate([chunk.flags[name] for chunk in chunks]) for name in chunks[0].flags}
    return Jets.concatenate([chunk.jets for chunk in chunks]), flags


def read(source: Source) -> Jets:
    return joined(list(every_chunk(source)))[0]


def flags(source: Source) -> dict[str, np.ndarray]:
    return joined(list(every_chunk(source)))[1]


def assert_same(a: Jets, b: Jets) -> None:
    np.testing.assert_array_equal(a.p4, b.p4)
    np.testing.assert_array_equal(a.offsets, b.offsets)
    assert a.classes == b.classes
    assert (a.labels is None) == (b.labels is None)
    if a.labels is not None:
        np.testing.assert_array_equal(a.labels, b.labels)
    for kind in ("measured", "observers"):
        mine, theirs = getattr(a, kind), getattr(b, kind)
        assert list(mine) == list(theirs)
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(mine[name], theirs[name])


def check_pieces(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges in any order, chunks of any size, and a source out of a pickle give the jets of the whole."""
    rng = np.random.default_rng(5)
    again = pickle.loads(pickle.dumps(source))
    for file, rows in enumerate(source.rows):
        whole, flagged = joined(list(source.read(file, 0, rows)))
        assert len(whole) == rows
        monkeypatch.setattr("jetrep.sources.chunks.CHUNK", 3)
        parts = list(again.read(file, 0, rows))
        assert max(len(part.jets) for part in parts) == min(3, rows)
        assert [part.start for part in parts] == list(range(0, rows, 3))
        assert_same(joined(parts)[0], whole)
        for _ in range(6):
            start, stop = sorted(rng.integers(0, rows + 1, 2).tolist())
            parts = list(again.read(file, start, stop))
            assert sum(len(part.jets) for part in parts) == stop - start
            if start < stop:
                jets, flags = joined(parts)
                assert_same(jets, whole[start:stop])
                for name in flagged:
                    np.testing.assert_array_equal(flags[name], flagged[name][start:stop])
        monkeypatch.undo()


def complaint_about(make: Callable[[], Source]) -> str | None:
    """What the reader says about its files, if it does not take them."""
    try:
        read(make())
    except InputError as problem:
        return str(problem)
    return None


def check_mutations(file: Path, make: Callable[[Path], Source], n: int = 40) -> None:
    """A file with some bytes changed, or cut short, gives jets or one line that names the file; nothing else."""
    content, complaints = file.read_bytes(), 0
    try:
        for seed in range(n):
            rng = np.random.default_rng(seed)
            mutated = bytearray(content)
            # Headers stand in front or at the end, and most damage elsewhere is seen by a checksum or by nobody.
            places = np.concatenate([rng.integers(0, len(content), 4), rng.integers(0, min(4096, len(content)), 8)])
            for place in places[: rng.integers(1, 13)]:
                mutated[place] = rng.integers(256)
            file.write_bytes(mutated[: len(content) if seed % 4 else rng.integers(len(content))])
            complaint = complaint_about(lambda: make(file))
            assert complaint is None or (str(file.parent) in complaint and "\n" not in complaint)
            complaints += complaint is not None
    finally:
        file.write_bytes(content)
    assert complaints > n // 8

"""Preparation on a Dask cluster of real processes gives the store that this process alone would give."""

import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.store import Store
from jetrep.store import crew as crew_module
from jetrep.store.prepare import prepare

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:
        yield cluster


@pytest.fixture
def files(tmp_path, make_jets) -> list[Path]:
    rng = np.random.default_rng(0)
    names = []
    for number, length in enumerate((700, 40, 860)):
        jets = make_jets(rng.integers(0, 40, length), seed=number, classes=("qcd", "top"))
        names.append(tmp_path / f"{number}.npz")
        np.savez(names[-1], p4=jets.p4, n=jets.counts, y=jets.labels)
    return names


HOW = {"classes": ["qcd", "top"], "jets_per_shard": 100, "quiet": True}


def assert_the_same(store: Store, other: Store) -> None:
    store.verify()
    assert store.content_hash == other.content_hash
    assert store.manifest.provenance == other.manifest.provenance
    assert store.manifest.dropped == other.manifest.dropped


def test_the_same_store_as_alone(cluster, files, tmp_path, monkeypatch):
    alone = prepare("arrays", files, out=tmp_path / "alone", workers=1, **HOW)
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    names = [Path(file.name) for file in files]
    for more in ({}, {"max_jets": 777}):
        expected = prepare("arrays", files, out=tmp_path / "alone", workers=1, overwrite=True, **more, **HOW)
        on_dask = prepare(
            "arrays", names, out=Path("dask"), dask=cluster.scheduler_address, overwrite=True, **more, **HOW
        )
        assert_the_same(on_dask, expected)
    assert alone.content_hash != on_dask.content_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npz", "1.npz", "2.npz", "alone", "dask"]


def test_bad_input_comes_back_as_what_it_is(cluster, files, tmp_path, make_jets):
    jets = make_jets([4] * 10)
    p4 = jets.p4.copy()
    p4[7, 1] = np.nan
    np.savez(tmp_path / "bad.npz", p4=p4, n=jets.counts, y=np.zeros(10, int))
    with pytest.raises(InputError, match=r"bad.npz, jet 1, field 'px': constituent 3 has px = nan"):
        prepare("arrays", [*files, tmp_path / "bad.npz"], out=tmp_path / "s", dask=cluster.scheduler_address, **HOW)
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_worker_that_is_killed_is_replaced(cluster, files, tmp_path):
    with distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))
    alone = prepare("arrays", files, out=tmp_path / "alone", workers=1, **HOW)

    killed = []

    class Impatient(crew_module._Dask):
        def submit(self, job, part, limit):
            future = super().submit(job, part, limit)
            if part.number == 3:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
            return future

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew_module, "_Dask", Impatient)
        store = prepare("arrays", files, out=tmp_path / "s", dask=cluster.scheduler_address, **HOW)
    assert killed
    assert_the_same(store, alone)


def test_no_scheduler(files, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "_ANSWER", 0.5)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9; give the address"):
        prepare("arrays", files, out=tmp_path / "s", dask="tcp://127.0.0.1:9", **HOW)
    with pytest.raises(InputError, match="no Dask scheduler answers at nonsense://x"):
        prepare("arrays", files, out=tmp_path / "s", dask="nonsense://x", **HOW)
    with pytest.raises(InputError, match="field 'dask': cannot be given together with workers"):
        prepare("arrays", files, out=tmp_path / "s", dask="tcp://127.0.0.1:9", workers=2, **HOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npz", "1.npz", "2.npz"]


def test_dask_is_not_installed(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"Dask is not installed; install it with pip install 'jetrep\[dask\]'"):
        prepare("arrays", files, out=tmp_path / "s", dask="tcp://127.0.0.1:8786", **HOW)


def test_workers_with_other_versions_are_refused(files, tmp_path, monkeypatch):
    from jetrep.store import parts

    monkeypatch.setattr(parts, "versions", lambda: {**crew_module.versions(), "numba": "0.1"})
    with pytest.raises(InputError, match=r"field 'dask': a worker has numba 0.1, this process .*; install the same"):
        prepare("arrays", files, out=tmp_path / "s", **HOW)

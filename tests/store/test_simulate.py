"""The verb simulate: a balanced, reproducible store that says how it was made, or none at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.sources import pythia
from jetrep.store import Store
from jetrep.store.simulate import simulate


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythia, "CHUNK_JETS", 10)


def test_classes_are_balanced_along_the_store_and_runs_repeat(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = {"processes": ["qcd", "w"], "jets": 25, "preset": "toptagging", "seed": 2, "workers": 1}
    simulate(tmp_path / "a", **options)
    printed = capsys.readouterr().out
    simulate(tmp_path / "b", **options, quiet=True)
    assert capsys.readouterr() == ("", "")
    a, b = Store(tmp_path / "a"), Store(tmp_path / "b")
    assert a.manifest.content_hash == b.manifest.content_hash
    jets = a.jets()
    assert jets.classes == ("qcd", "w")
    assert jets.history is not None
    assert jets.labels is not None
    for begin, end in ((0, 20), (20, 40), (40, 50)):
        assert np.bincount(jets.labels[begin:end]).tolist() == [(end - begin) // 2] * 2
    # mixed within each stretch, too
    assert len(set(jets.labels[:10].tolist())) == 2
    assert "qcd" in printed
    assert "50 jets" in printed


def test_provenance_is_enough_to_make_the_store_again(tmp_path: Path) -> None:
    file = tmp_path / "light.cmnd"
    file.write_text("HardQCD:qq2qq = on\n")
    out = tmp_path / "store"
    simulate(out, processes=[f"custom:{file}"], jets=5, preset="toptagging", workers=1, quiet=True, unlabeled=True)
    manifest = json.loads((out / "manifest.json").read_text())
    provenance = manifest["provenance"]
    assert manifest["classes"] == []
    assert Store(out).jets().labels is None
    assert provenance["pythia"]["light"][-1] == "HardQCD:qq2qq = on"
    assert "Beams:eCM = 14000" in provenance["pythia"]["light"]
    assert provenance["settings"]["seed"] == 0
    assert provenance["preset"]["pt"] == [550.0, 650.0]
    assert {"pythia8mc", "fastjet", "jetrep"} <= set(provenance["versions"])
    # names of folders are nobody's business
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "wrong.cmnd"
    file.write_text("HardQCD:al = on\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="line 1: HardQCD:al = on"):
        simulate(tmp_path / "s", processes=["custom"], settings=file, jets=5, workers=1, quiet=True)
    with pytest.raises(InputError, match="positive number"):
        simulate(tmp_path / "s", jets=0, quiet=True)
    for failure in (KeyboardInterrupt, OSError):

        def fail(*_: object, failure: type[BaseException] = failure, **__: object) -> None:
            raise failure

        monkeypatch.setattr("jetrep.store.simulate.observables.OBSERVABLES", {"pt": fail})
        with pytest.raises(failure):
            simulate(tmp_path / "s", processes=["qcd"], jets=5, preset="toptagging", workers=1, quiet=True)
    assert sorted(tmp_path.iterdir()) == before

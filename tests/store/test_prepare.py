"""The verb `prepare`: no jet is lost, bad input is named, and nothing half-written remains."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.store import Store
from jetrep.store.manifest import file_hash
from jetrep.store.prepare import prepare


def save(file: Path, jets, **change) -> Path:
    arrays = {"p4": jets.p4, "n": jets.counts}
    if jets.labels is not None:
        arrays["y"] = jets.labels
    np.savez(file, **{**arrays, **change})
    return file


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    bad=st.sets(st.integers(0, 29)),
    minimum=st.integers(1, 5),
    max_particles=st.one_of(st.none(), st.integers(5, 8)),
    max_jets=st.one_of(st.none(), st.integers(1, 20)),
    select=st.sampled_from([None, ["qcd"], ["top", "w"]]),
    unlabeled=st.booleans(),
)
def test_read_is_kept_plus_dropped(
    tmp_path, make_jets, counts, bad, minimum, max_particles, max_jets, select, unlabeled
):
    """Against the plain definition, jet by jet."""
    classes = ["qcd", "top", "w"]
    jets = make_jets(counts, classes=tuple(classes))
    p4 = jets.p4.copy()
    bad = {jet for jet in bad if jet < len(counts) and counts[jet]}
    for jet in bad:
        p4[jets.offsets[jet + 1] - 1, jet % 4] = [np.nan, np.inf, -np.inf][jet % 3]
    kept, dropped = [], {}
    for jet, n in enumerate(counts):
        if max_jets is not None and len(kept) == max_jets:
            break
        reason = (
            "other class" if select and classes[jets.labels[jet]] not in select
            else "invalid" if jet in bad
            else "empty" if n == 0
            else "too few constituents" if n < minimum
            else None
        )  # fmt: skip
        if reason is None:
            kept.append(jet)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    file = save(tmp_path / "a.npz", jets, p4=p4)
    how = {
        "classes": classes,
        "min_particles": minimum,
        "max_particles": max_particles,
        "max_jets": max_jets,
        "select": select,
        "unlabeled": unlabeled,
        "drop_invalid": True,
        "overwrite": True,
        "quiet": True,
    }
    if not kept:
        with pytest.raises(InputError, match="no jets to store"):
            prepare("arrays", [file], out=tmp_path / "s", **how)
        return
    store = prepare("arrays", [file], out=tmp_path / "s", **how)
    assert store.manifest.dropped == dropped
    expected = jets[np.array(kept)]
    if max_particles is not None:
        expected = expected.leading(max_particles)
    read = store.jets()
    assert read.p4.tobytes() == expected.p4.tobytes()
    np.testing.assert_array_equal(read.counts, expected.counts)
    if unlabeled:
        assert read.labels is None
    else:
        np.testing.assert_array_equal(read.labels, expected.labels)


@pytest.mark.parametrize(
    ("component", "value", "words"),
    [
        (2, np.nan, "jet 2, field 'py': constituent 1 has py = nan; .*--drop-invalid"),
        (0, np.inf, "jet 2, field 'E': constituent 1 has E = inf"),
        (0, -3, "jet 2, field 'E': constituent 1 has the energy -3.0 GeV; give the components in the order E, px"),
    ],
)
def test_an_impossible_momentum_is_named(tmp_path, make_jets, component, value, words):
    jets = make_jets([3, 0, 4, 4])
    p4 = jets.p4.copy()
    p4[4, component] = value
    good, bad = save(tmp_path / "good.npz", jets), save(tmp_path / "bad.npz", jets, p4=p4)
    with pytest.raises(InputError, match=f"bad.npz, {words}"):
        prepare("arrays", [good, bad], out=tmp_path / "s", quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.npz", "good.npz"]
    # Jets behind the last one that is asked for do not matter.
    assert len(prepare("arrays", [good, bad], out=tmp_path / "s", max_jets=4, quiet=True)) == 4


def test_the_manifest_tells_where_the_jets_come_from(tmp_path, make_jets):
    jets = make_jets([3, 0, 4], classes=("a", "b"))
    file = save(tmp_path / "mine.npz", jets)
    store = prepare("arrays", [file], out=tmp_path / "s", algorithm="cambridge", R=0.4, quiet=True)
    told = store.manifest.provenance
    assert told["files"] == [{"file": "mine.npz", "bytes": file.stat().st_size, "hash": file_hash(file)}]
    assert told["settings"]["algorithm"] == store.manifest.algorithm == "cambridge"
    assert told["settings"]["min_particles"] == 1
    assert {"python", "jetrep", "numpy"} <= set(told["versions"])


def test_the_summary_names_what_was_dropped(tmp_path, make_jets, capsys):
    prepare("arrays", [save(tmp_path / "a.npz", make_jets([3, 0, 0, 4], classes=("a", "b")))], out=tmp_path / "s")
    printed = " ".join(capsys.readouterr().out.split())
    assert "read 4 jets" in printed
    assert "kept 2 jets, 7 constituents" in printed
    assert "dropped: empty 2 jets" in printed
    prepare("arrays", [tmp_path / "a.npz"], out=tmp_path / "t", quiet=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_particles": 0}, "field 'min_particles'"),
        ({"max_particles": 2, "min_particles": 3}, "field 'max_particles': is 2, below min_particles"),
        ({"max_jets": 0}, "field 'max_jets'"),
        ({"select": ["higgs"]}, "field 'select': no class is called 'higgs', only 0, 1"),
        ({"select": ["0"], "label_column": "flavour"}, "has no labels 'flavour'"),
        ({"classes": ["a"]}, "field 'y': label 1 is outside of the 1 classes"),
        ({"classes": ["a", "a"]}, "field 'classes': two classes have the same name"),
        ({"duplicates": Path("x.npz")}, "field 'duplicates'"),
        ({"jets_per_shard": 0}, "field 'jets_per_shard'"),
        ({"R": -1.0}, "field 'R'"),
        ({"source": "toptagging", "classes": ["a", "b"]}, "field 'classes': is no setting of 'toptagging' files"),
        ({"source": "toptagging", "label_column": "y"}, "field 'label_column'"),
        ({"source": "jetclass9"}, "no source is called 'jetclass9'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, make_jets, settings, words):
    jets = make_jets([3, 4, 5, 3]).with_labels(np.array([0, 1, 0, 1]))
    file = save(tmp_path / "a.npz", jets)
    with pytest.raises(InputError, match=words):
        prepare(**{"source": "arrays", "files": [file], "out": tmp_path / "s", "quiet": True, **settings})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_selecting_from_unlabelled_jets(tmp_path, make_jets):
    file = save(tmp_path / "a.npz", make_jets([3, 4]))
    with pytest.raises(InputError, match="none, the jets are unlabelled"):
        prepare("arrays", [file], out=tmp_path / "s", select=["qcd"], quiet=True)


def test_real_top_tagging_jets(real_data, tmp_path):
    folder = real_data / "toptagging"
    files = [folder / "top_test_00.npz", folder / "top_test_01a.npz"]
    store = prepare(
        "toptagging", files, out=tmp_path / "s", duplicates=folder / "duplicates.npz", select=["qcd"], quiet=True
    )
    store.verify()
    manifest = Store(tmp_path / "s").manifest
    assert manifest.dropped["duplicate"] == 18
    assert manifest.jets + sum(manifest.dropped.values()) == 15_000
    assert manifest.label_counts["top"] == 0
    # The order of the file is kept, so published scores still belong to their jets.
    raw = np.load(files[0])
    first = int(np.flatnonzero(raw["y"] == 0)[0])
    assert store.jets()[0].tobytes() == raw["p4"][raw["n"][:first].sum() :][: raw["n"][first]].tobytes()

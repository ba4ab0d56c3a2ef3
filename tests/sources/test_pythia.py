"""Simulated jets: selection, kinematics, masses, reproducibility, and what a user hears about wrong settings."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector, observables
from jetrep.physics.detector_presets import DETECTORS
from jetrep.sources import _pythia_worker as worker
from jetrep.sources import pythia
from jetrep.sources._pythia_veto import EarlyVeto
from jetrep.sources.pythia import PRESETS, PROCESSES, TUNES, generate, generate_mixture, pythia_settings
from jetrep.sources.pythia_presets import JetPreset, process_of, read_settings, settings_for


def _chunk(process: str, n_jets: int, preset: JetPreset | str = "toptagging", seed: int = 1, **more: Any) -> Jets:
    jet_preset = PRESETS[preset] if isinstance(preset, str) else preset
    chosen = PROCESSES[process]
    lines = settings_for(chosen, (), jet_preset, TUNES[more.pop("tune", "default")])
    chunk = worker.Chunk(chosen, lines, jet_preset, 0, (process,), seed, 0, n_jets, **more)
    result = worker.simulate_chunk(chunk)
    assert isinstance(result, worker.ChunkResult)
    return result.jets


def _jets(*arguments: Any, **options: Any) -> Jets:
    return Jets.concatenate(list(generate(*arguments, workers=1, quiet=True, **options)))


def test_jets_lie_in_the_window_and_are_sorted() -> None:
    jets = _jets("qcd", 60, preset="toptagging", seed=3)
    assert len(jets) == 60
    assert jets.classes == ("qcd",)
    assert np.all(jets.labels == 0)
    # float32 moves the sum by parts per million
    assert np.all((observables.pt(jets) > 549.99) & (observables.pt(jets) < 650.01))
    assert np.all(np.abs(observables.eta(jets)) < 2.0001)
    pt = fourvector.pt(jets.p4)
    assert np.all(np.diff(pt)[np.diff(np.repeat(np.arange(60), jets.counts)) == 0] <= 0)
    # constituents of an anti-kT jet lie within R of its axis, in rapidity
    axis = np.repeat(jets.jet_p4, jets.counts, axis=0)
    distance = np.hypot(
        fourvector.rapidity(jets.p4) - fourvector.rapidity(axis),
        fourvector.delta_phi(fourvector.phi(jets.p4), fourvector.phi(axis)),
    )
    assert distance.max() < 1.2
    assert np.mean(distance < 0.8) > 0.99


def test_truncation_keeps_the_hardest() -> None:
    whole = replace(PRESETS["toptagging"], max_constituents=1000)
    all_of_them, hardest = _chunk("qcd", 25, whole), _chunk("qcd", 25, replace(whole, max_constituents=20))
    assert hardest.counts.max() <= 20 < all_of_them.counts.max()
    for j in range(25):
        np.testing.assert_array_equal(hardest[j], all_of_them[j][:20])


def test_jets_are_the_two_hardest_of_fastjet_and_sum_to_them() -> None:
    preset = replace(PRESETS["toptagging"], detector=DETECTORS["none"], pt=(100.0, 1e4))
    events = worker.start_pythia(settings_for(PROCESSES["qcd"], (), preset, TUNES["default"]), 5).nextBatch(20)
    p4, pdg, offsets = worker._flatten(events.prt[events.prt.status > 0])
    seen = preset.detector(p4, pdg, offsets, np.random.default_rng(0))
    jets, constituents = worker._leading_jets(seen, preset)
    sums = np.stack([seen.p4[np.asarray(index)].sum(0) for index in constituents])
    np.testing.assert_allclose(sums, jets.p4, rtol=1e-9, atol=1e-7)
    # no particle belongs to two jets, or to an event of another
    used = ak.to_numpy(ak.flatten(constituents))
    assert len(np.unique(used)) == len(used)
    for index, event in zip(constituents, jets.event, strict=True):
        assert seen.offsets[event] <= min(index)
        assert max(index) < seen.offsets[event + 1]
    # two per event, harder first, and nothing else in the event is harder than the second
    assert np.array_equal(np.bincount(jets.event), np.full(20, 2))
    pt = fourvector.pt(jets.p4).reshape(20, 2)
    assert np.all(pt[:, 0] >= pt[:, 1])
    rest = np.setdiff1d(np.arange(len(seen.p4)), used)
    assert np.all(fourvector.pt(seen.p4[rest]) < np.repeat(pt[:, 1], np.diff(seen.offsets))[rest])


@pytest.mark.parametrize(("process", "low", "high"), [("w", 78.0, 86.0), ("z", 88.0, 97.0), ("top", 168.0, 178.0)])
def test_masses_peak_where_they_should(process: str, low: float, high: float) -> None:
    """At particle level without multi-parton interactions; the shower out of the jet and into it widens the peak."""
    preset = replace(PRESETS["toptagging"], detector=DETECTORS["none"])
    mass = observables.mass(_chunk(process, 60, preset))
    assert low < np.median(mass) < high
    # half of the jets lie within 8 % of the median
    assert np.mean(np.abs(mass / np.median(mass) - 1) < 0.08) > 0.5


@pytest.mark.parametrize(("process", "codes"), [("g", {21}), ("q", {1, 2, 3})])
def test_hard_partons_are_what_the_label_says(process: str, codes: set[int]) -> None:
    """Two outgoing partons, no charm or bottom quark among them; status 23 marks them."""
    preset = PRESETS["jetnet"]
    events = worker.start_pythia(settings_for(PROCESSES[process], (), preset, TUNES["default"]), 2).nextBatch(150)
    outgoing = events.prt[np.abs(events.prt.status) == 23]
    assert ak.all(ak.num(outgoing) == 2)
    assert set(np.abs(ak.to_numpy(ak.flatten(outgoing.id)))) == codes


def test_gluons_radiate_more_than_quarks() -> None:
    """The colour factor of gluons is 9/4 that of quarks: more particles and larger masses in jets of the same pT."""
    preset = replace(PRESETS["toptagging"], detector=DETECTORS["none"])
    gluons, quarks = (_chunk(process, 100, preset) for process in ("g", "q"))
    assert gluons.counts.mean() > 1.3 * quarks.counts.mean()
    assert np.median(observables.mass(gluons)) > 1.2 * np.median(observables.mass(quarks))


def test_decays_are_found_in_the_record() -> None:
    """The quarks of each decay have the mass of what decayed."""
    for process, mass, width in (("top", 173.0, 25.0), ("w", 80.0, 20.0), ("z", 91.0, 21.0)):
        preset = PRESETS["toptagging"]
        lines = settings_for(PROCESSES[process], (), preset, TUNES["default"])
        events = worker.start_pythia(lines, 7).nextBatch(20)
        axes, prongs = worker._decays(events.prt, PROCESSES[process])
        assert np.isfinite(axes).all()
        assert np.isfinite(prongs).all()
        p4, _, _ = worker._flatten(events.prt)
        direction = np.stack([fourvector.eta(p4), fourvector.phi(p4)], -1)
        for two in prongs:
            for quarks in two:
                found = [p4[np.flatnonzero(np.all(direction == quark, axis=1))[0]] for quark in quarks]
                assert fourvector.mass(np.sum(found, axis=0)) == pytest.approx(mass, abs=width)


@pytest.mark.parametrize("process", ["qcd", "g", "q", "top", "z"])
def test_the_early_veto_stops_only_hopeless_events(process: str) -> None:
    """Asked without being obeyed, it condemns most events and hardly any jet."""

    class Recorder(EarlyVeto):
        def doVetoPT(self, position: int, event: Any) -> bool:  # noqa: N802
            if position <= 3:
                condemned.append(self.hopeless(event))
            return False

    condemned: list[bool] = []
    preset, chosen = PRESETS["toptagging"], PROCESSES[process]
    veto = Recorder(preset, chosen)
    events = worker.start_pythia(settings_for(chosen, (), preset, TUNES["default"]), 11, veto).nextBatch(500)
    assert len(condemned) == len(events) == 500
    p4, pdg, offsets = worker._flatten(events.prt[events.prt.status > 0])
    jets, _ = worker._leading_jets(preset.detector(p4, pdg, offsets, np.random.default_rng(0)), preset)
    passed = (fourvector.pt(jets.p4) < preset.pt[1]) & (np.abs(fourvector.eta(jets.p4)) < preset.eta_max)
    if chosen.resonance is not None:
        passed &= worker._contains_decay(jets, events.prt, chosen)
    in_event = np.bincount(jets.event[passed], minlength=500)
    assert in_event.sum() > 40
    assert np.mean(condemned) > 0.4
    assert in_event[np.array(condemned)].sum() <= 0.06 * in_event.sum()


def test_the_same_seed_gives_the_same_jets_with_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pythia, "CHUNK_JETS", 15)
    options = {"preset": "toptagging", "seed": 4, "quiet": True}
    alone = list(generate_mixture(["qcd", "w"], 40, workers=1, **options))
    together = list(generate_mixture(["qcd", "w"], 40, workers=2, **options))
    assert [len(jets) for jets in alone] == [15, 15, 15, 15, 10, 10]
    assert [int(jets.labels[0]) for jets in alone if jets.labels is not None] == [0, 1, 0, 1, 0, 1]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a.p4, b.p4)
        np.testing.assert_array_equal(a.offsets, b.offsets)
        np.testing.assert_array_equal(a.labels, b.labels)
    # a process does not notice the others, and chunks and seeds differ
    np.testing.assert_array_equal(_jets("w", 15, preset="toptagging", seed=4).p4, alone[1].p4)
    assert not np.array_equal(alone[0].p4[:5], alone[2].p4[:5])
    assert not np.array_equal(_jets("qcd", 15, preset="toptagging", seed=5).p4[:5], alone[0].p4[:5])


def test_tunes_reach_pythia() -> None:
    """What Pythia works with, after its own tune has been read, is what the tune says."""
    preset, qcd = PRESETS["toptagging"], PROCESSES["qcd"]
    parameters = ("TimeShower:alphaSvalue", "StringZ:aLund", "StringPT:sigma")
    started = {t: worker.start_pythia(settings_for(qcd, (), preset, TUNES[t]), 1) for t in ("default", "collisions")}
    values = {tune: [started[tune].parm(name) for name in parameters] for tune in started}
    assert values["default"] == pytest.approx([0.1365, 0.68, 0.335])  # Monash, arXiv:1404.5630
    assert values["collisions"] == pytest.approx([0.118, 0.36, 0.29])
    assert not started["default"].flag("PartonLevel:MPI")
    assert started["collisions"].flag("PartonLevel:MPI")


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("tune", list(TUNES))
def test_pythia_takes_every_line_of_every_preset_and_tune(preset: str, tune: str, capfd: pytest.CaptureFixture) -> None:
    for process in PROCESSES.values():
        worker.start_pythia(settings_for(process, (), PRESETS[preset], TUNES[tune]), 1)
    assert capfd.readouterr() == ("", "")


def test_simulation_is_silent(capfd: pytest.CaptureFixture) -> None:
    _jets("qcd", 5, preset="toptagging")
    assert capfd.readouterr() == ("", "")


def test_custom_process(tmp_path: Path) -> None:
    file = tmp_path / "gluons.cmnd"
    file.write_text("! only gluons\n\nHardQCD:gg2gg = on\n/* not this:\nTop:all = on\n*/\nPhaseSpace:pTHatMin = 560\n")
    assert [(line.text, line.line) for line in read_settings(file)] == [
        ("HardQCD:gg2gg = on", 3),
        ("PhaseSpace:pTHatMin = 560", 7),
    ]
    named = _jets(f"custom:{file}", 10, preset="toptagging")
    given = _jets("custom", 10, preset="toptagging", settings=file)
    assert (len(named), named.classes) == (10, ("gluons",))
    assert (len(given), given.classes) == (10, ("custom",))
    # the user's lines come after the preset's, so they win
    lines = pythia_settings([f"custom:{file}"], preset="toptagging", tune="default")["gluons"]
    assert lines.index("PhaseSpace:pTHatMin = 560") > lines.index("PhaseSpace:pTHatMin = 380")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("HardQDC:all = on", "does not know this setting"),
        ("TimeShower:alphaSvalue = 7", "out of range"),
        ("24:onMude = off", "does not know this setting"),
        ("Random:seed = 3", "use --seed"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str, capfd: pytest.CaptureFixture) -> None:
    file = tmp_path / "mine.cmnd"
    file.write_text(f"# mine\nHardQCD:all = on\n{line}\n")
    with pytest.raises(InputError, match=message) as caught:
        generate("custom", 10, settings=file, workers=1)
    assert str(file) in str(caught.value)
    assert f"line 3: {line}" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_settings_with_which_pythia_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "mine.cmnd"
    file.write_text("PDF:pSet = NoSuchSet\nHardQCD:all = on\n")
    with pytest.raises(InputError, match="does not start") as caught:
        generate("custom", 10, settings=file, workers=1)
    assert str(file) in str(caught.value)


def test_a_process_without_jets_in_the_window_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_HOPELESS", 64)
    file = tmp_path / "soft.cmnd"
    file.write_text("HardQCD:all = on\nPhaseSpace:pTHatMin = 50\nPhaseSpace:pTHatMax = 100\n")
    with pytest.raises(InputError, match=r"none of \d+ events of process 'custom' has a jet of pT 550 to 650 GeV"):
        _jets("custom", 10, preset="toptagging", settings=file)


def test_failures_travel_between_processes() -> None:
    lines = (*settings_for(PROCESSES["qcd"], (), PRESETS["jetnet"], TUNES["default"]),)
    wrong = (*lines, replace(lines[0], text="No:such = 1", file="x.cmnd", line=4))
    chunk = worker.Chunk(PROCESSES["qcd"], wrong, PRESETS["jetnet"], 0, ("qcd",), 0, 0, 5)
    failure = pickle.loads(pickle.dumps(worker.simulate_chunk(pickle.loads(pickle.dumps(chunk)))))
    assert isinstance(failure, worker.Failure)
    assert str(failure.error()).startswith("x.cmnd, field 'line 4: No:such = 1': Pythia does not know")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": "tops"}, "unknown process 'tops'; choose one of qcd, g, q, top, w, z, custom"),
        ({"process": "custom"}, "has no settings"),
        ({"process": "custom:/no/such/file"}, "/no/such/file: cannot read it"),
        ({"preset": "cms"}, "unknown preset 'cms'; choose one of jetclass, jetnet, toptagging"),
        ({"tune": "monash"}, "unknown tune 'monash'; choose one of default, collisions, vincia"),
        ({"settings": Path("x.cmnd")}, "belong to no process"),
        ({"n_jets": -1}, "jets"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_wrong_choices(options: dict[str, Any], message: str) -> None:
    arguments = {"process": "qcd", "n_jets": 10, **options}
    with pytest.raises(InputError) as caught:
        generate(**arguments)
    assert message in str(caught.value)


def test_names_must_differ_and_there_must_be_one() -> None:
    for names, message in ((["qcd", "qcd"], "repeat a name"), ([], "no process")):
        with pytest.raises(InputError, match=message):
            generate_mixture(names, 1)


def test_empty_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "empty.cmnd"
    file.write_text("! nothing\n")
    with pytest.raises(InputError, match="no setting"):
        process_of("custom", file)


def test_toptagging_preset_is_near_the_reference_set(real_data: Path) -> None:
    """Multiplicity and mass of both classes; the remaining difference is the price of a parametric detector."""
    with np.load(real_data / "toptagging" / "top_train_00.npz") as file:
        real = Jets(file["p4"], np.concatenate([[0], np.cumsum(file["n"], dtype=np.int64)]), file["y"].astype(np.int64))
    for label, process in enumerate(("qcd", "top")):
        theirs, ours = real[real.labels == label], _chunk(process, 300)
        assert ours.counts.mean() == pytest.approx(theirs.counts.mean(), rel=0.10)
        limit = 0.17 if process == "qcd" else 0.03
        assert np.median(observables.mass(ours)) == pytest.approx(np.median(observables.mass(theirs)), rel=limit)

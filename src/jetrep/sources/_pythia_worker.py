"""One chunk of simulated jets, in one process: Pythia, detector, FastJet, selection."""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import awkward as ak
import fastjet
import numpy as np
import pythia8mc
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector
from jetrep.physics.detector import Objects
from jetrep.sources._pythia_veto import MATCH_PRONG, EarlyVeto
from jetrep.sources.pythia_presets import JetPreset, Process, Setting

__all__ = ["Chunk", "ChunkResult", "Failure", "simulate_chunk", "start_pythia"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MATCH_RESONANCE = 0.6
"""Largest ΔR between the jet and the decaying W, Z or top."""
_BATCH = 256
_HOPELESS = 4096


@dataclass(frozen=True)
class Chunk:
    """A piece of work that gives the same jets wherever and whenever it runs.

    Attributes:
        process, settings, preset: what to simulate; ``settings`` are all lines for Pythia but the seed.
        label: label of the jets.
        classes: names of the labels.
        seed: the user's seed.
        index: number of this chunk among those of its process.
        n_jets: how many jets.
    """

    process: Process
    settings: tuple[Setting, ...]
    preset: JetPreset
    label: int
    classes: tuple[str, ...]
    seed: int
    index: int
    n_jets: int


class ChunkResult(NamedTuple):
    """Jets of a chunk, the events that were generated for them, and the processor time that they took in seconds."""

    jets: Jets
    n_events: int
    seconds: float


class Failure(NamedTuple):
    """The arguments of an `InputError`, which itself does not survive the way between processes."""

    problem: str
    remedy: str
    file: str | None
    field: str | None

    def error(self) -> InputError:
        """The error that it stands for."""
        return InputError(self.problem, remedy=self.remedy, file=self.file, field=self.field)


def simulate_chunk(chunk: Chunk) -> ChunkResult | Failure:
    """Simulate one chunk; exactly ``chunk.n_jets`` jets, constituents in descending pT."""
    # The process by its name, not by its place in a list: other processes beside it change nothing.
    entropy = np.random.SeedSequence((chunk.seed, zlib.crc32(chunk.process.name.encode()), chunk.index))
    pythia_seed, detector_seed = entropy.generate_state(2)
    rng = np.random.default_rng(detector_seed)
    clock = time.process_time()
    # Pythia keeps no reference: a hook that Python drops becomes one that never vetoes.
    veto = EarlyVeto(chunk.preset, chunk.process) if chunk.process.early_veto else None
    try:
        pythia = start_pythia(chunk.settings, 1 + int(pythia_seed) % 900_000_000, veto)
    except _StartError as error:
        return error.failure
    parts: list[Jets] = []
    n_jets = n_events = 0
    while n_jets < chunk.n_jets:
        # As many events as are likely to be needed, so that the last batch is not mostly thrown away.
        rate = max(n_jets, 1) / max(n_events, 1)
        batch = min(_BATCH, max(8, math.ceil((chunk.n_jets - n_jets) / rate)))
        events = pythia.nextBatch(batch)
        jets = _select(events, chunk, rng)
        n_events += batch
        n_jets += len(jets)
        parts.append(jets)
        if n_jets == 0 and n_events >= _HOPELESS:
            low, high = chunk.preset.pt
            where = next((line for line in reversed(chunk.settings) if line.file), Setting(""))
            return Failure(
                f"none of {n_events} events of process '{chunk.process.name}' has a jet of pT {low:g} to {high:g} GeV",
                "raise PhaseSpace:pTHatMin or check the process",
                where.file,
                None,
            )
    jets = Jets.concatenate(parts)[: chunk.n_jets].leading(chunk.preset.max_constituents)
    jets = jets.with_labels(np.full(len(jets), chunk.label), chunk.classes)
    return ChunkResult(jets, n_events, time.process_time() - clock)


class _StartError(Exception):
    """Pythia does not start; carries the `Failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.problem)
        self.failure = failure


def start_pythia(settings: tuple[Setting, ...], seed: int, veto: EarlyVeto | None = None) -> Any:
    """A Pythia that is ready to generate, and silent.

    Raises:
        _StartError: if it does not take a line, or does not start with all of them.
    """
    with _captured_output() as output:
        pythia = pythia8mc.Pythia("", False)
        for setting in settings:
            if not pythia.readString(setting.text, False):
                where = f"line {setting.line}: {setting.text}" if setting.line else setting.text
                raise _StartError(
                    Failure(
                        "Pythia does not know this setting, or its value is out of range",
                        "correct it after the Pythia 8 manual (https://pythia.org)",
                        setting.file,
                        where,
                    )
                )
        for text in ("Print:quiet = on", "Print:errors = off", "Random:setSeed = on", f"Random:seed = {seed}"):
            pythia.readString(text, False)
        if veto is not None:
            veto.watch(pythia)
        started = pythia.init()
    if not started:
        file = next((setting.file for setting in settings if setting.file), None)
        said = "; ".join(line.strip() for line in output[0].splitlines() if "PYTHIA" in line) or "it gives no reason"
        raise _StartError(
            Failure(f"Pythia does not start with these settings: {said}", "correct the settings", file, None)
        )
    return pythia


@contextmanager
def _captured_output() -> Iterator[list[str]]:
    """Keep what C++ prints, which knows no Python stream, and put it into the list at the end."""
    output: list[str] = []
    flush = ctypes.CDLL(None).fflush
    flush(None)
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield output
        finally:
            flush(None)
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            output.append(file.read().decode(errors="replace"))


def _select(events: ak.Array, chunk: Chunk, rng: np.random.Generator) -> Jets:
    """All jets of a batch of events that pass the preset's window and contain what they must contain."""
    preset = chunk.preset
    p4, pdg, offsets = _flatten(events.prt[events.prt.status > 0])
    objects = preset.detector(p4, pdg, offsets, rng)
    jets, constituents = _leading_jets(objects, preset)
    inside = (fourvector.pt(jets.p4) < preset.pt[1]) & (np.abs(fourvector.eta(jets.p4)) < preset.eta_max)
    if chunk.process.resonance is not None:
        inside &= _contains_decay(jets, events.prt, chunk.process)
    counts = np.where(inside, ak.to_numpy(ak.num(constituents)), 0)
    particles = ak.to_numpy(ak.flatten(constituents[inside]))
    return Jets(
        objects.p4[particles].astype(np.float32), np.concatenate([[0], np.cumsum(counts[inside])]).astype(np.int64)
    )


def _flatten(particles: ak.Array) -> tuple[Floats, Ints, Ints]:
    """Four-vectors, PDG codes and event offsets of Pythia's records."""
    offsets = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(particles)))]).astype(np.int64)
    flat = ak.flatten(particles)
    p4 = np.stack([ak.to_numpy(flat.p[name]) for name in ("e", "px", "py", "pz")], -1)
    return p4, ak.to_numpy(flat.id).astype(np.int64), offsets


class _EventJets(NamedTuple):
    """Jets of a batch of events: four-vectors (n, 4) and the event of each."""

    p4: Floats
    event: Ints


def _leading_jets(objects: Objects, preset: JetPreset) -> tuple[_EventJets, ak.Array]:
    """The (at most two) jets of highest pT in each event, above the lower edge of the window.

    Returns:
        the jets, and for each the indices of its constituents into ``objects.p4``.
    """
    columns = {name: objects.p4[:, i] for i, name in enumerate(("E", "px", "py", "pz"))}
    layout = ak.zip(columns, with_name="Momentum4D").layout
    particles = ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(objects.offsets), layout))
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, preset.radius)
    with _captured_output():  # FastJet's banner
        clusters = fastjet.ClusterSequence(particles, definition)
        jets = clusters.inclusive_jets(preset.pt[0])
        constituents = clusters.constituent_index(preset.pt[0])
    leading = ak.argsort(np.hypot(jets.px, jets.py), ascending=False)[:, :2]
    jets, constituents = jets[leading], constituents[leading] + objects.offsets[:-1]
    counts = ak.to_numpy(ak.num(jets))
    flat = ak.flatten(jets)
    p4 = np.stack([ak.to_numpy(flat[name]) for name in ("E", "px", "py", "pz")], -1)
    return _EventJets(p4, np.repeat(np.arange(len(counts)), counts)), ak.flatten(constituents, axis=1)


def _contains_decay(jets: _EventJets, records: ak.Array, process: Process) -> NDArray[np.bool_]:
    """Whether each jet contains the decay of one resonance: its axis within 0.6, each of its quarks within 0.8."""
    axes, prongs = _decays(records, process)
    eta, phi = fourvector.eta(jets.p4)[:, None], fourvector.phi(jets.p4)[:, None]
    to_axis = _delta_r(eta, phi, axes[jets.event])
    to_prongs = _delta_r(eta[..., None], phi[..., None], prongs[jets.event])
    found = (to_axis < MATCH_RESONANCE) & np.all(to_prongs < MATCH_PRONG, axis=-1)
    return np.asarray(np.any(found, axis=1))


def _delta_r(eta: Floats, phi: Floats, other: Floats) -> Floats:
    """Distance to directions (…, 2) of η and φ; NaN for a missing one."""
    distance: Floats = np.hypot(eta - other[..., 0], fourvector.delta_phi(phi, other[..., 1]))
    return distance


def _decays(records: ak.Array, process: Process) -> tuple[Floats, Floats]:
    """Directions of the resonances at their decay and of the quarks they decay into.

    A decay quark is a quark whose mother is a W, Z or top; those of one resonance share the sign of their mothers'
    codes (t → W⁺ b, W⁺ → q q̄') or, for the Z, the mother itself.

    Returns:
        (n_events, 2, 2) η and φ of the resonance, (n_events, 2, prongs, 2) of its quarks; NaN where there is none.
    """
    p4, pdg, offsets = _flatten(records)
    start = np.repeat(offsets[:-1], np.diff(offsets))
    mother = start + ak.to_numpy(ak.flatten(records.mother1)).astype(np.int64)
    quarks = np.flatnonzero((np.abs(pdg) >= 1) & (np.abs(pdg) <= 5) & np.isin(np.abs(pdg[mother]), (6, 23, 24)))
    event = np.searchsorted(offsets, quarks, side="right") - 1
    owner = mother[quarks] if process.resonance == 23 else np.sign(pdg[mother[quarks]])
    direction = np.stack([fourvector.eta(p4), fourvector.phi(p4)], -1)
    n_events = len(offsets) - 1
    axes, prongs = np.full((n_events, 2, 2), np.nan), np.full((n_events, 2, process.prongs, 2), np.nan)
    filled = np.zeros(n_events, np.int64)
    groups, of_quark, size = np.unique(np.stack([event, owner]), axis=1, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(of_quark, kind="stable"), np.cumsum(size)[:-1]) if len(size) else []
    for (e, _), member in zip(groups.T, members, strict=True):
        parents = mother[quarks[member]]
        own = parents[np.abs(pdg[parents]) == process.resonance]
        if len(member) == process.prongs and len(own) and filled[e] < 2:
            axes[e, filled[e]] = direction[own[0]]
            prongs[e, filled[e]] = direction[quarks[member]]
            filled[e] += 1
    return axes, prongs

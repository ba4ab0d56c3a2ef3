"""Stopping hopeless events early, which is most of the speed of the simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pythia8mc

from jetrep.sources.pythia_presets import JetPreset, Process

__all__ = ["MATCH_PRONG", "EarlyVeto"]

MATCH_PRONG = 0.8
"""Largest ΔR between a jet and each quark of the decay that it must contain: the radius of the jet."""

# The veto looks at the partons when the shower has come down to this pT (GeV). A jet's pT may still change by radiation
# below it, by hadronisation, underlying event and detector; hence the window is widened by these factors, and the
# acceptance in η and the matching distance by these amounts. Looking later sharpens nothing: what is left is the
# underlying event and the detector.
_SCALE = 40.0
_LOW, _HIGH = 0.94, 1.12
_ETA = 0.1
_PRONG = 0.05

# The closer to the edge, the fewer events are generated in vain. Tops radiate out of their jets when they decay, which
# the veto has not seen yet, so that their jets rather lose pT (2 % in the median) than gain it, and need less room
# below; the wider the window, the fewer of its jets stand at the edge.
_LOW_OF: dict[tuple[str, int | None], float] = {("jetclass", 6): 0.98, ("toptagging", 6): 0.95}

# Partons below (GeV) do not move a jet of hundreds of GeV.
_PARTON_PT = 10.0


class _Momentum(NamedTuple):
    """A parton, first in order of transverse momentum."""

    pt2: float
    eta: float
    phi: float
    px: float
    py: float
    pz: float


class EarlyVeto(pythia8mc.UserHooks):  # type: ignore[misc]
    """Stops an event in the middle of its shower if its hardest partons cannot become a jet of the window.

    Most of the time of an event goes into soft radiation and multi-parton interactions, which hardly move a jet's pT,
    and most events of a steeply falling spectrum miss the window. Where the jet must contain the decay of a resonance,
    its quarks are known before they radiate, and an event in which they fly apart is stopped as well.

    What it costs: jets whose pT rises by more than 2 to 6 % afterwards. Measured (`benchmarks/simulation.py`, 5000
    events each): 0.07 % of the top jets of jetnet; 1.1 to 1.8 % of QCD, top and W in jetclass; 1.4 to 2.6 % of QCD, top
    and Z in toptagging; each ± 0.03 to 0.65.

    Pythia keeps no reference to a hook written in Python: keep one as long as Pythia generates.

    Args:
        preset: the window.
        process: for its resonance.
    """

    def __init__(self, preset: JetPreset, process: Process) -> None:
        super().__init__()
        self._low2 = (preset.pt[0] * _LOW_OF.get((preset.name, process.resonance), _LOW)) ** 2
        self._high2 = (preset.pt[1] * _HIGH) ** 2
        self._sinh_eta_max = math.sinh(preset.eta_max + _ETA)
        self._radius2 = preset.radius**2
        self._resonance = process.resonance
        self._process: Any = None

    def watch(self, pythia: Any) -> None:
        """Install this hook."""
        pythia.setUserHooksPtr(self)
        self._process = pythia.process

    def canVetoPT(self) -> bool:  # noqa: N802
        """Yes; called by Pythia."""
        return True

    def scaleVetoPT(self) -> float:  # noqa: N802
        """When to look, GeV; called by Pythia."""
        return _SCALE

    def doVetoPT(self, position: int, event: Any) -> bool:  # noqa: N802
        """True stops the event. ``position`` above 3 is a later call, in the showers of decaying resonances."""
        return position <= 3 and self.hopeless(event)

    def hopeless(self, event: Any) -> bool:
        """Whether no jet of this half-made event can pass."""
        partons, resonances = [], []
        for i in range(3, event.size()):
            particle = event[i]
            if particle.status() > 0 and particle.pT2() > _PARTON_PT**2:
                partons.append(_momentum(particle))
                if abs(particle.id()) == self._resonance:
                    resonances.append(particle)
        if not resonances:
            return not any(self._in_window(jet) for jet in self._cones(partons)[:3])
        jets = [self._cone(_momentum(resonance), partons) for resonance in resonances]
        inside = [self._in_window(jet) for jet in jets]
        return not any(inside) or not any(
            passes and all(_distance2(jet, quark) < (MATCH_PRONG + _PRONG) ** 2 for quark in quarks)
            for passes, jet, quarks in zip(inside, jets, self._decays(resonances), strict=False)
        )

    def _in_window(self, jet: _Momentum) -> bool:
        return self._low2 < jet.pt2 < self._high2 and jet.pz**2 < jet.pt2 * self._sinh_eta_max**2

    def _cone(self, axis: _Momentum, partons: list[_Momentum]) -> _Momentum:
        """Sum of the partons in a cone."""
        inside = [parton for parton in partons if _distance2(axis, parton) < self._radius2]
        return _sum(inside)

    def _cones(self, partons: list[_Momentum]) -> list[_Momentum]:
        """Cones around the hardest, the hardest that remain, …: anti-kT to the accuracy of the margins."""
        jets, partons = [], sorted(partons, reverse=True)
        while partons:
            axis = partons[0]
            jets.append(self._cone(axis, partons))
            partons = [parton for parton in partons if _distance2(axis, parton) >= self._radius2]
        return sorted(jets, reverse=True)

    def _decays(self, resonances: list[Any]) -> Iterator[list[_Momentum]]:
        """Quarks of the decay of each resonance.

        Pythia decays resonances in the hard process, and moves the products along when the resonance has recoiled
        against radiation: a boost from its old to its new momentum, which is done here in advance.
        """
        hard = self._process
        quarks: dict[int, list[Any]] = {}
        before: dict[int, Any] = {}
        for i in range(3, hard.size()):
            particle = hard[i]
            mother = particle.mother1()
            if abs(particle.id()) == self._resonance:
                before[i] = particle
            elif 1 <= abs(particle.id()) <= 5 and abs(hard[mother].id()) in (6, 23, 24):
                # the quark of t → W → q q̄' belongs to the top
                root = mother if mother in before else hard[mother].mother1()
                quarks.setdefault(root, []).append(particle)
        old = sorted(before, key=lambda i: before[i].id())
        for resonance in resonances:
            same = [i for i in old if before[i].id() == resonance.id()]
            root = same[0]
            # Two Z keep their order through the shower; each is used once.
            old.remove(root)
            yield [_moved(quark, before[root], resonance) for quark in quarks.get(root, [])]


def _moved(quark: Any, old: Any, new: Any) -> _Momentum:
    p = pythia8mc.Vec4(quark.p())
    p.bstback(old.p())
    p.bst(new.p())
    return _Momentum(p.pT2(), p.eta(), p.phi(), p.px(), p.py(), p.pz())


def _momentum(particle: Any) -> _Momentum:
    return _Momentum(particle.pT2(), particle.eta(), particle.phi(), particle.px(), particle.py(), particle.pz())


def _sum(partons: list[_Momentum]) -> _Momentum:
    px, py, pz = (sum(parton[k] for parton in partons) for k in (3, 4, 5))
    pt2 = px * px + py * py
    eta = math.asinh(pz / math.sqrt(pt2)) if pt2 > 0 else 0.0
    return _Momentum(pt2, eta, math.atan2(py, px), px, py, pz)


def _distance2(a: _Momentum, b: _Momentum) -> float:
    d_phi = abs(a.phi - b.phi)
    return (a.eta - b.eta) ** 2 + min(d_phi, 2 * math.pi - d_phi) ** 2

"""Detectors by name: two ideal ones, and two like those of public data sets.

Resolutions, efficiencies, fields and towers of ``cms`` and ``atlas`` are those of the Delphes 3 cards of these names
(arXiv:1307.6346), with changes that were found by comparison with public jets that such cards made:

- ``cms``: charged particles below 1 GeV make no track and those up to 2 GeV few, as in JetClass. With that, simulated
  top jets have 50 constituents on average and a median mass of 167 GeV (JetClass: 49 and 167, from 100 jets).
- ``atlas``: electromagnetic towers of 0.08 × 0.08, much coarser than in the card, and objects of the hadronic
  calorimeter above one standard deviation instead of two. With that, QCD and top jets have 43.5 and 55.5 constituents
  on average and median masses of 76 and 174 GeV (top-tagging reference set: 44.2 and 54.9, 83 and 174).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from jetrep.physics.detector import Calorimeter, Detector, Tracker, TrackZone, Zone

__all__ = ["DETECTORS"]

_DEGREE = np.pi / 180


def _cms_ecal() -> tuple[Zone, ...]:
    """Zones of the CMS electromagnetic calorimeter: the card's η-dependent factor at the middle of each zone."""
    edges = (0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.75, 2.0, 2.25, 2.5)
    zones = []
    for low, high in pairwise(edges):
        middle = (low + high) / 2
        factor = 1 + 0.64 * middle**2 if high <= 1.5 else 2.16 + 5.6 * (middle - 2) ** 2
        zones.append(Zone(high, 0.0174, _DEGREE, factor * 0.11, factor * 0.40, factor * 0.008))
    return (
        *zones,
        Zone(3.0, 0.0174, _DEGREE, 2.08, 0.0, 0.107),
        Zone(5.0, 0.175, 10 * _DEGREE, 2.08, 0.0, 0.107),
    )


DETECTORS: dict[str, Detector] = {
    "none": Detector("none"),
    "massless": Detector("massless", massless=True),
    "cms": Detector(
        "cms",
        tracker=Tracker(
            (
                TrackZone(0.5, 0.35, 0.95, 0.010, 1.5e-4),
                TrackZone(1.5, 0.35, 0.95, 0.015, 2.5e-4),
                TrackZone(2.5, 0.30, 0.85, 0.025, 5.5e-4),
            ),
            pt_min=1.0,
            pt_hard=2.0,
            field=3.8,
            radius=1.29,
            half_length=3.00,
        ),
        electromagnetic=Calorimeter(_cms_ecal(), energy_min=0.5, significance_min=2.0),
        hadronic=Calorimeter(
            (
                Zone(1.653, 0.087, 5 * _DEGREE, 1.50, 0.0, 0.050),
                Zone(3.0, 0.10, 10 * _DEGREE, 1.50, 0.0, 0.050),
                Zone(5.0, 0.175, 10 * _DEGREE, 2.70, 0.0, 0.130),
            ),
            energy_min=1.0,
            significance_min=2.0,
        ),
    ),
    "atlas": Detector(
        "atlas",
        tracker=Tracker(
            (
                TrackZone(0.5, 0.70, 0.95, 0.06, 1.3e-3),
                TrackZone(1.5, 0.70, 0.95, 0.10, 1.7e-3),
                TrackZone(2.5, 0.60, 0.85, 0.25, 3.1e-3),
            ),
            field=2.0,
            radius=1.15,
            half_length=3.51,
        ),
        electromagnetic=Calorimeter(
            (
                Zone(2.5, 0.08, 0.08, 0.101, 0.0, 0.0017),
                Zone(3.2, 0.2, 20 * _DEGREE, 0.101, 0.0, 0.0017),
                Zone(4.9, 0.2, 20 * _DEGREE, 0.285, 0.0, 0.035),
            ),
            energy_min=0.5,
            significance_min=2.0,
        ),
        hadronic=Calorimeter(
            (
                Zone(1.7, 0.1, 10 * _DEGREE, 0.5205, 1.59, 0.0302),
                Zone(2.5, 0.1, 10 * _DEGREE, 0.706, 0.0, 0.05),
                Zone(3.2, 0.2, 20 * _DEGREE, 0.706, 0.0, 0.05),
                Zone(4.9, 0.2, 20 * _DEGREE, 1.00, 0.0, 0.0942),
            ),
            energy_min=1.0,
            significance_min=1.0,
        ),
        massless=True,
    ),
}
"""``none`` and ``massless`` (ideal, the second without particle masses), ``cms`` and ``atlas``."""

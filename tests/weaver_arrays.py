"""Jets from arrays in weaver's layout: vectors (N, 4, n) as px, py, pz, E; mask (N, 1, n); features17 (N, 17, n)."""

from pathlib import Path

import numpy as np

from jetrep.jets import Jets

JETCLASS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
MEASURED = ("charge", "is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")


def weaver_jets(file: Path) -> Jets:
    """All jets of a file; with its 17 features come the measured columns, which are among them."""
    with np.load(file, allow_pickle=False) as arrays:
        mask = arrays["mask"][:, 0] > 0
        px, py, pz, energy = np.moveaxis(arrays["vectors"], 1, 0)
        measured = {}
        if "features17" in arrays.files:
            features = np.moveaxis(arrays["features17"], 1, 0)
            measured = {name: features[5 + i][mask] for i, name in enumerate(MEASURED)}
            with np.errstate(divide="ignore"):
                measured["d0"], measured["dz"] = (np.arctanh(features[i][mask].astype(np.float64)) for i in (11, 13))
            measured["d0_error"], measured["dz_error"] = features[12][mask], features[14][mask]
        return Jets(
            np.stack([energy, px, py, pz], -1)[mask],
            np.concatenate([[0], np.cumsum(mask.sum(1))]),
            arrays["labels"].argmax(1),
            JETCLASS,
            measured=measured,
        )

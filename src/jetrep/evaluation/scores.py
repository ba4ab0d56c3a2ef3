"""How far each jet is from its reconstruction, by every measure that a loss or an anomaly score is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from jetrep.encoders.autoencoder import InLaboratory, JetImages, Reconstruction
from jetrep.encoders.cnnae import image_loss
from jetrep.objectives.reconstruction_losses import chamfer, hungarian, mse
from jetrep.objectives.transport import energy_movers_distance
from jetrep.physics import fourvector as fv
from jetrep.physics.lorentz import RestFrame

__all__ = ["DISTANCES", "distances", "pixels"]

DISTANCES = {
    "chamfer": "Chamfer",
    "hungarian": "Hungarian",
    "mse": "MSE, slot by slot",
    "emd": "energy mover's",
    "image": "image MSE",
}
"""Distances by name, as they are called in tables. All but the last are invariant; none is negative."""

N_PIXELS, HALF_WIDTH = 40, 0.8


def distances(p4: Tensor, mask: Tensor, reconstruction: Reconstruction) -> dict[str, Tensor]:
    """`DISTANCES` of jets from their reconstructions: (batch,) each, zero only where there is none.

    Momenta are compared in the rest frame of the true jet, in units of its mass. Pixels have no order and are too many
    to be assigned: images have no ``hungarian`` and no ``mse``, and their ``image`` is the loss on which they are
    trained, in pixels of their own. ``mse`` is there only if jets have no more particles than there are slots.

    Args:
        p4: (batch, n, 4) true momenta in GeV, float64.
        mask: (batch, n) bool, True for a real particle.
        reconstruction: of these jets.
    """
    frame, true = RestFrame.of_particles(p4.masked_fill(~mask.unsqueeze(-1), 0.0))
    if isinstance(reconstruction, InLaboratory):
        # Both boosted in the same way: equal momenta, with the same rounding, stay equal.
        true = frame.to_rest(p4).masked_fill(~mask.unsqueeze(-1), 0.0)
    present = reconstruction.mask
    other = reconstruction.at_rest(frame).to(true).masked_fill(~present.unsqueeze(-1), 0.0)
    sets = true, other, mask, present
    found = {"chamfer": chamfer(*sets), "emd": energy_movers_distance(*sets)}
    if not isinstance(reconstruction, JetImages):
        found["hungarian"] = hungarian(*sets)
        if (room := other.shape[1] - true.shape[1]) >= 0:
            padded = torch.nn.functional.pad(true, (0, 0, 0, room)), other
            found["mse"] = mse(*padded, torch.nn.functional.pad(mask, (0, room)), present)
    if isinstance(reconstruction, JetImages):
        found["image"] = image_loss(reconstruction, p4, mask)
    else:
        jet = (p4 * mask.unsqueeze(-1)).sum(1)
        momenta = reconstruction.p4.to(p4).masked_fill(~present.unsqueeze(-1), 0.0)
        found["image"] = (pixels(p4, mask, jet) - pixels(momenta, present, jet)).square().sum((1, 2))
    return {name: found[name] for name in DISTANCES if name in found}


def pixels(p4: Tensor, mask: Tensor, jet_p4: Tensor) -> Tensor:
    """Share of the transverse momentum of a jet in the pixels of η × φ around it: (batch, 40, 40), ±0.8 each.

    What lies outside is not drawn.

    Args:
        p4: (batch, n, 4) momenta in GeV.
        mask: (batch, n) bool, True for a real particle.
        jet_p4: (batch, 4) momenta of the jets that give axis and scale.
    """
    pt = fv.pt(p4) / fv.pt(jet_p4).clamp(min=1e-30).unsqueeze(1)
    place = torch.stack(
        [fv.eta(p4) - fv.eta(jet_p4).unsqueeze(1), fv.delta_phi(fv.phi(p4), fv.phi(jet_p4).unsqueeze(1))], -1
    )
    place = torch.floor((place / HALF_WIDTH + 1) * (N_PIXELS / 2))
    inside = mask & (place >= 0).all(-1) & (place < N_PIXELS).all(-1)
    index = (place[..., 0] * N_PIXELS + place[..., 1]).masked_fill(~inside, 0).long()
    images = p4.new_zeros(len(p4), N_PIXELS**2).scatter_add_(1, index, pt * inside)
    return images.view(-1, N_PIXELS, N_PIXELS)

"""What each of two processes does in the tests of masked objectives."""

from __future__ import annotations

from typing import Any

import torch
from two_ranks import JETS, step

from jetrep.encoders import JetTransformer, TransformerConfig
from jetrep.encoders.decoder import DecoderConfig, SetTransformerConfig
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.jepa import Jepa, JepaConfig
from jetrep.objectives.masked import MaskedParticles, MaskedParticlesConfig
from jetrep.objectives.quantizer import VectorQuantizer
from jetrep.objectives.tokenizer import TokenizerConfig

DECODER = DecoderConfig(16, 1, 2, ranks=8)
TOKENIZER = TokenizerConfig(n_codes=16, latent=4, net=SetTransformerConfig(16, 1, 2), steps=5, batch_size=4)
TARGETS = {
    "kmeans": MaskedParticlesConfig(n_codes=16, decoder=DECODER),
    "vq in place": MaskedParticlesConfig(layout="in_place", target="vq", tokenizer=TOKENIZER, decoder=DECODER),
    "flow_matching": MaskedParticlesConfig(target="flow_matching", decoder=DECODER),
    "flow": MaskedParticlesConfig(target="flow", decoder=DECODER),
    "jepa": JepaConfig(predictor=DECODER),
}


def objective(name: str) -> MaskedParticles | Jepa:
    """The same for all processes: made before they know of each other."""
    torch.manual_seed(0)
    features = Features(FeatureConfig())
    encoder = JetTransformer(TransformerConfig(16, 2, 2, 24, position_bins=10), len(features.names))
    config = TARGETS[name]
    if isinstance(config, JepaConfig):
        module = Jepa(features, encoder, config)
        with torch.no_grad():
            for p in module.teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return module
    return MaskedParticles(features, encoder, config, fit_on=JETS)


def quantizer(rank: int | None) -> dict[str, torch.Tensor]:
    """Codes after some steps on this rank's vectors, which are fewer on the second rank; one code is dead at first."""
    torch.manual_seed(0)
    module = VectorQuantizer(6, 3, decay=0.7, dead=0.3)
    module.codes[5] = 50.0
    module.moment[5] = 50.0 / 6
    generator, draws = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    for _ in range(8):
        z = torch.randn(40, 3, generator=generator)
        module(z if rank is None else z[:25] if rank == 0 else z[25:], draws)
    return {**module.state_dict(), "replaced": (module.codes[5].abs() < 20).all()}


def made() -> dict[str, MaskedParticles | Jepa]:
    return {name: objective(name) for name in TARGETS}


def everything(rank: int | None, modules: dict[str, MaskedParticles | Jepa]) -> dict[str, Any]:
    return {"quantizer": quantizer(rank)} | {name: step(module, rank) for name, module in modules.items()}

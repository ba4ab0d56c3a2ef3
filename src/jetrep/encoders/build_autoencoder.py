"""The autoencoder that goes with an encoder."""

from __future__ import annotations

from jetrep.encoders.autoencoder import Autoencoder
from jetrep.encoders.base import JetEncoder
from jetrep.encoders.cnnae import ImageAutoencoder, ImageEncoder
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.gnnae import GraphAutoencoder, GraphEncoder
from jetrep.encoders.lorentz import LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoderConfig
from jetrep.encoders.set_autoencoder import SetAutoencoder
from jetrep.errors import InputError
from jetrep.features import Features

__all__ = ["build_autoencoder"]


def build_autoencoder(
    encoder: JetEncoder,
    features: Features,
    latent: int,
    decoder: LorentzDecoderConfig,
    set_decoder: SetTransformerConfig,
) -> Autoencoder:
    """The encoder with the decoder of its kind; new weights are drawn from torch's global generator.

    Args:
        encoder: trained in place.
        features: from four-vectors to its inputs.
        latent: numbers of the jet that are kept: the scalars of a Lorentz-equivariant autoencoder, all but pT, η and φ
            of one that has a `SetDecoder`. The baselines (gnnae, cnnae) have their own.
        decoder: shape of a Lorentz-equivariant decoder; its ``slots`` are those of every decoder.
        set_decoder: shape of the decoder of encoders that have none of their own.

    Raises:
        InputError: if the features are of scaled momenta, and the encoder learns those that it is to give back.
    """
    if features.config.scale_pt is not None and isinstance(encoder, LorentzEncoder | GraphEncoder | ImageEncoder):
        raise InputError(
            "this autoencoder learns jets as they are, and would meet scaled ones as an encoder",
            field="features.scale_pt",
            remedy="leave it out, or choose an encoder of features, such as transformer",
        )
    if isinstance(encoder, LorentzEncoder):
        return LorentzAutoencoder(encoder, latent, decoder)
    if isinstance(encoder, GraphEncoder):
        return GraphAutoencoder(encoder, decoder.slots)
    if isinstance(encoder, ImageEncoder):
        return ImageAutoencoder(encoder)
    return SetAutoencoder(encoder, features, latent, decoder.slots, set_decoder)

r"""Images of jets, drawn differentiably, a convolutional network of them, and the autoencoder of arXiv 2212.07347.

A pixel holds the share of the transverse momentum that falls into it, within a square window around the axis of the
jet. A particle is shared bilinearly between the four pixels whose centres are nearest, so the image is a continuous
function of the momenta, with gradients. What a particle gives to pixels beyond the window is lost: all of it from half
a pixel outside, half of it on the edge. How much is lost is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.autoencoder import Autoencoder, JetImages
from jetrep.encoders.base import Encoded, JetEncoder, Symmetry
from jetrep.encoders.relative import absolute, encoded, momenta_in, relative
from jetrep.errors import InputError, at_least
from jetrep.features import ModelInput

__all__ = ["Drawn", "ImageAutoencoder", "ImageConfig", "ImageEncoder", "draw", "image_loss", "pixel_centres"]

_TINY = 1e-30


@dataclass(frozen=True)
class ImageConfig:
    """Images, and the shape of an `ImageEncoder` and of the decoder that goes with it; the default is published.

    Attributes:
        pixels: of an image, in Δη and in Δφ.
        half_width: of the window around the axis of the jet, in Δη and Δφ.
        channels: of each convolution; each halves the image.
        latent: features of a token; the numbers that an autoencoder keeps of an image.
        kind: tells the kinds of encoders apart.
    """

    pixels: int = 40
    half_width: float = 0.8
    channels: tuple[int, ...] = (128, 128)
    latent: int = 55
    kind: Literal["cnnae"] = "cnnae"

    def __post_init__(self) -> None:
        at_least(1, **{"encoder.pixels": self.pixels, "encoder.latent": self.latent})
        if not 0 < self.half_width < torch.inf:
            raise InputError(f"is {self.half_width}", field="encoder.half_width", remedy="give a number above 0")
        if not self.channels:
            raise InputError("there is no convolution", field="encoder.channels", remedy="give at least one width")
        for width in self.channels:
            at_least(1, **{"encoder.channels": width})
        if self.pixels % 2 ** len(self.channels):
            raise InputError(
                f"{self.pixels} pixels cannot be halved {len(self.channels)} times",
                field="encoder.pixels",
                remedy=f"choose a multiple of {2 ** len(self.channels)}",
            )

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.latent

    @property
    def smallest(self) -> int:
        """Pixels of the last feature map, along each axis."""
        side: int = self.pixels // 2 ** len(self.channels)
        return side


@dataclass(frozen=True)
class Drawn:
    """Images of jets.

    Attributes:
        image: (batch, pixels, pixels) float64, share of the transverse momentum of the window in each pixel, rows in η,
            columns in φ; sums to one, or is zero where the window is empty.
        jet: (batch, 3) float64: scalar sum of pT within the window in GeV, η and φ of the axis.
        lost: (batch,) float64, share of the scalar sum of pT of the jet that the window does not hold.
        outside: (batch,) number of particles outside the window.
        places: (batch, n, 2) Δη and Δφ of the particles in units of the half width, zero where padded.
    """

    image: Tensor
    jet: Tensor
    lost: Tensor
    outside: Tensor
    places: Tensor


def pixel_centres(pixels: int, half_width: float, like: Tensor) -> Tensor:
    """(pixels,) centres along one axis, on the device and in the precision of ``like``."""
    places = torch.arange(pixels, device=like.device, dtype=like.dtype)
    return half_width * ((2 * places + 1) / pixels - 1)


def draw(p4: Tensor, mask: Tensor, pixels: int = 40, half_width: float = 0.8) -> Drawn:
    """Images of jets; see the module.

    Args:
        p4: (batch, n, 4) momenta in GeV.
        mask: (batch, n) bool, True for a real particle.
        pixels: along each axis.
        half_width: of the window, in Δη and Δφ.
    """
    jet, seen = relative(p4, mask)
    share, angles = seen[..., 0], seen[..., 1:]
    distance = (angles.unsqueeze(-1) - pixel_centres(pixels, half_width, angles)).abs()
    weights = F.relu(1 - distance * (pixels / (2 * half_width)))
    image = (share.unsqueeze(-1) * weights[:, :, 0]).mT @ weights[:, :, 1]
    held = image.sum((1, 2))
    outside = ((angles.abs() > half_width).any(-1) & mask).sum(1)
    return Drawn(
        image / held.clamp(min=_TINY)[:, None, None],
        torch.cat([jet[:, :1] * held.unsqueeze(1), jet[:, 1:]], 1),
        (share.sum(1) - held).clamp(min=0.0),
        outside,
        angles / half_width,
    )


def image_loss(reconstruction: JetImages, p4: Tensor, mask: Tensor) -> Tensor:
    """Sum over pixels of the squared difference of the images: (batch,).

    Args:
        reconstruction: of the jets.
        p4: (batch, n, 4) true momenta in GeV.
        mask: (batch, n) bool, True for a real particle.
    """
    image = reconstruction.image
    true = draw(p4, mask, image.shape[-1], reconstruction.half_width).image
    return (true.to(image.dtype) - image).square().sum((1, 2))


class ImageEncoder(JetEncoder):
    """Convolutional network of jet images. It sees four-momenta alone, whatever the features.

    A linear map of the last feature map is the CLS token. It is a sum over places; what a particle's place contributes
    to it, read bilinearly, is the particle's token, in units that make both of one size.

    Args:
        config: its shape.
        n_features: features of a particle, ``len(Features.names)``; not used.
    """

    def __init__(self, config: ImageConfig, n_features: int = 0) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise([1, *config.channels])
        )
        self.dense = nn.Linear(config.channels[-1] * config.smallest**2, config.latent)

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """Order and padding of the particles, rotations about the beam; images are infrared and collinear safe."""
        return super().symmetries | {"azimuth", "soft", "collinear"}

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    def drawn(self, p4: Tensor, mask: Tensor) -> Drawn:
        """(batch, n, 4) momenta in GeV and (batch, n) bool → the images that the network sees."""
        return draw(p4, mask, self.config.pixels, self.config.half_width)

    def feature_map(self, image: Tensor) -> Tensor:
        """(batch, pixels, pixels) → (batch, channels[-1], smallest, smallest)."""
        # In units of the share of a pixel if a row held everything: numbers of order one.
        x = (self.config.pixels * image.to(self.dense.weight.dtype)).unsqueeze(1)
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x

    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes each view; all tokens are computed, whatever is ``chosen``.

        Raises:
            ValueError: if a view has no four-vectors.
        """
        return [self._encoded(momenta_in(view), view.mask) for view in views]

    def _encoded(self, p4: Tensor, mask: Tensor) -> Encoded:
        drawn = self.drawn(p4, mask)
        x = self.feature_map(drawn.image)
        cls = self.dense(x.flatten(1)) * mask.any(1, keepdim=True)
        side = self.config.smallest
        local = torch.einsum("bcp,lcp->blp", x.flatten(2), self.dense.weight.view(self.width, -1, side**2))
        local = side * local.view(-1, self.width, side, side) + self.dense.bias[:, None, None]
        grid = drawn.places.flip(-1).unsqueeze(2).to(local.dtype)
        tokens = F.grid_sample(local, grid, padding_mode="border", align_corners=False).squeeze(3).mT
        return encoded(cls, tokens * mask.unsqueeze(-1), mask)

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth: an empty stem, convolution 1, …, convolution n with the dense layer."""
        layers: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(len(self.convolutions) + 1)]
        for path, parameter in self.named_parameters():
            root, _, rest = path.partition(".")
            layers[int(rest.partition(".")[0]) + 1 if root == "convolutions" else -1].append((path, parameter))
        return layers


class ImageAutoencoder(Autoencoder):
    """Image, numbers, image. What is kept of a jet are the ``latent`` features of its image, and pT, η and φ.

    Every pixel comes out as a particle; which of them is one cannot be told. So there are as many slots as pixels.

    Args:
        encoder: its shape is that of the decoder too.
        n_particles: not used, pixels are the slots.
    """

    n_momentum = 3

    def __init__(self, encoder: ImageEncoder, n_particles: int = 0) -> None:
        super().__init__()
        config = encoder.config
        self.encoder: ImageEncoder = encoder
        self.n_particles = config.pixels**2
        self.dense = nn.Linear(config.latent, config.channels[-1] * config.smallest**2)
        widths = [*reversed(config.channels), 1]
        # The softmax does not see what is the same for all pixels: there is no bias in the last one.
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1, bias=b > 1 or i + 2 < len(widths))
            for i, (a, b) in enumerate(pairwise(widths))
        )

    @property
    def size(self) -> int:
        """Real numbers that are kept of a jet."""
        return 3 + self.encoder.width

    def encode(self, p4: Tensor, mask: Tensor) -> Tensor:
        """(batch, size) float64: pT within the window, η and φ of the jet; then the latent image."""
        drawn = self.encoder.drawn(p4, mask)
        latent = self.encoder.dense(self.encoder.feature_map(drawn.image).flatten(1))
        return torch.cat([drawn.jet, latent.double()], 1)

    def decode(self, numbers: Tensor) -> JetImages:
        """Numbers → pixels."""
        self.check(numbers)
        config, jet = self.encoder.config, numbers[:, :3]
        x = F.relu(self.dense(numbers[:, 3:].to(self.dense.weight.dtype)))
        x = x.view(len(x), config.channels[-1], config.smallest, config.smallest)
        for i, convolution in enumerate(self.convolutions):
            x = convolution(F.relu(x) if i else x)
        share = x.flatten(1).softmax(1)
        centres = pixel_centres(config.pixels, config.half_width, jet)
        places = torch.cartesian_prod(centres, centres).expand(len(x), -1, -1)
        momenta = absolute(jet, torch.cat([share.double().unsqueeze(-1), places], -1))
        presence = torch.where(jet[:, :1] > 0, 1.0, -1.0).expand_as(share)
        return JetImages(presence, momenta, share.view(-1, config.pixels, config.pixels), config.half_width)

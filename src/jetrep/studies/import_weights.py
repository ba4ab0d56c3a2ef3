"""The verb `import`: weights that somebody else trained become a model of this package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from jetrep.encoders.build import EncoderConfig
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.encoders.particlenet import PARTICLENETS
from jetrep.errors import InputError
from jetrep.features import FEATURE_SETS, FeatureConfig
from jetrep.model import ClassifierConfig, JetModel, ModelConfig
from jetrep.training.run import RunFolder

__all__ = ["JETCLASS", "import_weights"]

JETCLASS = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")
"""The classes of JetClass in the order of its labels."""


@dataclass(frozen=True)
class _Network:
    """One of weaver's networks as it was trained on JetClass.

    Attributes:
        name: what it is called.
        citation: where it was published.
        norm: the tensor by which it is recognised, as long as there are features.
        encoder: the same encoder here.
        head: the same classifier here.
        name_of: weaver's name of one of our tensors.
    """

    name: str
    citation: str
    norm: str
    encoder: EncoderConfig
    head: ClassifierConfig
    name_of: Callable[[str], str]


_SETS = ("full", "kinpid", "kin")
_WIDTHS = {len(FEATURE_SETS[name]): name for name in _SETS}
_PREFIX = "mod."
_REMEDY = "give weights of weaver's ParticleNet or ParticleTransformer as it was trained on JetClass"
_COUNTER = "num_batches_tracked"


def import_weights(
    source: Literal["weaver"],
    file: Path,
    *,
    out: Path,
    features: Literal["auto", "full", "kinpid", "kin"] = "auto",
    classes: list[str] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Turn published weights into a run that evaluate, embed, probe and finetune --from accept.

    From weaver: ParticleNet (arXiv 1902.08570) and Particle Transformer (arXiv 2202.03772) in the shape in which they
    were trained on JetClass, with 17, 13 or 7 features and any number of classes. No code in the file is run; every
    tensor in it must be one of that network.

    Args:
        source: whose weights they are: weaver.
        file: the .pt file.
        out: folder of the run.
        features: feature set of the network; by default the one with as many features.
        classes: names of its outputs in order; the ten of JetClass by default.
        overwrite: start anew even if OUT holds another run.
        quiet: show no progress.

    Returns:
        The folder of the run.
    """
    if source != "weaver":
        raise InputError(f"nothing is known of weights from '{source}'", field="source", remedy="known: weaver")
    weights, digest = _read(file)
    network = _recognized(weights, file)
    names = tuple(classes) if classes is not None else JETCLASS
    settings = {
        "verb": "import",
        "source": source,
        "file": file.name,
        "sha256": digest,
        "features": features,
        "classes": names,
        "architecture": f"{network.name}, {network.citation}",
    }
    if classes is None:
        settings |= {
            "trained_on": "JetClass, doi:10.5281/zenodo.6619768, arXiv:2202.03772",
            "origin": "github.com/jet-universe/particle_transformer (MIT licence)",
        }
    run = RunFolder(out, settings, overwrite=overwrite)
    if run.finished:
        Console(stderr=True, quiet=quiet).print(f"{out}: already imported")
        return out
    chosen = _feature_set(len(weights[network.norm]), features, network, file)
    config = ModelConfig(
        features=FeatureConfig(chosen, "weaver", signed_eta=True),
        encoder=network.encoder,
        head=network.head,
        pooling="cls",
        max_particles=128,
        classes=names,
    )
    with torch.random.fork_rng(devices=[]):
        model = JetModel(config)
    model.load_state_dict(_translated(weights, model, network, file))
    run.finish(model.eval(), {"feature_set": chosen})
    n = len(model.features.names)
    Console(stderr=True, quiet=quiet).print(f"{network.name} with the {n} features '{chosen}': {out}")
    return out


# Python has a keyword of this name, so the function bears another; this is where the command line looks it up.
vars()["import"] = import_weights


def _read(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file, without the prefix that weaver's wrapper gives them, and the file's SHA-256."""
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the reader
        reason = getattr(error, "strerror", None) or "it is damaged, or holds more than tensors"
        raise InputError(f"cannot be read ({reason})", file=file, remedy=_REMEDY) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise InputError("is not a table of tensors by name", file=file, remedy=_REMEDY)
    # torch's own attention, which older versions use, joins the last two words of these names.
    names = {
        name: name.removeprefix(_PREFIX)
        .replace("in_proj_weight", "in_proj.weight")
        .replace("in_proj_bias", "in_proj.bias")
        for name in content
    }
    return {names[name]: value for name, value in content.items()}, digest


def _recognized(weights: Mapping[str, Tensor], file: Path) -> _Network:
    """The network by the norm of its features."""
    for network in _NETWORKS:
        if network.norm in weights and weights[network.norm].ndim == 1:
            return network
    known = " or ".join(f"'{network.norm}' ({network.name})" for network in _NETWORKS)
    raise InputError("there is no norm of the features", file=file, field=known, remedy=_REMEDY)


def _feature_set(n: int, wanted: str, network: _Network, file: Path) -> Literal["full", "kinpid", "kin"]:
    """The feature set by the number of features."""
    for name in _SETS:
        if len(FEATURE_SETS[name]) == n and wanted in ("auto", name):
            return name  # type: ignore[return-value]
    if wanted != "auto":
        raise InputError(
            f"the network has {n} features, '{wanted}' has {len(FEATURE_SETS[wanted])}",
            file=file,
            field="features",
            remedy="leave out --features",
        )
    known = ", ".join(f"{n} ({name})" for n, name in _WIDTHS.items())
    raise InputError(f"the network has {n} features", file=file, field=network.norm, remedy=f"known are {known}")


def _translated(weights: Mapping[str, Tensor], model: JetModel, network: _Network, file: Path) -> dict[str, Tensor]:
    """The state of ``model`` with these weights.

    Raises:
        InputError: if a tensor is missing, too many, of another shape or not finite.
    """
    state = dict(model.state_dict())
    unused = {name for name in weights if not name.endswith(_COUNTER)}
    for ours, value in state.items():
        if ours.startswith("features.") or ours.endswith(_COUNTER):
            continue
        theirs = network.name_of(ours)
        found = weights.get(theirs)
        if found is None:
            raise InputError("there is no such tensor", file=file, field=theirs, remedy=_REMEDY)
        unused.discard(theirs)
        # Some of their linear layers are convolutions with a kernel of one, and their class token has a batch of one.
        more = (1,) * (found.ndim - value.ndim)
        shape = (*more, *value.shape) if theirs == "cls_token" else (*value.shape, *more)
        if tuple(found.shape) != shape or (more and not theirs.startswith(_CONVOLUTIONS)):
            outputs = theirs.startswith("fc.") and "head" in ours and found.shape[1:] == value.shape[1:]
            raise InputError(
                f"has shape {tuple(found.shape)}, not {tuple(value.shape)}",
                file=file,
                field=theirs,
                remedy=f"name its {len(found)} outputs with --classes" if outputs else _REMEDY,
            )
        if not found.is_floating_point() or not torch.isfinite(found).all():
            raise InputError("is not made of finite numbers", file=file, field=theirs, remedy=_REMEDY)
        state[ours] = found.reshape(value.shape).to(value.dtype)
    if unused:
        raise InputError("is not a tensor of this network", file=file, field=min(unused), remedy=_REMEDY)
    return state


def _in_particlenet(ours: str) -> str:
    """Weaver's name of one of our tensors."""
    room, _, rest = ours.partition(".")
    if room == "head":
        return rest.replace("layers.0", "fc.0.0").replace("layers.3", "fc.1")
    if rest.startswith("norm."):
        return rest.replace("norm", "bn_fts")
    _, block, layer, *inner = rest.split(".")
    if layer == "shortcut":
        kind, leaf = inner
        return f"edge_convs.{block}.{'sc' if kind == 'linear' else 'sc_bn'}.{leaf}"
    number = 0 if layer == "first" else int(inner.pop(0)) + 1
    kind, leaf = inner
    return f"edge_convs.{block}.{'convs' if kind == 'linear' else 'bns'}.{number}.{leaf}"


_IN_BLOCK = {
    "norm1": "pre_attn_norm",
    "inner1": "post_attn_norm",
    "norm2": "pre_fc_norm",
    "inner2": "post_fc_norm",
    "attention.qkv": "attn.in_proj",
    "attention.proj": "attn.out_proj",
    "head_gain": "c_attn",
    "residual_gain": "w_resid",
}


def _in_particle_transformer(ours: str) -> str:
    """Weaver's name of one of our tensors."""
    room, _, rest = ours.partition(".")
    if room == "head":
        return rest.replace("layers.0", "fc.0")
    part, _, rest = rest.partition(".")
    match part:
        case "prefix":
            return "cls_token"
        case "input_norm":
            return f"embed.input_bn.{rest}"
        case "embed":
            return f"embed.embed.{rest}"
        case "pair_bias":
            # batch norm, then (convolution, batch norm, activation) for each layer
            kind, number, leaf = rest.split(".")
            index = 3 * int(number) + 1 if kind == "layers" else max(3 * int(number) - 1, 0)
            return f"pair_embed.embed.{index}.{leaf}"
        case "blocks" | "class_blocks":
            number, _, inside = rest.partition(".")
            for own, other in _IN_BLOCK.items():
                inside = inside.replace(own, other)
            return f"{part.replace('class_', 'cls_')}.{number}.{inside}"
    return f"{part}.{rest}"


_CONVOLUTIONS = ("edge_convs", "pair_embed", "cls_token")

_NETWORKS = (
    _Network(
        "ParticleNet",
        "arXiv:1902.08570",
        "bn_fts.weight",
        PARTICLENETS["standard"],
        ClassifierConfig(hidden=(256,), dropout=0.1),
        _in_particlenet,
    ),
    _Network(
        "Particle Transformer",
        "arXiv:2202.03772",
        "embed.input_bn.weight",
        ParticleTransformerConfig(),
        ClassifierConfig(hidden=()),
        _in_particle_transformer,
    ),
)

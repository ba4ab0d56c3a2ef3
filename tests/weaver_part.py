"""Weights of weaver's Particle Transformer under the names of ours."""

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = {
    "cls_blocks": "class_blocks",
    "pre_attn_norm": "norm1",
    "post_attn_norm": "inner1",
    "pre_fc_norm": "norm2",
    "post_fc_norm": "inner2",
    "attn.in_proj": "attention.qkv",
    "attn.out_proj": "attention.proj",
    "c_attn": "head_gain",
    "w_resid": "residual_gain",
}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the classifier ``fc``."""
    weights = {}
    for name, value in state.items():
        if name.startswith("fc."):
            continue
        if name == "cls_token":
            weights["prefix"] = value[0]
            continue
        if pair := re.fullmatch(r"pair_embed\.embed\.(\d+)\.(\w+)", name):
            # batch norm, then (convolution, batch norm, activation) for each layer
            index, leaf = int(pair[1]), pair[2]
            if index % 3 == 1:
                weights[f"pair_bias.layers.{index // 3}.{leaf}"] = value.flatten(1) if value.ndim == 3 else value
            else:
                weights[f"pair_bias.norms.{(index + 1) // 3}.{leaf}"] = value
            continue
        name = name.replace("embed.input_bn", "input_norm").replace("embed.embed", "embed")
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        weights[name] = value
    return weights

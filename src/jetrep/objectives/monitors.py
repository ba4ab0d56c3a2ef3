"""Signs of collapse: numbers to watch while a representation is learned without labels, and what they warn of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["alarms", "collapse_monitors", "feature_rank", "spread"]


def feature_rank(x: Tensor) -> Tensor:
    """RankMe (arXiv 2210.02885): the exponential of the entropy of the singular values, from 1 to min(m, d).

    Args:
        x: (m, d) representations; if one is not finite, neither is the rank.
    """
    x = x.double()
    gram = x.T @ x if len(x) > x.shape[1] else x @ x.T
    finite = gram.isfinite().all()
    singular = torch.linalg.eigvalsh(gram.where(finite, 0)).clamp(min=0).sqrt()
    return _perplexity(singular / singular.sum().clamp(min=1e-300)).where(finite, torch.nan)


def _perplexity(p: Tensor) -> Tensor:
    return torch.exp(torch.special.entr(p).sum(-1))


@torch.no_grad()
def spread(representations: Tensor) -> dict[str, Tensor]:
    """How far representations (m, d) of jets differ.

    Returns:
        ``feature_rank``: see there;
        ``cls_std``: spread over jets of the unit representations, per component in units of 1/√d (0: constant; at
        most about 1).
    """
    with torch.autocast(representations.device.type, enabled=False):
        unit = F.normalize(representations.float(), dim=-1)
        std = (unit - unit.mean(0)).square().sum(-1).mean().sqrt()
        return {"feature_rank": feature_rank(representations).float(), "cls_std": std}


@torch.no_grad()
def collapse_monitors(logits: Tensor, temperature: float, representations: Tensor) -> dict[str, Tensor]:
    """What the teacher's outputs on one batch say about collapse.

    Args:
        logits: (m, K) of the teacher's head.
        temperature: of the teacher.
        representations: (m, d) of the teacher's encoder.

    Returns:
        ``teacher_entropy``: mean entropy of softmax(z/τ), over ln K (1: uniform, nothing is told apart);
        ``prototype_use``: effective number of prototypes in use, the perplexity of the mean of softmax(z/τ);
        and those of `spread`.
    """
    p = torch.softmax(logits.float() / temperature, -1)
    return {
        "teacher_entropy": torch.special.entr(p).sum(-1).mean() / math.log(max(2, p.shape[1])),
        "prototype_use": _perplexity(p.mean(0)),
        **spread(representations),
    }


def alarms(
    metrics: Mapping[str, float],
    *,
    max_entropy: float = 0.98,
    min_prototypes: float = 2.0,
    min_rank: float = 1.5,
    min_std: float = 0.005,
) -> list[str]:
    """Sentences about monitors that lie outside of their bounds; metrics that are absent are passed over.

    A net that has hardly been trained may look collapsed: do not ask in the first few hundred steps.

    Args:
        metrics: values under the names of `collapse_monitors`.
        max_entropy: bound on ``teacher_entropy``.
        min_prototypes: bound on ``prototype_use``, and on ``codebook_perplexity``, that of the codes of a tokeniser.
        min_rank: bound on ``feature_rank``.
        min_std: bound on ``cls_std``.
    """
    found = [f"{name} is not finite: training has diverged" for name, x in metrics.items() if not math.isfinite(x)]
    if (x := metrics.get("teacher_entropy", 0.0)) > max_entropy:
        found.append(f"the teacher tells no jets apart: its outputs are uniform (entropy {x:.3f} of the maximum)")
    if (x := metrics.get("prototype_use", math.inf)) < min_prototypes:
        found.append(f"all jets fall on the same prototypes: {x:.2f} of them are in effective use")
    if 0 < (x := metrics.get("codebook_perplexity", math.inf)) < min_prototypes:
        found.append(f"all particles fall on the same codes: {x:.2f} of them are in effective use")
    if (x := metrics.get("feature_rank", math.inf)) < min_rank:
        found.append(f"representations have shrunk to {x:.2f} effective dimensions")
    if (x := metrics.get("cls_std", math.inf)) < min_std:
        found.append(f"representations are the same for all jets: their spread is {x:.2g}")
    return found

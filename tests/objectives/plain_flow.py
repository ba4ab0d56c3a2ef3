"""The density of a flow, one particle at a time, from the whole Jacobian."""

import math

import torch


def plain_nll(target, x, context):
    """−ln p(x | context) of one particle (n,), in nats."""

    def f(y):
        return target.transform(context)(y)

    z = f(x)
    jacobian = torch.autograd.functional.jacobian(f, x, create_graph=True)
    normal = sum(0.5 * math.log(2 * math.pi) + 0.5 * component**2 for component in z)
    return normal - torch.linalg.slogdet(jacobian).logabsdet

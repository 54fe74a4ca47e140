"""activations behind one layer -> losses that steer them away or hold them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ngdiff.models.activations import Activations


def control_vector(width: int, seed: int = 0) -> Float[Tensor, " width"]:
    """Return a unit vector of random direction, with entries drawn uniformly from [0, 1) as in the paper.

    Args:
        width: of the model's hidden states.
        seed: decides the direction, on every process and after a resume alike.
    """
    drawn: Tensor = torch.rand(width, generator=torch.Generator().manual_seed(int(seed)))
    return drawn / float(drawn.norm())


def steer_away(activations: Activations, coefficient: float = 2.0, seed: float = 0) -> Float[Tensor, ""]:
    """Sum |h - coefficient * u|² over the labelled tokens, u a fixed random direction (RMU, forget part).

    Source: Li et al. 2024, "The WMDP benchmark", arXiv 2403.03218, eq. 1. Their code and OpenUnlearning's
    divide by the width, which scales both parts alike, and OpenUnlearning averages over each sequence before
    it averages over the batch, so that short answers weigh more there. The paper updates three layers' MLP
    output matrices alone: ``--set trainable='layers[.](5|6|7)[.]mlp[.]down_proj'`` does so.

    Args:
        activations: behind one layer.
        coefficient: length of the vector to steer to; it should dwarf the activations' own length.
        seed: decides the direction.
    """
    hidden = activations.hidden
    vector = control_vector(hidden.shape[1], int(seed)).to(hidden.device, hidden.dtype)
    return (hidden - coefficient * vector).square().sum()


def steer_away_in_proportion(
    activations: Activations, scale: float = 5.0, seed: float = 0
) -> Float[Tensor, ""]:
    """Sum |h - scale * |h_start| * u|² over the labelled tokens, u a fixed random direction (adaptive RMU).

    RMU whose length follows each token's own activation in the starting model, so that one setting serves
    every layer: activations grow with depth.
    Source: Dang et al. 2024, "On effects of steering latent representation for LLM unlearning", arXiv
    2408.06223. Public code for it has the default scale, and takes the mean length over the first batch for
    all tokens instead of each token's own.

    Args:
        activations: behind one layer, with the starting model's.
        scale: how many times the starting activation's length.
        seed: decides the direction.
    """
    if activations.reference is None:
        raise ValueError("this loss compares with the starting model: the batch lacks its activations")
    hidden = activations.hidden
    vector = control_vector(hidden.shape[1], int(seed)).to(hidden.device, hidden.dtype)
    lengths: Tensor = activations.reference.norm(dim=1, keepdim=True)
    found: Tensor = (hidden - scale * lengths * vector).square().sum()
    return found


def embedding_difference(activations: Activations) -> Float[Tensor, ""]:
    """Sum |h - h_start|² over the labelled tokens (RMU, retain part).

    Source: Li et al. 2024, arXiv 2403.03218, eq. 2; see :func:`steer_away` on its scale.
    """
    if activations.reference is None:
        raise ValueError("this loss compares with the starting model: the batch lacks its activations")
    return (activations.hidden - activations.reference).square().sum()

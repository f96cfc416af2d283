"""Where EM starts, and which of several starts is kept.

Shapes: B images, K components, C channels, H by W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SPREAD = 1 / 6
"""How far a seed reaches, in sides of the image."""


def noise(image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Tensor:
    """gamma = |N(0, 1)| normalised over K, as published: for images (B, C, H, W), (B, K, 1, H, W)."""
    batch, _, height, width = image.shape
    gamma = torch.randn(
        batch, num_components, 1, height, width, dtype=image.dtype, device=image.device, generator=generator
    )
    gamma.abs_().clamp_min_(torch.finfo(image.dtype).tiny)
    return gamma.div_(gamma.sum(1, keepdim=True))


def seeds(image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Tensor:
    """A round region around each of K bright pixels that lie apart: for images (B, C, H, W), (B, K, 1, H, W).

    The pixels are drawn as the centres of k-means++ are: each with a probability proportional to its brightness times
    its squared distance to the nearest one before it. gamma falls with the squared distance d^2 to a component's pixel:
    proportional to exp(-d^2 / 2 s^2), where s is ``SPREAD`` of the image's longer side.

    Source: Arthur and Vassilvitskii 2007, section 2.2, for the pixels.
    """
    batch, _, height, width = image.shape
    tiny = 1e-9  # an image may be black, or have fewer bright pixels than there are components
    like = {"dtype": image.dtype, "device": image.device}
    rows, columns = torch.arange(height, **like), torch.arange(width, **like)
    brightness = image.mean(1).flatten(1).clamp_min(0) + tiny
    nearest, distances = torch.ones_like(brightness), []
    for draw in torch.rand(num_components, batch, 1, generator=generator, **like):
        upto = (brightness * (nearest + tiny)).cumsum(1, dtype=torch.float64)  # much quicker than multinomial
        seed = torch.searchsorted(upto, draw * upto[:, -1:], right=True).clamp_max(height * width - 1)  # (B, 1)
        down, across = (rows - seed // width).square(), (columns - seed % width).square()  # (B, H), (B, W)
        distance = (down.unsqueeze(2) + across.unsqueeze(1)).flatten(1)  # (B, HW)
        nearest = torch.minimum(nearest, distance) if distances else distance
        distances.append(distance)
    spread = SPREAD * max(height, width)
    gamma = (torch.stack(distances, 1) / (-2 * spread**2)).softmax(1)
    return gamma.view(batch, num_components, 1, height, width)


STARTS = {"noise": noise, "seeds": seeds}


def energy(image: Tensor, params: Tensor, responsibilities: Tensor) -> Tensor:
    """How badly K components explain a binary image that is the union of its objects, in nats.

        - sum_n x_n sum_k gamma_nk log mu_kn  -  sum_n (1 - x_n) sum_k log(1 - mu_kn)  +  M KL(u || pi).

    A bright pixel is explained by its component, a dark one by all of them; u are the shares of the M bright pixels
    that the components take, and pi is uniform. Unlike equation 5 this does not charge components for overlapping,
    which favours groupings where one component takes overlapping objects and another none.

    Args:
        image: (B, C, H, W), 0 or 1.
        params: (B, K, C, H, W), logits of mu.
        responsibilities: gamma, (B, K, 1, H, W).

    Returns:
        (B,).
    """
    image = image.unsqueeze(1)
    taken = responsibilities * image
    surprise = F.softplus(params * (1 - 2 * image))  # -log P(x | mu)
    bright = taken.flatten(2).sum(2)  # M u, (B, K)
    total = bright.sum(1, keepdim=True)
    uneven = torch.xlogy(bright, bright / total.clamp_min(1e-9)).sum(1) + total[:, 0] * math.log(params.shape[1])
    return torch.linalg.vecdot((1 - image + taken).flatten(1), surprise.flatten(1)) + uneven

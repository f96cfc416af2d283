"""The first gamma of EM, and the energy that chooses among several starts.

Shapes: B images, K components, C channels, H by W pixels.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nem_lightning.models.grouping import Grouping
from nem_lightning.models.likelihoods import Likelihood

Start = TypeVar("Start", bound=Grouping)
End = TypeVar("End", bound=Grouping)

SPREAD = 1 / 6
"""Standard deviation of a region, as a share of the image's longer side."""


def noise(image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw gamma = |N(0, 1)|, normalised over K, as published: (B, C, H, W) -> (B, K, 1, H, W)."""
    batch, _, height, width = image.shape
    gamma = torch.randn(
        batch, num_components, 1, height, width, dtype=image.dtype, device=image.device, generator=generator
    )
    gamma.abs_().clamp_min_(torch.finfo(image.dtype).tiny)
    return gamma.div_(gamma.sum(1, keepdim=True))


def bright_regions(image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a round region around each of K distant bright pixels: (B, C, H, W) -> (B, K, 1, H, W).

    The pixels are drawn like the centres of k-means++: each with a probability proportional to its brightness times
    its squared distance to the nearest pixel drawn before. gamma is proportional to exp(-d^2 / 2 s^2), with d the
    distance to the component's pixel, and s = ``SPREAD`` times the image's longer side.

    Source: Arthur and Vassilvitskii 2007, section 2.2, for the pixels.
    """
    like = {"dtype": image.dtype, "device": image.device}
    return regions(image, torch.rand(num_components, len(image), 1, generator=generator, **like))


def regions(image: Tensor, draws: Tensor) -> Tensor:
    """Give the regions of :func:`bright_regions` for numbers drawn from [0, 1): (B, C, H, W), (K, B, 1) -> gamma."""
    batch, _, height, width = image.shape
    tiny = 1e-9  # an image may be black, or have fewer bright pixels than there are components
    like = {"dtype": image.dtype, "device": image.device}
    rows, columns = torch.arange(height, **like), torch.arange(width, **like)
    brightness, remaining = image.mean(1).flatten(1).clamp_min(0) + tiny, iter(draws)

    def pick(nearest: Tensor) -> Tensor:
        upto = (brightness * (nearest + tiny)).cumsum(1, dtype=torch.float64)  # faster than multinomial
        return (upto <= next(remaining) * upto[:, -1:]).sum(1, keepdim=True).clamp_max(height * width - 1)

    def distance_to(seed: Tensor) -> Tensor:
        down, across = (rows - seed // width).square(), (columns - seed % width).square()  # (B, H), (B, W)
        return (down.unsqueeze(2) + across.unsqueeze(1)).flatten(1)

    spread = SPREAD * max(height, width)
    gamma = (_far_apart(pick, distance_to, torch.ones_like(brightness), len(draws)) / (-2 * spread**2)).softmax(1)
    return gamma.view(batch, len(draws), 1, height, width)


def distant_values(image: Tensor, num_components: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw K pixels of distant values, and give each pixel to the nearest: (B, C, H, W) -> (B, K, 1, H, W).

    The pixels are drawn like the centres of k-means++: each with a probability proportional to the squared distance of
    its value, a point in C dimensions, to the nearest value drawn before. gamma is 1 for the component of the nearest
    value, and 0 for the others.

    Source: Arthur and Vassilvitskii 2007, section 2.2.
    """
    values = image.flatten(2).transpose(1, 2)  # (B, HW, C)

    def pick(nearest: Tensor) -> Tensor:
        return torch.multinomial(nearest + torch.finfo(values.dtype).tiny, 1, generator=generator)

    def distance_to(seed: Tensor) -> Tensor:
        centre = values.gather(1, seed.unsqueeze(2).expand(-1, -1, values.shape[2]))  # (B, 1, C)
        return (values - centre).square().sum(2)

    distances = _far_apart(pick, distance_to, values.new_ones(values.shape[:2]), num_components)
    gamma = F.one_hot(distances.argmin(1), num_components).transpose(1, 2).to(values.dtype)
    return gamma.reshape(len(image), num_components, 1, *image.shape[2:])


def _far_apart(
    pick: Callable[[Tensor], Tensor], distance_to: Callable[[Tensor], Tensor], nearest: Tensor, count: int
) -> Tensor:
    """Draw pixels in the order of k-means++, and give the squared distance of every pixel to each, (B, count, HW).

    Args:
        pick: draws a pixel of each image, (B, 1), for the squared distances to the nearest pixel drawn before, which
            are (B, HW).
        distance_to: gives the squared distances to such a pixel, (B, HW).
        nearest: what ``pick`` gets for the first pixel.
        count: how many pixels to draw.
    """
    distances: list[Tensor] = []
    for _ in range(count):
        distance = distance_to(pick(nearest))
        nearest = torch.minimum(nearest, distance) if distances else distance
        distances.append(distance)
    return torch.stack(distances, 1)


STARTS = {"noise": noise, "bright_regions": bright_regions, "distant_values": distant_values}


def best_start(
    draw: Callable[[], Start],
    steps: Callable[[Start], Iterator[End]],
    energy_of: Callable[[End], Tensor],
    num_starts: int,
) -> Start:
    """Draw several starts, and give for each image the one with the lowest energy after the last step.

    Args:
        draw: gives a start of all images of a batch.
        steps: takes all steps from a start. It is not called for one start.
        energy_of: gives the energy, (B,), of the grouping after the last step.
        num_starts: at least 1.
    """

    @torch.no_grad()
    def energy_at_the_end(start: Start) -> Tensor:
        return energy_of(deque(steps(start), maxlen=1).pop()).nan_to_num(nan=math.inf)

    best = draw()
    if num_starts > 1:
        lowest = energy_at_the_end(best)
        for _ in range(num_starts - 1):
            other = draw()
            found = energy_at_the_end(other)
            best, lowest = other.where(found < lowest, best), torch.minimum(found, lowest)
    return best


def steps_from_best(
    draw: Callable[[], Start],
    steps: Callable[[Start], Iterator[End]],
    energy_of: Callable[[End], Tensor],
    num_starts: int,
) -> Iterator[End]:
    """Take all steps from the start that :func:`best_start` gives for these arguments."""
    yield from steps(best_start(draw, steps, energy_of, num_starts))


def energy(
    likelihood: Likelihood, image: Tensor, params: Tensor, responsibilities: Tensor, dark_weight: float = 1.0
) -> Tensor:
    """Measure how badly K components explain an image, in nats; the start with the lowest energy is kept.

    For real pixels: the negative log likelihood (equation 1) plus M KL(u || pi), which penalises uneven shares:

        - sum_n log sum_k pi_k P(x_n | mu_kn)  +  M KL(u || pi).

    For binary pixels: an image is the union of its objects, so a bright pixel's component explains it, and all
    components explain a dark pixel:

        - sum_n x_n sum_k gamma_nk log mu_kn  -  w sum_n (1 - x_n) sum_k log(1 - mu_kn)  +  M KL(u || pi).

    u are the components' shares of M pixels: all pixels of a real image, or the bright pixels of a binary image; pi
    is uniform. For binary pixels, equation 5 penalises overlapping components, and so favours groupings in which one
    component takes overlapping objects and another takes none; the energy does not.

    Args:
        likelihood: of the pixels.
        image: (B, C, H, W).
        params: (B, K, C, H, W).
        responsibilities: gamma, (B, K, 1, H, W).
        dark_weight: w, how often a dark pixel of a binary image counts.

    Returns:
        (B,).
    """
    image = image.unsqueeze(1)
    if not likelihood.binary:
        log_prob = likelihood.log_prob(image, params) - math.log(params.shape[1])
        return _unevenness(responsibilities) - log_prob.logsumexp(1).sum((1, 2, 3))
    taken = responsibilities * image
    surprise = F.softplus(params * (1 - 2 * image))  # -log P(x | mu)
    return torch.linalg.vecdot((dark_weight * (1 - image) + taken).flatten(1), surprise.flatten(1)) + _unevenness(taken)


def _unevenness(taken: Tensor) -> Tensor:
    """Give M KL(u || pi): (B, K, ...) -> (B,)."""
    shares = taken.flatten(2).sum(2)  # M u, (B, K)
    total = shares.sum(1, keepdim=True)
    return torch.xlogy(shares, shares / total.clamp_min(1e-9)).sum(1) + total[:, 0] * math.log(shares.shape[1])

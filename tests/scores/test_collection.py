"""Sets of scores: what they give, count once, and do not mix."""

import pytest
import torch
from tiny import default_scores, tiny_model

from nem_lightning.errors import InputError
from nem_lightning.headings import Heading
from nem_lightning.models.grouping import Grouping
from nem_lightning.scores.base import Score
from nem_lightning.scores.best_overlap import MeanBestOverlap, mean_best_overlap
from nem_lightning.scores.collection import ScoreSet
from nem_lightning.scores.mutual_information import AdjustedMutualInformation, adjusted_mutual_information
from nem_lightning.scores.rand_index import AdjustedRandIndex

EMPTY = pytest.mark.filterwarnings("ignore:The ``compute`` method")
"""For tests that ask for scores without any image."""


class ShareOfFirst(Score):
    """A score like one that a user may write: the share of the image that the first component takes."""

    heading = Heading("first", ".1%")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("taken", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros(()), dist_reduce_fx="sum")
        self.taken: torch.Tensor
        self.pixels: torch.Tensor

    def update(self, responsibilities):
        self.taken += responsibilities[:, 0].sum()
        self.pixels += responsibilities[:, 0].numel()

    def compute(self):
        return self.taken / self.pixels


def updated(scores: dict[str, Score], *parts: slice):
    """Give a set of scores that has seen a few images, the model, the images, their groups and their grouping."""
    torch.manual_seed(0)
    model, image, groups = tiny_model(), torch.rand(6, 1, 6, 5).round(), torch.randint(-1, 3, (6, 6, 5))
    groups[0], groups[5] = 0, -1
    found = ScoreSet(scores, model)
    last = model(image.unsqueeze(1))[-1]
    for part in parts or (slice(0, 6),):
        iterate = type(last)(**{name: value[part] for name, value in vars(last).items()})
        found.update(model, image[part], groups[part], iterate)
    return found, model, image, groups, last


@EMPTY
def test_a_set_gives_every_score_and_every_number_of_the_model():
    scores = {**default_scores(), "first": ShareOfFirst(), "best_overlap": MeanBestOverlap()}
    found, model, image, groups, last = updated(scores, slice(0, 4), slice(4, 6))
    assert list(found.headings) == [*scores, *model.headings]
    assert found.headings["first"] == Heading("first", ".1%") and found.headings["loss"] == model.headings["loss"]
    values, reported = found.compute(), model.report(image, last)
    assert list(values) == list(found.headings)
    assert values["first"] == pytest.approx(last.responsibilities[:, 0].mean().item())
    assert values["best_overlap"] == pytest.approx(mean_best_overlap(last.labels, groups).nanmean().item())
    for name in ("max", "arithmetic"):
        expected = adjusted_mutual_information(last.labels, groups, name).nanmean().item()
        assert values[f"ami_{name}"] == pytest.approx(expected)
    for name, value in reported.items():
        assert values[name].item() == pytest.approx(value.item(), rel=1e-6)
    assert found.images.compute().tolist() == [6, 2]  # images, unscored images
    found.reset()
    assert found.images.compute().tolist() == [0, 0]


def test_what_scores_of_one_class_count_is_counted_once(monkeypatch):
    counted = []
    original = AdjustedMutualInformation.all_by_image
    monkeypatch.setattr(AdjustedMutualInformation, "all_by_image", lambda *call: counted.append(1) or original(*call))
    found, *_ = updated(default_scores(), slice(0, 3), slice(3, 6))
    values = found.compute()
    assert len(counted) == 2 and values["ami_max"] != values["ami_arithmetic"]


def test_two_scores_of_a_users_own_class_are_not_mixed():
    """The two may count different things."""

    class ShareOf(ShareOfFirst):
        def __init__(self, component: int) -> None:
            super().__init__()
            self.component = component

        def update(self, responsibilities):
            super().update(responsibilities[:, self.component :])

    found, _, _, _, last = updated({"one": ShareOf(0), "two": ShareOf(1)}, slice(0, 3), slice(3, 6))
    values, expected = found.compute(), last.responsibilities.mean((0, 2, 3, 4))
    assert [values[name].item() for name in ("one", "two")] == pytest.approx(expected.tolist())


@EMPTY
def test_sets_do_not_share_what_they_count():
    scores, model = {"first": ShareOfFirst()}, tiny_model()
    one, other = ScoreSet(scores, model), ScoreSet(scores, model)
    image, groups = torch.ones(2, 1, 6, 5), torch.ones(2, 6, 5, dtype=torch.long)
    one.update(model, image, groups, model(image.unsqueeze(1))[-1])
    assert one.compute()["first"] > 0 and other.compute()["first"].isnan() and scores["first"].pixels == 0


def test_no_scores_are_a_set_too():
    found, model, *_ = updated({})
    assert found.compute().keys() == model.headings.keys()


def test_a_score_named_like_a_number_of_the_model():
    with pytest.raises(InputError, match=r"scores\.loss: is a number that NeuralEM reports itself"):
        ScoreSet({"loss": AdjustedRandIndex()}, tiny_model())


def test_labels_and_reconstruction_of_a_grouping():
    gamma = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).view(1, 2, 1, 1, 2)
    mean = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 1, 2)
    assert Grouping(gamma).labels.tolist() == [[[0, 1]]] and Grouping(gamma).reconstruction is None
    reconstruction = Grouping(gamma, mean).reconstruction
    assert reconstruction is not None
    assert reconstruction.flatten().tolist() == pytest.approx([0.9 + 0.3, 0.4 + 3.2])

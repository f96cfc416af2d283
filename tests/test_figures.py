import numpy as np
import pytest
import torch
from tiny import TinyImages, em_of, m_step_of, tiny_module

from nem_lightning import figures
from nem_lightning.models.grouping import Grouping


def trajectory(steps: int, components: int, channels: int, with_means: bool = True) -> list[Grouping]:
    torch.manual_seed(0)
    return [
        Grouping(
            torch.randn(2, components, 1, 6, 5).softmax(1),
            torch.rand(2, components, channels, 6, 5) if with_means else None,
        )
        for _ in range(steps)
    ]


def test_pixels_have_the_colours_of_their_components():
    gamma = torch.zeros(3, 1, 3)
    gamma[0, 0, 0] = gamma[2, 0, 1] = 1
    gamma[:2, 0, 2] = 0.5
    picture = figures.grouping_colours(gamma)
    np.testing.assert_allclose(picture[0, 0], figures.COLOURS[0])
    np.testing.assert_allclose(picture[0, 1], figures.COLOURS[2])
    np.testing.assert_allclose(picture[0, 2], figures.COLOURS[:2].mean(0))


def test_groups_have_the_colour_of_the_component_that_covers_them():
    groups = torch.tensor([[0, 1, 1, 20, 20, 20]])
    picture = figures.groups_colours(groups, torch.tensor([[0, 2, 2, 0, 0, 1]]))
    expected = [np.zeros(3), *[figures.COLOURS[2]] * 2, *[figures.COLOURS[0]] * 3]
    np.testing.assert_allclose(picture[0], expected)
    unscored = torch.zeros(2, 2, dtype=torch.long)
    assert not figures.groups_colours(unscored, torch.ones(2, 2, dtype=torch.long)).any()


@pytest.mark.parametrize(("steps", "components", "channels"), [(1, 1, 1), (10, 3, 1), (3, 10, 3)])
def test_groupings_has_a_column_a_step_and_a_row_a_component(steps, components, channels):
    frames, groups = torch.rand(2, 1, channels, 6, 5), torch.randint(-1, 30, (2, 1, 6, 5))
    iterates = trajectory(steps, components, channels)
    figure = figures.groupings(frames, groups, iterates, index=1)
    axes = np.array(figure.axes).reshape(components + 1, steps + 2)
    np.testing.assert_allclose(
        axes[0, 2].images[0].get_array(), figures.grouping_colours(iterates[0].responsibilities[1, :, 0])
    )
    shown = axes[-1, -1].images[0].get_array()
    mean = iterates[-1].mean
    assert mean is not None
    np.testing.assert_allclose(shown[..., 0], mean[1, -1, 0], atol=1e-6)


def test_groupings_of_a_sequence_have_the_frame_that_each_step_explains():
    frames, groups, iterates = torch.rand(2, 4, 1, 6, 5), torch.randint(0, 4, (2, 4, 6, 5)), trajectory(3, 2, 1)
    axes = np.array(figures.groupings(frames, groups, iterates, index=1).axes).reshape(3 + 2, 3 + 1)
    for step in (1, 2, 3):
        shown = [row.images[0].get_array() for row in axes[:3, step]]
        np.testing.assert_allclose(shown[0], figures.image_pixels(frames[1, step]))
        expected = figures.groups_colours(groups[1, step], iterates[step - 1].labels[1])
        np.testing.assert_allclose(shown[1], expected)
        found = figures.grouping_colours(iterates[step - 1].responsibilities[1, :, 0])
        np.testing.assert_allclose(shown[2], found)
    assert not any(ax.images for ax in axes[:, 0]) and axes[0, 3].get_title() == "step 3"


def test_groupings_without_means_have_no_rows_for_them():
    frames, groups = torch.rand(2, 1, 1, 6, 5), torch.zeros(2, 1, 6, 5, dtype=torch.long)
    assert len(figures.groupings(frames, groups, trajectory(3, 2, 1, with_means=False)).axes) == 2 + 3


def test_gallery_shows_as_many_as_there_are(tmp_path):
    image, groups = torch.rand(2, 1, 6, 5), torch.randint(0, 3, (2, 6, 5))
    figure = figures.gallery(image, groups, trajectory(1, 3, 1)[0], count=8)
    assert len(figure.axes) == 3 * 2
    figure.savefig(tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 1000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pictures_are_of_what_is_scored(tmp_path, dtype):
    """In evaluation mode, and in the precision of the weights."""
    module, drawn = tiny_module().to(dtype), []
    m_step, dropout = m_step_of(em_of(module)), torch.nn.Dropout(0.5)
    m_step.encoder = torch.nn.Sequential(torch.nn.Flatten(), dropout)
    m_step.decoder.register_forward_hook(lambda *call: drawn.append(call[-1].float()))
    batch = TinyImages().load("test").__getitems__(range(3))
    pictures = [
        figures.save(module.model, batch, module.generator("test", 0), tmp_path, "test images") for _ in range(2)
    ]
    assert module.training and dropout.training
    assert all(path.stat().st_size > 1000 for path in pictures[0])
    assert all(map(torch.equal, drawn[:3], drawn[3:])) and len(drawn) == 6


def test_two_dozen_components_have_colours_of_their_own():
    found = figures.colours(24)
    assert found.min() >= 0 and found.max() <= 1
    assert min(np.abs(one - other).sum() for i, one in enumerate(found) for other in found[:i]) > 0.15

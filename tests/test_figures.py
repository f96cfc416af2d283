import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny import TinyImages, em_of, m_step_of, tiny_module

from nem_lightning import figures
from nem_lightning.colours import COLOURS, colours, grouping_colours, groups_colours, image_pixels
from nem_lightning.models.grouping import Grouping
from nem_lightning.mosaics import DPI, LABELS, Mosaic


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
    picture = grouping_colours(gamma)
    np.testing.assert_allclose(picture[0, 0], COLOURS[0])
    np.testing.assert_allclose(picture[0, 1], COLOURS[2])
    np.testing.assert_allclose(picture[0, 2], COLOURS[:2].mean(0))


def test_groups_have_the_colour_of_the_component_that_covers_them():
    groups = torch.tensor([[0, 1, 1, 20, 20, 20]])
    picture = groups_colours(groups, torch.tensor([[0, 2, 2, 0, 0, 1]]))
    expected = [np.zeros(3), *[COLOURS[2]] * 2, *[COLOURS[0]] * 3]
    np.testing.assert_allclose(picture[0], expected)
    unscored = torch.zeros(2, 2, dtype=torch.long)
    assert not groups_colours(unscored, torch.ones(2, 2, dtype=torch.long)).any()


def small(figure: Figure, mosaic: Mosaic, row: int, column: int) -> np.ndarray:
    """Give the small picture at this row and column of a figure."""
    (axes,) = figure.axes
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels.shape == mosaic.pixels.shape == (*np.round(figure.get_size_inches()[::-1] * DPI), 3)
    down, across = mosaic.corner(row, column)
    height, width = mosaic.height * mosaic.scale, mosaic.width * mosaic.scale
    return pixels[down : down + height : mosaic.scale, across : across + width : mosaic.scale]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(("steps", "components", "channels"), [(1, 1, 1), (10, 3, 1), (3, 10, 3)])
def test_groupings_has_a_column_a_step_and_a_row_a_component(steps, components, channels):
    frames, groups = torch.rand(2, 1, channels, 6, 5), torch.randint(-1, 30, (2, 1, 6, 5))
    iterates = trajectory(steps, components, channels)
    figure, mosaic = (
        figures.groupings(frames, groups, iterates, index=1),
        Mosaic(components + 1, steps + 2, (6, 5)),
    )
    np.testing.assert_allclose(small(figure, mosaic, 0, 0), image_pixels(frames[1, 0]))
    found = grouping_colours(iterates[0].responsibilities[1, :, 0])
    np.testing.assert_allclose(small(figure, mosaic, 0, 2), found)
    shown = small(figure, mosaic, components, steps + 1)
    mean = iterates[-1].mean
    assert mean is not None
    np.testing.assert_allclose(shown[..., 0], mean[1, -1, 0], atol=1e-6)
    assert texts(figure)[-1] == f"mean {components}" and f"step {steps}" in texts(figure)


def test_groupings_of_a_sequence_have_the_frame_that_each_step_explains():
    frames, groups, iterates = torch.rand(2, 4, 1, 6, 5), torch.randint(0, 4, (2, 4, 6, 5)), trajectory(3, 2, 1)
    figure, mosaic = figures.groupings(frames, groups, iterates, index=1), Mosaic(5, 3, (6, 5), LABELS)
    of_object: dict[int, list[np.ndarray]] = {}
    for step in (1, 2, 3):
        shown = [small(figure, mosaic, row, step - 1) for row in range(3)]
        np.testing.assert_allclose(shown[0], image_pixels(frames[1, step]))
        for value in range(4):  # each object has one colour at all steps; unscored pixels are black
            of_object.setdefault(value, []).append(shown[1][groups[1, step] == value])
        found = grouping_colours(iterates[step - 1].responsibilities[1, :, 0])
        np.testing.assert_allclose(shown[2], found)
    unique = {value: np.unique(np.concatenate(pixels), axis=0) for value, pixels in of_object.items()}
    assert all(len(colours) == 1 for colours in unique.values()) and not unique[0].any()
    assert len({tuple(colours[0]) for colours in unique.values()}) == 4
    assert texts(figure) == ["frame", "true groups", "found", "step 1", "step 2", "step 3", "mean 1", "mean 2"]


def test_groupings_without_means_have_no_rows_for_them():
    frames, groups = torch.rand(2, 1, 1, 6, 5), torch.zeros(2, 1, 6, 5, dtype=torch.long)
    figure = figures.groupings(frames, groups, trajectory(3, 2, 1, with_means=False))
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == Mosaic(1, 2 + 3, (6, 5)).pixels.shape


def test_a_mean_has_a_frame_of_its_colour():
    frames, groups = torch.rand(2, 1, 1, 6, 5), torch.zeros(2, 1, 6, 5, dtype=torch.long)
    figure, mosaic = figures.groupings(frames, groups, trajectory(1, 2, 1)), Mosaic(3, 3, (6, 5))
    pixels = np.asarray(figure.axes[0].images[0].get_array())
    for k in range(2):
        down, across = mosaic.corner(1 + k, 2)
        np.testing.assert_allclose(pixels[down - 1, across], COLOURS[k])


def test_gallery_shows_as_many_as_there_are(tmp_path):
    image, groups, grouping = torch.rand(2, 1, 6, 5), torch.randint(0, 3, (2, 6, 5)), trajectory(1, 3, 1)[0]
    figure = figures.gallery(image, groups, grouping, count=8, caption="two")
    mosaic = Mosaic(3, 2, (6, 5), LABELS, "two")
    np.testing.assert_allclose(small(figure, mosaic, 0, 1), image_pixels(image[1]))
    np.testing.assert_allclose(small(figure, mosaic, 2, 1), grouping_colours(grouping.responsibilities[1, :, 0]))
    assert texts(figure) == ["two", "input", "true groups", "found"]
    figure.savefig(tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size > 1000


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pictures_are_of_what_is_scored(tmp_path, dtype):
    """They are drawn in evaluation mode, and in the precision of the weights."""
    module, drawn = tiny_module().to(dtype), []
    m_step, dropout = m_step_of(em_of(module)), torch.nn.Dropout(0.5)
    m_step.encoder = torch.nn.Sequential(torch.nn.Flatten(), dropout)
    m_step.decoder.register_forward_hook(lambda *call: drawn.append(call[-1].float()))
    batch = TinyImages().load("test").__getitems__(range(3))
    pictures = [
        figures.save(module.model, batch, module.generator("test", 0), tmp_path, "test images") for _ in range(2)
    ]
    assert module.training and dropout.training
    assert all(path.stat().st_size > 1000 for path in pictures[0] if path is not None) and pictures[0].animation is None
    assert all(map(torch.equal, drawn[:3], drawn[3:])) and len(drawn) == 6


def test_two_dozen_components_have_colours_of_their_own():
    found = colours(24)
    assert found.min() >= 0 and found.max() <= 1
    assert min(np.abs(one - other).sum() for i, one in enumerate(found) for other in found[:i]) > 0.15


def test_an_animation_shows_each_step_of_each_sequence(tmp_path):
    frames, groups, iterates = torch.rand(2, 4, 1, 6, 5), torch.randint(0, 4, (2, 4, 6, 5)), trajectory(3, 2, 1)
    pictures = figures.animation(frames, groups, iterates, caption="few,")
    mosaic = Mosaic(2, 5, (6, 5), caption="few, step 1")
    assert len(pictures) == 3
    for step, picture in enumerate(pictures, start=1):
        pixels = np.asarray(picture)
        assert pixels.shape == mosaic.pixels.shape
        down, across = mosaic.corner(1, 0)
        shown = pixels[down : down + 6 * mosaic.scale : mosaic.scale, across : across + 5 * mosaic.scale : mosaic.scale]
        np.testing.assert_allclose(shown / 255, image_pixels(frames[1, step]), atol=0.01)
    figures.save_animation(pictures, tmp_path / "animation.gif")
    with Image.open(tmp_path / "animation.gif") as saved:
        assert getattr(saved, "n_frames") == 3 and saved.size == pictures[0].size  # noqa: B009

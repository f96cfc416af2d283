"""Models as ONNX files, which run without PyTorch."""

import contextlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nem_lightning import to_onnx
from nem_lightning.errors import InputError
from nem_lightning.models.classical import Chance
from nem_lightning.models.em import NeuralEM
from nem_lightning.models.likelihoods import Bernoulli, Gaussian
from nem_lightning.models.m_steps import RecurrentMStep
from nem_lightning.models.starts import regions
from nem_lightning.training import checkpoints

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of PyTorch's own exporter
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def images():
    """Three images of bright blocks, the last one black."""
    images = np.zeros((3, 1, 28, 28), np.float32)
    images[:2, 0, 2:9, 3:10] = images[0, 0, 14:20, 15:25] = images[1, 0, 18:26, 2:6] = 1
    return images


@pytest.mark.parametrize("name", ["shapes", "shapes_nem"])
def test_a_file_gives_what_pytorch_gives(tmp_path, images, name):
    file = tmp_path / "my_model.onnx"
    difference, shapes = to_onnx.write(name, file, {"num_components": 2, "num_steps": 3, "num_starts": 4}, seed=1)
    assert difference < 3e-5
    assert shapes["images"] == "(B, 1, 28, 28) float32" and shapes["labels"] == "(B, 28, 28) int64"
    found = to_onnx.run(file, images)
    assert found["responsibilities"].shape == (3, 2, 1, 28, 28)
    assert np.array_equal(found["labels"] > 0, images[:, 0] > 0) and found["labels"].max() == 2

    page = (Path(__file__).parents[1] / "docs" / "own_images.md").read_text()
    (example,) = (text for text in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "onnx" in text)
    of_example: dict = {}
    with contextlib.chdir(tmp_path):
        exec(example, of_example)
    assert of_example["labels"].shape == (5, 28, 28) and not of_example["labels"].any()

    frames = torch.from_numpy(images[:, None])
    module = checkpoints.load_module(name, seed=1)
    model = module.model
    assert isinstance(model, NeuralEM)
    draws = torch.rand(4, 2, 1, generator=module.generator("test", 0))
    ends, energies = [], []
    for of_start in draws:  # each start by itself
        gamma = regions(frames[:, 0], of_start[:, None].expand(2, 3, 1))
        *_, end = model.steps(model.blank(frames[:, 0], gamma), frames, frames, 3)
        ends.append(end)
        energies.append(model.energy(frames[:, 0], end))
    for index, best in enumerate(torch.stack(energies).argmin(0)):
        expected = ends[best].responsibilities[index].detach().numpy()
        assert np.allclose(found["responsibilities"][index], expected, atol=1e-4)


def test_real_pixels_and_noise(tmp_path):
    model = NeuralEM(
        RecurrentMStep((3, 6, 5), hidden_size=4),
        Gaussian(),
        num_steps=2,
        num_starts=3,
        init="noise",
    ).eval()
    graph = to_onnx.StillsGraph(model, torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, 6, 5)
    found = graph(images)
    gamma = graph.get_buffer("draws")
    ends = []
    for start in gamma:
        *_, end = model.steps(model.blank(images, start.expand(2, 3, 1, 6, 5)), images[:, None], images[:, None], 2)
        ends.append((model.energy(images, end), end.responsibilities))
    best = torch.stack([one for one, _ in ends]).argmin(0)
    expected = torch.stack([ends[start][1][index] for index, start in enumerate(best)])
    assert torch.allclose(found.responsibilities, expected, atol=1e-6)
    assert torch.equal(found.labels, expected.squeeze(2).argmax(1) + 1)


def test_what_cannot_be_written(tmp_path):
    generator = torch.Generator()
    with pytest.raises(InputError, match="Chance cannot be written as ONNX; N-EM and RNN-EM can"):
        to_onnx.StillsGraph(Chance((1, 4, 4), True, 2), generator)
    other = NeuralEM(RecurrentMStep((1, 4, 4), 2), Bernoulli(), init="distant_values")
    with pytest.raises(InputError, match="init=distant_values: cannot be written as ONNX; noise and bright_region"):
        to_onnx.StillsGraph(other, generator)
    with pytest.raises(InputError, match="num_components=auto: the graph has a fixed K"):
        to_onnx.write("shapes", tmp_path / "model.onnx", {"num_components": "auto"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="folder does not exist"):
        to_onnx.write("shapes", tmp_path / "there" / "model.onnx")
    (tmp_path / "there.onnx").touch()
    with pytest.raises(InputError, match=r"there\.onnx: is there already"):
        to_onnx.write("shapes", tmp_path / "there.onnx")
    assert not list(tmp_path.glob("model*"))


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["to_onnx", "no_such", str(tmp_path / "model.onnx")])
    with pytest.raises(SystemExit) as ended:
        to_onnx.main()
    assert "no_such" in str(ended.value) and "\n" not in str(ended.value)

"""The benchmark runs, and the functions that it compares do the same work. No test asserts a time."""

import json

import pytest
import python_server
import torch
from conftest import FEW

from benchmarks import plain, speed, steps
from nem_lightning.datamodules import shapes


@pytest.mark.parametrize("model", ["rnn_em", "nem"])
def test_the_plain_loop_is_ours(model):
    torch.manual_seed(0)
    case = steps.Case(model, batch=3, components=2, steps=2, size=12)
    module = steps.our_module(case)
    em = steps.em_of(module)
    units = em.m_step.state_size
    reference = plain.MODELS[model](144, units)
    with torch.no_grad():
        for theirs, ours in zip(reference.parameters(), em.parameters(), strict=True):
            theirs.copy_(ours)
    image = torch.rand(3, 1, 12, 12).round()
    iterate = em.start(image, 2)
    values = iterate.state, iterate.mean.flatten(2), iterate.responsibilities.flatten(2)
    for _ in range(2):
        iterate = em.step(iterate, image, image)
        *values, loss = plain.em_step(reference, image.flatten(2), image.flatten(2), *values)
        assert torch.allclose(values[1], iterate.mean.flatten(2), atol=1e-5)
        assert torch.allclose(values[2], iterate.responsibilities.flatten(2), atol=1e-5)
        assert torch.allclose(loss, em.loss.of_step(image, iterate).total, rtol=1e-4)


@pytest.mark.parametrize("model", ["rnn_em", "nem"])
def test_the_floor_is_the_products_of_a_training_step(model):
    """The floor has the multiplications of the plain loop, forward and backward, less the unnecessary ones.

    PyTorch counts them.
    """
    from torch.utils.flop_counter import FlopCounterMode

    case = steps.Case(model, batch=3, components=2, steps=4, size=12)
    found = steps.functions(case, torch.device("cpu"), training=True, compiled=False)
    counts = {}
    for name in ("plain loop", "products", "products step by step"):
        with FlopCounterMode(display=False) as counter:
            found[name]()
        counts[name] = counter.get_total_flops()
    # The plain loop has two unnecessary products at the first step, where theta is 0: V times theta, and V's gradient.
    units, rows = 250, case.batch * case.components
    in_vain = 2 * 2 * rows * units**2 if model == "rnn_em" else 0
    assert counts["products"] == counts["products step by step"] == counts["plain loop"] - in_vain


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed", "--device", "cuda"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "--device=cuda: PyTorch finds no GPU with CUDA here" in capsys.readouterr().err


def test_every_part_runs(tmp_path, monkeypatch, capsys):
    python_server.use(monkeypatch)
    monkeypatch.setattr(shapes, "SPLITS", FEW)
    context = python_server.forking()  # forking is quicker; memory is still counted
    monkeypatch.setattr(steps.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr("sys.argv", ["speed", "--quick", "--out", str(tmp_path)])
    speed.main()
    result = json.loads((tmp_path / "speed.json").read_text())
    for kind in ("training", "evaluation"):
        for model in ("rnn_em", "nem"):
            assert {"ours", "plain loop", "products"} <= result[kind][model].keys()
            assert result[kind][model]["products"]["of_products"] == 1
    assert [row["value"] for row in result["growth"]["steps"]] == [1, 2]
    assert all(row["memory"] > 0 for row in result["growth"]["steps"])
    for found in result["parts"].values():
        assert all(found[name] > 0 for name in ("products", "random numbers", "Adam", "other operations"))
    for found in result["beside"].values():
        assert found["alone"] > 0
        assert found["busy"] > 0
    assert {"stills", "sequences", "drawing"} <= result["sequences"].keys() and min(result["sequences"].values()) > 0
    assert {"ours", "as published"} == result["doubling"].keys() and min(result["doubling"].values()) > 0
    assert result["scores"]["difference"] < 1e-9
    assert {"help", "first step"} == result["start_up"].keys() and min(result["start_up"].values()) > 0
    assert (tmp_path / "growth.png").stat().st_size > 1000
    assert "of floor" in capsys.readouterr().out

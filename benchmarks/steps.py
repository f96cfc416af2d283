"""Training steps and evaluation of a batch: ours, a plain loop, and the matmuls alone."""

import functools
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

import nem_lightning.runs.resolvers  # noqa: F401 (what the configs may call)
from benchmarks import plain, timing
from nem_lightning.models.em import NeuralEM
from nem_lightning.runs import command_line  # noqa: F401 (what the configs may call)
from nem_lightning.training import checkpoints
from nem_lightning.training.module import GroupingModule

CONF = Path(__file__).parent.parent / "conf"


@dataclass(frozen=True)
class Case:
    """The case to measure: a model of conf/model on Shapes of this size."""

    model: str = "rnn_em"
    batch: int = 64
    components: int = 3
    steps: int = 10
    size: int = 28


def our_module(case: Case) -> GroupingModule:
    """Build our module like ``train.py``, with the settings of the plain loop.

    The module has one start from noise, and gradients flow through gamma.
    """
    overrides = [f"model={case.model}", f"data.size={case.size}"]
    overrides += ["model.init=noise", "model.num_starts=1", "model.differentiate_responsibilities=true"]
    overrides += ["model.corruption.prob=0.1"]
    overrides += [f"model.num_components={case.components}", f"model.num_steps={case.steps}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=overrides)
    config.pixels = {"shape": [1, case.size, case.size], "binary": True}
    return checkpoints.build(config.model, config.module, instantiate(config.scores), instantiate(config.optimizer))


def em_of(module: GroupingModule) -> NeuralEM:
    """Give the model of :func:`our_module`."""
    assert isinstance(module.model, NeuralEM)
    return module.model


def _compile(module: GroupingModule) -> None:
    """Compile one step and its loss, not the whole unroll, which would recompile for each T."""
    model = em_of(module)
    model.step = torch.compile(model.step)
    model.loss.of_step = torch.compile(model.loss.of_step)


def training_step(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Give a function that takes a step: the loss, its gradients, and the weights."""

    def step() -> None:
        total = loss()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def _frames(case: Case, device: torch.device) -> torch.Tensor:
    return (torch.rand(case.batch, 1, 1, case.size, case.size, device=device) < 0.3).float()


def _our_training_step(module: GroupingModule, frames: torch.Tensor) -> Callable[[], None]:
    noise = torch.Generator(frames.device).manual_seed(0)

    def loss() -> torch.Tensor:
        return module.model.training_loss(frames, generator=noise).total

    assert module.optimizer is not None
    return training_step(module.optimizer(module.parameters()), loss)


def functions(case: Case, device: torch.device, training: bool, compiled: bool) -> dict[str, Callable[[], object]]:
    """Give the functions to time, by name; each call processes a batch. ``products`` is the floor: one weight-gradient
    matmul for all steps."""
    torch.manual_seed(0)
    frames = _frames(case, device)
    flat = frames.flatten(2)
    rows, pixels = case.batch * case.components, case.size**2
    found: dict[str, Callable[[], object]] = {}
    modules = {suffix: our_module(case).to(device) for suffix in (["", " compiled"] if compiled else [""])}
    units = em_of(modules[""]).m_step.state_size
    for suffix, module in modules.items():
        reference = plain.MODELS[case.model](pixels, units).to(device)
        step = torch.compile(plain.em_step) if suffix else plain.em_step
        if suffix:
            _compile(module)

        def theirs(reference=reference, step=step) -> torch.Tensor:
            flips = (torch.rand_like(flat) < 0.1).float()
            return plain.run(reference, flat, (flat - flips).abs(), case.components, case.steps, step)

        if training:
            found[f"ours{suffix}"] = _our_training_step(module, frames)
            adam = torch.optim.Adam(reference.parameters(), lr=1e-3)
            found[f"plain loop{suffix}"] = training_step(adam, theirs)
        else:
            found[f"ours{suffix}"] = functools.partial(_without_gradients, lambda module=module: module(frames))
            found[f"plain loop{suffix}"] = functools.partial(_without_gradients, theirs)
    if training:
        detached = our_module(case).to(device)
        em_of(detached).differentiate_responsibilities = False
        found["ours, gamma detached"] = _our_training_step(detached, frames)
    products = plain.Products(case.model, rows, pixels, units, case.steps, device)
    if training:
        found["products"] = lambda: (products.forward(), products.backward(at_once=True))
        found["products step by step"] = lambda: (products.forward(), products.backward(at_once=False))
    else:
        found["products"] = products.forward
    return found


def _without_gradients(function: Callable[[], object]) -> object:
    with torch.no_grad():
        return function()


def measure(case: Case, device: torch.device, rounds: int, training: bool, compiled: bool) -> dict:
    """Give the examples per second of each function, and its share of the floor's speed."""
    times = timing.in_turns(functions(case, device, training, compiled), rounds, device)
    return timing.summary(times, case.batch, "products")


def peak_memory(case: Case, device: torch.device, threads: int) -> float:
    """Give the MiB that three training steps add to the memory of the program and PyTorch.

    A new process measures this. On a CPU, the numbers come from Linux's /proc.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (case, device, threads))


def _peak_memory(case: Case, device: torch.device, threads: int) -> float:
    torch.set_num_threads(threads)
    step = _our_training_step(our_module(case).to(device), _frames(case, device))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
    for _ in range(3):
        step()
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")
    return (after - before) / 2**20


def _resident(which: str) -> int:
    """Give the resident memory in bytes: ``VmRSS`` is the present value, ``VmHWM`` the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))

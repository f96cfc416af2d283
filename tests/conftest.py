"""Settings and fixtures of all tests.

The variable ``NEM_SHARED`` (optional) names a folder with the full reference traces, a VOC subset and MNIST.
"""

import gc
import os
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from nem_lightning.runs import threads

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on a busy machine, two threads wait for each other in small products
threads.spin_less()  # before PyTorch is imported

ROOT = Path(__file__).parent.parent
os.environ.setdefault("WANDB_MODE", "offline")
settings.register_profile("no deadline", deadline=None)  # machines are busy
settings.load_profile("no deadline")


def _shared(relative: str) -> Path:
    folder = os.environ.get("NEM_SHARED")
    if not folder:
        pytest.skip("NEM_SHARED is not set: no full traces, no VOC subset and no MNIST here")
    path = Path(folder) / relative
    if not path.exists():
        pytest.skip(f"NEM_SHARED is set, but {path} is not there")
    return path


@pytest.fixture(scope="session")
def full_traces() -> Path:
    """The folder of the full reference traces."""
    return _shared("reference")


@pytest.fixture(scope="session")
def real_devkit() -> Path:
    """A VOCdevkit with real images."""
    return _shared("data/VOCdevkit")


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """A folder with MNIST's files."""
    return _shared("data/mnist")


FEW = {"training": 3000, "validation": 300, "test": 300, "single": 300}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder with Shapes of 28 pixels and of 12 pixels with one object, a few images of each."""
    from nem_lightning.datamodules import ShapesDataModule, shapes

    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLITS", FEW)
        for size, num_objects in ((28, 3), (12, 1)):
            ShapesDataModule(str(folder), size=size, num_objects=num_objects).prepare_data()
    return folder


@pytest.fixture(autouse=True)
def _processes_of_their_own() -> None:
    """Let the processes that a test starts use their own W&B process, not the one of earlier tests."""
    os.environ.pop("WANDB_SERVICE", None)


def pytest_collection_finish() -> None:
    gc.freeze()  # the garbage collector then skips all imported objects


def missing(reason: str) -> NoReturn:
    """Skip the test because a program is missing; fail the test if ``NEM_NO_SKIPS`` is set, as in CI."""
    if os.environ.get("NEM_NO_SKIPS"):
        pytest.fail(reason)
    pytest.skip(reason)

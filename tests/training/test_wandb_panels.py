"""The settings of charts in the file that W&B writes for an offline run."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command
from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

SMALL = ["data.size=12", "data.num_objects=1", "model.num_steps=3", "model.m_step.hidden_size=10", "trainer=cpu"]
FEW = ["trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1"]
FEW += ["trainer.limit_test_batches=1", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]


@pytest.fixture(scope="module")
def records(tmp_path_factory, data_dir) -> list[Record]:
    folder: Path = tmp_path_factory.mktemp("wandb")
    data = f"paths.data_dir={data_dir}"
    Command("train.py", *SMALL, *FEW, data, "logger=wandb", folder=folder).end()
    (path,) = folder.glob("run/wandb/offline-run-*/run-*.wandb")
    return [Record.FromString(data) for data in pieces(path.read_bytes())]


def pieces(log: bytes, block: int = 32_768, header: int = 7) -> Iterator[bytes]:
    """Give the pieces that W&B wrote to a file: LevelDB's format of logs, after seven bytes of W&B's own."""
    at, piece = header, b""
    while at + header <= len(log):
        if block - at % block < header:  # the rest of the block is too short for a header
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", log[at : at + header])
        piece += log[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # a whole piece, or its last part
            yield piece
            piece = b""


def rows_of(records: list[Record]) -> list[dict[str, str]]:
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in row} for row in rows]


def test_each_score_by_step_has_the_step_as_its_axis(records):
    defined = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    logged = {name for row in rows_of(records) for name in row if name.startswith("by_step/")}
    assert {"by_step/step", "by_step/ami_max", "by_step/reconstruction_error"} <= logged
    axes = {metric.name: metric.step_metric for metric in defined if metric.name}
    for name in logged - {"by_step/step"}:
        assert axes[name] == "by_step/step", name
    assert [metric.glob_name for metric in defined if metric.glob_name] in ([], ["*"])  # no second matching definition
    steps = [row["by_step/step"] for row in rows_of(records) if "by_step/step" in row]
    assert steps == ["1", "2", "3"]


def test_the_best_of_a_score_is_kept_beside_the_last(records):
    defined = {record.metric.name: record.metric for record in records if record.WhichOneof("record_type") == "metric"}
    ami, error = defined["val/ami_max"], defined["val/reconstruction_error"]
    assert ami.summary.max and ami.summary.last and not ami.summary.min
    assert error.summary.min and error.summary.last and not error.summary.max
    assert ami.step_metric == error.step_metric == "trainer/global_step"
    logged = {name for row in rows_of(records) for name in row}
    assert {"val/ami_max", "train/loss", "test/ami_max", "val/groupings._type"} <= logged


def test_the_pictures_of_a_validation_are_at_the_step_of_its_scores(records):
    of_scores, of_pictures = (
        [row["trainer/global_step"] for row in rows_of(records) if name in row]
        for name in ("val/ami_max", "val/groupings._type")
    )
    assert of_pictures == of_scores == ["2"]

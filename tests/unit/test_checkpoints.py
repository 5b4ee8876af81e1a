"""A checkpoint that is not as it was written is never executed or half loaded: of a whole run, and of a stage."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncdgl
from asyncdgl.errors import ConfigError, DataError
from asyncdgl.observer import Observer
from asyncdgl.rundir.arrays import save_arrays
from asyncdgl.rundir.checkpoint import (
    POSITION,
    Checkpoint,
    Position,
    StagePosition,
    config_sha256,
    newest_checkpoint,
    read_checkpoint,
    remove_checkpoints_after,
    save_checkpoint,
    stage_checkpoints,
)
from asyncdgl.rundir.reader import Run, read_run
from asyncdgl.rundir.writer import RunWriter
from asyncdgl.session import Session

REFUSED = r"damaged|no checkpoint of this version|belongs to another configuration"


@dataclass
class Kept:
    """A run directory with two checkpoints.

    Attributes:
        run: its content.
        newer, older: their files.
        find: what a resumed run takes, and what it says.
    """

    run: Run
    newer: Path
    older: Path
    find: Callable[[], tuple[Checkpoint | None, list[str]]]


@pytest.fixture(params=[None, 2], ids=["whole-run", "of-a-stage"])
def kept(request, tmp_path, small_config, record) -> Kept:
    """Both kinds of checkpoints: of all stages of `sim` and `virtual`, and of each stage on Ray."""
    return kept_in(tmp_path / "run", request.param, small_config(), record)


def kept_in(path: Path, stage: int | None, config: Any, record: Callable[..., Any]) -> Kept:
    """A run directory with checkpoints of this stage, or of the whole run."""
    path.mkdir()
    writer = RunWriter(path)
    writer.write_config(config)
    writer.passed([record(1, step, step + 1.0) for step in range(8)])
    for step in (3, 7):
        numbers = (1, 2, 3) if stage is None else (stage,)
        where = {"incarnation": 0, "step": step, "v": 1.0, "updates": step, "optimizer": ("momentum",)}
        where |= {"entry_bytes": 4, "epoch_updates": step, "epoch_loss": 0.1, "epoch_correct": 1}
        position = Position(
            config_sha256=config_sha256(path),
            passes=step,
            metrics_lines=0,
            elapsed_s=1.5,
            wall_seconds=2.5,
            stages=tuple(StagePosition(stage=j, **where) for j in numbers),
        )
        arrays = {"weights/2/module.0.weight": np.full((2, 3), step, np.float32), "optimizer/2/n": np.arange(3)}
        save_checkpoint(path, Checkpoint(position, arrays), stage)
    writer.close()
    older, newer = sorted((path / "checkpoints").rglob("*.safetensors"))
    run = read_run(path)

    def find() -> tuple[Checkpoint | None, list[str]]:
        if stage is None:
            return newest_checkpoint(run)
        found, problems = stage_checkpoints(run, stage)
        return (found[0] if found else None), problems

    return Kept(run, newer, older, find)


def step_of(checkpoint: Checkpoint | None) -> int | None:
    return None if checkpoint is None else checkpoint.of(2).step


def test_the_newer_one_is_taken_while_it_is_whole(kept) -> None:
    checkpoint, problems = kept.find()
    assert (step_of(checkpoint), problems) == (7, [])
    assert checkpoint is not None
    assert checkpoint.part("weights/2/")["module.0.weight"].tolist() == [[7.0] * 3] * 2


def test_cut_at_any_length_it_is_refused(kept) -> None:
    whole = kept.newer.read_bytes()
    for length in range(len(whole)):
        kept.newer.write_bytes(whole[:length])
        with pytest.raises(DataError, match=REFUSED):
            read_checkpoint(kept.newer, kept.run.path)
    kept.newer.write_bytes(whole + b"\0")
    with pytest.raises(DataError, match=REFUSED):
        read_checkpoint(kept.newer, kept.run.path)
    kept.newer.write_bytes(whole)
    read_checkpoint(kept.newer, kept.run.path)


def test_with_any_bit_flipped_it_is_refused(kept) -> None:
    whole = kept.newer.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            kept.newer.write_bytes(changed)
            with pytest.raises(DataError, match=REFUSED):
                read_checkpoint(kept.newer, kept.run.path)


class Bomb:
    """Makes a file where somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def cut(kept: Kept) -> None:
    kept.newer.write_bytes(kept.newer.read_bytes()[:-1])


def a_pickle(kept: Kept) -> None:
    kept.newer.write_bytes(pickle.dumps(Bomb(kept.run.path / "executed")))


def a_torch_file(kept: Kept) -> None:
    import torch

    torch.save({"weights": Bomb(kept.run.path / "executed")}, kept.newer)


def a_pickle_within(kept: Kept) -> None:
    """In a file that is whole, in the place of where the run stood."""
    text = pickle.dumps(Bomb(kept.run.path / "executed"), protocol=0).decode()
    save_arrays(kept.newer, {"weights/2/a": np.zeros(2)}, {POSITION: text})


def arrays_of_objects(kept: Kept) -> None:
    with kept.newer.open("wb") as file:
        np.save(file, np.array([Bomb(kept.run.path / "executed")], dtype=object), allow_pickle=True)


def of_another_version(kept: Kept) -> None:
    about = read_checkpoint(kept.newer, kept.run.path).position.model_dump_json()
    save_arrays(kept.newer, {"weights/2/a": np.zeros(2)}, {POSITION: about[:-1] + ',"more":1}'})


def of_an_older_version(kept: Kept) -> None:
    about = read_checkpoint(kept.newer, kept.run.path).position.model_dump(mode="json")
    del about["elapsed_s"]
    save_arrays(kept.newer, {"weights/2/a": np.zeros(2)}, {POSITION: str(about).replace("'", '"')})


def of_another_configuration(kept: Kept) -> None:
    about = read_checkpoint(kept.newer, kept.run.path).position.model_copy(update={"config_sha256": "0" * 64})
    save_arrays(kept.newer, {"weights/2/a": np.zeros(2)}, {POSITION: about.model_dump_json()})


def without_a_position(kept: Kept) -> None:
    save_arrays(kept.newer, {"weights/2/a": np.zeros(2)}, {})


def a_folder(kept: Kept) -> None:
    kept.newer.unlink()
    kept.newer.mkdir()


def a_dangling_link(kept: Kept) -> None:
    kept.newer.unlink()
    kept.newer.symlink_to("nowhere")


DAMAGES = [
    *(cut, a_pickle, a_torch_file, a_pickle_within, arrays_of_objects, of_another_version, of_an_older_version),
    *(of_another_configuration, without_a_position, a_folder, a_dangling_link),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_older_one_helps_and_the_damage_is_said_once(kept, damage) -> None:
    damage(kept)
    checkpoint, problems = kept.find()
    assert step_of(checkpoint) == 3
    (problem,) = problems
    assert problem.startswith(str(kept.newer))
    assert problem.count("\n") == 0
    assert not (kept.run.path / "executed").exists()


def test_where_both_are_damaged_there_is_none(kept) -> None:
    for path in (kept.newer, kept.older):
        path.write_bytes(path.read_bytes()[:-1])
    checkpoint, problems = kept.find()
    assert checkpoint is None
    assert [problem.partition(" is damaged")[0] for problem in problems] == [str(kept.newer), str(kept.older)]


def test_another_seed_is_another_configuration_and_more_epochs_are_not(kept) -> None:
    config = kept.run.path / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2\n", "epochs: 5\n"))
    assert step_of(kept.find()[0]) == 7
    config.write_text(config.read_text().replace("seed: 0\n", "seed: 1\n"))
    assert kept.find()[0] is None
    assert all("belongs to another configuration than the config.yaml" in said for said in kept.find()[1])


def test_a_checkpoint_that_is_still_being_written_is_none(kept) -> None:
    shutil.copy(kept.newer, kept.newer.with_name(".0000000009.safetensors.part"))
    assert (step_of(kept.find()[0]), kept.find()[1]) == (7, [])


def test_those_after_a_step_are_removed_and_no_other(kept) -> None:
    of_a_stage = kept.newer.parent.name.startswith("stage")
    remove_checkpoints_after(kept.run.path, 3, 2 if of_a_stage else None)
    assert (kept.older.exists(), kept.newer.exists()) == (True, False)


def test_a_resume_that_finds_no_place_in_its_cluster_is_wrong_input(
    tmp_path, small_config, record, cache_folder, monkeypatch
) -> None:
    """It has passes that it did not make."""

    def no_place(session: Session, observer: Observer) -> None:
        raise ConfigError("no place")

    path = tmp_path / "run"
    kept_in(path, 1, small_config(runtime="ray"), record)
    monkeypatch.setattr(Session, "_train", no_place)
    with pytest.raises(ConfigError, match="no place"):
        asyncdgl.resume(path)
    run = read_run(path)
    assert (len(run.records), run.summary) == (7, None)

# SPDX-License-Identifier: Apache-2.0
"""An Accelerator's trackers on one and two processes, and the end of training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from paceline import Accelerator
from paceline.tracking import GeneralTracker, TensorBoardTracker, on_main_process
from paceline.utils.dataclasses import ProjectConfiguration
from ways import run_ways


class Kept(GeneralTracker):
    """Keeps what it is given."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self, run_name: str = "by hand", **kwargs: Any) -> None:
        super().__init__()
        self.told: list[Any] = [("made", run_name, kwargs)]

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def start(self) -> None:
        self.told.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("config", values))

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.told.append(("log", values, step, kwargs))

    def finish(self) -> None:
        self.told.append("finish")


@pytest.mark.parametrize("n", [1, 2])
def test_one_process_logs_and_the_others_do_nothing(way: str, n: int, tmp_path: Path) -> None:
    def body() -> None:
        from paceline import Accelerator
        from paceline.tracking import TensorBoardTracker
        from rankside import ARGS, out
        from ways import torch

        names = ["csv", "jsonl"] + ["tensorboard"] * TensorBoardTracker.is_available()
        accelerator = Accelerator(cpu=True, log_with=names, project_dir=ARGS["folder"])
        assert accelerator.trackers == []
        accelerator.init_trackers("run", config={"lr": 0.1})
        assert len(accelerator.trackers) == (len(names) if accelerator.is_main_process else 0)
        for step in range(3):
            mine = torch.tensor(float(accelerator.process_index + step))
            total = accelerator.reduce(mine)
            accelerator.log({"loss": total, "half": total.half(), "who": "x"}, step=step)
        # No process needs to ask which one it is.
        writer = accelerator.get_tracker("csv", unwrap=True)
        out(type(accelerator.get_tracker("jsonl")).__name__)
        out(isinstance(writer, str))
        if "tensorboard" in names:
            accelerator.get_tracker("tensorboard", unwrap=True).add_scalar("own", 1.0, 0)
            accelerator.get_tracker("tensorboard").log_images({})
        accelerator.end_training()
        accelerator.end_training()
        accelerator.log({"loss": 1})  # after the end: nothing
        out("ended")

    results = run_ways(way, n, body, timeout=60, args={"folder": str(tmp_path)})
    assert results[0].outs == ["JSONLTracker", True, "ended"]
    for result in results[1:]:
        assert result.outs == ["BlankTracker", False, "ended"]
    totals = [float(sum(rank + step for rank in range(n))) for step in range(3)]
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == totals
    assert [row["_step"] for row in rows] == ["0", "1", "2"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["half"] for line in lines] == totals
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"lr": 0.1}
    if TensorBoardTracker.is_available():
        from paceline.plotting import find_runs

        (run,) = find_runs([str(next((tmp_path / "run").glob("events*")))])
        assert run.series["loss"].values == totals
        assert run.series["own"].values == [1.0]


def test_a_tracker_of_ones_own_is_told_everything_once(torch: ModuleType) -> None:
    kept = Kept()
    accelerator = Accelerator(cpu=True, log_with=kept)
    assert accelerator.log_with == [kept]
    accelerator.init_trackers("run", config={"lr": 1}, init_kwargs={"kept": {"ignored": 1}})
    loss = torch.tensor(2.0)
    accelerator.log({"loss": loss}, step=3, log_kwargs={"kept": {"tag": "x"}, "other": {"y": 1}})
    assert accelerator.get_tracker("kept") is kept
    assert accelerator.get_tracker("kept", unwrap=True) is kept.told
    accelerator.end_training()
    accelerator.end_training()
    logged = kept.told[3]
    assert logged[1]["loss"] is loss  # a custom tracker gets what was logged, as it is
    assert kept.told == [
        ("made", "by hand", {}),
        "start",
        ("config", {"lr": 1}),
        ("log", {"loss": loss}, 3, {"tag": "x"}),
        "finish",
    ]


def test_a_class_is_made_at_init_trackers_with_its_arguments() -> None:
    accelerator = Accelerator(cpu=True, log_with=[Kept])
    assert accelerator.trackers == []
    accelerator.init_trackers("run", init_kwargs={"kept": {"team": "a"}})
    (tracker,) = accelerator.trackers
    assert tracker.tracker == [("made", "run", {"team": "a"}), "start"]
    accelerator.end_training()


def test_init_trackers_again_ends_the_runs_before() -> None:
    kept = Kept()
    accelerator = Accelerator(cpu=True, log_with=kept)
    accelerator.init_trackers("one")
    accelerator.init_trackers("two")
    accelerator.log({"a": 1})
    accelerator.end_training()
    assert [told for told in kept.told if isinstance(told, str)] == [
        "start", "finish", "start", "finish",
    ]  # fmt: skip
    assert sum(1 for told in kept.told if told[0] == "log") == 1


def test_a_tracker_that_cannot_finish_does_not_stop_the_end() -> None:
    class Breaks(Kept):
        name = "breaks"

        def finish(self) -> None:
            raise OSError("disk full")

    kept = Kept()
    accelerator = Accelerator(cpu=True, log_with=[Breaks(), kept])
    accelerator.init_trackers("run")
    with pytest.raises(OSError, match="disk full") as raised:
        accelerator.end_training()
    assert raised.value.__notes__ == ["while the tracker 'breaks' finished"]
    assert kept.told[-1] == "finish"
    accelerator.end_training()  # over


def test_an_unknown_name_of_a_tracker_is_refused() -> None:
    accelerator = Accelerator(cpu=True, log_with=Kept())
    accelerator.init_trackers("run")
    with pytest.raises(ValueError, match=r"csv is not an available tracker.*there are \['kept'\]"):
        accelerator.get_tracker("csv")
    accelerator.end_training()


def test_log_before_init_trackers_warns_once() -> None:
    accelerator = Accelerator(cpu=True, log_with=Kept())
    with pytest.warns(UserWarning, match="records nothing.*init_trackers"):
        accelerator.log({"a": 1})
    accelerator.log({"a": 2})  # a warning would be an error here
    silent = Accelerator(cpu=True)  # nobody asked for a tracker
    silent.log({"a": 1})
    silent.init_trackers("run")
    silent.log({"a": 1})
    assert silent.get_tracker("csv").log({"a": 1}) is None


def test_wrong_trackers_are_refused_when_the_accelerator_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unsupported logging capability: tensorbord"):
        Accelerator(cpu=True, log_with="tensorbord")
    with pytest.raises(
        ValueError, match="Logging with `csv` requires a `logging_dir`.*project_dir"
    ):
        Accelerator(cpu=True, log_with="csv")
    with pytest.raises(NotImplementedError, match="'comet_ml'.*register_tracker_class"):
        Accelerator(cpu=True, log_with="comet_ml")
    config = ProjectConfiguration(project_dir="x", logging_dir=str(tmp_path / "logs"))
    accelerator = Accelerator(cpu=True, log_with="csv", project_config=config)
    accelerator.init_trackers("run")
    assert (tmp_path / "logs" / "run" / "metrics.csv").exists()
    accelerator.end_training()


def test_messages_of_all_processes(way: str) -> None:
    def body() -> None:
        from paceline import Accelerator
        from paceline.logging import get_logger
        from paceline.utils import tqdm
        from rankside import RANK, failing, out

        logger = get_logger("mine")
        try:
            logger.info("too early")
        except RuntimeError as error:
            out(str(error).split("]")[0] + "]")
        Accelerator(cpu=True)
        logger.info("main only")
        logger.info("each %d", RANK, main_process_only=False)
        logger.info("in order %d", RANK, in_order=True)
        for _ in range(3):
            logger.warning_once("said %s", "once")
        bar = tqdm(range(2))
        out([bar.disable, tqdm(range(2), main_process_only=False).disable, list(bar)])
        with failing():
            tqdm(True, range(2))

    env = {"ACCELERATE_LOG_LEVEL": "info"}
    results = run_ways(way, 2, body, timeout=60, env=env)
    for rank, result in enumerate(results):
        lines = result.stderr.splitlines()
        (own,) = (line for line in lines if line.startswith("paceline: rank "))
        assert own.startswith(f"paceline: rank {rank} of 2 on ")
        assert ", pid " in own
        assert own.endswith(", device cpu")
        told = [line for line in lines if line.startswith("[RANK")]
        both = [f"[RANK {rank}] each {rank}", f"[RANK {rank}] in order {rank}"]
        assert told == (["[RANK 0] main only", *both, "[RANK 0] said once"] if rank == 0 else both)
        assert result.outs == ["[get_logger]", [rank != 0, False, [0, 1]]]
        assert result.exception["type"] == "ValueError"
        assert "main_process_only by name" in result.exception["text"]

# SPDX-License-Identifier: Apache-2.0
"""Trackers without an Accelerator: contract, files, what is chosen by ``log_with``."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import paceline
from paceline.tracking import (
    CSVTracker,
    GeneralTracker,
    JSONLTracker,
    TensorBoardTracker,
    WandBTracker,
    filter_trackers,
    get_available_trackers,
    on_main_process,
    register_tracker_class,
    registry,
)
from paceline.utils.dataclasses import LoggerType

OWN = ["_step", "_time", "_session"]


class Kept(GeneralTracker):
    """A tracker of a user's."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self, run_name: str = "", **kwargs: Any) -> None:
        super().__init__()
        self.run_name, self.kwargs = run_name, kwargs
        self.rows: list[Any] = []

    @property
    def tracker(self) -> Any:
        return self.rows

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.rows.append((values, step, kwargs))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_classes", dict(registry._BUILT_IN))
    register_tracker_class(Kept)


def started(cls: type, folder: Path, name: str = "run") -> Any:
    tracker = cls(name, folder)
    tracker.start()
    return tracker


def csv_rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def jsonl_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the contract -------------------------------------------------------------------------------


def test_what_a_tracker_lacks_is_named() -> None:
    class Nothing(GeneralTracker):
        pass

    class NoTracker(GeneralTracker):
        name = "x"
        requires_logging_directory = False

    with pytest.raises(
        NotImplementedError, match="define `name`, `requires_logging_directory`, `tracker` in its"
    ):
        Nothing()
    with pytest.raises(NotImplementedError, match=r"\[NoTracker\].* define `tracker` in its"):
        NoTracker()
    GeneralTracker(_blank=True).log({"a": 1})


def test_a_method_kept_to_the_main_process_runs_on_it() -> None:
    tracker = Kept()
    tracker.log({"a": 1}, step=2, tag="x")
    assert tracker.rows == [({"a": 1}, 2, {"tag": "x"})]
    tracker.main_process_only = False
    tracker.log({"a": 2})
    assert len(tracker.rows) == 2


# --- what log_with asks for ---------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_log_with_takes_names_types_classes_and_instances(tmp_path: Path) -> None:
    made = Kept("x")
    assert filter_trackers(None) == []
    assert filter_trackers("csv", tmp_path) == ["csv"]
    assert filter_trackers(LoggerType.JSONL, tmp_path) == ["jsonl"]
    assert filter_trackers(["csv", "kept", "csv", made, Kept], tmp_path) == [
        "csv", "kept", made, Kept,
    ]  # fmt: skip
    everything = filter_trackers(["all", made], tmp_path)
    assert everything == [*get_available_trackers(), made]
    assert {"csv", "jsonl", "kept"} <= set(get_available_trackers())


@pytest.mark.parametrize("name", ["csv", "jsonl", "all", CSVTracker])
def test_trackers_that_write_files_need_a_folder(name: Any) -> None:
    with pytest.raises(ValueError, match="Logging with `.*` requires a `logging_dir`"):
        filter_trackers(name)


def test_an_unknown_tracker_is_refused_with_those_there() -> None:
    with pytest.raises(ValueError, match="Unsupported logging capability: wandbb.*'csv'"):
        filter_trackers("wandbb")
    for name in ("aim", "comet_ml", "clearml", "dvclive", "swanlab", "trackio"):
        with pytest.raises(NotImplementedError, match=f"'{name}'.*register_tracker_class"):
            filter_trackers(name)


def test_a_tracker_whose_package_is_missing_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in (TensorBoardTracker, WandBTracker):
        monkeypatch.setattr(cls, "is_available", staticmethod(lambda: False))
    with pytest.warns(UserWarning, match=r"nothing will be recorded: pip install 'paceline\[ten"):
        assert filter_trackers("tensorboard", tmp_path) == []
    with pytest.warns(UserWarning, match="nothing will be recorded: pip install wandb"):
        assert filter_trackers("wandb") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "tensorboard" not in filter_trackers("all", tmp_path)


@pytest.mark.usefixtures("registered")
def test_registering_looks_at_the_class() -> None:
    with pytest.raises(ValueError, match="expected a subclass of GeneralTracker"):
        register_tracker_class(dict)  # type: ignore[arg-type]

    class NoName(GeneralTracker):
        requires_logging_directory = False

    class NoFolder(GeneralTracker):
        name = "no folder"

    with pytest.raises(ValueError, match="NoName must define `name`"):
        register_tracker_class(NoName)
    with pytest.raises(ValueError, match="NoFolder must define `requires_logging_directory`"):
        register_tracker_class(NoFolder)
    register_tracker_class(Kept)  # again: a cell of a notebook that runs twice

    class Other(Kept):
        pass

    with pytest.warns(UserWarning, match="a tracker named 'kept' is registered already"):
        register_tracker_class(Other)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [CSVTracker, JSONLTracker])
def test_values_of_every_kind(tmp_path: Path, cls: type) -> None:
    np = pytest.importorskip("numpy")
    tracker = started(cls, tmp_path)
    loss = paceline.tensor(0.5, requires_grad=True)
    tracker.log(
        {
            "tensor": loss * 2,
            "one": paceline.tensor([[3]]),
            "scalar": np.float32(0.25),
            "double": np.float64(0.1),
            "int": 7,
            "yes": True,
            "text": 'a "b",\nc',
            "none": None,
            "group": {"a": 1.5, "deep": {"b": paceline.tensor(2)}},
        },
        step=3,
    )
    tracker.finish()
    expected = {
        "tensor": 1.0, "one": 3, "scalar": 0.25, "double": 0.1, "int": 7, "yes": True,
        "group/a": 1.5, "group/deep/b": 2,
    }  # fmt: skip
    path = Path(tracker.tracker)
    if cls is JSONLTracker:
        (row,) = jsonl_rows(path)
        assert row["_step"] == 3
        assert row["text"] == 'a "b",\nc'
        assert row["none"] is None
        assert expected.items() <= row.items()
    else:
        head, cells = csv_rows(path)
        row = dict(zip(head, cells, strict=True))
        assert row["text"] == 'a "b", c'
        assert row["none"] == ""
        assert {key: str(value) for key, value in expected.items()}.items() <= row.items()


def test_a_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    tracker = started(CSVTracker, tmp_path)
    with pytest.raises(TypeError, match=r"cannot record 'a': got Tensor of shape \(2,\).*mean"):
        tracker.log({"a": paceline.zeros(2)})
    with pytest.raises(TypeError, match="cannot record 'g/b': got list"):
        tracker.log({"g": {"b": [1, 2]}})
    tracker.finish()
    assert len(csv_rows(Path(tracker.tracker))) == 0  # nothing half-written


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    tracker = started(JSONLTracker, tmp_path)
    tracker.log({"a": float("nan"), "b": float("-inf"), "c": float("inf")})
    tracker.finish()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = Path(tracker.tracker).read_text()
    row = json.loads(line, parse_constant=refuse)
    assert [float(row[key]) for key in "bc"] == [float("-inf"), float("inf")]
    assert row["a"] == "NaN"


# --- files --------------------------------------------------------------------------------------


def test_columns_of_a_csv_may_grow(tmp_path: Path) -> None:
    tracker = started(CSVTracker, tmp_path)
    tracker.log({"loss": 1.0}, step=0)
    tracker.log({"loss": 2.0, "accuracy": 0.5}, step=1)
    tracker.log({"accuracy": 0.75}, step=2)
    tracker.finish()
    head, *rows = csv_rows(tmp_path / "run" / "metrics.csv")
    assert head == [*OWN, "loss", "accuracy"]
    assert [[row[0], *row[3:]] for row in rows] == [
        ["0", "1.0", ""], ["1", "2.0", "0.5"], ["2", "", "0.75"],
    ]  # fmt: skip
    assert os.listdir(tmp_path / "run") == ["metrics.csv"]


@pytest.mark.parametrize("cls", [CSVTracker, JSONLTracker])
def test_a_run_goes_on_in_its_file_as_a_new_session(tmp_path: Path, cls: type) -> None:
    for step in range(3):
        tracker = started(cls, tmp_path)
        tracker.log({"loss": 1, f"new {step}": 2}, step=step)
        tracker.finish()
    path = Path(tracker.tracker)
    rows = (
        [dict(zip(csv_rows(path)[0], row, strict=True)) for row in csv_rows(path)[1:]]
        if cls is CSVTracker
        else jsonl_rows(path)
    )
    assert [(int(row["_step"]), int(row["_session"])) for row in rows] == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("cls", [CSVTracker, JSONLTracker])
def test_a_row_that_was_never_finished_is_cut_off(tmp_path: Path, cls: type) -> None:
    tracker = started(cls, tmp_path)
    tracker.log({"loss": 1}, step=0)
    tracker.finish()
    path = Path(tracker.tracker)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"_step": 1, "los' if cls is JSONLTracker else b"1,17000")
    again = started(cls, tmp_path)
    assert path.read_bytes() == whole
    again.finish()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_killed_at_any_moment_all_rows_but_the_last_are_whole(tmp_path: Path, kind: str) -> None:
    script = f"""
from paceline.tracking import {kind.upper()}Tracker as Tracker
tracker = Tracker("run", {str(tmp_path)!r})
tracker.start()
print("ready", flush=True)
for step in range(10**9):
    tracker.log({{"loss": step, **({{f"c{{step // 50}}": 1}} if step < 500 else {{}})}}, step=step)
"""
    for seed in range(3):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(0.02 + 0.03 * seed)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
        text = (tmp_path / "run" / f"metrics.{kind}").read_text()
        lines = text.split("\n")[:-1]
        if kind == "csv":
            head, *rows = list(csv.reader(lines))
            assert head[:4] == [*OWN, "loss"]
            # A column may have come between two rows, never in the middle of one.
            assert all(len(row) == len(head) for row in rows)
        else:
            rows = [json.loads(line) for line in lines]
        assert rows


def test_a_foreign_csv_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"was not written by this tracker.*'step', 'loss'"):
        started(CSVTracker, tmp_path)


def test_logging_before_the_start_and_after_the_end_says_so(tmp_path: Path) -> None:
    tracker = CSVTracker("run", tmp_path)
    with pytest.raises(RuntimeError, match="csv tracker is not running: call accelerator.init_tr"):
        tracker.log({"a": 1})
    assert not (tmp_path / "run").exists()
    tracker.start()
    tracker.log({"a": 1})
    tracker.finish()
    tracker.finish()
    with pytest.raises(RuntimeError, match="not running"):
        tracker.log({"a": 1})


@pytest.mark.parametrize("cls", [CSVTracker, JSONLTracker])
def test_the_configuration_stands_beside(tmp_path: Path, cls: type) -> None:
    tracker = started(cls, tmp_path)
    tracker.store_init_configuration({"lr": 0.1, "path": Path("x"), "nested": {"a": [1]}})
    tracker.finish()
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert found == {"lr": 0.1, "path": "x", "nested": {"a": [1]}}


# --- TensorBoard --------------------------------------------------------------------------------


def test_tensorboard_writes_scalars_text_groups_images_and_hyperparameters(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    if not TensorBoardTracker.is_available():
        pytest.skip("no writer of TensorBoard's files")
    from paceline.plotting import find_runs

    tracker = started(TensorBoardTracker, tmp_path)
    tracker.store_init_configuration({"lr": 0.1, "path": Path("x"), "nested": {"a": (1, 2)}})
    tracker.log({"loss": paceline.tensor(0.5), "note": "hello"}, step=4)
    tracker.log({"both": {"train": 1.0, "eval": paceline.tensor(2.0)}}, step=5)
    tracker.log_images({"digits": np.zeros((2, 1, 8, 8), dtype="uint8")}, step=5)
    assert type(tracker.tracker).__name__ == "SummaryWriter"
    tracker.finish()
    (run,) = find_runs([str(tmp_path / "run")])
    assert (run.series["loss"].steps, run.series["loss"].values) == ([4], [0.5])
    groups = {key.replace("both/", "both_"): run.series[key] for key in run.series}
    assert groups["both_train"].values == [1.0]
    assert groups["both_eval"].values == [2.0]
    (hparams,) = (tmp_path / "run").glob("*/hparams.yml")
    import yaml

    assert yaml.safe_load(hparams.read_text()) == {
        "lr": 0.1, "path": "x", "nested": {"a": [1, 2]},
    }  # fmt: skip
    with pytest.raises(TypeError, match="cannot record 'a'"):
        tracker.log({"a": paceline.zeros(2)})


def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")  # large, and in no extra: this runs where somebody has it
    script = f"""
import json, paceline
from paceline.tracking import WandBTracker
tracker = WandBTracker("project", dir={str(tmp_path)!r}, mode="offline")
tracker.start()
tracker.store_init_configuration({{"lr": 0.1}})
tracker.log({{"loss": paceline.tensor(0.5), "both": {{"train": paceline.tensor(1.0)}}}}, step=3)
tracker.log_table("table", columns=["a", "b"], data=[[1, 2]], step=4)
run = tracker.tracker
told = [run.project, dict(run.config), run.summary["loss"], run.summary["both"]["train"], run.step]
tracker.finish()
print("TOLD " + json.dumps(told))
"""
    env = {**os.environ, "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, env=env
    )
    assert done.returncode == 0, done.stderr
    (told,) = (line for line in done.stdout.splitlines() if line.startswith("TOLD "))
    assert json.loads(told[5:]) == ["project", {"lr": 0.1}, 0.5, 1.0, 4]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_without_a_writer_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline.tracking import tensorboard

    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    assert not TensorBoardTracker.is_available()
    with pytest.raises(ImportError, match=r"pip install 'paceline\[tensorboard\]'"):
        TensorBoardTracker("run", "x").start()

# SPDX-License-Identifier: Apache-2.0
"""Configuration objects, and the one resolver: what wins, and where a value came from."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

import paceline
from launching import command
from paceline import (
    Accelerator,
    AutocastKwargs,
    GradientAccumulationPlugin,
    GradScalerKwargs,
    NonFiniteKwargs,
    ProfileKwargs,
    ProjectConfiguration,
)
from paceline.errors import ConfigError

# --- configuration objects ------------------------------------------------------------------------


def test_configurations_have_the_documented_fields_and_defaults() -> None:
    documented = {
        GradScalerKwargs: (65536.0, 2.0, 0.5, 2000, True),
        AutocastKwargs: (True, None),
        ProjectConfiguration: (None, None, False, None, 0, False),
        ProfileKwargs: (None, None, None, False, False, False, False, False, None),
    }
    for kind, defaults in documented.items():
        assert dataclasses.astuple(kind()) == defaults, kind
        assert kind.__dataclass_params__.frozen
    plugin = GradientAccumulationPlugin()
    assert dataclasses.astuple(plugin) == (None, True, True, False, True)
    assert plugin.to_kwargs() == {}
    assert GradScalerKwargs(growth_interval=5).to_kwargs() == {"growth_interval": 5}


def test_configurations_match_accelerates() -> None:
    theirs = pytest.importorskip("accelerate.utils.dataclasses")
    better = {"use_seedable_sampler", "timeout"}  # see docs/from_accelerate.md
    for name in (
        "AutocastKwargs DataLoaderConfiguration DistributedDataParallelKwargs GradScalerKwargs "
        "GradientAccumulationPlugin InitProcessGroupKwargs ProfileKwargs ProjectConfiguration"
    ).split():
        ours, original = getattr(paceline.utils, name), getattr(theirs, name)
        fields = {field.name: field for field in dataclasses.fields(ours)}
        for field in dataclasses.fields(original):
            assert field.name in fields, (name, field.name)
            value = getattr(original(), field.name)
            if field.name not in better and not callable(getattr(value, "value", None)):
                mine = getattr(ours(), field.name)
                assert str(getattr(value, "value", value) or None) == str(mine or None), (
                    name,
                    field.name,
                )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: GradScalerKwargs(init_scale=0), "init_scale is wrong: got 0, expected a positive"),
        (lambda: GradScalerKwargs(init_scale=float("inf")), "init_scale .* finite"),
        (lambda: GradScalerKwargs(growth_factor=1), "growth_factor .* more than 1"),
        (lambda: GradScalerKwargs(backoff_factor=1), "backoff_factor .* between 0 and 1"),
        (lambda: GradScalerKwargs(growth_interval=0), "growth_interval .* at least 1"),
        (lambda: NonFiniteKwargs("explode"), "action is wrong: got 'explode', expected one of"),
        (lambda: ProjectConfiguration(total_limit=0), "total_limit .* at least 1"),
        (lambda: ProjectConfiguration(iteration=-1), "iteration .* at least 0"),
        (lambda: GradientAccumulationPlugin(num_steps=0), "num_steps .* at least 1"),
        (lambda: GradientAccumulationPlugin(num_steps=True), "num_steps .* at least 1"),
        (lambda: ProfileKwargs(activities=["xpu"]), "activities .* only 'cpu' and 'cuda'"),
        (lambda: ProfileKwargs(schedule_option={"x": 1}), "schedule_option .* only"),
        (lambda: Accelerator(rng_types=["dice"]), "rng_types is wrong: got 'dice'"),
        (
            lambda: Accelerator(project_dir="a", project_config=ProjectConfiguration("b")),
            "project_dir='a' contradicts project_config.project_dir='b'",
        ),
        (lambda: Accelerator(kwargs_handlers=[NonFiniteKwargs(), NonFiniteKwargs()]), "only one"),
        (lambda: Accelerator(kwargs_handlers=[object()]), "unsupported kwargs handler: got object"),
    ],
)
def test_a_wrong_value_is_named(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()  # type: ignore[operator]


def test_project_configuration_knows_the_folder_of_logs() -> None:
    assert ProjectConfiguration("run").logging_dir == "run"
    assert ProjectConfiguration("run", logging_dir="logs").logging_dir == "logs"
    assert ProjectConfiguration().in_directory("run").logging_dir == "run"
    moved = ProjectConfiguration("run", logging_dir="logs").in_directory("other")
    assert (moved.project_dir, moved.logging_dir) == ("other", "logs")
    accelerator = Accelerator(project_dir="run", project_config=ProjectConfiguration(iteration=4))
    assert (accelerator.project_dir, accelerator.logging_dir) == ("run", "run")
    assert accelerator.project_configuration == ProjectConfiguration("run", iteration=4)


def test_what_changes_in_a_run_is_the_accelerators_own() -> None:
    config = ProjectConfiguration("run", iteration=4)
    accelerator = Accelerator(project_config=config)
    accelerator.save_iteration += 1
    assert (accelerator.save_iteration, config.iteration) == (5, 4)
    assert accelerator.project_configuration.iteration == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        accelerator.project_configuration.iteration = 9  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"use the copy that in_directory"):
        config.set_directories("other")
    with pytest.raises(ValueError, match="save_iteration"):
        accelerator.save_iteration = -1


# --- precedence and sources -----------------------------------------------------------------------


def _source(accelerator: Accelerator, name: str) -> tuple[str, str]:
    for line in accelerator.describe().splitlines():
        key, _, rest = line.partition(" = ")
        if key.strip() == name:
            value, _, source = rest.rpartition("  (")
            return value.strip(), source.rstrip(")")
    raise AssertionError(f"{name} is not described")


def test_trap_1_split_batches_as_an_argument_counts() -> None:
    accelerator = Accelerator(split_batches=True)
    assert accelerator.split_batches is True
    assert _source(accelerator, "split_batches") == ("True", "argument")


def test_trap_2_an_explicit_argument_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("PACELINE_NONFINITE", "raise")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    given = Accelerator(
        gradient_accumulation_steps=2,
        mixed_precision="no",
        cpu=True,
        kwargs_handlers=[NonFiniteKwargs("off")],
    )
    assert given.gradient_accumulation_steps == 2
    assert _source(given, "gradient_accumulation_steps") == ("2", "argument")
    assert _source(given, "mixed_precision") == ("no", "argument")
    assert _source(given, "nonfinite") == ("off", "argument")
    assert _source(given, "cpu") == ("True", "argument")
    plugin = GradientAccumulationPlugin(num_steps=3, sync_each_batch=True)
    by_plugin = Accelerator(gradient_accumulation_plugin=plugin)
    assert _source(by_plugin, "gradient_accumulation_steps") == ("3", "argument")
    assert _source(by_plugin, "sync_each_batch") == (
        "True",
        "argument gradient_accumulation_plugin",
    )
    open_plugin = Accelerator(gradient_accumulation_plugin=GradientAccumulationPlugin())
    silent = Accelerator()
    for accelerator in (open_plugin, silent):
        assert accelerator.gradient_accumulation_steps == 7
        assert _source(accelerator, "gradient_accumulation_steps") == (
            "7",
            "environment, ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        )
    assert _source(silent, "mixed_precision")[0] == "bf16"
    assert _source(silent, "nonfinite") == ("raise", "environment, PACELINE_NONFINITE")
    assert _source(silent, "cpu") == ("False", "environment, ACCELERATE_USE_CPU")
    assert _source(silent, "even_batches") == ("True", "default")


def test_wrong_words_in_the_environment_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_NONFINITE", "maybe")
    with pytest.raises(ValueError, match="PACELINE_NONFINITE is wrong: got 'maybe'"):
        Accelerator()
    monkeypatch.setenv("PACELINE_NONFINITE", "warn")
    monkeypatch.setenv("PACELINE_SETTING_SOURCES", "{")
    with pytest.raises(ConfigError, match="PACELINE_SETTING_SOURCES is wrong"):
        Accelerator()


def test_a_source_holds_only_for_the_value_that_was_handed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [["ACCELERATE_MIXED_PRECISION", ["bf16", "mine.yaml:2"]]]
    monkeypatch.setenv("PACELINE_SETTING_SOURCES", json.dumps(told))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert _source(Accelerator(), "mixed_precision") == ("bf16", "mine.yaml:2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # the script changed its mind
    assert _source(Accelerator(), "mixed_precision")[1].startswith("environment")


DESCRIBE = """\
from paceline import Accelerator
accelerator = Accelerator(split_batches=True)
if accelerator.is_main_process:
    print(accelerator.describe())
"""


def _described(folder: Path, *words: str, **env: str) -> dict[str, tuple[str, str]]:
    home = {"HF_HOME": str(folder / "home"), **env}
    run = command(folder, "launch", *words, "script.py", env=home)
    assert run.code == 0, run.stderr
    found = {}
    for line in run.stdout.splitlines():
        name, _, rest = line.partition(" = ")
        value, _, source = rest.rpartition("  (")
        found[name.strip()] = (value.strip(), source.rstrip(")"))
    return found


def test_pain_6_one_precedence_and_each_value_tells_its_source(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(DESCRIBE)
    user = tmp_path / "home" / "accelerate" / "default_config.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("num_processes: 2\nmixed_precision: fp16\ngradient_accumulation_steps: 5\n")
    steps, precision = "gradient_accumulation_steps", "mixed_precision"

    got = _described(tmp_path)
    assert got[steps] == ("5", f"{user}:3")
    assert got[precision] == ("fp16", f"{user}:2")
    assert got["split_batches"] == ("True", "argument")
    assert got["cpu"] == ("False", "default")
    assert got["num_processes"] == ("2", f"{user}:1")

    (tmp_path / "paceline.yaml").write_text("mixed_precision: bf16\n")
    got = _described(tmp_path)
    assert got[precision] == ("bf16", "paceline.yaml:1")
    assert got[steps] == ("5", f"{user}:3"), "the user's file fills in what the project leaves out"

    got = _described(tmp_path, ACCELERATE_MIXED_PRECISION="no")
    assert got[precision] == ("no", "environment, ACCELERATE_MIXED_PRECISION")
    got = _described(tmp_path, "--mixed_precision", "bf16", ACCELERATE_MIXED_PRECISION="no")
    assert got[precision] == ("bf16", "command line")
    assert _described(tmp_path, "-n3")["num_processes"] == ("3", "command line")

    (tmp_path / "mine.yaml").write_text("use_cpu: true\n")
    got = _described(tmp_path, "--config_file", "mine.yaml")
    assert got["cpu"] == ("True", "mine.yaml:1")
    assert got[precision] == ("no", "default"), "a file that is named stands alone"


def _plain(folder: Path, text: str = "", **env: str) -> str:
    from launching import start_argv

    script = folder / "script.py"
    script.write_text(text or "from paceline import Accelerator\nAccelerator()\n")
    home = {"HF_HOME": str(folder / "home"), **env}
    with start_argv(folder, [sys.executable, str(script)], env=home) as running:
        run = running.end()
    assert run.code == 0, run.stderr
    return run.stderr


def test_pain_6_a_plain_run_says_which_file_it_leaves_aside(tmp_path: Path) -> None:
    assert _plain(tmp_path) == ""
    (tmp_path / "paceline.yaml").write_text("mixed_precision: bf16\nuse_cpu: false\n")
    said = _plain(tmp_path)
    assert said.count("\n") == 1
    assert "not applied: paceline.yaml (mixed_precision: bf16). Only `paceline launch`" in said
    assert "script.py was started without it" in said
    text = "from paceline import Accelerator\nAccelerator(mixed_precision='no')\n"
    assert _plain(tmp_path, text) == "", "an argument would have won anyway"
    assert _plain(tmp_path, ACCELERATE_MIXED_PRECISION="bf16") == "", "the same value"
    assert _plain(tmp_path, ACCELERATE_LOG_LEVEL="error") == ""
    (tmp_path / "paceline.yaml").write_text("mixed: bf16\n")
    assert "paceline.yaml (not usable: paceline.yaml:1:1: unknown key 'mixed'" in _plain(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""``paceline env`` tells each setting of a launch and where it comes from."""

from __future__ import annotations

from pathlib import Path

from launching import command


def _rows(text: str) -> dict[str, str]:
    rows = [line.strip() for line in text.splitlines() if line.startswith("    ") and " = " in line]
    return {" ".join(row.split("  (")[0].split()): row.rpartition("(")[2][:-1] for row in rows}


def test_each_setting_has_its_source(tmp_path: Path) -> None:
    user = tmp_path / "home" / "accelerate" / "default_config.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("num_processes: 3\nmixed_precision: fp16\n")
    (tmp_path / "paceline.yaml").write_text("mixed_precision: bf16\n")
    env = {"HF_HOME": str(tmp_path / "home"), "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    run = command(tmp_path, "env", env=env)
    assert run.code == 0, run.stderr
    rows = _rows(run.stdout)
    assert rows["num_processes = 3"] == f"{user}:1"
    assert rows["mixed_precision = bf16"] == "paceline.yaml:1"
    assert rows["gradient_accumulation_steps = 4"] == (
        "environment, ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    )
    assert rows["use_cpu = False"] == "default"
    files = [line for line in run.stdout.splitlines() if line.startswith("- Configuration file")]
    assert files == ["- Configuration file: paceline.yaml", f"- Configuration file: {user}"]


def test_a_named_file_stands_alone_and_a_wrong_one_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "paceline.yaml").write_text("mixed_precision: bf16\n")
    (tmp_path / "mine.yaml").write_text("num_processes: 2\n")
    run = command(tmp_path, "env", "--config_file", "mine.yaml")
    assert _rows(run.stdout)["mixed_precision = no"] == "default"
    assert _rows(run.stdout)["num_processes = 2"] == "mine.yaml:1"
    (tmp_path / "mine.yaml").write_text("processes: 2\n")
    run = command(tmp_path, "env", "--config_file", "mine.yaml")
    assert run.code == 0
    assert "Settings of a launch: NOT USABLE: mine.yaml:1:1: unknown key 'processes'" in run.stdout
    run = command(tmp_path, "env")
    assert "Settings of a launch, and where each comes from:" in run.stdout


def test_the_short_name_of_the_precision_is_named(tmp_path: Path) -> None:
    run = command(tmp_path, "env", env={"MIXED_PRECISION": "bf16"})
    assert _rows(run.stdout)["mixed_precision = bf16"] == "environment, MIXED_PRECISION"

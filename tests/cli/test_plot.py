# SPDX-License-Identifier: Apache-2.0
"""``paceline plot``: what it reads, what it draws, and what it says when it cannot."""

from __future__ import annotations

import json
import math
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from paceline.commands.plot import main
from paceline.plotting import PlotError, choose_panels, find_runs
from paceline.plotting.picture import short
from paceline.plotting.thinning import every, extremes, running_mean
from paceline.tracking import CSVTracker, JSONLTracker, TensorBoardTracker

pytest.importorskip("matplotlib")


def log_run(folder: Path, name: str, n: int = 40, kind: type = CSVTracker) -> Path:
    """Write a run whose loss at step s is 1 / (s + 1)."""
    tracker = kind(name, folder)
    tracker.start()
    tracker.store_init_configuration({"lr": 0.1, "note": "<b>"})
    for step in range(n):
        values = {"loss": 1 / (step + 1), "lr": 0.1 * (1 - step / n)}
        tracker.log(values | ({"eval/loss": 2 / (step + 1)} if step % 10 == 0 else {}), step=step)
    tracker.finish()
    return folder / name


def said(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run the command, which must refuse; give what it says."""
    assert main([str(arg) for arg in args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("paceline plot: ")
    return err


def texts(svg: str) -> list[str]:
    """Give the texts of a picture, in their order."""
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_png_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = log_run(tmp_path, "a"), log_run(tmp_path, "b", 20, JSONLTracker)
    out = tmp_path / "new folder" / "x.png"
    assert main([str(a), f"second={b}", "-o", str(out)]) == 0
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000
    assert height > 1000
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a: steps 39, time ")
    assert "loss last 0.025, least 0.025" in lines[0]
    assert lines[1].startswith("second: steps 19, ")
    assert lines[2] == f"wrote {out}"


def test_an_svg_names_axes_units_and_lines(tmp_path: Path) -> None:
    log_run(tmp_path, "a")
    log_run(tmp_path, "b", 20)
    out = tmp_path / "x.svg"
    assert main([str(tmp_path), "-o", str(out), "--title", "My runs"]) == 0
    found = texts(out.read_text())
    assert {"My runs", "loss", "learning rate", "steps/s", "step"} <= set(found)
    assert "a: loss  (last 0.025)" in found
    assert "b: eval/loss  (last 0.1818)" in found


def test_a_page_stands_alone(tmp_path: Path) -> None:
    run = log_run(tmp_path, "a")
    out = tmp_path / "x.html"
    assert main([str(run), "-o", str(out), "--x", "time"]) == 0
    page = out.read_text()
    assert "<svg" in page
    assert "time since the start (seconds)" in page
    assert "<td>last 0.025, least 0.025</td>" in page
    assert "&lt;b&gt;" in page  # a hyperparameter is text, not markup
    assert not re.search(r"<(script|link|img)|(src|href)=\"(?!#)http", page)


def test_the_default_output_is_plot_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = log_run(tmp_path, "a")
    monkeypatch.chdir(tmp_path)
    assert main([str(run)]) == 0
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_keys_choose_the_panels(tmp_path: Path) -> None:
    run = log_run(tmp_path, "a")
    out = tmp_path / "x.svg"
    assert main([str(run), "--keys", "eval/loss", "-o", str(out)]) == 0
    found = texts(out.read_text())
    assert "eval/loss" in found
    assert "learning rate" not in found


def test_a_line_of_many_points_is_averaged_and_says_so(tmp_path: Path) -> None:
    run = log_run(tmp_path, "a", 400)
    out = tmp_path / "x.svg"
    assert main([str(run), "-o", str(out)]) == 0
    assert "bold: mean of 8 points" in texts(out.read_text())
    assert main([str(run), "--smooth", "1", "-o", str(out)]) == 0
    assert not any("mean of" in text for text in texts(out.read_text()))


def test_a_running_mean_leaves_out_what_is_not_finite_and_keeps_the_ends() -> None:
    assert running_mean([4, 2, 0, 2, 4], 1) == [4, 2, 4 / 3, 2, 4]
    assert running_mean([1, math.nan, 3], 1) == [1, 2, 3]
    assert math.isnan(running_mean([math.nan], 3)[0])
    means = running_mean(list(range(100)), 8)
    assert means[2:-2] == pytest.approx(list(range(2, 98)))
    assert (means[0], means[-1]) == (1, 98)


def test_a_long_line_keeps_its_ends_and_its_peaks() -> None:
    y = [1.0] * 100_000
    y[54_321], y[77_777], y[5] = 9.0, -9.0, math.inf
    x = list(range(len(y)))
    thin_x, thin_y = extremes(x, y, 2000)
    assert len(thin_x) <= 2100
    assert (thin_x[thin_y.index(9.0)], thin_x[thin_y.index(-9.0)]) == (54_321, 77_777)
    assert thin_x == sorted(thin_x)
    thin_x, _ = every(x, y, 2000)
    assert (thin_x[0], thin_x[-1]) == (0, 99_999)
    assert len(thin_x) <= 2001
    assert extremes([1, 2], [3, 4], 2000) == ([1, 2], [3, 4])


def test_steps_are_written_short() -> None:
    assert [short(x, None) for x in (0, 50, 9999, 20_000, 12_500, 1_500_000)] == [
        "0", "50", "9999", "20k", "12.5k", "1.5M",
    ]  # fmt: skip


def test_a_picture_of_a_long_run_stays_small(tmp_path: Path) -> None:
    rows = (f'{{"_step": {i}, "_time": {i}, "loss": {1 + i % 7}}}\n' for i in range(50_000))
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    out = tmp_path / "x.svg"
    assert main([str(tmp_path), "-o", str(out)]) == 0
    assert out.stat().st_size < 400_000


@pytest.mark.parametrize("kind", [CSVTracker, JSONLTracker, TensorBoardTracker])
def test_every_format_gives_the_same_numbers(tmp_path: Path, kind: type) -> None:
    if kind is TensorBoardTracker and not kind.is_available():
        pytest.skip("no writer of TensorBoard's files")
    (run,) = find_runs([str(log_run(tmp_path, "a", 12, kind))])
    assert run.name == "a"
    loss = run.series["loss"]
    assert loss.steps == list(range(12))
    assert loss.values == pytest.approx([1 / (step + 1) for step in range(12)], rel=1e-6)
    assert run.series["eval/loss"].steps == [0, 10]
    assert all(before <= after for before, after in zip(loss.times, loss.times[1:], strict=False))


def test_a_resumed_run_is_one_line(tmp_path: Path) -> None:
    for first, last, scale in ((0, 10, 1), (6, 14, 100)):  # stopped at 10, resumed from step 6
        tracker = CSVTracker("a", tmp_path)
        tracker.start()
        for step in range(first, last):
            tracker.log({"loss": scale * step}, step=step)
        tracker.finish()
    (run,) = find_runs([str(tmp_path / "a")])
    assert run.series["loss"].steps == list(range(14))
    assert run.series["loss"].values == [0, 1, 2, 3, 4, 5, *range(600, 1400, 100)]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, two = log_run(tmp_path / "x", "a"), log_run(tmp_path / "y", "a")
    assert [run.name for run in find_runs([str(one), str(two)])] == ["x/a", "y/a"]


def test_a_file_of_somebody_else_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,train_loss,comment\n1,2.5,x\n2,,y\n3,nan,z\n")
    (run,) = find_runs([str(tmp_path / "log.csv")])
    assert run.name == "log"
    assert run.series["train_loss"].steps == [1, 3]
    assert run.series["train_loss"].last == 2.5
    assert "comment" not in run.series


def test_numbers_that_are_not_finite_survive(tmp_path: Path) -> None:
    tracker = JSONLTracker("a", tmp_path)
    tracker.start()
    for value in (1.0, float("nan"), float("inf")):
        tracker.log({"loss": value})
    tracker.finish()
    (run,) = find_runs([str(tmp_path / "a")])
    assert [str(value) for value in run.series["loss"].values] == ["1.0", "nan", "inf"]
    assert main([str(tmp_path / "a"), "-o", str(tmp_path / "x.png")]) == 0


def test_logged_throughput_is_preferred_and_has_its_unit(tmp_path: Path) -> None:
    tracker = CSVTracker("a", tmp_path)
    tracker.start()
    for step in range(4):
        tracker.log({"loss": 1, "samples_per_second": 100 + step}, step=step)
    tracker.finish()
    panels = choose_panels(find_runs([str(tmp_path / "a")]))
    assert [panel.label for panel in panels] == ["loss", "samples/s"]


def test_steps_per_second_come_from_the_times(tmp_path: Path) -> None:
    rows = [{"_step": 10 * i, "_time": 1000 + 2 * i, "_session": 0, "loss": 1} for i in range(20)]
    rows += [{"_step": 200, "_time": 9000, "_session": 1, "loss": 1}]  # restarted much later
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    speed = choose_panels(find_runs([str(tmp_path)]))[-1]
    assert speed.label == "steps/s"
    assert speed.lines[0].series.values == [5.0] * 19


# --- refusals -----------------------------------------------------------------------------------


def test_a_missing_run_is_named_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_run(tmp_path, "first_run")
    text = said(capsys, tmp_path / "first_rum")
    assert f"no run {tmp_path / 'first_rum'}: there is no such file or folder" in text
    assert f"did you mean {tmp_path / 'first_run'}?" in text


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected metrics.csv or metrics.jsonl" in said(capsys, tmp_path)


def test_a_run_without_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"_step": 0, "text": "hello"}\n')
    assert "holds no numbers yet" in said(capsys, tmp_path)


def test_a_missing_column_is_named_with_those_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = log_run(tmp_path, "a")
    text = said(capsys, run, "--keys", "los")
    assert "no run logged 'los' (did you mean loss?): there are eval/loss, loss, lr" in text


def test_nothing_that_is_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("step,score\n1,2\n2,3\n")
    text = said(capsys, tmp_path / "log.csv")
    assert "nothing to draw" in text
    assert "there are score; choose with --keys" in text


def test_an_unknown_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log_run(tmp_path, "a")
    text = said(capsys, run, "-o", tmp_path / "x.gif")
    assert "expected a name that ends in .png, .svg, .html or .pdf" in text
    (tmp_path / "notes.txt").write_text("x")
    assert "expected a .csv or .jsonl file" in said(capsys, tmp_path / "notes.txt")


def test_a_damaged_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n{"loss": \n{"loss": 3}\n')
    assert f"{tmp_path / 'metrics.jsonl'}:2 is not JSON" in said(capsys, tmp_path)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1}\n{"loss": 2}\n{"lo')
    (run,) = find_runs([str(tmp_path)])
    assert run.series["loss"].values == [1, 2]


def test_a_damaged_event_file_is_named(tmp_path: Path) -> None:
    if not TensorBoardTracker.is_available():
        pytest.skip("no writer of TensorBoard's files")
    log_run(tmp_path, "a", 5, TensorBoardTracker)
    (file,) = (tmp_path / "a").glob("events*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])  # still being written
    (run,) = find_runs([str(file)])
    assert run.series["loss"].steps == [0, 1, 2, 3, 4]
    assert run.series["lr"].steps == [0, 1, 2, 3]
    second = 16 + struct.unpack_from("<Q", whole)[0]
    file.write_bytes(whole[: second + 12] + b"\xff" * 20 + whole[second + 32 :])
    with pytest.raises(PlotError, match=f"is damaged at byte {second}"):
        find_runs([str(file)])


def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log_run(tmp_path, "a")
    assert "--smooth must be at least 1: got 0" in said(capsys, run, "--smooth", "0")
    (tmp_path / "old.csv").write_text("step,loss\n1,2\n2,3\n")
    text = said(capsys, tmp_path / "old.csv", "--x", "time", "-o", tmp_path / "x.png")
    assert "has no times: draw against steps" in text
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_without_matplotlib_the_extra_is_named(tmp_path: Path) -> None:
    run = log_run(tmp_path, "a")
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from paceline.commands import main\n"
        f"sys.exit(main(['plot', {str(run)!r}, '-o', {str(tmp_path / 'x.png')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'paceline[plot]'" in done.stderr


def test_matplotlib_is_loaded_for_drawing_only() -> None:
    code = (
        "import sys; from paceline.commands import main\n"
        "main(['plot', 'no such run'])\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run: every part in its smallest form, without peers; no speed is asserted."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import cost, sizes
from benchmarks.__main__ import PARTS
from benchmarks.measures import Measure, samples
from benchmarks.measures import line as measure_line
from benchmarks.peers import PEERS, Peers
from benchmarks.session import Session, alternate
from benchmarks.session import command as shown_command
from benchmarks.table import Row, Table, text

import paceline

TREE = Path(__file__).resolve().parents[2]
ALONE = ["--without", *PEERS]
# A bridge without PyTorch has nothing to show, nor has a machine without a GPU.
EMPTY = {"bridge"} if paceline.cuda.is_available() else {"bridge", "gpu"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *words]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_in_its_smallest_form(part: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = command(part, "--quick", "--rounds", "1", "--precisions", "fp32", "--json", str(out))
    done = subprocess.run([*words, *ALONE], cwd=TREE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"cpu", "commit", "load_at_start", "versions"} <= set(result["head"])
    tables = [Table.from_json(values) for values in result["tables"] if values["rows"]]
    assert bool(tables) != (part in EMPTY)
    samples = [v for table in tables for row in table.rows for v in row.ours]
    assert bool(samples) != (part in EMPTY)
    assert all(math.isfinite(v) for v in samples)
    for table in tables:
        assert table.title in done.stdout
        assert not any("failed" in row.peers.values() for row in table.rows)
    assert (part in EMPTY and part == "gpu") == ("No GPU here: nothing was measured" in done.stdout)
    if part == "train":
        assert done.stdout.count("left out") == 9  # four peers twice, and DDP


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = command("overhead", "--quick", "--rounds", "100000", "--json", str(out), *ALONE)
    process = subprocess.Popen(words, cwd=TREE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               text=True)  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "round 3 of" in line:
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=30)
    assert process.returncode == 130
    (table,) = json.loads(out.read_text())["tables"]
    assert all(2 <= len(row["ours"]) < 100000 for row in table["rows"])


def test_no_worker_outlives_the_run(tmp_path: Path) -> None:
    words = command("overhead", "--quick", "--rounds", "100000", *ALONE)
    process = subprocess.Popen(words, cwd=TREE, stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    assert process.stderr is not None
    next(line for line in process.stderr if "round 1 of" in line)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.communicate(timeout=30)
    assert children
    deadline = time.monotonic() + 20  # a worker ends with its stdin
    while any(map(running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, children))


def running(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run(command("nosuch"), cwd=TREE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no part 'nosuch': choose from train" in done.stderr


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = Table("train", "A title, fp32", "ms", [Row("case", [1.0, 2.0], {"peer": [3.0, 4.0]})])
    head = {"cpu": "a processor", "commit": "0", "rounds": 2}
    result = tmp_path / "out.json"
    result.write_text(json.dumps({"head": head, "tables": [table.to_json()]}))
    words = command("plot", str(result), "--out", str(tmp_path / "figures"))
    done = subprocess.run(words, cwd=TREE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    picture = tmp_path / "figures" / "train-a-title-fp32.svg"
    assert "3.50  peer" in picture.read_text()
    assert os.stat(picture).st_size < 100_000


def test_a_ratio_is_above_one_where_paceline_is_ahead() -> None:
    row = Row("case", [1.0, 2.0], {"slow": [2.0, 6.0], "absent": "not installed"})
    lower, higher = Table("p", "t", "ms", [row]), Table("p", "t", "GB/s", [row], False)
    assert lower.ratio(row, "slow") == [2.0, 3.0]
    assert higher.ratio(row, "slow") == [0.5, 1 / 3]
    assert lower.ratio(row, "absent") == []
    assert "not installed" in text(lower)
    assert Table.from_json(json.loads(json.dumps(lower.to_json()))) == lower


def test_a_measure_is_met_or_not() -> None:
    row = Row("1 thread", [1.0, 1.0], {"PyTorch eager": [4.0, 4.0], "JAX": [3.0, 2.0]})
    slow = Table("train", "MLP x, fp32", "ms", [row])
    fast = Table("train", "MLP x, bf16", "ms", [Row("1 thread", [0.5, 0.25])])
    tables = [slow, fast]
    best = Measure("a", 2.5, "^train: MLP.*fp32", "1 thread", ("PyTorch eager", "JAX"))
    assert measure_line(best, tables) == "| a | 2.5 | 2.50 (2.00 to 3.00) | JAX | yes |"
    ours = Measure("b", 0.9, "^train: MLP.*fp32", "1 thread", at_most=True)
    assert measure_line(ours, tables).endswith("| 1.00 (1.00 to 1.00) |  | no |")
    over = Measure("c", 3, "^train: MLP.*bf16", "1 thread", over="^train: MLP.*fp32")
    assert samples(over, tables) == ([2.0, 4.0], "ours")
    assert "not measured" in measure_line(Measure("d", 1, "^GPT", "1 thread"), tables)


def test_figures_go_to_their_places(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = Row("1 thread", [1.0], {"PyTorch eager": [4.0]})
    table = Table("train", "GPT 10.8 M, batch 8 of x, fp32", "ms", [row])
    head = {"cpu": "c", "commit": "0abc", "rounds": 1, "command": "train --rounds 1",
            "versions": {"torch": "2"}, "date": "d", "load_at_start": [0.5]}  # fmt: skip
    result, document = tmp_path / "out.json", tmp_path / "figures.md"
    result.write_text(json.dumps({"head": head, "tables": [table.to_json()]}))
    old = "| import, ms over a bare interpreter | at most 50 | 19 (18 to 20) |  | yes |\n"
    document.write_text(
        f"A\n<!-- measures -->\n{old}<!-- end -->\nB\n<!-- tables train -->\nold\n<!-- end -->\n"
        "<!-- tables loader -->\nstays\n<!-- end -->\nC\n"
    )
    words = command("document", str(result), "--documents", str(document), "--out", str(tmp_path))
    subprocess.run(words, cwd=TREE, check=True, timeout=60)
    text = document.read_text()
    assert (
        "| GPT 10.8 M, fp32, 1 thread | 2.3 | 4.00 (4.00 to 4.00) | PyTorch eager | yes |" in text
    )
    assert old in text
    assert "stays" in text
    assert "old\n" not in text
    assert "`python -m benchmarks train --rounds 1`, commit 0abc" in text
    (picture,) = tmp_path.glob("*.svg")
    assert f"(figures/{picture.name})" in text
    assert text.startswith("A\n")
    assert text.endswith("C\n")


def test_a_command_is_shown_without_paths() -> None:
    words = ["train", "--json", "/a/b", "--python-jax", "/c", "--python-mlx=/d", "--wires", "x y"]
    assert shown_command(words) == "train --wires 'x y'"


def test_a_peer_is_not_installed_or_left_out() -> None:
    peers = Peers({"jax": "/nonexistent/python"}, {"torch"})
    assert not peers.has("jax")
    assert peers.why_not("jax") == "not installed"
    assert not peers.has("torch")
    assert peers.why_not("torch") == "left out"


def test_turns_keep_complete_rounds_only() -> None:
    calls = iter([1.0, 2.0, 3.0, KeyboardInterrupt()])

    def call() -> float:
        value = next(calls)
        if isinstance(value, BaseException):
            raise value
        return value

    session = Session(rounds=5)
    assert alternate(session, "t", {"a": call, "b": call}) == {"a": [1.0], "b": [2.0]}
    assert session.interrupted
    with pytest.raises(KeyboardInterrupt):  # and nothing new is begun
        alternate(session, "t", {"a": call})


def test_the_libraries_begin_with_the_same_weights() -> None:
    from benchmarks import models

    for name in ("mlp", "tiny"):
        model, _, _ = models.alike(paceline, name)
        expected = sizes.weights(name)
        assert {key: tuple(p.shape) for key, p in model.named_parameters()} == {
            key: value.shape for key, value in expected.items()
        }
        for key, parameter in model.named_parameters():
            assert (parameter.detach().numpy() == expected[key]).all()


def test_the_fit_finds_latency_and_bandwidth() -> None:
    link = cost.fit([(n, 2e-4 + n / 5e8) for n in (8 << 10, 64 << 10, 256 << 10)])
    assert math.isclose(link.alpha, 1e-4, rel_tol=1e-6)
    assert math.isclose(link.beta, 5e8, rel_tol=1e-6)


def test_the_model_of_a_network_reduction() -> None:
    link = cost.Link(1e-3, 1e8)
    one = cost.network_all_reduce(2, 1e4, link)
    assert math.isclose(one, 2e-3 + 1e4 / 1e8)
    # The link is full: the meeting, every byte, and the last piece's way.
    full = cost.network_all_reduce(2, 3 * cost.FAR_PIECE, link)
    assert math.isclose(full, 2e-3 + 3 * cost.FAR_PIECE / 1e8)
    # The way is long: two pieces on it at a time.
    far = cost.network_all_reduce(2, 3 * cost.FAR_PIECE, cost.Link(1.0, 1e8))
    assert math.isclose(far, 3.0 + 2 * cost.FAR_PIECE / 1e8)
    four = cost.network_all_reduce(4, cost.PIECE, link)
    assert math.isclose(four, 3e-3 + 1.5 * cost.PIECE / 1e8)


@pytest.mark.parametrize("name", ["mlp", "gpt-b1"])
def test_the_buckets_are_those_of_the_core(name: str) -> None:
    from benchmarks import models

    import paceline.distributed as dist
    from paceline import _C

    dist.init_process_group()
    try:
        model, _, _ = models.make(paceline, name)
        labels, params = zip(*model.named_parameters(), strict=True)
        bounds = cost.FIRST_BUCKET, cost.BUCKET, dist.ReduceOp.SUM
        reducer = _C.Reducer(dist.default_group().native, params, labels, *bounds)
        grads = [4 * p.numel() for p in params]
        assert cost.buckets(grads, near=True) == [sum(grads[p] for p in b) for b in reducer.buckets]
    finally:
        dist.destroy_process_group()


def test_the_model_of_a_step() -> None:
    step = cost.Step(1.0, 2.0, 0.5)
    assert cost.step_seconds(step, [1, 1], [0.0, 0.0], [0.0, 0.0]) == 3.5
    # The first bucket's wait hides behind the second half of the pass; the last is seen whole.
    assert cost.step_seconds(step, [1, 1], [0.5, 0.25], [0.0, 0.0]) == 3.75
    # What it computes is taken from the pass.
    assert cost.step_seconds(step, [1, 1], [0.5, 0.25], [0.5, 0.25]) == 4.25
    # A wire slower than the pass: the last bucket waits for the first.
    assert cost.step_seconds(step, [1, 1], [5.0, 5.0], [0.0, 0.0]) == 1.0 + 1.0 + 10.0 + 0.5

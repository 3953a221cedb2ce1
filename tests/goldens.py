# SPDX-License-Identifier: Apache-2.0
"""What a real GPU computed, kept as JSON, and compared with what a GPU (or the virtual one) does.

`make goldens FOLDER=tests/data/h200` records on this machine's GPU into FOLDER/results.json, and
tests/gpu/on_device/test_goldens.py replays every such file. Inputs are told by a seed and checked
by a digest; of a result the exact bits are kept as a digest where its dtype is exact, else sampled
values and the norm, which are compared by the operators' own bounds. Timings are
`python -m benchmarks gpu --json`; registers are seen by tests/cuda_build.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import models

import paceline
from numerics.compare import UNIT, tensor
from numerics.op_table import CASES, Case
from paceline import _C

FOLDER = Path(__file__).resolve().parent / "data"
MOST_BYTES = 200_000
SAMPLES = 24
DTYPES = ("float64", "float32", "bfloat16", "float16")
STEPS = 20
# How far a loss of the training run may be off, relative: what roundings grow to in its steps.
CURVE = {"no": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class Golden:
    """One call whose result is kept. `bound`: of the largest element, in units of the dtype."""

    label: str
    dtype: str
    call: Callable[..., Any]
    arrays: Callable[[], list[np.ndarray]]
    bound: float
    cast: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """What it is kept under."""
        return f"{self.label}, {self.dtype}"


def small(case: Case) -> list[np.ndarray]:
    """The inputs of the operators' table."""
    return case.small(np.random.default_rng(5))


def normal(*shapes: tuple[int, ...]) -> Callable[[], list[np.ndarray]]:
    """Inputs that need several blocks of threads."""
    return lambda: [np.random.default_rng(9).standard_normal(shape) for shape in shapes]


# Label, call, inputs, roundings: more elements than the table's cases have.
LARGER: list[tuple[str, Callable[..., Any], Callable[[], list[np.ndarray]], float]] = [
    ("layer_norm of 33 x 768", lambda x, w, b: _C.layer_norm(x, w, b, 1, 1e-5),
     normal((33, 768), (768,), (768,)), 64),
    ("softmax of 17 x 1000", lambda x: _C.softmax(x, -1), normal((17, 1000)), 32),
    ("attention of 70 x 64",
     lambda q, k, v: _C.attention(q, k, v, None, 0.0, True, math.nan, False),
     normal((1, 2, 70, 64), (1, 2, 70, 64), (1, 2, 70, 64)), 32),
    ("sum of 5000", lambda x: _C.sum(x, None, False), normal((5000,)), 32),
    ("matmul of 70 x 130 x 50", _C.matmul, normal((70, 130), (130, 50)), 32),
    ("gelu of 3000", _C.gelu, normal((3000,)), 16),
]  # fmt: skip
EXACT: list[tuple[str, Callable[..., Any]]] = [
    ("argmax", lambda x: _C.argmax(x, 1, False)), ("order", lambda x: _C.sort(x, 1, False)[1]),
    ("nonzero", lambda x: _C.nonzero(x > 0)), ("less", lambda x: x < 0.3),
    ("to int", lambda x: _C.to_dtype(x * 100, 3)),
    ("dropped", lambda x: _C.dropout(x, 0.4, _generator()) == 0),
    ("randint", lambda x: _C.randint([500], -7, 1000, 3, _generator(), x._device_index)),
]  # fmt: skip


def _generator() -> Any:
    gen = _C.Generator()
    gen.seed = 7
    return gen


def goldens() -> Iterator[Golden]:
    """Yield every call that is kept."""
    for dtype in DTYPES:
        for case in CASES:
            bound = 64 if dtype == "float64" else 4 * case.spread
            yield Golden(case.label, dtype, case.call, partial(small, case), bound, case.cast)
        for label, call, arrays, bound in LARGER:
            yield Golden(label, dtype, call, arrays, 4 * bound)
    for label, call in EXACT:
        yield Golden(label, "float32", call, normal((23, 41)), 0)


def digest(arrays: list[np.ndarray]) -> str:
    """Of what the arrays hold, dtypes and shapes included."""
    made = hashlib.sha256()
    for a in arrays:
        made.update(f"{a.dtype} {a.shape} ".encode())
        made.update(np.ascontiguousarray(a).tobytes())
    return made.hexdigest()[:16]


def observe(golden: Golden) -> dict[str, Any]:
    """Make the call on the GPU; what is kept of it."""
    arrays = golden.arrays()
    dtype = getattr(paceline, golden.dtype)
    args = [
        tensor(a, paceline.float64 if i in golden.cast and a.dtype.kind == "f" else dtype)
        for i, a in enumerate(arrays)
    ]
    out = golden.call(*[a.to("cuda") for a in args]).detach().cpu()
    kept: dict[str, Any] = {"inputs": digest(arrays), "shape": list(out.shape),
                            "dtype": str(out.dtype).removeprefix("paceline.")}  # fmt: skip
    if kept["dtype"] not in UNIT:
        kept["digest"] = digest([np.asarray(out)])
        return kept
    values = np.asarray(out.double(), dtype=np.float64).ravel()
    at = np.unique(np.linspace(0, values.size - 1, SAMPLES).astype(np.int64))
    kept["largest"] = float(np.abs(values).max())
    kept["norm"] = float(np.sqrt((values**2).sum()))
    kept["values"] = [float(f"{v:.17g}" if golden.dtype == "float64" else f"{v:.9g}")
                      for v in values[at]]  # fmt: skip
    return kept


def differs(golden: Golden, got: dict[str, Any], want: dict[str, Any]) -> str:
    """Say how a result differs from the one that was kept; empty where it does not."""
    for key in ("shape", "dtype", "digest"):
        if got.get(key) != want.get(key):
            return f"{golden.key}: {key} {got.get(key)}, recorded {want.get(key)}"
    if "values" not in want:
        return ""
    allowed = golden.bound * UNIT[want["dtype"]] * max(want["largest"], 1e-30)
    pairs = zip(got["values"], want["values"], strict=True)
    off = max(abs(g - w) for g, w in pairs)
    # Written so that NaN fails. The norm of n errors is at most sqrt(n) of the largest.
    if not off <= allowed:
        return f"{golden.key}: a value is off by {off:.3g}, allowed {allowed:.3g}"
    count = max(1, math.prod(want["shape"]))
    off = abs(got["norm"] - want["norm"])
    if not off <= allowed * math.sqrt(count):
        return f"{golden.key}: the norm is off by {off:.3g}"
    return ""


def curve(precision: str) -> list[float]:
    """Losses of a tiny GPT's first steps on the GPU."""
    accelerator = paceline.Accelerator(mixed_precision=precision)
    model, x, y = models.make(paceline, "tiny")
    optimizer = paceline.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    x, y = x.to(accelerator.device), y.to(accelerator.device)
    losses = []
    for _ in range(STEPS):
        logits = model(x)
        loss = paceline.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.item()))
    return losses


def curve_differs(precision: str, got: list[float], want: list[float]) -> str:
    """Say at which step a loss is too far from the one that was kept."""
    for step, (g, w) in enumerate(zip(got, want, strict=True)):
        if not abs(g / w - 1) <= CURVE[precision]:
            return f"{precision}: loss of step {step} {g:.6g}, recorded {w:.6g}"
    return ""


def record(folder: Path, precisions: tuple[str, ...] = ("no", "bf16")) -> Path:
    """Write what this GPU computes; return the file."""
    kept: dict[str, Any] = {"gpu": paceline.cuda.get_device_name(0), "results": {}, "losses": {}}
    for golden in goldens():
        kept["results"][golden.key] = observe(golden)
    for precision in precisions:
        kept["losses"][precision] = curve(precision)
        paceline.PartialState._reset_state()
    text = json.dumps(kept, separators=(",", ":"))
    text = text.replace('"},"', '"},\n"').replace("]},", "]},\n") + "\n"
    if len(text) > MOST_BYTES:
        raise SystemExit(f"[goldens] {len(text)} bytes, expected at most {MOST_BYTES}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(text)
    return path


def main() -> None:
    """Record, where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="tests/data/h200, for one")
    folder = parser.parse_args().folder
    if not paceline.cuda.is_available():
        raise SystemExit("[goldens] no GPU here: there is nothing to record")
    path = record(folder)
    print(f"{path}: {path.stat().st_size} bytes of {paceline.cuda.get_device_name(0)}")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""NCCL with one rank: that a library opens, makes a communicator and ends it. What several ranks do
is tested on the virtual GPU (tests/distributed/test_device.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import paceline
import paceline.distributed as dist
from paceline.errors import DeviceError

pytestmark = pytest.mark.gpu


@pytest.fixture
def _group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PACELINE_NCCL_ALONE", "1")
    dist.init_process_group("nccl")
    try:
        dist.all_reduce(paceline.ones(1, device="cuda"))
    except DeviceError as error:
        dist.destroy_process_group()
        if "cannot be opened" not in str(error):
            raise
        pytest.skip(f"no NCCL: {error}")
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize(
    "dtype", ["uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
)
def test_every_collective_of_one_rank(dtype: str) -> None:
    kind = getattr(paceline, dtype)
    values = list(range(100))

    def there() -> paceline.Tensor:
        return paceline.tensor(values).to(kind).to("cuda")

    def here(t: paceline.Tensor) -> list[float]:
        return t.cpu().to(paceline.float64).tolist()

    ops = [dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN]
    for op in [*ops, dist.ReduceOp.AVG] if "float" in dtype else ops:
        x = there()
        dist.all_reduce(x, op)
        assert here(x) == values
    x, out = there(), there() * 0
    dist.broadcast(x, 0)
    dist.reduce(x, 0)
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    assert here(x) == values
    dist.all_gather_into_tensor(out, x)
    assert here(out) == values
    out = there() * 0
    dist.reduce_scatter_tensor(out, x)
    assert here(out) == values
    out = there() * 0
    dist.all_to_all_single(out, x)
    assert here(out) == values
    parts = [there() * 0]
    dist.gather(x, parts, 0)
    assert here(parts[0]) == values
    out = there() * 0
    dist.scatter(out, [x], 0)
    assert here(out) == values
    assert work.is_completed()

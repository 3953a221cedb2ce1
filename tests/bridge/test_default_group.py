# SPDX-License-Identifier: Apache-2.0
"""``torch.distributed``, as libraries call it, over paceline's process group."""

from __future__ import annotations

import pytest

from harness import run_ranks

pytest.importorskip("torch")


def as_a_library_does() -> None:
    import pytest
    import torch
    import torch.distributed as dist

    from paceline import Accelerator
    from paceline.compat import install
    from rankside import RANK, WORLD

    Accelerator()
    assert not dist.is_initialized(), "only where a library is to have it"
    install(["some_library"])
    Accelerator()
    assert (dist.get_backend(), dist.get_rank(), dist.get_world_size()) == ("paceline", RANK, WORLD)
    install(["some_library"])
    Accelerator()  # finds it there

    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        x = torch.full((3, 2), RANK + 1, dtype=dtype).t()
        dist.all_reduce(x)
        assert x.tolist() == [[sum(range(1, WORLD + 1))] * 3] * 2
    x = torch.tensor([RANK, -RANK])
    dist.all_reduce(x, dist.ReduceOp.MAX)
    assert x.tolist() == [WORLD - 1, 0]
    parts = [torch.empty(2) for _ in range(WORLD)]
    dist.all_gather(parts, torch.full((2,), float(RANK)))
    assert [part.tolist() for part in parts] == [[float(r)] * 2 for r in range(WORLD)]
    scalars = [torch.empty(()) for _ in range(WORLD)]
    dist.all_gather(scalars, torch.tensor(float(RANK)))
    assert [part.item() for part in scalars] == list(range(WORLD))
    whole = torch.empty(WORLD * 2)
    dist.all_gather_into_tensor(whole, torch.full((2,), float(RANK)))
    assert whole.tolist() == [float(r) for r in range(WORLD) for _ in range(2)]
    x = torch.tensor([float(RANK)])
    work = dist.broadcast(x, WORLD - 1, async_op=True)
    work.wait()
    assert x.item() == WORLD - 1
    objects = [None] * WORLD
    dist.all_gather_object(objects, {"rank": RANK})
    assert objects == [{"rank": r} for r in range(WORLD)]
    box = [RANK]
    dist.broadcast_object_list(box, 1)
    assert box == [1]
    dist.barrier()

    for call in (
        lambda: dist.send(x, (RANK + 1) % WORLD),
        lambda: dist.recv(x, (RANK + 1) % WORLD),
        lambda: dist.reduce_scatter(x, [x] * WORLD),
        lambda: dist.all_reduce(x, dist.ReduceOp.PRODUCT),
    ):
        with pytest.raises(NotImplementedError, match="not in paceline's view of the process gr"):
            call()
    if RANK == 0:
        with pytest.raises(NotImplementedError, match="a group of some of the ranks"):
            dist.new_group([0])
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_collectives_of_libraries(world: int) -> None:
    run_ranks(world, as_a_library_does, with_torch=True, timeout=60)


def another_group_is_there() -> None:
    import torch.distributed as dist

    from bridge import nets
    from paceline import Accelerator
    from paceline.compat import install, uninstall
    from paceline.state import PartialState

    nets.start_gloo()
    install(["some_library"])
    Accelerator()
    assert dist.get_backend() == "gloo"
    uninstall()
    assert not PartialState._uses


def test_a_default_group_of_the_scripts_own_is_left_alone() -> None:
    run_ranks(2, another_group_is_there, with_torch=True, timeout=60)

# SPDX-License-Identifier: Apache-2.0
"""Attention by cuDNN from Python, on the virtual GPU with a stand-in for the library.

The stand-in computes the graph that the core describes. What the real library says of these graphs
is asked in ``test_declarations.py``, where it is installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import vcuda

ATTENTION = """
import ctypes, os
import paceline as torch
from paceline.nn import functional as F

library = ctypes.CDLL(os.environ["PACELINE_CUBLASLT"])
B, H, T, D = 2, 1, 18, 16

def attend(device, dtype):
    torch.manual_seed(3)
    packed = torch.randn(B, T, 3, H, D).to(device=device, dtype=dtype).requires_grad_()
    q, k, v = (part.squeeze(2).transpose(1, 2) for part in packed.split(1, dim=2))
    weight = torch.randn(B, H, T, D).to(device=device, dtype=dtype)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    (out * weight).sum().backward()
    return out.detach().float().cpu(), packed.grad.float().cpu()

for name in ("bfloat16", "float16"):
    dtype = getattr(torch, name)
    rounded = [a - b for a, b in zip(attend("cuda", dtype), attend("cpu", dtype))]
    print(*(x.abs().max().item() < 0.05 for x in rounded))
first, second = attend("cuda", torch.bfloat16), attend("cuda", torch.bfloat16)
print(*((a == b).all().item() for a, b in zip(first, second)))
print(library.vcuda_cudnn_executions())
"""


@pytest.mark.parametrize(("way", "times"), [("cudnn", 8), ("own", 0), ("auto", 0)])
def test_attention_by_cudnn(way: str, times: int) -> None:
    env = {**vcuda.environment(seed=5), "PACELINE_ATTENTION": way}
    *right, count = vcuda.run(ATTENTION, env=env).splitlines()
    assert right == ["True True"] * 3
    assert int(count) == times


def test_what_is_faster_is_found_and_kept(tmp_path: Path) -> None:
    env = {
        **vcuda.environment(),
        "PACELINE_BLAS_MEASURE": "auto",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    counts = [int(vcuda.run(ATTENTION, env=env).splitlines()[-1]) for _ in range(2)]
    # On the clock of the virtual GPU each task takes as long: the forward passes are as fast, which
    # leaves them to the own kernels, the gradient is one task against several.
    assert counts[0] > counts[1] == 4
    assert len(list((tmp_path / "paceline").glob("cudnn-91900-*.txt"))) == 1


STREAMS = """
import paceline as torch
from paceline.nn import functional as F

one, two = torch.cuda.Stream(), torch.cuda.Stream()
x = torch.randn(1, 2, 12, 8).to(device="cuda", dtype=torch.bfloat16)
want = x
for _ in range(3):
    want = F.scaled_dot_product_attention(want + want, x, x)
for stream in (one, two, one):
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x
        for _ in range(3):
            y = F.scaled_dot_product_attention(y + y, x, x)  # the sum is this stream's
    torch.cuda.current_stream().wait_stream(stream)
    print((y == want).all().item())
"""


def test_each_stream_has_its_own_order() -> None:
    for seed in (1, 2):
        env = {**vcuda.environment(seed=seed), "PACELINE_ATTENTION": "cudnn"}
        assert vcuda.run(STREAMS, env=env).split() == ["True"] * 3


def test_a_way_that_is_none() -> None:
    env = {**vcuda.environment(), "PACELINE_ATTENTION": "flash"}
    code = """
import paceline as torch
try:
    torch.zeros(1, device="cuda")
except ValueError as error:
    print(error)
"""
    assert 'got "flash", expected auto, own or cudnn' in vcuda.run(code, env=env)

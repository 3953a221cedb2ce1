# SPDX-License-Identifier: Apache-2.0
"""What a product does on a GPU besides multiplying: GELU's gradient, and TF32 where asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

import vcuda

# In bfloat16 one rounding less shows in the bits; a copy between keeps both steps apart.
THROUGH_GELU = """
import paceline, paceline.nn.functional as F

def gradient(between):
    paceline.manual_seed(1)
    x, w, v = (
        paceline.randn(*s).to("cuda", paceline.bfloat16).requires_grad_()
        for s in ((12, 8), (16, 8), (9, 16))
    )
    h = F.linear(x, w, activation="gelu_tanh")
    F.linear(h.clone() if between else h, v).float().square().sum().backward()
    return w.grad.float().cpu().tolist()

print(gradient(False) == gradient(True))
"""


@pytest.mark.parametrize("fuses", [True, False])
def test_it_is_taken_where_the_library_can(fuses: bool) -> None:
    env = vcuda.environment()
    if not fuses:
        env["VCUDA_CUBLASLT_ONLY"] = "plain"
    assert vcuda.run(THROUGH_GELU, env=env).split() == [str(not fuses)]


# 1 + 2^-12 is 1 in TF32. One line: what is exact before, under, and after the setting.
TF32 = """
import paceline, paceline.nn.functional as F

x = paceline.full((8, 8), 1 + 2.0 ** -12)
exact = (x @ x)[0, 0].item()
x = x.cuda().requires_grad_()
w = x.detach().clone().requires_grad_()

def products():
    x.grad = w.grad = None
    y = F.linear(x, w)
    y.backward(x.detach())
    seen = [x @ x, y, x.grad, w.grad]
    return ["%d" % (p[0, 0].item() == exact) for p in seen]

found = products()
paceline.backends.cuda.matmul.allow_tf32 = True
found += products()
found.append("%d" % ((x.double() @ x.double())[0, 0].item() == 8 * (1 + 2.0 ** -12) ** 2))
paceline.set_float32_matmul_precision("highest")
found += products()
print("".join(found))
"""


def test_tf32_only_while_it_is_asked_for() -> None:
    """In every product of a layer and its gradients; never of float64. Plans are kept apart."""
    assert vcuda.run(TF32).strip() == "1111" + "0000" + "1" + "1111"


def test_the_faster_route_is_found_by_the_devices_clock(tmp_path: Path) -> None:
    """Each task takes a virtual GPU a microsecond, so whatever is fused is faster."""
    env = vcuda.environment()
    env |= {"PACELINE_BLAS_MEASURE": "1", "XDG_CACHE_HOME": str(tmp_path)}
    assert vcuda.run(THROUGH_GELU, env=env).split() == ["False"]
    (kept,) = (tmp_path / "paceline").glob("cublaslt-*.txt")
    choices = [line.split() for line in kept.read_text().splitlines()[1:-1]]
    # epilogue, possible and route: columns of cublaslt_memory.c
    found = {(int(c[16]), c[-11], c[-10]) for c in choices if c[16] != "1"}
    assert found == {(160, "1", "1"), (192, "1", "1")}

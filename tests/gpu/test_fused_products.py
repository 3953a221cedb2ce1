# SPDX-License-Identifier: Apache-2.0
"""That a GPU takes a gradient through GELU inside the product, where the library can."""

from __future__ import annotations

import pytest

import vcuda

# In bfloat16 one rounding less shows in the bits; a copy between keeps both steps apart.
CODE = """
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
    assert vcuda.run(CODE, env=env).split() == [str(not fuses)]

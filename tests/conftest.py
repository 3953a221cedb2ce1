# SPDX-License-Identifier: Apache-2.0
"""Settings that all tests share: Hypothesis is derandomised, so that a red run can be repeated."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# A shell that starts the suite in the background has these ignored, and what tests start inherits
# that; they are about what the signals do.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

hypothesis.settings.register_profile(
    "paceline",
    derandomize=True,
    deadline=None,  # the machine is shared: a slow example says nothing
    database=None,
    max_examples=60,
)
hypothesis.settings.load_profile("paceline")


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end in one process without a default state."""
    from paceline import PartialState

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if objects of the C core that it made are still alive at its end."""
    from paceline import _C

    gc.collect()
    before = _C.live_objects()
    yield
    gc.collect()
    after = _C.live_objects()
    grown = {kind: after[kind] - before[kind] for kind in after if after[kind] > before[kind]}
    assert not grown, f"live objects at the end of the test, expected none: {grown}"

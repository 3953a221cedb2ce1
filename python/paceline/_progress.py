# SPDX-License-Identifier: Apache-2.0
"""How far a long read or write is, shown on a terminal from its second second on.

Standard library until there is much to show; then tqdm. Knows no file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["bytes_moved"]

_DELAY_S = 1.0
_WORTH_IT = 64 << 20  # bytes; nothing takes a second below


def _nothing(_: int) -> None:
    pass


@contextlib.contextmanager
def bytes_moved(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes; gives the function to tell how many more were moved.

    Parameters
    ----------
    what : str
        In front of the bar: "writing model.safetensors".
    total : int
        Bytes in all.
    """
    if total < _WORTH_IT:
        yield _nothing
        return
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # no thread of its own: it would outlive the bar

    with Bar(
        total=total,
        desc=what,
        unit="B",
        unit_scale=True,
        delay=_DELAY_S,
        mininterval=0.5,
        leave=False,
        disable=None,  # shown on a terminal only
    ) as bar:

        def moved(count: int) -> None:
            bar.update(count)

        yield moved

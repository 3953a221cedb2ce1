# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that tell which process this is, and act by it.

They hand on to the default state.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..utils.dataclasses import DistributedType
from .base import Members

__all__ = ["ProcessMembers"]


class ProcessMembers(Members):
    """Base of ``Accelerator``: which process this is, and who runs what."""

    @property
    def distributed_type(self) -> DistributedType:
        """How the processes work together."""
        return self._partial.distributed_type

    @property
    def num_processes(self) -> int:
        """How many processes train together."""
        return self._partial.num_processes

    @property
    def process_index(self) -> int:
        """The rank of this process."""
        return self._partial.process_index

    @property
    def local_process_index(self) -> int:
        """The rank of this process on its machine."""
        return self._partial.local_process_index

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self._partial.is_main_process

    @property
    def is_local_main_process(self) -> bool:
        """Whether this is the first rank of its machine."""
        return self._partial.is_local_main_process

    @property
    def is_last_process(self) -> bool:
        """Whether this is the highest rank."""
        return self._partial.is_last_process

    @property
    def use_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self._partial.use_distributed

    @property
    def multi_device(self) -> bool:
        """Whether several processes train together, each on an accelerator; False on CPUs."""
        single = (DistributedType.NO, DistributedType.MULTI_CPU)
        return self.use_distributed and self.distributed_type not in single

    def wait_for_everyone(self) -> None:
        """Wait until every process has come here."""
        self._partial.wait_for_everyone()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first process of each machine only."""
        self._partial.print(*args, **kwargs)

    def split_between_processes(
        self, inputs: Any, apply_padding: bool = False
    ) -> AbstractContextManager[Any]:
        """Give each process its share; see ``PartialState.split_between_processes``."""
        return self._partial.split_between_processes(inputs, apply_padding)

    def main_process_first(self) -> AbstractContextManager[None]:
        """Let rank 0 run the block before the others."""
        return self._partial.main_process_first()

    def local_main_process_first(self) -> AbstractContextManager[None]:
        """Let the first rank of each machine run the block before the others."""
        return self._partial.local_main_process_first()

    def on_main_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function run on rank 0 only; the others get None."""
        return self._partial.on_main_process(function)

    def on_local_main_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function run on the first rank of each machine only."""
        return self._partial.on_local_main_process(function)

    def on_last_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function run on the highest rank only."""
        return self._partial.on_last_process(function)

    def on_process(
        self, function: Callable[..., Any] | None = None, process_index: int | None = None
    ) -> Any:
        """Make a function run on one rank only."""
        return self._partial.on_process(function, process_index)

    def on_local_process(
        self, function: Callable[..., Any] | None = None, local_process_index: int | None = None
    ) -> Any:
        """Make a function run on one rank of each machine only."""
        return self._partial.on_local_process(function, local_process_index)

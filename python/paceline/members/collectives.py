# SPDX-License-Identifier: Apache-2.0
"""The members of an Accelerator that move tensors between the processes."""

from __future__ import annotations

from typing import Any

from ..utils.metrics import gather_for_metrics_in
from ..utils.operations import gather_in, pad_in, reduce_in
from .base import Members

__all__ = ["CollectiveMembers"]


class CollectiveMembers(Members):
    """Base of ``Accelerator``: gather, reduce, pad."""

    def gather(self, tensor: Any) -> Any:
        """Gather tensors of all processes; see ``paceline.utils.gather``."""
        return gather_in(self._group, tensor)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """Gather, without the samples that were repeated to make the last batches equal.

        Parameters
        ----------
        input_data : tensor, or nested list, tuple or dict; or any object
            A per-sample result of the current batch, or a per-batch scalar. What holds no tensor
            is gathered as objects.
        use_gather_object : bool
            Gather as objects in any case.
        """
        return gather_for_metrics_in(
            self._group,
            self.gradient_state.active_dataloader,
            input_data,
            use_gather_object,
        )

    def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
        """Reduce tensors over all processes; see ``paceline.utils.reduce``."""
        return reduce_in(self._group, tensor, reduction, scale)

    def pad_across_processes(
        self, tensor: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False
    ) -> Any:
        """Pad tensors to the longest; see ``paceline.utils.pad_across_processes``."""
        return pad_in(self._group, tensor, dim, pad_index, pad_first)

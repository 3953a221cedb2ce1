# SPDX-License-Identifier: Apache-2.0
"""Training on uneven inputs: ranks that ran out of batches serve the others until all have.

Inside the block every rank says, before it does something that all ranks must take part in, what
it is about to do: one number from each rank to all. A rank that has left the loop says nothing and
does what the others need: it gives zeros to their reductions (or what it had gathered of a window
that was still open), divided by the number of processes as ever, as ``torch.distributed``'s Join
does by default. When all have left the loop, the last one to run hands its model, optimizers and
schedules to those that stopped earlier, so that all ranks go on from the same state.

One forward pass of a model belongs to one backward pass. Other collectives of the script
(``gather``, ``reduce``) have no place inside the block: a rank that has left cannot know of them,
and the ranks are told so by an error.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .._call_site import frames_of_ours
from ..errors import CollectiveMismatchError

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..model import PreparedModel

__all__ = ["JoinedRanks"]

# What a rank is about to do; 0: it has left the loop. Times 2, plus a flag.
_BATCH = 1
_FORWARD = 2  # plus the number of the model


class JoinedRanks:
    """The ranks inside one ``join_uneven_inputs`` block.

    Parameters
    ----------
    group : ProcessGroup
        Of all ranks.
    models : sequence of PreparedModel
        Those that run inside.
    """

    def __init__(self, group: ProcessGroup, models: Sequence[PreparedModel]) -> None:
        self._group = group
        self._models = {model.number: model for model in models}
        self._last: list[int] | None = None  # the ranks that did something last

    def begin_batch(self, window_ends: bool) -> bool:
        """Tell that a batch begins, and whether its window would end; it does where all agree."""
        codes = self._tell(2 * _BATCH + window_ends)
        return all(code & 1 for code in codes if code)

    def begin_forward(self, model: PreparedModel, copies_buffers: bool) -> bool:
        """Tell that a model runs and that a reduction will follow.

        Returns
        -------
        bool
            Whether its buffers are copied from rank 0: not if that has left.
        """
        codes = self._tell(2 * (_FORWARD + model.number) + copies_buffers)
        return copies_buffers and codes[0] != 0

    def serve(self) -> None:
        """Do what the other ranks need, until all have left the loop."""
        while True:
            codes = self._tell(0)
            active = [code for code in codes if code]
            if not active:
                return
            what, copies = divmod(active[0], 2)
            if what >= _FORWARD:
                self._shadow(self._models[what - _FORWARD], bool(copies) and codes[0] != 0)

    def hand_over(self, others: Iterable[Any]) -> None:
        """Make all ranks equal to the one that ran last.

        Parameters
        ----------
        others : iterable
            What has ``state_dict`` and ``load_state_dict``: optimizers, schedulers, scaler.
        """
        last = self._last
        if last is None or len(last) == self._group.world_size:
            return
        root = last[0]
        for model in self._models.values():
            model.engine.copy_from_rank_zero(model.model, self._group, root)
        for part in others:
            box = [part.state_dict() if self._group.rank == root else None]
            self._group.broadcast_object_list(box, root, depth=frames_of_ours())
            if self._group.rank not in last:
                part.load_state_dict(box[0])

    def _shadow(self, model: PreparedModel, copies: bool) -> None:
        assert model.sync is not None
        if copies:
            model.engine.copy_buffers_from_rank_zero(model.model, self._group)
        model.sync.expect()
        model.sync.settle()
        model.model.zero_grad(set_to_none=True)  # what came back is the others' to use

    def _tell(self, code: int) -> list[int]:
        """Give what each rank is about to do.

        Raises
        ------
        CollectiveMismatchError
            On all ranks, when those that still run are about to do different things.
        """
        said = array("q", [code] * self._group.world_size)
        self._group.all_gather(said, array("q", [code]), depth=frames_of_ours())
        codes = said.tolist()
        kinds = {c // 2 for c in codes if c}
        if len(kinds) > 1:
            raise CollectiveMismatchError(
                "[join_uneven_inputs] the ranks that still have batches do different things: "
                + ", ".join(f"rank {r} {_words(c)}" for r, c in enumerate(codes))
                + "; each must run the same models in the same order"
            )
        if kinds:
            self._last = [rank for rank, c in enumerate(codes) if c]
        return codes


def _words(code: int) -> str:
    if code == 0:
        return "has none left"
    what = code // 2
    return "begins a batch" if what == _BATCH else f"runs model {what - _FORWARD}"

# SPDX-License-Identifier: Apache-2.0
"""What happens when a loss or a gradient is NaN or infinite, where no scaler looks after it.

``"warn"`` costs next to nothing: the kernels that update the parameters read every gradient anyway
and tell, so the line comes right after the step that was spoilt; on a GPU nobody waits for what
they tell, and it comes a step or more later. ``"raise"`` and ``"skip"`` look before the step, one
pass over the gradients, and all ranks agree on what they saw. Knows models and optimizers by their
parameters, tensors through the engine.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._call_site import frames_of_ours
from ..engines import engine_of_tensor
from ..errors import NonFiniteError
from ..utils.dataclasses import NonFiniteAction

if TYPE_CHECKING:
    from ..distributed import ProcessGroup
    from ..engines import Engine, LateLook
    from ..model import PreparedModels

__all__ = ["NonFiniteGuard"]


_MOST_UNSEEN = 64  # a loop that never steps through here keeps no more losses than that


@dataclass(frozen=True)
class _Seen:
    """What one rank met in one step: a loss that was not finite, as text, and its gradients."""

    loss: str | None
    finite: bool


class NonFiniteGuard:
    """Looks at losses and gradients, and names what is not finite.

    Parameters
    ----------
    action : NonFiniteAction
        What to do.
    group : callable
        Gives the process group, None for one process.
    models : PreparedModels
        Gives parameters their names, and tells whether the ranks' gradients are the same.
    """

    def __init__(
        self,
        action: NonFiniteAction,
        group: Callable[[], ProcessGroup | None],
        models: PreparedModels,
    ) -> None:
        self.action = action
        self._current_group = group
        self._models = models
        self._loss: str | None = None  # what a bad loss of this window was
        # Losses that nobody has looked at: a look waits for a GPU, so it comes with the step's.
        self._unseen: list[tuple[Engine, Any]] = []
        # Steps on a GPU whose answers are still on their way, in order.
        self._late: deque[tuple[int, Any, LateLook]] = deque()
        self._steps = 0
        self._bad_steps = 0

    def saw_loss(self, engine: Engine, loss: Any) -> None:
        """Note a loss that a backward pass starts from."""
        if self.action is NonFiniteAction.OFF:
            return
        self._unseen.append((engine, loss.detach()))
        if len(self._unseen) >= _MOST_UNSEEN:
            self._look()

    def _look(self) -> None:
        unseen, self._unseen = self._unseen, []
        for engine, loss in unseen:
            if engine.is_finite(loss) is False:
                self._loss = str(loss.item())

    def refuses(self, optimizer: Any) -> bool:
        """Look before a step, where the action is to skip or to raise.

        Returns
        -------
        bool
            Whether the step is to be left out: the same on all ranks.

        Raises
        ------
        NonFiniteError
            On all ranks, where the action is to raise.
        """
        if self.action not in (NonFiniteAction.SKIP, NonFiniteAction.RAISE):
            return False
        self._steps += 1
        self._look()
        mine = _Seen(self._loss, _gradients_are_finite(optimizer))
        self._loss = None
        if self._nobody_complains(mine):
            return False
        seen = self._everyone(mine)
        self._bad_steps += 1
        text = self._describe(optimizer, seen)
        if self.action is NonFiniteAction.RAISE:
            raise NonFiniteError(
                f"[optimizer.step] {text}; the parameters are those from before this step"
            )
        if self._rank == 0 and _worth_saying(self._bad_steps):
            _say(f"{text}; the step is left out on all ranks")
        return True

    def after_step(self, optimizer: Any) -> None:
        """Look after a step, where the action is to warn."""
        if self.action is not NonFiniteAction.WARN:
            return
        self._steps += 1
        late = self._ask(optimizer)
        if late is not None:
            self._late.append((self._steps, optimizer, late))
            self.tell_late(wait=len(self._late) > _MOST_UNSEEN)
            return
        finite = self._step_was_finite(optimizer)
        self._look()
        if finite and self._loss is None:
            return
        mine = _Seen(self._loss, finite)
        self._loss = None
        self._bad_steps += 1
        if not _worth_saying(self._bad_steps):
            return
        # Gradients that were reduced are bad on all ranks at once, so that all come here.
        if not finite and self._models.gradients_agree(optimizer):
            seen = self._everyone(mine)
            if self._rank == 0:
                _say(self._describe(optimizer, seen))
        else:
            _say(self._describe(optimizer, {self._rank: mine}))

    def _ask(self, optimizer: Any) -> LateLook | None:
        for p in _parameters(optimizer):
            engine = engine_of_tensor(p)
            late = engine.look_later(optimizer, [t for e, t in self._unseen if e is engine])
            if late is not None:
                self._unseen.clear()
            return late
        return None

    def tell_late(self, *, wait: bool) -> None:
        """Say what was wrong with steps on a GPU whose answers are there; or wait for them all."""
        while self._late and (wait or self._late[0][2].arrived()):
            step, optimizer, late = self._late.popleft()
            late.wait()
            loss, bad = late.bad_loss(), {id(p) for p in late.bad_parameters()}
            if loss is not None or bad:
                self._bad_steps += 1
                if _worth_saying(self._bad_steps):
                    self._say_late(step, optimizer, loss, bad)

    def _say_late(self, step: int, optimizer: Any, loss: str | None, bad: set[int]) -> None:
        # All ranks see reduced gradients alike, but not at the same time: nothing is exchanged,
        # each speaks for its loss, and one for the gradients.
        parts = [] if loss is None else [f"the loss of rank {self._rank} is {loss}"]
        if bad and not (self._rank > 0 and self._models.gradients_agree(optimizer)):
            name = self._name_where(optimizer, lambda p: id(p) in bad)
            parts.append(f"the first parameter with NaN or Inf in its gradient is {name}")
        if parts:
            _say(f"step {step}: {'; '.join(parts)} (seen at step {self._steps})")

    @property
    def _group(self) -> ProcessGroup | None:
        return self._current_group()

    @property
    def _rank(self) -> int:
        return 0 if self._group is None else self._group.rank

    def _step_was_finite(self, optimizer: Any) -> bool:
        for p in _parameters(optimizer):
            finite = engine_of_tensor(p).step_was_finite(optimizer)
            return _gradients_are_finite(optimizer) if finite is None else finite
        return True

    def _nobody_complains(self, mine: _Seen) -> bool:
        bad = mine.loss is not None or not mine.finite
        if self._group is None or self._models.joining:
            return not bad
        seen = array("q", [0] * self._group.world_size)
        self._group.all_gather(seen, array("q", [bad]), depth=frames_of_ours())
        return not any(seen)

    def _everyone(self, mine: _Seen) -> dict[int, _Seen]:
        if self._group is None or self._models.joining:
            return {self._rank: mine}
        pairs = self._group.all_gather_object((mine.loss, mine.finite), depth=frames_of_ours())
        return {rank: _Seen(*pair) for rank, pair in enumerate(pairs)}

    def _describe(self, optimizer: Any, seen: dict[int, _Seen]) -> str:
        losses = [f"the loss of rank {rank} is {s.loss}" for rank, s in seen.items() if s.loss]
        parts = losses[:4] + ([f"and {len(losses) - 4} more losses"] if len(losses) > 4 else [])
        bad = [rank for rank, s in seen.items() if not s.finite]
        if bad:
            where = self._models.nonfinite_ranks(optimizer)
            if not where and not self._models.gradients_agree(optimizer):
                where = bad
            ranks = f" on rank {', '.join(map(str, where))}" if where else ""
            parts.append(f"the first parameter with NaN or Inf in its gradient{ranks} is ")
            parts[-1] += self._name(optimizer)
        return f"step {self._steps}: {'; '.join(parts)}"

    def _name(self, optimizer: Any) -> str:
        def is_bad(p: Any) -> bool:
            return p.grad is not None and not engine_of_tensor(p).unscale_([p.grad], 1.0)

        return self._name_where(optimizer, is_bad)

    def _name_where(self, optimizer: Any, is_bad: Callable[[Any], bool]) -> str:
        params = list(_parameters(optimizer))
        own = {id(p) for p in params}
        named = [(name, p) for name, p in self._models.named_parameters() if id(p) in own]
        known = {id(p) for _, p in named}
        rest = [(f"number {i} of the optimizer", p) for i, p in enumerate(params)]
        for name, p in [*named, *(pair for pair in rest if id(pair[1]) not in known)]:
            if is_bad(p):
                return name
        return "not known, for the gradients were changed since"


def _parameters(optimizer: Any) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _gradients_are_finite(optimizer: Any) -> bool:
    by_engine: dict[str, tuple[Engine, list[Any]]] = {}
    for p in _parameters(optimizer):
        if p.grad is not None:
            engine = engine_of_tensor(p)
            by_engine.setdefault(engine.name, (engine, []))[1].append(p.grad)
    return all(engine.unscale_(grads, 1.0) for engine, grads in by_engine.values())


def _worth_saying(count: int) -> bool:
    """The first time, the tenth, the hundredth, ..."""
    while count % 10 == 0:
        count //= 10
    return count == 1


def _say(text: str) -> None:
    print(f"paceline: warning: {text}", file=sys.stderr, flush=True)

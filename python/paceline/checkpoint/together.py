# SPDX-License-Identifier: Apache-2.0
"""Work that all ranks finish or none: what fails on one rank is raised on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._call_site import frames_of_ours
from ..errors import CheckpointError, CollectiveMismatchError, PeerLostError

if TYPE_CHECKING:
    from ..distributed import ProcessGroup

__all__ = ["meet", "together"]

_FIELDS = ("errno", "path", "needed", "free")


def meet(group: ProcessGroup | None, op: str, word: Any) -> list[Any]:
    """Open a collective member: all ranks must be here, each with its word; gives all words.

    Raises
    ------
    CollectiveMismatchError, PeerLostError
        When another rank does something else; a note says that all ranks must call ``op``.
    """
    if group is None:
        return [word]
    try:
        words = group.all_gather_object((op, word), depth=frames_of_ours())
    except (CollectiveMismatchError, PeerLostError) as error:
        error.add_note(_advice(op))
        raise
    others = [rank for rank, said in enumerate(words) if not _is_word(said, op)]
    if others:
        raise CollectiveMismatchError(
            f"[{op}] rank {group.rank} called {op}, rank {others[0]} another collective of the "
            f"same form. {_advice(op)}"
        )
    return [said[1] for said in words]


def _is_word(said: Any, op: str) -> bool:
    return isinstance(said, tuple) and len(said) == 2 and said[0] == op


def _advice(op: str) -> str:
    return (
        f"{op} is called on all ranks together, since every rank saves and loads its own part: "
        "take it out of `if accelerator.is_main_process`"
    )


def together(group: ProcessGroup | None, op: str, work: Callable[[], Any]) -> list[Any]:
    """Run ``work`` on every rank; gives all ranks' results, or raises on all of them.

    Raises
    ------
    CheckpointError
        When it failed on any rank, with that rank's message and attributes.
    """
    cause: Exception | None = None
    outcome: tuple[bool, Any]
    try:
        outcome = (True, work())
    except Exception as error:
        cause, outcome = error, (False, _described(error))
    if group is None:
        if cause is not None:
            raise _error(op, -1, outcome[1]) from cause
        return [outcome[1]]
    outcomes = group.all_gather_object(outcome, depth=frames_of_ours())
    failed = [rank for rank, (good, _) in enumerate(outcomes) if not good]
    if failed:
        raise _error(op, failed[0], outcomes[failed[0]][1]) from cause
    return [result for _, result in outcomes]


def _described(error: Exception) -> dict[str, Any]:
    text = str(error)
    if not isinstance(error, CheckpointError):
        text = f"{type(error).__name__}: {text}"
    found: dict[str, Any] = {"text": text}
    if isinstance(error, CheckpointError):
        found |= {name: getattr(error, name) for name in _FIELDS}
    elif isinstance(error, OSError):
        found |= {"errno": error.errno, "path": str(error.filename or "")}
    return found


def _error(op: str, rank: int, found: dict[str, Any]) -> CheckpointError:
    where = "" if rank < 0 else f" on rank {rank}"
    text = found["text"].removeprefix(f"[{op}] ")
    error = CheckpointError(f"[{op}]{where + ':' if where else ''} {text}")
    for name in _FIELDS:
        if name in found:
            setattr(error, name, found[name])
    return error

# SPDX-License-Identifier: Apache-2.0
"""Collectives of Python objects, over the same data plane as tensors.

Objects are pickled. That is safe only between processes that may do the same things anyway: the
ranks of one user on one machine, as the rendezvous checked by SO_PEERCRED. Between machines only
plain values pass, see ``closed_pickle.py``. Lengths are exchanged first. A rank whose object cannot
be pickled sends the reason in its place, so that the others raise instead of waiting for it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, NoReturn

from paceline.distributed import closed_pickle
from paceline.distributed.kinds import Kind
from paceline.errors import RemoteError

if TYPE_CHECKING:
    from paceline.distributed.process_group import ProcessGroup

_TAG = -7  # users' tags are 0 and above
_MAX_OBJECT = 1 << 40  # longer than memory: a length from a peer that is not one of ours


def _is_closed(group: ProcessGroup) -> bool:
    return len(group.machines) > 1 and not closed_pickle.is_open()


def _pack(group: ProcessGroup, obj: Any) -> tuple[bytearray, int, BaseException | None]:
    """Pickle `obj`: bytes, their length (below 0 where they are an error's text), the error."""
    try:
        data = bytearray(closed_pickle.dumps(obj, _is_closed(group)))
        return data, len(data), None
    except Exception as error:
        text = bytearray(f"{type(error).__name__}\n{error}".encode()[:4000])
        return text, -len(text), error


def _unpack(group: ProcessGroup, data: bytearray | memoryview) -> Any:
    return closed_pickle.loads(data, _is_closed(group))


def _remote(op: str, rank: int, text: bytes | bytearray) -> RemoteError:
    kind, _, message = text.decode(errors="replace").partition("\n")
    error = RemoteError(f"[{op}] rank {rank} could not pickle its object: {kind}: {message}")
    error.rank, error.remote_type, error.remote_message = rank, kind, message
    return error


def _lengths(group: ProcessGroup, mine: int, depth: int) -> list[int]:
    lengths = array("q", [0] * group.world_size)
    group.run(Kind.ALL_GATHER, array("q", [mine]), lengths, depth=depth + 1)
    if any(abs(length) > _MAX_OBJECT for length in lengths):
        raise ValueError(f"[gather_object] lengths make no sense: got {lengths.tolist()}")
    return lengths.tolist()


def _raise_for_all(
    op: str,
    group: ProcessGroup,
    text: bytearray,
    lengths: list[int],
    error: BaseException | None,
    depth: int,
) -> NoReturn:
    """Tell every rank why an object is missing, and raise on every rank."""
    width = max(-n for n in lengths if n < 0)
    texts = bytearray(width * group.world_size)
    mine = text if error is not None else bytearray()
    group.run(Kind.ALL_GATHER, mine.ljust(width, b"\0"), texts, depth=depth + 1)
    if error is not None:
        raise error
    index = next(i for i, n in enumerate(lengths) if n < 0)
    raise _remote(op, group.ranks[index], texts[index * width : index * width - lengths[index]])


def all_gather(group: ProcessGroup, obj: Any, depth: int) -> list[Any]:
    """See ``ProcessGroup.all_gather_object``."""
    data, length, error = _pack(group, obj)
    lengths = _lengths(group, length, depth + 1)
    if min(lengths) < 0:
        _raise_for_all("all_gather_object", group, data, lengths, error, depth + 1)
    width = max(lengths)
    received = bytearray(width * group.world_size)
    group.run(Kind.ALL_GATHER, data.ljust(width, b"\0"), received, depth=depth + 1)
    view = memoryview(received)
    return [_unpack(group, view[r * width : r * width + n]) for r, n in enumerate(lengths)]


def gather(group: ProcessGroup, obj: Any, root: int, depth: int) -> list[Any] | None:
    """See ``ProcessGroup.gather_object``."""
    data, length, error = _pack(group, obj)
    lengths = _lengths(group, length, depth + 1)
    if min(lengths) < 0:
        _raise_for_all("gather_object", group, data, lengths, error, depth + 1)
    if group.rank != root:
        group.native.send(data, root, _TAG, depth + 1)
        return None
    gathered = []
    for rank, n in enumerate(lengths):
        part = data if rank == root else bytearray(n)
        if rank != root:
            group.native.recv(part, rank, _TAG, depth + 1)
        gathered.append(_unpack(group, part))
    return gathered


def broadcast_list(group: ProcessGroup, object_list: list[Any], root: int, depth: int) -> None:
    """See ``ProcessGroup.broadcast_object_list``."""
    data, length, error = (
        _pack(group, list(object_list)) if group.rank == root else (bytearray(), 0, None)
    )
    # All ranks take part in the lengths: the number of items is compared too.
    header = array("q", [length, len(object_list)])
    headers = array("q", [0, 0] * group.world_size)
    group.run(Kind.ALL_GATHER, header, headers, depth=depth + 1)
    length, items = headers[2 * root], headers[2 * root + 1]
    if len(set(headers[1::2])) > 1:
        raise ValueError(
            f"[broadcast_object_list] lists differ in length: got {headers[1::2].tolist()} by "
            f"rank, expected {items} as on rank {group.ranks[root]}"
        )
    if not 0 < abs(length) <= _MAX_OBJECT:
        raise ValueError(f"[broadcast_object_list] length makes no sense: got {length}")
    if group.rank != root:
        data = bytearray(abs(length))
    group.run(Kind.BROADCAST, None, data, root=root, depth=depth + 1)
    if error is not None:
        raise error
    if length < 0:
        raise _remote("broadcast_object_list", group.ranks[root], bytes(data))
    if group.rank != root:
        object_list[:] = _unpack(group, data)


def scatter_list(group: ProcessGroup, object_list: list[Any] | None, root: int, depth: int) -> Any:
    """See ``ProcessGroup.scatter_object_list``."""
    is_root, world = group.rank == root, group.world_size
    parts, error = [bytearray()] * world, None
    sizes = array("q", [0] * world)
    if is_root:
        for rank, obj in enumerate(object_list or ()):
            parts[rank], sizes[rank], error = _pack(group, obj)
            if error is not None:
                sizes = array("q", [sizes[rank]] * world)
                parts = [parts[rank]] * world
                break
    group.run(Kind.BROADCAST, None, sizes, root=root, depth=depth + 1)
    width = max(map(abs, sizes))
    if width > _MAX_OBJECT:
        raise ValueError(f"[scatter_object_list] lengths make no sense: got {sizes.tolist()}")
    mine = bytearray(width)
    rows = b"".join(part.ljust(width, b"\0") for part in parts) if is_root else None
    group.run(Kind.SCATTER, rows, mine, root=root, depth=depth + 1)
    if error is not None:
        raise error
    length = sizes[group.rank]
    if length < 0:
        raise _remote("scatter_object_list", group.ranks[root], mine[:-length])
    return _unpack(group, memoryview(mine)[:length])

# SPDX-License-Identifier: Apache-2.0
"""Collectives over nested data: lists, tuples, dicts and the tensors inside them.

The public functions work in the default process group; an Accelerator calls the ``*_in`` forms
with its own. With one process they give back what a group of one would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .._call_site import frames_of_ours
from ..engines import engine_of_tensor, is_tensor
from ..errors import CollectiveMismatchError
from ..state import PartialState

if TYPE_CHECKING:
    from ..distributed import ProcessGroup

__all__ = [
    "DistributedOperationException",
    "broadcast",
    "broadcast_object_list",
    "concatenate",
    "convert_outputs_to_fp32",
    "convert_to_fp32",
    "find_batch_size",
    "gather",
    "gather_object",
    "honor_type",
    "ignorant_find_batch_size",
    "is_namedtuple",
    "is_torch_tensor",
    "listify",
    "pad_across_processes",
    "recursively_apply",
    "reduce",
    "send_to_device",
]


#: Accelerate's name of the error when ranks disagree; here they are always compared.
DistributedOperationException = CollectiveMismatchError


def is_namedtuple(data: object) -> bool:
    """Tell whether ``data`` is an instance of a named tuple."""
    return isinstance(data, tuple) and hasattr(data, "_fields")


def honor_type(obj: Any, items: Any) -> Any:
    """Make a list, tuple or named tuple of ``obj``'s type from ``items``."""
    return type(obj)(*items) if is_namedtuple(obj) else type(obj)(items)


def recursively_apply(
    func: Callable[..., Any],
    data: Any,
    *args: Any,
    test_type: Callable[[Any], bool] = is_tensor,
    error_on_other_type: bool = False,
    **kwargs: Any,
) -> Any:
    """Apply ``func`` to every tensor in nested lists, tuples and mappings.

    Parameters
    ----------
    func : callable
        Called as ``func(tensor, *args, **kwargs)``.
    data : object
        The nested data.
    *args, **kwargs
        Passed on.
    test_type : callable
        What counts as a leaf; tensors by default.
    error_on_other_type : bool
        Refuse other leaves instead of keeping them as they are.

    Returns
    -------
    object
        The same structure with the results.

    Raises
    ------
    TypeError
        For a leaf of another type, with ``error_on_other_type``.
    """

    def walk(data: Any) -> Any:
        if test_type(data):
            return func(data, *args, **kwargs)
        if isinstance(data, (tuple, list)):
            return honor_type(data, [walk(item) for item in data])
        if isinstance(data, Mapping):
            done = {key: walk(value) for key, value in data.items()}
            return done if type(data) is dict else type(data)(done)  # type: ignore[call-arg]
        if error_on_other_type:
            name = getattr(func, "__name__", "operation").strip("_")
            raise TypeError(
                f"[{name}] unsupported type: got {type(data).__name__}, expected a tensor or "
                "nested list/tuple/dict of tensors"
            )
        return data

    return walk(data)


def gather_in(group: ProcessGroup | None, data: Any) -> Any:
    """``gather`` in a given group."""

    def gather(tensor: Any) -> Any:
        engine = engine_of_tensor(tensor)
        tensor = engine.at_least_1d(tensor)
        return tensor if group is None else engine.all_gather(tensor, group)

    if group is None:  # as Accelerate: one process gets its own data back, 0-d tensors included
        return recursively_apply(lambda t: t, data, error_on_other_type=True)
    return recursively_apply(gather, data, error_on_other_type=True)


def reduce_in(group: ProcessGroup | None, data: Any, reduction: str, scale: float) -> Any:
    """``reduce`` in a given group."""
    if reduction not in ("sum", "mean", "max", "min", "none"):
        raise ValueError(
            "[reduce] reduction is not known: "
            f"got {reduction!r}, expected 'sum', 'mean', 'max', 'min' or 'none'"
        )

    def reduce(tensor: Any) -> Any:
        engine = engine_of_tensor(tensor)
        if group is not None and reduction != "none":
            tensor = engine.all_reduce(tensor, reduction, group)
        return tensor if scale == 1.0 else engine.scale(tensor, scale)

    return recursively_apply(reduce, data, error_on_other_type=True)


def broadcast_in(group: ProcessGroup | None, data: Any, from_process: int) -> Any:
    """``broadcast`` in a given group."""

    def broadcast(tensor: Any) -> Any:
        if group is None:
            return tensor
        return engine_of_tensor(tensor).broadcast(tensor, from_process, group)

    return recursively_apply(broadcast, data, error_on_other_type=True)


def pad_in(
    group: ProcessGroup | None, data: Any, dim: int, pad_index: float, pad_first: bool
) -> Any:
    """``pad_across_processes`` in a given group."""

    def pad_across_processes(tensor: Any) -> Any:
        engine = engine_of_tensor(tensor)
        own = engine.shape(tensor)
        if group is None or not -len(own) <= dim < len(own):
            return tensor
        shapes = group.all_gather_object(tuple(own), depth=frames_of_ours())
        longest = max(shape[dim] for shape in shapes)
        if longest == own[dim]:
            return tensor
        return engine.pad(tensor, dim % len(own), longest, pad_index, pad_first)

    return recursively_apply(pad_across_processes, data, error_on_other_type=True)


def gather_object_in(group: ProcessGroup | None, obj: Any) -> list[Any]:
    """``gather_object`` in a given group."""
    parts = [obj] if group is None else group.all_gather_object(obj, depth=frames_of_ours())
    if all(isinstance(part, (list, tuple)) for part in parts):
        return [item for part in parts for item in part]
    return list(parts)


def _group() -> ProcessGroup | None:
    return PartialState().group


def gather(tensor: Any) -> Any:
    """Gather tensors of all processes, joined along their first dimension.

    Parameters
    ----------
    tensor : tensor, or nested list, tuple or dict of tensors
        Of equal shapes on all processes. A 0-d tensor counts as 1-d.

    Returns
    -------
    object
        The same structure; each tensor with the processes' parts in order of rank.

    Raises
    ------
    TypeError
        For a leaf that is no tensor.
    CollectiveMismatchError
        When shapes differ: pad first with ``pad_across_processes``.
    """
    return gather_in(_group(), tensor)


def gather_object(object: Any) -> list[Any]:
    """Gather objects of all processes into one list.

    Parameters
    ----------
    object : object
        Lists and tuples are joined, in order of rank; anything else, a string or a dict too, is
        one item per process.

    Returns
    -------
    list
        The same on all processes.
    """
    return gather_object_in(_group(), object)


def reduce(tensor: Any, reduction: str = "mean", scale: float = 1.0) -> Any:
    """Reduce tensors over all processes.

    Parameters
    ----------
    tensor : tensor, or nested list, tuple or dict of tensors
        What to reduce; it is not changed.
    reduction : {"mean", "sum", "max", "min", "none"}
        The default is the mean here, and the sum in ``Accelerator.reduce``, as in Accelerate.
    scale : float
        A factor for the result.

    Returns
    -------
    object
        The same structure, the same bits on all processes.
    """
    return reduce_in(_group(), tensor, reduction, scale)


def broadcast(tensor: Any, from_process: int = 0) -> Any:
    """Give every process the tensors of one of them; shapes must be equal."""
    return broadcast_in(_group(), tensor, from_process)


def broadcast_object_list(object_list: list[Any], from_process: int = 0) -> list[Any]:
    """Replace the items of a list, in place, by those of one process."""
    group = _group()
    if group is not None:
        group.broadcast_object_list(object_list, from_process, depth=frames_of_ours())
    return object_list


def pad_across_processes(
    tensor: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False
) -> Any:
    """Pad tensors along one dimension to the longest of all processes.

    Parameters
    ----------
    tensor : tensor, or nested list, tuple or dict of tensors
        What to pad. One with too few dimensions is given back as it is.
    dim : int
        The dimension.
    pad_index : float
        The value to pad with.
    pad_first : bool
        Pad at the start.
    """
    return pad_in(_group(), tensor, dim, pad_index, pad_first)


def send_to_device(
    tensor: Any, device: Any, non_blocking: bool = False, skip_keys: Any = None
) -> Any:
    """Move nested tensors to a device. What is no tensor stays as it is.

    Parameters
    ----------
    tensor : nested lists, tuples, dicts of tensors
        What is moved.
    device : Device or str
        Where to.
    non_blocking : bool
        Need not have arrived when this returns, where the device can do that.
    skip_keys : str or list of str, optional
        Keys of a dict whose values stay where they are.
    """
    if isinstance(skip_keys, str):
        skip_keys = [skip_keys]
    if skip_keys and isinstance(tensor, Mapping):
        moved = {
            key: value if key in skip_keys else send_to_device(value, device, non_blocking)
            for key, value in tensor.items()
        }
        return moved if type(tensor) is dict else type(tensor)(moved)  # type: ignore[call-arg]

    def move(item: Any) -> Any:
        return engine_of_tensor(item).move(item, device, non_blocking)

    return recursively_apply(move, tensor)


def concatenate(data: Any, dim: int = 0) -> Any:
    """Join a list of equal structures, leaf by leaf, along dimension 0."""
    if dim != 0:
        raise ValueError(f"[concatenate] dim: got {dim}, expected 0")
    first = data[0]
    if isinstance(first, (tuple, list)):
        return honor_type(first, [concatenate([d[i] for d in data]) for i in range(len(first))])
    if isinstance(first, Mapping):
        joined = {key: concatenate([d[key] for d in data]) for key in first}
        return joined if type(first) is dict else type(first)(joined)  # type: ignore[call-arg]
    return engine_of_tensor(first).cat(data)


def find_batch_size(data: Any) -> int | None:
    """Give the length of the first tensor found in nested data; None if there is none."""
    if is_tensor(data):
        shape = engine_of_tensor(data).shape(data)
        return shape[0] if shape else None
    items: Any = ()
    if isinstance(data, (tuple, list)):
        items = data
    elif isinstance(data, Mapping):
        items = data.values()
    for item in items:
        size = find_batch_size(item)
        if size is not None:
            return size
    return None


def ignorant_find_batch_size(data: Any) -> int | None:
    """Give the length of the first tensor in nested data; None where there is none."""
    try:
        return find_batch_size(data)
    except (TypeError, ValueError):
        return None


def is_torch_tensor(tensor: object) -> bool:
    """Tell whether ``tensor`` is a tensor of a library that paceline trains with."""
    return is_tensor(tensor)


def listify(data: Any) -> Any:
    """Turn every tensor of nested data into Python numbers in lists."""
    return recursively_apply(lambda tensor: tensor.tolist(), data)


def convert_to_fp32(tensor: Any) -> Any:
    """Turn the half-precision tensors of nested data into fp32."""
    return recursively_apply(lambda item: engine_of_tensor(item).to_float(item), tensor)


class ConvertOutputsToFp32:
    """A function or bound method whose half-precision results are turned into fp32.

    A class and not a closure, so that an object that holds one can still be copied.
    """

    def __init__(self, model_forward: Callable[..., Any]) -> None:
        self.model_forward = model_forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return convert_to_fp32(self.model_forward(*args, **kwargs))


def convert_outputs_to_fp32(model_forward: Callable[..., Any]) -> ConvertOutputsToFp32:
    """Wrap a forward function so that it gives fp32."""
    return ConvertOutputsToFp32(model_forward)

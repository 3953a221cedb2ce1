# SPDX-License-Identifier: Apache-2.0
"""The tensor: what PyTorch's has, over the class of the core.

Computing methods are in ``_math.py``, rearranging ones in ``_shape.py``; here stand conversion,
gradients and the protocols of Python and NumPy. Operators and indexing are slots in C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from paceline import _C, _device, dtypes
from paceline._math import MathMethods
from paceline._placing import parse_to, pinned
from paceline._shape import ShapeMethods
from paceline.dtypes import ALL, dtype, to_code

TYPE_CHECKING = False  # typing itself takes 5 ms to load
if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    from paceline.cuda.streams import Stream

# Inside the class these names are methods and properties.
Int = int
Float = float
Bool = bool
DType = dtype
Device = _device.device


class GradFn:
    """What made a tensor, as far as Python sees it: a name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return "".join(part.capitalize() for part in self._name.split("_")) + "Backward"

    def __repr__(self) -> str:
        return f"<{self.name()}>"


class Tensor(MathMethods, ShapeMethods, _C.Tensor):
    """An n-dimensional array that can carry a gradient.

    Made by `paceline.tensor`, `paceline.zeros` and their like, never by calling the class.
    """

    __slots__ = ("__weakref__",)

    # Compared by identity where Python asks for a hash; == compares elements.
    __hash__ = object.__hash__

    # So that array * tensor asks the tensor first.
    __array_priority__ = 1000

    # -- what it is ---------------------------------------------------------------------------

    @property
    def dtype(self) -> DType:
        return ALL[self._dtype]

    @property
    def device(self) -> Device:
        return _device.named(self._device_index)

    @property
    def is_cuda(self) -> Bool:
        return self._device_index >= 0

    @property
    def is_cpu(self) -> Bool:
        return self._device_index < 0

    def get_device(self) -> Int:
        return self._device_index

    @property
    def itemsize(self) -> Int:
        return ALL[self._dtype].itemsize

    @property
    def nbytes(self) -> Int:
        return self._numel() * ALL[self._dtype].itemsize

    def size(self, dim: Int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> Int:
        return self.ndim

    def ndimension(self) -> Int:
        return self.ndim

    def numel(self) -> Int:
        return self._numel()

    nelement = numel

    def element_size(self) -> Int:
        return ALL[self._dtype].itemsize

    def stride(self, dim: Int | None = None) -> Any:
        return self._strides if dim is None else self._strides[dim]

    def is_contiguous(self) -> Bool:
        return self._is_contiguous()

    def is_floating_point(self) -> Bool:
        return ALL[self._dtype].is_floating_point

    def is_complex(self) -> Bool:
        return False

    def data_ptr(self) -> Int:
        return self._data_ptr

    # -- conversion ---------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As another dtype or on another device: ``to(dtype)``, ``to(device)``, ``to(other)``.

        Gives the tensor itself where nothing changes and `copy` is False. With ``non_blocking``
        the copy of pinned memory to the GPU need not have arrived when this returns; what is
        computed with it waits by itself, but the pinned memory must not be changed before.
        """
        wanted = parse_to(args, kwargs)
        t: Tensor = self
        if wanted.code >= 0:
            t = _C.to_dtype(t, wanted.code)
        if wanted.index is not None:
            t = _C.to_device(t, wanted.index, wanted.non_blocking)
        return _C.clone(t) if wanted.copy and t is self else t

    def type(self, dtype: DType | None = None) -> Any:
        return f"paceline.{self.dtype.name}" if dtype is None else self.to(dtype)

    def type_as(self, other: _C.Tensor) -> Tensor:
        return _C.to_device(_C.to_dtype(self, other._dtype), other._device_index, False)

    def float(self) -> Tensor:
        return _C.to_dtype(self, 6)

    def double(self) -> Tensor:
        return _C.to_dtype(self, 7)

    def half(self) -> Tensor:
        return _C.to_dtype(self, 4)

    def bfloat16(self) -> Tensor:
        return _C.to_dtype(self, 5)

    def long(self) -> Tensor:
        return _C.to_dtype(self, 3)

    def int(self) -> Tensor:
        return _C.to_dtype(self, 2)

    def bool(self) -> Tensor:
        return _C.to_dtype(self, 0)

    def byte(self) -> Tensor:
        return _C.to_dtype(self, 1)

    def cpu(self) -> Tensor:
        return _C.to_device(self, -1, False)

    def cuda(self, device: Any = None, non_blocking: Bool = False) -> Tensor:
        index = _device.index_of("cuda", device)
        return _C.to_device(self, _device.open_gpu("cuda", index), non_blocking)

    def pin_memory(self, device: Any = None) -> Tensor:
        """A copy in page-locked memory, from which copies to the GPU need not wait.

        Gives the tensor itself where it is there already, and where there is no GPU.
        """
        return pinned(self)

    def is_pinned(self, device: Any = None) -> Bool:
        return self._is_pinned

    def record_stream(self, stream: Stream) -> None:
        """Keep this tensor's memory, once it is released, until a stream is done with it.

        Operators do so by themselves; this is for what other libraries put on the stream.
        """
        _C.record_stream(self, stream._number)

    def clone(self) -> Tensor:
        return _C.clone(self)

    def detach(self) -> Tensor:
        return _C.detach(self)

    def numpy(self, *, force: Bool = False) -> np.ndarray[Any, Any]:
        """A NumPy array over the same memory.

        Parameters
        ----------
        force : bool
            Detach, copy to the CPU and convert first where that is needed, as
            ``t.detach().cpu().float().numpy()``.

        Raises
        ------
        RuntimeError
            If a gradient is required.
        TypeError
            If NumPy has no such dtype (bfloat16), or the tensor is on the GPU.
        """
        import numpy as np

        t = self
        if self.requires_grad:
            if not force:
                raise RuntimeError(
                    "[numpy] can't call numpy() on a tensor that requires grad; "
                    "use tensor.detach().numpy() instead"
                )
            t = _C.detach(t)
        if t._device_index >= 0:
            if not force:
                raise TypeError(
                    f"[numpy] can't convert a {self.device} tensor to numpy: got a tensor on the "
                    "GPU, expected one on the CPU; use tensor.cpu().numpy() instead"
                )
            t = _C.to_device(t, -1, False)
        if t._dtype == dtypes.bfloat16.code:
            if not force:
                raise TypeError(
                    "[numpy] NumPy has no bfloat16: got paceline.bfloat16, expected a dtype of "
                    "NumPy's; use tensor.float().numpy() instead"
                )
            t = _C.to_dtype(t, dtypes.float32.code)
        return np.asarray(memoryview(t))

    def __array__(self, dtype: Any = None, copy: Bool | None = None) -> np.ndarray[Any, Any]:
        import numpy as np

        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"[numpy] {array.dtype} cannot be read as {dtype} without a copy")
            return array.astype(dtype)
        return np.array(array) if copy else array

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[Int, Int] | None = None,
        dl_device: tuple[Int, Int] | None = None,
        copy: Bool | None = None,
    ) -> Any:
        from paceline._dlpack import lend

        return lend(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[Int, Int]:
        index = self._device_index
        return (1, 0) if index < 0 else (2, index)  # the CPU, or CUDA

    def __array_wrap__(
        self, array: Any, context: Any = None, return_scalar: Bool = False
    ) -> Tensor:
        # tensor * array ends in NumPy's own product, whose result comes through here.
        from paceline._factories import as_tensor

        return as_tensor(array)

    def _at(self, op: str, device: Any) -> Int:
        return self._device_index if device is None else _device.place(op, device)

    def new_tensor(self, data: Any, *, dtype: DType | None = None, device: Any = None) -> Tensor:
        from paceline._factories import tensor

        where = self.device if device is None else device
        return tensor(data, dtype=self.dtype if dtype is None else dtype, device=where)

    def new_zeros(self, *size: Any, dtype: DType | None = None, device: Any = None) -> Tensor:
        from paceline._shape import as_shape

        at = self._at("new_zeros", device)
        return _C.full(as_shape("new_zeros", size), 0, to_code(dtype, self._dtype), at)

    def new_ones(self, *size: Any, dtype: DType | None = None, device: Any = None) -> Tensor:
        from paceline._shape import as_shape

        at = self._at("new_ones", device)
        return _C.full(as_shape("new_ones", size), 1, to_code(dtype, self._dtype), at)

    def new_full(
        self, size: Sequence[Any], value: Any, *, dtype: DType | None = None, device: Any = None
    ) -> Tensor:
        at = self._at("new_full", device)
        return _C.full(tuple(size), value, to_code(dtype, self._dtype), at)

    def new_empty(self, *size: Any, dtype: DType | None = None, device: Any = None) -> Tensor:
        from paceline._shape import as_shape

        at = self._at("new_empty", device)
        return _C.empty(as_shape("new_empty", size), to_code(dtype, self._dtype), at)

    # -- gradients ----------------------------------------------------------------------------

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: Bool | None = None,
        create_graph: Bool = False,
    ) -> None:
        """Add d(self)/d(leaf) to ``.grad`` of every leaf that requires one.

        Parameters
        ----------
        gradient : Tensor, optional
            What to start from; needed unless self has one element.
        retain_graph : bool, optional
            Keep what is needed for a second call.

        Raises
        ------
        NotImplementedError
            If `create_graph` is set: gradients of gradients do not exist here.
        RuntimeError
            If nothing was recorded, or it was used up by an earlier call, or a tensor that is
            needed has been changed in place.
        """
        if create_graph:
            raise NotImplementedError(
                "[backward] gradients of gradients: got create_graph=True, expected False"
            )
        _C.backward((self,), (gradient,), bool(retain_graph))

    def requires_grad_(self, requires_grad: Bool = True) -> Tensor:
        self.requires_grad = requires_grad
        return self

    def detach_(self) -> Tensor:
        self._set_data(_C.detach(self))
        self.requires_grad = False
        return self

    @property
    def grad_fn(self) -> GradFn | None:
        name = self._grad_fn_name
        return None if name is None else GradFn(name)

    @property
    def data(self) -> Tensor:
        """The values without the gradient history, over the same memory; may be assigned."""
        return _C.detach(self)

    @data.setter
    def data(self, other: _C.Tensor) -> None:
        self._set_data(other)

    # -- Python's protocols -------------------------------------------------------------------

    def __repr__(self) -> str:
        from paceline._printing import to_text

        return to_text(self)

    def __format__(self, spec: str) -> str:
        if self.ndim == 0:
            return format(self.item(), spec)
        return object.__format__(self, spec)

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("[iter] a 0-d tensor has no elements to go through")
        return iter(self.unbind(0))

    def __contains__(self, element: Any) -> Bool:
        return Bool(_C.any(_C.eq(self, element), None, False))

    def __int__(self) -> Int:
        return int(self.item())

    def __float__(self) -> Float:
        return float(self.item())

    def __index__(self) -> Int:
        value = self.item()
        if isinstance(value, float):
            raise TypeError("[index] only integer tensors of one element can be an index")
        return int(value)

    def __deepcopy__(self, memo: dict[Int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError(
                "[deepcopy] only leaf tensors can be deep-copied; use tensor.detach().clone()"
            )
        known: Tensor | None = memo.get(id(self))
        if known is not None:
            return known
        copied = self._rewrap(_C.clone(_C.detach(self)))
        if self.grad is not None:
            copied.grad = _C.clone(self.grad)
        memo[id(self)] = copied
        return copied

    def __copy__(self) -> Tensor:
        return self._rewrap(_C.detach(self))

    def _rewrap(self, values: Tensor) -> Tensor:
        # Values as a leaf of this class, requiring a gradient as self does.
        return _C.alias(Tensor, values, self.requires_grad)  # type: ignore[no-any-return]

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        if not self.is_leaf:
            raise RuntimeError("[pickle] only leaf tensors can be pickled; use tensor.detach()")
        arguments: tuple[Any, ...] = (
            type(self),
            self._dtype,
            self.shape,
            to_bytes(self),
            self.requires_grad,
        )
        return rebuild, arguments if self._device_index < 0 else (*arguments, True)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()


def raw_memory(t: _C.Tensor) -> memoryview:
    """The bytes of a contiguous tensor of the CPU, writable, whatever its dtype.

    The view does not keep the tensor: use it and drop it while `t` is held.
    """
    import ctypes

    if t._device_index >= 0:
        raise TypeError("[memory] the bytes of a tensor on the GPU cannot be looked at from here")
    nbytes = t._numel() * ALL[t._dtype].itemsize
    if nbytes == 0:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * nbytes).from_address(t._data_ptr)).cast("B")


def on_host(t: _C.Tensor) -> Tensor:
    """The values, contiguous and on the CPU: `t`'s own memory where they are so already."""
    return _C.contiguous(_C.to_device(_C.detach(t), -1, False))


def to_bytes(t: _C.Tensor) -> bytes:
    """A copy of the elements as bytes, in row-major order."""
    held = on_host(t)
    return raw_memory(held).tobytes()


def rebuild(
    cls: type[Tensor],
    code: int,
    shape: Sequence[int],
    content: bytes,
    requires_grad: bool,
    on_gpu: bool = False,
) -> Tensor:
    """The tensor that `Tensor.__reduce__` took apart; what was on a GPU goes to this process's."""
    t = _C.empty(tuple(shape), code)
    if len(content) != t._numel() * ALL[code].itemsize:
        raise ValueError(
            f"[pickle] content: got {len(content)} bytes, "
            f"expected {t._numel() * ALL[code].itemsize}"
        )
    if content:
        raw_memory(t)[:] = content
    if on_gpu:
        t = _C.to_device(t, _device.place("pickle", "cuda"), False)
    if cls is Tensor and not requires_grad:
        return t
    return _C.alias(cls, t, requires_grad)  # type: ignore[no-any-return]

# SPDX-License-Identifier: Apache-2.0
"""What oneDNN itself can do: ``go N`` runs N products with packed weights and gives their times.

Arguments: precision, rows, inner size, columns. The library is the one that paceline uses, called
directly, with the layout of the weights left to it and made before the first product.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from benchmarks import answer

CPU, IN_ORDER, ANY, ROWS = 1, 1, 1, 3  # engine kind, stream flag, format tags
DTYPES = {"bf16": 2, "fp32": 3}
WEIGHTS_MD = 131  # what a primitive is asked for
FROM, TO, SRC, WEIGHTS, DST = 1, 17, 1, 33, 17  # arguments of a primitive
ALLOCATE = ctypes.c_void_p(-1)

Handle = ctypes.c_void_p


class Argument(ctypes.Structure):
    _fields_ = [("name", ctypes.c_int), ("memory", Handle)]


class Library:
    """oneDNN's C interface, as far as a product needs it. Lives as long as its process."""

    def __init__(self) -> None:
        from paceline._native import find_dnnl

        self.lib = ctypes.CDLL(find_dnnl())
        self.lib.dnnl_primitive_desc_query_md.restype = Handle
        self.engine = self.make("engine_create", CPU, ctypes.c_size_t(0))
        self.stream = self.make("stream_create", self.engine, IN_ORDER)

    def call(self, name: str, *args: Any) -> None:
        status = getattr(self.lib, f"dnnl_{name}")(*args)
        if status:
            raise RuntimeError(f"[oneDNN] {name}: got status {status}, expected 0")

    def make(self, name: str, *args: Any) -> Handle:
        handle = Handle()
        self.call(name, ctypes.byref(handle), *args)
        return handle

    def desc(self, dtype: int, rows: int, cols: int, tag: int) -> Handle:
        dims = (ctypes.c_int64 * 12)(rows, cols)
        return self.make("memory_desc_create_with_tag", 2, dims, dtype, tag)

    def memory(self, desc: Handle) -> Handle:
        return self.make("memory_create", desc, self.engine, ALLOCATE)

    def run(self, primitive: Handle, args: dict[int, Handle]) -> None:
        array = (Argument * len(args))(*(Argument(k, v) for k, v in args.items()))
        self.call("primitive_execute", primitive, self.stream, len(args), array)
        self.call("stream_wait", self.stream)

    def fill(self, memory: Handle, nbytes: int) -> None:
        """Small normal numbers: zeros or denormals might be faster or slower."""
        data = Handle()
        self.call("memory_get_data_handle", memory, ctypes.byref(data))
        ctypes.memset(data, 0x3C, nbytes)


def product(dtype: str, m: int, k: int, n: int) -> Any:
    """Give a call that runs one product of (m, k) by packed (k, n)."""
    lib, code = Library(), DTYPES[dtype]
    size = 2 if dtype == "bf16" else 4
    src, plain = lib.desc(code, m, k, ROWS), lib.desc(code, k, n, ROWS)
    dst, free = lib.desc(code, m, n, ROWS), lib.desc(code, k, n, ANY)
    pd = lib.make("matmul_primitive_desc_create", lib.engine, src, free, None, dst, None)
    packed = Handle(lib.lib.dnnl_primitive_desc_query_md(pd, WEIGHTS_MD, 0))
    a, b, weights, out = (lib.memory(desc) for desc in (src, plain, packed, dst))
    lib.fill(a, m * k * size)
    lib.fill(b, k * n * size)
    pack = lib.make("reorder_primitive_desc_create", plain, lib.engine, packed, lib.engine, None)
    lib.run(lib.make("primitive_create", pack), {FROM: b, TO: weights})
    primitive = lib.make("primitive_create", pd)
    args = {SRC: a, WEIGHTS: weights, DST: out}
    return lambda: lib.run(primitive, args)


def main() -> None:
    dtype, *sizes = sys.argv[1:5]
    call = product(dtype, *map(int, sizes))
    answer.timed(call, 3)  # makes primitives and pages
    answer.serve({"go": lambda n: answer.timed(call, int(n))})


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""The members that Accelerate has for what is not here: they answer as if it were not in use.

What would do something there, and cannot here, raises and says what to do instead.
"""

from __future__ import annotations

from typing import Any

from ..absent import MEMBERS, explain
from .base import Members

__all__ = ["AbsentMembers"]


class AbsentMembers(Members):
    """Base of ``Accelerator``: DeepSpeed, FSDP, tensor parallelism and the like are not in use."""

    #: As in Accelerate where these are not in use.
    deepspeed_plugin = None
    fp8_backend = "NO"
    has_fp8_handler = False
    fp8_enabled = False
    delayed_fp8_autocast = False
    has_lomo_optimizer = False
    is_composable_parallelism_enabled = False
    is_fsdp2 = False
    parallelism_config = None
    torch_device_mesh = None

    @property
    def data_parallel_rank(self) -> int:
        """Raises RuntimeError: there is no ``parallelism_config``."""
        raise _no_parallelism("data_parallel_rank")

    @property
    def data_parallel_shard_rank(self) -> int:
        """Raises RuntimeError: there is no ``parallelism_config``."""
        raise _no_parallelism("data_parallel_shard_rank")

    @property
    def tensor_parallel_rank(self) -> int:
        """Raises RuntimeError: there is no ``parallelism_config``."""
        raise _no_parallelism("tensor_parallel_rank")

    @property
    def pipeline_parallel_rank(self) -> int:
        """Raises NotImplementedError, as in Accelerate."""
        raise NotImplementedError("[Accelerator] pipeline parallelism is not supported")

    @property
    def context_parallel_rank(self) -> int:
        """Raises NotImplementedError, as in Accelerate."""
        raise NotImplementedError("[Accelerator] context parallelism is not supported")

    def verify_device_map(self, model: Any) -> bool:
        """Tell whether a model is spread over devices by a ``device_map``, inside or out.

        Parameters
        ----------
        model : Module
            Any model.
        """
        modules = model.modules() if hasattr(model, "modules") else (model,)
        return any(len(getattr(module, "hf_device_map", None) or ()) > 1 for module in modules)

    def __getattr__(self, name: str) -> Any:
        if name in MEMBERS:
            raise AttributeError(explain("Accelerator", name, MEMBERS[name]))
        raise AttributeError(f"'Accelerator' object has no attribute {name!r}")


def _no_parallelism(member: str) -> RuntimeError:
    return RuntimeError(
        f"[Accelerator] {member}: there is no parallelism_config, all processes share the data; "
        "use process_index"
    )

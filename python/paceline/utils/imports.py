# SPDX-License-Identifier: Apache-2.0
"""The ``is_*_available`` functions of ``accelerate.utils``.

Each answers for this process: a package that can be imported, or a feature of paceline. What
paceline never uses is not available.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

__all__: list[str] = []

# Function and package that it asks for; several packages: any of them.
_PACKAGES = {
    "aim": "aim",
    "boto3": "boto3",
    "clearml": "clearml",
    "comet_ml": "comet_ml",
    "datasets": "datasets",
    "dvclive": "dvclive",
    "matplotlib": "matplotlib",
    "mlflow": "mlflow",
    "numpy": "numpy",
    "pandas": "pandas",
    "peft": "peft",
    "pynvml": "pynvml",
    "pytest": "pytest",
    "rich": "rich",
    "schedulefree": "schedulefree",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard tensorboardX",
    "timm": "timm",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
    "trackio": "trackio",
    "transformers": "transformers",
    "triton": "triton",
    "wandb": "wandb",
}
# What paceline does not use, whatever is installed.
_NEVER = (
    "4bit_bnb 8bit_bnb amdsmi bitsandbytes_multi_backend bnb deepspeed fp8 hpu import_timer lomo "
    "megatron_lm mlu mps msamp musa neuron npu pippy rocm sagemaker sdaa torch_xla torchao "
    "torchdata transformer_engine transformer_engine_mxfp8 xccl xpu"
).split()
# What paceline has by itself.
_ALWAYS = ("bf16", "fp16", "torchdata_stateful_dataloader")


@cache
def _installed(packages: str) -> bool:
    return any(find_spec(name) is not None for name in packages.split())


def _cuda() -> bool:
    from paceline import cuda

    return bool(cuda.is_available())


def _named(name: str, answer: Callable[[], bool], doc: str) -> None:
    def ask(*args: object, **kwargs: object) -> bool:
        return answer()

    full = f"is_{name}_available"
    ask.__name__ = ask.__qualname__ = full
    ask.__doc__ = doc
    setattr(sys.modules[__name__], full, ask)
    __all__.append(full)


for _name, _packages in _PACKAGES.items():
    _named(
        _name,
        partial(_installed, _packages),
        f"Tell whether {' or '.join(_packages.split())} can be imported.",
    )
for _name in _NEVER:
    _named(_name, lambda: False, "Give False: paceline does not use it.")
for _name in _ALWAYS:
    _named(_name, lambda: True, "Give True: paceline has it by itself.")
_named("cuda", _cuda, "Tell whether paceline can compute on a CUDA device.")


def is_habana_gaudi1() -> bool:
    """Give False: paceline does not use it."""
    return False


def is_peft_model(model: object) -> bool:
    """Tell whether a model is one of peft's, without loading peft."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


__all__ += ["is_habana_gaudi1", "is_peft_model"]

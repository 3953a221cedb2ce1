# SPDX-License-Identifier: Apache-2.0
"""The questionnaire of ``paceline config``: which questions, in which order, and what follows.

Asks through an ``Asker``; knows no terminal and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from . import answers
from .job import PRECISIONS

__all__ = ["Asker", "basic", "questionnaire"]

T = TypeVar("T")

_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")
_KIND_NAMES = (
    "No distributed training",
    "multi-CPU: several processes on the processors of this machine",
    "multi-GPU",
)


class Asker(Protocol):
    """Puts a question and waits for the answer."""

    def choose(self, question: str, options: Sequence[str]) -> int:
        """Give the place of the option that was chosen."""

    def ask(self, question: str, parse: Callable[[str], T], default: str | None = None) -> T:
        """Ask until ``parse`` takes the answer; an empty one means ``default``."""


def basic(mixed_precision: str = "no") -> dict[str, Any]:
    """Give the configuration of one machine that says nothing special.

    Parameters
    ----------
    mixed_precision : {"no", "fp16", "bf16"}
        The precision.

    Returns
    -------
    dict
        Accelerate's keys, so that either tool reads the file.
    """
    return {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "NO",
        "downcast_bf16": "no",
        "enable_cpu_affinity": False,
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": mixed_precision,
        "num_machines": 1,
        "num_processes": 1,
        "rdzv_backend": "static",
        "same_network": True,
        "tpu_env": [],
        "tpu_use_cluster": False,
        "tpu_use_sudo": False,
        "use_cpu": False,
    }


def questionnaire(asker: Asker) -> dict[str, Any]:
    """Ask what a configuration file needs.

    Parameters
    ----------
    asker : Asker
        Who asks.

    Returns
    -------
    dict
        Keys and values of the file.
    """
    values = basic()
    kind = _KINDS[asker.choose("Which type of machine are you using?", _KIND_NAMES)]
    values["distributed_type"] = kind
    if kind == "NO":
        values["use_cpu"] = asker.ask(
            "Do you want to run your training on CPU only, even if there is a GPU? [yes/NO]",
            answers.yes_no,
            "no",
        )
    else:
        values |= _machines(asker)
        values["use_cpu"] = kind == "MULTI_CPU"
        values |= _processes(asker, kind == "MULTI_GPU", values["num_machines"])
    values["mixed_precision"] = PRECISIONS[
        asker.choose("Do you wish to use mixed precision?", PRECISIONS)
    ]
    return values


def _machines(asker: Asker) -> dict[str, Any]:
    machines = asker.ask("How many different machines will you use? [1]", answers.integer(1), "1")
    if machines == 1:
        return {"num_machines": 1}
    rank = asker.ask(
        f"What is the rank of this machine? (0 to {machines - 1})", answers.integer(0, machines - 1)
    )
    address = asker.ask(
        "What is the IP address of the machine that will host the main process (rank 0)?",
        answers.address,
    )
    port = asker.ask(
        "What is the port you will use to communicate with the main process? [29500]",
        answers.integer(1, 65534),
        "29500",
    )
    return {
        "num_machines": machines,
        "machine_rank": rank,
        "main_process_ip": address,
        "main_process_port": port,
    }


def _processes(asker: Asker, gpus: bool, machines: int) -> dict[str, Any]:
    what = "GPU(s)" if gpus else "processes"
    everywhere = " in total, over all machines" if machines > 1 else ""

    def count(text: str) -> int:
        value = answers.integer(1)(text)
        if value % machines:
            raise ValueError(f"a multiple of the {machines} machines")
        return value

    question = f"How many {what} should be used for distributed training{everywhere}?"
    found: dict[str, Any] = {"num_processes": asker.ask(question, count)}
    if not gpus:
        return found
    here = found["num_processes"] // machines

    def ids(text: str) -> str:
        value = answers.gpu_ids(text)
        if value != "all" and len(value.split(",")) < here:
            raise ValueError(f"at least {here} of them, one for each process of this machine")
        return value

    question = "What GPU(s) (by id) should be used for training on this machine? [all]"
    found["gpu_ids"] = asker.ask(question, ids, "all")
    return found

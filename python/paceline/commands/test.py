# SPDX-License-Identifier: Apache-2.0
"""``paceline test``: whether this machine, with this configuration, trains rightly."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import launch
from .devices import count_gpus

__all__ = ["main"]

_HELP = """\
usage: paceline test [options of paceline launch]

Trains a small model on the processes that `paceline launch` would start with the same options
(without a number anywhere: 2), and checks the result against one process.
"""


def _says_how_many(args: Sequence[str]) -> bool:
    from .config_file import default_path

    words = {word.split("=")[0].replace("-", "_") for word in args}
    if words & {"__num_processes", "_n", "__config_file", "__nproc_per_node"}:
        return True
    return os.path.isfile(default_path())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``paceline test --help``.

    Returns
    -------
    int
        0, 2 for a wrong call, else the exit code of the process that found something wrong.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if not _says_how_many(args) and ("--cpu" in args or not count_gpus(os.environ)[0]):
        args = ["--num_processes", "2", *args]  # with GPUs one on each, as the launcher does
    code = launch.main([*args, "-m", "paceline.selftest"])
    if code == 0:
        print("Test is a success! You are ready for your distributed training!")
    elif code != 2:
        print("paceline test: something is wrong, see above", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

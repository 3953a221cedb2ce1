# SPDX-License-Identifier: Apache-2.0
"""The command line: ``paceline launch``, ``paceline config`` and the others.

Only dispatch lives here; a subcommand is imported when it is called, so that ``paceline --help``
costs nothing.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

_COMMANDS = {
    "launch": "run a training script on one or several processes",
    "config": "write the configuration file that launch reads, by a questionnaire",
    "test": "train a small model on this machine and check the result",
    "plot": "draw loss, learning rate and throughput of runs",
    "sweep": "run a script under several settings and print the table",
    "env": "print what a bug report needs: versions, processor, configuration",
}


def _help() -> str:
    lines = ["usage: paceline COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<8} {text}" for name, text in _COMMANDS.items()]
    lines += ["", "`paceline COMMAND --help` tells more; `paceline --version` prints the version."]
    return "\n".join(lines)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _COMMANDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"paceline: there is no command {name!r}: expected one of {', '.join(_COMMANDS)}{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; None means those of this process.

    Returns
    -------
    int
        The exit code: 0, 2 for a wrong call, or what the command gave.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else 2
    name, rest = args[0], args[1:]
    try:
        if name in _COMMANDS:
            module = importlib.import_module(f"{__name__}.{name}")
            return int(module.main(rest))
        if name in ("--version", "-V"):
            from .env import package_version

            print(package_version())
            return 0
    except KeyboardInterrupt:
        return 130
    print(_unknown(name), file=sys.stderr)
    return 2

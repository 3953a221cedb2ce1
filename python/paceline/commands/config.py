# SPDX-License-Identifier: Apache-2.0
"""``paceline config``: write, or bring up to date, the configuration file that ``launch`` reads."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .._replacing import replacing
from .config_file import ConfigFileError, default_path, dump, load
from .job import PRECISIONS
from .machines import SECRET
from .questions import basic, questionnaire

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paceline config",
        description="Write the configuration file that `paceline launch` reads, and `accelerate`.",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=("ask", "default", "update"),
        default="ask",
        help="ask: a questionnaire (what happens without a word); default: one process, nothing "
        "asked, never overwrites; update: check a file and add what it lacks",
    )
    parser.add_argument("--config_file", "--config-file", metavar="FILE", help="which file")
    parser.add_argument(
        "--mixed_precision",
        "--mixed-precision",
        choices=PRECISIONS,
        default="no",
        help="for `default`",
    )
    return parser


def write(path: str, values: Mapping[str, Any]) -> None:
    """Write a configuration file: there is the old one or the new one."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with replacing(path) as file:
        file.write(dump(values, as_json=path.endswith(".json")))


def write_secret(folder: str) -> str:
    """Make the secret by which machines of one job know each other; an existing one is kept.

    Returns
    -------
    str
        The file: 64 hexadecimal digits, readable by its owner only.
    """
    import secrets

    path = os.path.join(folder, SECRET)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
    return path


def _ask(path: str) -> int:
    from .asking import NoAnswer, asker_for

    try:
        values = questionnaire(asker_for())
    except NoAnswer:
        print("paceline config: the input ended early: nothing was written", file=sys.stderr)
        return 2
    write(path, values)
    print(f"Configuration saved at {path}")
    if values["num_machines"] > 1:
        secret = write_secret(os.path.dirname(os.path.abspath(path)))
        print(
            f"The machines know each other by {secret}.\nCopy both files to every machine, to the "
            "same places, and change machine_rank there."
        )
    return 0


def _default(path: str, mixed_precision: str) -> int:
    if os.path.exists(path):
        print(
            f"paceline config: {path} exists already and is left as it is; remove it first, or "
            "run `paceline config update`"
        )
        return 0
    write(path, basic(mixed_precision))
    print(f"Configuration saved at {path}")
    return 0


def _update(path: str) -> int:
    given = {key: value for key, value in load(path).values.items() if value is not None}
    missing = {key: value for key, value in basic().items() if key not in given}
    write(path, {**missing, **given})
    told = f"added {', '.join(sorted(missing))}" if missing else "nothing was missing"
    print(f"Configuration at {path} is up to date: {told}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``paceline config --help``.

    Returns
    -------
    int
        0; 2 for a wrong call or a file that cannot be read or written.
    """
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    path = args.config_file or default_path()
    try:
        if args.action == "default":
            return _default(path, args.mixed_precision)
        if args.action == "update":
            return _update(path)
        return _ask(path)
    except ConfigFileError as error:
        print(f"paceline config: {error}", file=sys.stderr)
    except OSError as error:
        print(f"paceline config: cannot write {path}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

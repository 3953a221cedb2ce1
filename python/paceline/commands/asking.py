# SPDX-License-Identifier: Apache-2.0
"""How a question is put: with arrow keys on a terminal, line by line where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .answers import integer, plain

__all__ = ["LineAsker", "NoAnswer", "TerminalAsker", "asker_for"]

T = TypeVar("T")


class NoAnswer(Exception):
    """The input ended before all questions were answered."""


class TerminalAsker:
    """Asks with arrow keys (questionary)."""

    def choose(self, question: str, options: Sequence[str]) -> int:
        """Let one of the options be chosen."""
        import questionary

        choices = [questionary.Choice(text, value=at) for at, text in enumerate(options)]
        return int(_answer(questionary.select(question, choices=choices)))

    def ask(self, question: str, parse: Callable[[str], T], default: str | None = None) -> T:
        """Ask until ``parse`` takes the answer."""
        import questionary

        def valid(text: str) -> bool | str:
            try:
                parse(text if plain(text) or default is None else default)
            except ValueError as error:
                return f"expected {error}"
            return True

        text = str(_answer(questionary.text(question, validate=valid)))
        return parse(text if plain(text) or default is None else default)


def _answer(question: Any) -> Any:
    try:
        return question.unsafe_ask()
    except EOFError:
        raise NoAnswer from None


class LineAsker:
    """Asks line by line: options by number or by text."""

    def choose(self, question: str, options: Sequence[str]) -> int:
        """Let one of the options be chosen."""
        lines = [question, *(f"  {at}: {text}" for at, text in enumerate(options))]

        def parse(text: str) -> int:
            for at, option in enumerate(options):
                if plain(text).lower() in (option.lower(), option.split(":")[0].lower()):
                    return at
            try:
                return integer(0, len(options) - 1)(text)
            except ValueError:
                raise ValueError(f"a number from 0 to {len(options) - 1}") from None

        return self.ask("\n".join([*lines, "Number [0]"]), parse, "0")

    def ask(self, question: str, parse: Callable[[str], T], default: str | None = None) -> T:
        """Ask until ``parse`` takes the answer."""
        while True:
            try:
                text = input(f"{question}: ")
            except EOFError:
                raise NoAnswer from None
            try:
                return parse(text if plain(text) or default is None else default)
            except ValueError as error:
                print(f"  got {text!r}, expected {error}", file=sys.stderr)


def asker_for() -> TerminalAsker | LineAsker:
    """Give the asker that suits this process's input and output."""
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    return TerminalAsker() if on_terminal else LineAsker()

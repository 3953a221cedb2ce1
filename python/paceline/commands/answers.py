# SPDX-License-Identifier: Apache-2.0
"""What people type as an answer, made plain: full-width digits and Chinese punctuation included.

Each parser takes a text and gives a value, or raises ``ValueError`` with what it expects. Knows
no terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

__all__ = ["address", "gpu_ids", "integer", "plain", "word", "yes_no"]

# Marks that NFKC leaves as they are, and what their typist meant.
_MARKS = str.maketrans({"、": ",", "。": ".", "“": '"', "”": '"', "‘": "'", "’": "'", "－": "-"})
_YES = ("yes", "y", "true", "1", "是", "是的", "好")
_NO = ("no", "n", "false", "0", "否", "不", "不是")


def plain(text: str) -> str:
    """Give the text with half-width characters, without blanks and quotes around it.

    Examples
    --------
    >>> plain("４，５ ")
    '4,5'
    """
    return unicodedata.normalize("NFKC", text).translate(_MARKS).strip().strip("'\"").strip()


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Make a parser of integers within bounds."""
    expected = f"an integer of at least {low}" if high is None else f"an integer, {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(plain(text))
        except ValueError:
            raise ValueError(expected) from None
        if value < low or (high is not None and value > high):
            raise ValueError(expected)
        return value

    return parse


def yes_no(text: str) -> bool:
    """Read yes or no, in English or Chinese, also by its first letter."""
    answer = plain(text).lower()
    if answer in _YES:
        return True
    if answer in _NO:
        return False
    raise ValueError("yes or no")


def gpu_ids(text: str) -> str:
    """Read ``all`` or device numbers in any separation; gives ``all`` or ``4,5``."""
    answer = plain(text).lower()
    if answer in ("all", "全部", "所有"):
        return "all"
    numbers = answer.replace(",", " ").replace(";", " ").split()
    if not numbers or not all(number.isdecimal() for number in numbers):
        raise ValueError("`all`, or numbers such as 4,5")
    if len(set(numbers)) != len(numbers):
        raise ValueError("each number once")
    return ",".join(str(int(number)) for number in numbers)


def word(text: str) -> str:
    """Read one word."""
    answer = plain(text)
    if not answer or any(character.isspace() for character in answer):
        raise ValueError("one word")
    return answer


def address(text: str) -> str:
    """Read an IP address or the name of a host."""
    answer = word(text)
    if not all(c.isalnum() or c in ".-:" for c in answer):
        raise ValueError("an IP address such as 192.168.1.2, or the name of a host")
    return answer

"""What counts as a word: a run of letters or digits, or a single Chinese character."""

from __future__ import annotations

import re

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+(?:['\u2019][^\W\u3400-\u9fff]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case and in order.

    >>> words("Don't stop: 中文 ok!")
    ["don't", 'stop', '中', '文', 'ok']
    """
    return _WORD.findall(text.lower())


def word_count(text: str) -> int:
    """How many words a text has."""
    return len(words(text))

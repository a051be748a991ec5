"""What a Flower log says went wrong, in one or a few lines.

The log mixes Flower's coloured messages, Ray's, the app's own output and tracebacks.  The last
exception is what ended a run, except for the sentences in which Flower only repeats that there
was one.
"""

from __future__ import annotations

import re

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TRACEBACK = "Traceback (most recent call last):"
EXCEPTION = re.compile(r"^(?P<name>[A-Za-z_][\w.]*)(?::\s*(?P<text>.*))?$")
MESSAGE = re.compile(r"^(DEBUG|INFO|WARNING|ERROR)\b")
REPEATS = ("An error was encountered. Ending simulation.",)
OURS = "fl_core.errors."
TAIL_LINES = 4


def last_error(log: str) -> str:
    """The last exception, else the text of the command line's error box, else the last lines.

    Of the project's own errors only the text is kept, of others also the type.
    """
    lines = ANSI.sub("", log).splitlines()
    found = [text for text in exceptions(lines) if not any(repeat in text for repeat in REPEATS)]
    if found:
        return found[-1]
    if box := [line.strip("│ ") for line in lines if line.startswith("│")]:
        return " ".join(box)
    tail = [line.strip() for line in lines if line.strip()][-TAIL_LINES:]
    return " / ".join(tail) or "the log is empty"


def exceptions(lines: list[str]) -> list[str]:
    """The final line (with its continuation) of each traceback, in order."""
    found = []
    for start, line in enumerate(lines):
        if line.strip().endswith(TRACEBACK):
            prefix = line[: line.index(TRACEBACK)]
            body = [after.removeprefix(prefix) for after in lines[start + 1 :]]
            if text := conclusion(body):
                found.append(text)
    return found


def conclusion(body: list[str]) -> str:
    """The exception that a traceback's body ends with; empty where it is cut off."""
    for index, line in enumerate(body):
        if line.startswith((" ", "\t")) or not line.strip():
            continue
        match = EXCEPTION.match(line)
        if match is None:
            return ""
        text = " ".join([match["text"] or "", *continuation(body[index + 1 :])]).strip()
        name = match["name"]
        return text if name.startswith(OURS) and text else f"{name.rpartition('.')[2]}: {text}".rstrip(": ")
    return ""


def continuation(lines: list[str]) -> list[str]:
    """Further lines of a message, up to an empty line or the next log message."""
    kept: list[str] = []
    for line in lines:
        if not line.strip() or MESSAGE.match(line) or line.startswith("During handling"):
            break
        kept.append(line.strip())
    return kept

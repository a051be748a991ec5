"""What went wrong is found in logs as Flower, Ray and typer write them."""

from __future__ import annotations

import pytest

from simulation.flower_log import last_error

OURS = """\x1b[92mINFO \x1b[0m:      Starting Flower Simulation
\x1b[91mERROR \x1b[0m:     Simulation raised an exception
Traceback (most recent call last):
  File "a.py", line 6, in main
    raise DataError("x")
fl_core.errors.DataError: population 'bad': no user; give a source
\x1b[91mERROR \x1b[0m:     Exit Code: 700

An unhandled exception occurred when running the simulation.
"""

CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in f
    1 / 0
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 2, in g
    raise RuntimeError("An error was encountered. Ending simulation.") from ex
RuntimeError: An error was encountered. Ending simulation.
INFO :      done
"""

RAY = """\x1b[36m(ClientAppActor pid=77)\x1b[0m Traceback (most recent call last):
\x1b[36m(ClientAppActor pid=77)\x1b[0m   File "a.py", line 1, in f
\x1b[36m(ClientAppActor pid=77)\x1b[0m numpy.exceptions.AxisError: axis 3 is out of bounds
\x1b[36m(ClientAppActor pid=77)\x1b[0m INFO: more
"""

BOX = """Using SuperLink: duet (127.0.0.1:47555)
╭─ Error ────────────────────────╮
│ [code: 15] Invalid run         │
│ configuration.                 │
╰────────────────────────────────╯
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (OURS, "population 'bad': no user; give a source"),
        (CHAINED, "ZeroDivisionError: division by zero"),
        (RAY, "AxisError: axis 3 is out of bounds"),
        (BOX, "[code: 15] Invalid run configuration."),
        ("one\n\ntwo\n", "one / two"),
        ("", "the log is empty"),
        (
            "Traceback (most recent call last):\n  File 'cut off",
            "Traceback (most recent call last): / File 'cut off",
        ),
        ("Traceback (most recent call last):\n  x\nKeyboardInterrupt\n", "KeyboardInterrupt"),
    ],
)
def test_last_error(log: str, expected: str) -> None:
    assert last_error(log) == expected


def test_message_of_several_lines_is_kept() -> None:
    log = "Traceback (most recent call last):\n  x\nValueError: first\nsecond\n\nlater\n"
    assert last_error(log) == "ValueError: first second"

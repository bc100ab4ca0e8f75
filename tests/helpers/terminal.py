"""A real pseudo-terminal around a real process, and what somebody would have seen on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence

ROWS, COLUMNS = 40, 100
_CONTROL = re.compile(r"\x1b\[(\d*)([A-Za-z])|[\r\n]|[^\r\n\x1b]")


def run_on_terminal(
    command: Sequence[str], columns: int = COLUMNS, rows: int = ROWS, **variables: str
) -> tuple[int, str]:
    """Run a command whose three streams are a terminal.

    Returns:
        Its exit code, and everything that it sent to the terminal.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment: Mapping[str, str] = {**os.environ, "TERM": "xterm-256color", **variables}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    sent = bytearray()
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the last process has closed the terminal
            break
        if not part:
            break
        sent += part
    os.close(ours)
    return process.wait(timeout=60), sent.decode("utf-8")


def frames(sent: str, columns: int = COLUMNS) -> list[list[str]]:
    """What the screen looked like before each time that the cursor went back to the start of a line.

    Returns:
        Screens, the last one as it stays; each a list of lines from the top.
    """
    lines, row, column, seen = [[]], 0, 0, []
    for match in _CONTROL.finditer(sent):
        text, (count, code) = match.group(), match.groups()
        if code == "A":
            row -= int(count or 1)
        elif code == "K":
            del lines[row][column:]
        elif code:
            raise AssertionError(f"what a terminal does on {text!r} is not known here")
        elif text == "\r":
            seen.append(["".join(line).rstrip() for line in lines])
            column = 0
        elif text == "\n":
            row += 1
        else:
            if column == columns:  # a terminal goes on in the next line
                row, column = row + 1, 0
                lines.extend([] for _ in range(row + 1 - len(lines)))
            line = lines[row]
            line.extend(" " * (column + 1 - len(line)))
            line[column] = text
            column += 1
        while len(lines) <= row:
            lines.append([])
    return [*seen, ["".join(line).rstrip() for line in lines]]

"""A rank with a watchdog and without Paddle, run by test_watchdog.py.

python tests/helpers/watchdog_rank.py RANK WORLD_SIZE FOLDER BEHAVIOUR
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ppfcos.engine import watchdog
from ppfcos.errors import DataError

watchdog.FAILURE_SECONDS, watchdog.NEWS_SECONDS, watchdog.SILENT_SECONDS = 2.0, 2.0, 4.0


def broadcast_by_file(file: Path, rank: int):
    """Broadcast by a file, as paddle.distributed does it for real ranks."""

    def broadcast(value):
        if rank == 0:
            file.with_suffix(".new").write_text(json.dumps(value))
            file.with_suffix(".new").rename(file)
            return value
        while not file.exists():
            time.sleep(0.02)
        return json.loads(file.read_text())

    return broadcast


def main(rank: int, world_size: int, folder: Path, behaviour: str) -> None:
    broadcast = broadcast_by_file(folder / "main.json", rank)
    with watchdog.exit_with_launcher(), watchdog.watch(rank, world_size, broadcast):
        if behaviour == "wait with a child":
            with warnings.catch_warnings():  # Python 3.12 warns of the watchdog's threads
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            (folder / f"{rank}.child").write_text(str(child))
        (folder / f"{rank}.inside").touch()
        if behaviour == "hold the interpreter":  # as a long call of a C extension does
            ctypes.PyDLL(None).sleep(8)
        if behaviour == "fail":
            raise ValueError("it broke")
        if behaviour == "fail with DataError":
            raise DataError("no data here")
        if behaviour == "fail in all":
            time.sleep(0.3 * rank)
            raise DataError("no data anywhere")
        if behaviour == "leave":
            time.sleep(0.3 * ((rank + 1) % world_size))
        else:
            while not (folder / "leave").exists():
                time.sleep(0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])

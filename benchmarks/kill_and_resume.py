"""Compare the weights of a training that is killed repeatedly with those of an uninterrupted one, bit by bit.

    python benchmarks/kill_and_resume.py                 # 20 kills
    python benchmarks/kill_and_resume.py --kills 5

Both train a small FCOS (ResNet-18, generated images of 96 pixels) on the CPU, in one process, with trained
batch norms and EMA. The second training gets SIGKILL at random moments (while it starts, within a step, while
it writes a checkpoint or evaluates) and is started again by the same command with `-r auto`. The exit code is
0 if all files of the last checkpoint have the same bits.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
SECONDS_BETWEEN_KILLS = (0.0, 3.0)  # after the first step, or after the start in a fifth of the cases


def train_command(config: Path, kills: int) -> list[str]:
    """Return the command of the training, which also resumes it; long enough for this number of kills."""
    settings = [f"epoch={kills + 1}", "seed=3", "snapshot_steps=2", "use_ema=true", "worker_num=1"]
    program = [sys.executable, str(ROOT / "tools" / "train.py")]
    return [*program, "-c", str(config), "--eval", "-r", "auto", "-o", *settings]


def make_run(folder: Path, images: Path) -> Path:
    """Make a run folder and return its configuration file."""
    from helpers.small_config import write_config

    folder.mkdir()
    return write_config(folder / "small.yml", ROOT, images, folder / "run")


def kill_once(command: list[str], log: Path, rng: random.Random) -> str | None:
    """Start the training, kill it, and return its position; None if it ended first."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    if rng.random() > 0.2:
        while "step: [" not in log.read_text() and process.poll() is None:
            time.sleep(0.05)
    time.sleep(rng.uniform(*SECONDS_BETWEEN_KILLS))
    process.kill()
    code = process.wait()
    if code == 0:
        return None
    if code != -9:
        raise SystemExit(f"the training failed by itself:\n{log.read_text()}")
    lines = [line for line in log.read_text().splitlines() if "] " in line]
    return lines[-1].split("] ", 1)[1][:60] if lines else "(nothing was printed yet)"


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of all differences between the last checkpoints of two runs."""
    import numpy as np

    from ppfcos.engine.weights import read_state

    def flat(value, name):
        if isinstance(value, dict):
            for key, inner in value.items():
                # Tensors' own names are numbered as they are made, whatever they hold.
                if key != "StructuredToParameterName@@":
                    yield from flat(inner, f"{name}/{key}")
        else:
            yield name, np.asarray(value)

    found = []
    for suffix in ("pdparams", "pdema", "pdopt"):
        states = [dict(flat(read_state(run / f"model_final.{suffix}"), suffix)) for run in (one, other)]
        if states[0].keys() != states[1].keys():
            found.append(f"the names in model_final.{suffix}")
            continue
        found += [name for name, value in states[0].items() if value.tobytes() != states[1][name].tobytes()]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    from ppfcos.data.shapes import generate

    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        generate(scratch / "shapes", train=14, val=3, size=96, seed=1)
        calm, killed = (make_run(scratch / name, scratch / "shapes") for name in ("calm", "killed"))
        subprocess.run(train_command(calm, args.kills), check=True, capture_output=True)
        command = train_command(killed, args.kills)
        log = scratch / "killed.log"
        kills = 0
        while kills < args.kills:
            where = kill_once(command, log, rng)
            if where is None:
                break
            kills += 1
            print(f"kill {kills}: last line {where!r}", flush=True)
        subprocess.run(command, check=True, capture_output=True)
        runs = [config.parent / "run" / "small" for config in (calm, killed)]
        different = differences(*runs)
        left_over = [path.name for path in runs[1].iterdir() if path.name.startswith(".")]
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores: {kills} kills; "
        + (f"different: {', '.join(different)}" if different else "weights and optimizer are bit-identical")
        + (f"; left over: {', '.join(left_over)}" if left_over else "")
    )
    if kills < args.kills:
        print(f"the training came to its end before it was killed {args.kills} times")
    return int(bool(different) or kills < args.kills)


if __name__ == "__main__":
    sys.exit(main())

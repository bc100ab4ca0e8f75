"""Kill a training before each change to its folder, resume it, and check the files.

    python benchmarks/crash_points.py                # every crash point
    python benchmarks/crash_points.py --every 9      # a sample
    python benchmarks/crash_points.py --twice        # the resumed training is killed, too

The training of a small model saves checkpoints, records an AP after each epoch and keeps the best model, with
the functions that `tools/train.py` calls. The process kills itself before each rename, link, unlink and fsync
in turn. The files are checked after the kill, and again after the training was resumed to its end:

- after the kill, the newest checkpoint and `best_model` are complete, and are the new or the previous ones;
- after the resumption, all files equal those of an uninterrupted training.

The exit code is 0 if every crash point passes.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ppfcos.engine import checkpoint
from ppfcos.engine.checkpoint import TrainingState
from ppfcos.engine.checkpoint_files import finish_interrupted, next_start
from ppfcos.engine.evaluator import Validation
from ppfcos.engine.run_folder import (
    BEST,
    checkpoint_name,
    find_latest,
    lock_folder,
    remove_old_checkpoints,
    remove_unfinished,
)
from ppfcos.engine.weights import read_state

CHANGES = ("replace", "rename", "link", "unlink", "remove", "rmdir", "fsync")
RUN = "2026-01-01T00:00:00"
APS = {1: 0.2, 2: 0.4, 3: 0.3, 4: 0.5}  # after each epoch
POSITIONS = [(1, 0), (1, 5), (2, 0), (2, 5), (3, 0), (4, 0)]  # finished epochs, steps of the next one
KEPT = 2
WITH_AVERAGE = 2  # epochs; after these, NAME.pdema is not written any more


class Training:
    """Save and evaluate. All weights of a position equal 10 × epochs + steps."""

    def __init__(self) -> None:
        self.model = paddle.nn.Linear(8, 4)
        self.optimizer = paddle.optimizer.Momentum(0.1, parameters=self.model.parameters())
        self.optimizer._learning_rate = paddle.optimizer.lr.PiecewiseDecay([2], [0.1, 0.01])
        self.model(paddle.ones([1, 8])).sum().backward()
        self.optimizer.step()
        self.weights = {}
        for epochs, step in POSITIONS:
            state = self.model.state_dict()
            value = 10.0 * epochs + step
            self.weights[epochs, step] = {name: paddle.full_like(state[name], value) for name in state}

    def run(self, folder: Path, say: Callable[[str], None] = lambda text: None) -> None:
        """Train from the newest checkpoint to the end, as the Trainer does."""
        lock = lock_folder(folder)
        finish_interrupted(folder)
        newest = find_latest(folder)
        saved = TrainingState(0) if newest is None else checkpoint.read_manifest(newest)
        remove_unfinished(folder, lock)
        start = next_start(folder)
        evaluations = Validation({}, None, folder)
        evaluations.find_best(RUN)
        if newest is not None:
            remove_old_checkpoints(folder, RUN, KEPT, newest)
        if newest is not None and not saved.step and saved.ap is None:
            evaluations.keep_if_best(newest, APS[saved.epochs])
        for epochs, step in POSITIONS:
            if (epochs, step) <= (saved.epochs, saved.step):
                continue
            weights, state = self.weights[epochs, step], TrainingState(epochs, step, run=RUN)
            own = weights if epochs <= WITH_AVERAGE else None
            name = checkpoint_name(state, len(APS))
            checkpoint.save_checkpoint(folder, name, weights, self.optimizer, state, own, start=start)
            say(f"newest {10 * epochs + step}")
            remove_old_checkpoints(folder, RUN, KEPT)
            if not step:
                evaluations.keep_if_best(folder / name, APS[epochs])
                say(f"best {evaluations.best[1]}")
        lock.release()


def run_in_child(training: Training, folder: Path, kill_before: int | None = None) -> tuple[dict, int, bool]:
    """Run the training in a forked process.

    Args:
        training: training to run.
        folder: its run folder.
        kill_before: number of the change before which the process kills itself.

    Returns:
        The positions that it printed, by name; the number of changes; whether it was killed.
    """
    said_file = folder.parent / f"{folder.name}.said"
    pid = os.fork()
    if not pid:
        try:
            logging.getLogger("ppfcos").setLevel(logging.CRITICAL)
            said = os.open(said_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            changes = 0

            def counted(change: Callable) -> Callable:
                def call(*arguments, **options):
                    nonlocal changes
                    if changes == kill_before:
                        os.kill(os.getpid(), signal.SIGKILL)
                    changes += 1
                    return change(*arguments, **options)

                return call

            for name in CHANGES:
                setattr(os, name, counted(getattr(os, name)))
            training.run(folder, lambda text: os.write(said, f"{text}\n".encode()))
            os.write(said, f"changes {changes}\n".encode())
            os._exit(0)
        except BaseException:
            logging.exception("the training failed")
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    lines = said_file.read_text().split("\n")[:-1] if said_file.exists() else []
    said = {word: float(value) for word, value in (line.split() for line in lines)}
    is_killed = os.WIFSIGNALED(status)
    if not is_killed and os.WEXITSTATUS(status):
        raise AssertionError("a resumed training failed")
    return said, int(said.get("changes", 0)), is_killed


def position_of(path: Path) -> float:
    """Return 10 × epochs + steps from the record of a checkpoint, after checking that its weights agree."""
    checkpoint.verify_checksums(path)
    state = checkpoint.read_manifest(path)
    position = 10.0 * state.epochs + state.step
    weights = read_state(path.with_name(f"{path.name}.pdparams"))
    assert np.all(weights["weight"] == position), f"{path} has the weights of {weights['weight'][0, 0]:g}"
    return position


def check_after_kill(folder: Path, said: dict) -> str:
    """Check that both checkpoints are complete and not older than what was printed before the kill."""
    newest, best = find_latest(folder), folder / BEST
    position = 0 if newest is None else position_of(newest)
    ap = 0
    if checkpoint.find_training_state(best) is not None:
        position_of(best)
        ap = checkpoint.read_manifest(best).ap
    assert position >= said.get("newest", 0), f"the newest is of {position}"
    assert ap >= said.get("best", 0), f"the best has AP {ap}"
    kinds = ["before", "new"]
    return f"newest: {kinds[position > said.get('newest', 0)]}, best_model: {kinds[ap > said.get('best', 0)]}"


def contents(folder: Path) -> dict:
    """Return what must not depend on interruptions: file names, weights, and the contents of records."""
    found: dict = {}
    for path in sorted(folder.iterdir()):
        found[path.name] = None
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            found[path.name] = [record["epochs"], record["step"], record["ap"], sorted(record["files"])]
            position_of(path.with_suffix(""))
    return found


def check(every: int = 1, twice: bool = False, first: int = 0) -> collections.Counter:
    """Kill the training at crash points, resume it, and check its files each time.

    Args:
        every: test each n-th change only.
        twice: kill the resumed training, too, at another crash point.
        first: number of the first crash point.

    Returns:
        How often each outcome was found after the kill.

    Raises:
        AssertionError: a checkpoint is lost, or the resumed training leaves other files.
    """
    logging.getLogger("ppfcos").setLevel(logging.CRITICAL)
    training, outcomes = Training(), collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        calm = Path(scratch) / "calm"
        _, changes, _ = run_in_child(training, calm)
        expected = contents(calm)
        for number in range(first, changes, every):
            folder = Path(scratch) / str(number)
            said, _, is_killed = run_in_child(training, folder, number)
            assert is_killed, f"crash point {number} was not reached"
            try:
                outcomes[check_after_kill(folder, said)] += 1
                second = number * 7 % 41
                if twice and run_in_child(training, folder, second)[2]:
                    check_after_kill(folder, said)
                run_in_child(training, folder)
                found = contents(folder)
                assert found == expected, f"left {found} instead of {expected}"
            except Exception as error:
                raise AssertionError(f"crash point {number} of {changes}: {error}") from error
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="how many changes apart the crash points are")
    parser.add_argument("--twice", action="store_true", help="kill the resumed training, too")
    args = parser.parse_args()
    began = time.monotonic()
    try:
        outcomes = check(args.every, args.twice)
    except AssertionError as error:
        print(error)
        return 1
    seconds = time.monotonic() - began
    print(f"{datetime.date.today()}: {sum(outcomes.values())} crash points, {seconds:.0f} s, nothing lost")
    for kind, count in sorted(outcomes.items()):
        print(f"{count:5d}  {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

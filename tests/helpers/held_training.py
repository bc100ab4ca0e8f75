"""tools/train.py in a process that ends when another one dies; run by test_watchdog.py.

python tests/held_training.py -c CONFIG [-o KEY=VALUE ...]; the process's number is left in RANK.pid.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ppfcos import environment
from ppfcos.cli import command
from ppfcos.cli.train import build_parser


def train(options: argparse.Namespace) -> None:
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.engine import distributed
        from ppfcos.engine.device import select_device
        from ppfcos.engine.trainer import Trainer

    cfg = load_config(options.config, options.opt)
    device = select_device(cfg)
    with distributed.process_group():
        Path(f"{distributed.rank()}.pid").write_text(str(os.getpid()))
        Trainer(cfg, device, options.eval).train()


if __name__ == "__main__":
    sys.exit(command.run(train, build_parser()))

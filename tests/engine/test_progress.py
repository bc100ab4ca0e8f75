"""Progress of a training on a terminal, in a pipe, and on other ranks than 0."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
from helpers.terminal import frames, run_on_terminal

from ppfcos.engine.progress import Progress

# Two epochs of twelve steps of 16 images, an evaluation after each; nothing of it computes.
TRAINING = """
import logging, sys, time
sys.path.insert(0, sys.argv[1])
from ppfcos import console, environment
from ppfcos.cli import command

logger = logging.getLogger("ppfcos.engine")


def train(options):
    with environment.quiet_imports():
        from ppfcos.engine.progress import Progress
    progress = Progress(epochs=2, steps_per_epoch=12, log_iter=4, batch_size=16)
    logger.info("it starts")
    with progress.bar():
        for epoch in range(2):
            progress.start_epoch()
            for step in range(1, 13):
                time.sleep(0.03)
                progress.add({"loss": 2.0, "loss_box": 0.5}, seconds_waited=0.001)
                progress.move_bar(epoch, step)
                if step == 6:
                    logger.warning("a picture cannot be read")
                if progress.is_due(step):
                    progress.log(progress.report(epoch, step, learning_rate=0.01))
            with console.bar("evaluating", 30) as bar:
                for batch in range(30):
                    time.sleep(0.01)
                    bar.advance()
            logger.info("after epoch %d:\\nAP 0.3\\nAP50 0.5", epoch + 1)
    logger.info("it is over")


file = logging.FileHandler(sys.argv[2])
logging.getLogger("ppfcos").addHandler(file)
sys.exit(command.run(train, command.option_parser("Train.", "train", config_required=False), []))
"""
# The console alone, without Paddle.
COUNTING = """
import sys
sys.path.insert(0, sys.argv[1])
from ppfcos import console

with console.bar("counting", 5) as bar:
    for number in range(5):
        bar.advance()
    if sys.argv[2:] == ["fail"]:
        sys.exit("it failed")
print("counted", bar.is_shown)
"""
STEP_LINE = (
    r"epoch: \[\d/2\] step: \[\d+/12\] learning_rate: 0\.010000 loss: 2\.0000 loss_box: 0\.5000 "
    r"eta: 0:00:0\d data_cost: 0\.001 s ips: \d+\.\d\d images/s memory: \d\.\d\d GB"
)
TIME = r"\[\d\d/\d\d \d\d:\d\d:\d\d\] "


@pytest.fixture
def training(tmp_path, root) -> list[str]:
    """The command line of a training, whose log goes to `log` in the test's folder."""
    (tmp_path / "training.py").write_text(TRAINING)
    return [sys.executable, str(tmp_path / "training.py"), str(root), str(tmp_path / "log")]


@pytest.fixture
def counting(tmp_path, root) -> list[str]:
    (tmp_path / "counting.py").write_text(COUNTING)
    return [sys.executable, str(tmp_path / "counting.py"), str(root)]


def test_the_bar_on_a_terminal_shows_metrics(training, tmp_path):
    code, sent = run_on_terminal(training, columns=240)
    assert code == 0
    seen = frames(sent, columns=240)
    bars = [line for screen in seen for line in screen if "|" in line and line.startswith("epoch ")]
    figures = re.compile(
        r"epoch ([12])/2 step ([ \d]\d)/12 +(\d+)%\|.*\| loss 2\.000, (\d+)\.\d images/s, 0:00:0\d left"
    )
    shown = [figures.fullmatch(line) for line in bars]
    assert len(bars) > 8
    assert all(shown), bars
    for match in shown:
        epoch, step, percent, speed = (int(value) for value in match.groups())
        assert percent == pytest.approx(100 * (12 * epoch - 12 + step) / 24, abs=0.51)
        assert 16 / 0.3 < speed <= 16 / 0.03  # steps of 0.03 s and the pauses of a busy machine
    assert any(re.search(r"^evaluating +\d+%\|.*\| \d+/30, ", "\n".join(screen), re.M) for screen in seen)
    assert all(len([line for line in screen if "|" in line]) <= 2 for screen in seen), "a torn bar stays"


def test_lines_stay_above_the_bar_and_the_bar_is_removed(training, tmp_path):
    _, sent = run_on_terminal(training, columns=240)
    *_, last = frames(sent, columns=240)
    warning, figures = "warning: a picture cannot be read", ["AP 0.3", "AP50 0.5"]
    expected = ["it starts"]
    expected += [warning, STEP_LINE, "expected end: .*", "after epoch 1:", *figures]
    expected += [warning, STEP_LINE, "after epoch 2:", *figures, "it is over"]
    lines = [line for line in last if line]
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected):
        assert re.fullmatch(f"({TIME})?{pattern}", line), line
    # A file gets every line that the bar kept from the screen.
    log = (tmp_path / "log").read_text()
    assert len(re.findall(STEP_LINE, log)) == 8
    assert "|" not in log


def test_a_pipe_gets_plain_lines(training):
    finished = subprocess.run(training, capture_output=True, text=True, check=True, timeout=60)
    assert finished.stderr == ""
    assert not set("\r\x1b|") & set(finished.stdout)
    lines = finished.stdout.splitlines()
    assert [bool(re.fullmatch(TIME + STEP_LINE, line)) for line in lines].count(True) == 8
    others = [re.sub(TIME, "", line) for line in lines if "step: [" not in line]
    (end,) = [line for line in others if line.startswith("expected end: ")]
    assert re.fullmatch(r"expected end: 20\d\d-\d\d-\d\d \d\d:\d\d \(0:00:0\d left, .*\)", end)
    warning = "warning: a picture cannot be read"
    epoch = ["AP 0.3", "AP50 0.5"]
    others.remove(end)
    assert others == [
        "it starts",
        *(warning, "after epoch 1:", *epoch),
        *(warning, "after epoch 2:", *epoch),
        "it is over",
    ]


def test_a_bar_is_for_the_first_process_and_a_terminal_that_can_show_it(counting):
    for variables, is_shown in (
        ({}, True),
        ({"PADDLE_TRAINER_ID": "0"}, True),
        ({"PADDLE_TRAINER_ID": "1"}, False),
        ({"TERM": "dumb"}, False),
    ):
        code, sent = run_on_terminal(counting, **variables)
        assert code == 0
        assert ("counting" in sent.replace("counted", "")) is is_shown, (variables, sent)
        assert frames(sent)[-1][:1] == [f"counted {is_shown}"]


@pytest.mark.parametrize(("rows", "columns"), [(0, 80), (24, 0), (0, 0)])
def test_a_terminal_without_rows_or_columns_gets_lines(training, rows, columns):
    code, sent = run_on_terminal(training, columns=columns, rows=rows)
    assert code == 0
    assert len(re.findall(STEP_LINE, sent)) == 8 and "|" not in sent


def test_a_failure_leaves_no_bar_behind(counting):
    code, sent = run_on_terminal([*counting, "fail"])
    assert code == 1
    assert "counting   0%" in sent
    assert [line for line in frames(sent)[-1] if line] == ["it failed"]


UNREAD = """
import logging, pathlib, sys
from ppfcos import console

logger = logging.getLogger("ppfcos")
logger.addHandler(console.ScreenHandler())
logger.setLevel(logging.INFO)
for line in range(20_000):  # more than a pipe holds
    logger.info("line %d", line)
pathlib.Path(sys.argv[1]).write_text("went on")
"""


def test_a_closed_pipe_does_not_end_the_run(root, tmp_path):
    """As behind `| head`."""
    pipe = subprocess.PIPE
    arguments = [sys.executable, "-c", UNREAD, str(tmp_path / "end")]
    with subprocess.Popen(arguments, cwd=root, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline().endswith("line 0\n")
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)
    assert (tmp_path / "end").read_text() == "went on"


def test_the_console_needs_neither_paddle_nor_tqdm_where_no_bar_is_shown(root):
    watch = f"import sys; sys.path.insert(0, {str(root)!r})\n"
    watch += "from ppfcos import console\nwith console.bar('x', 3) as bar: bar.advance()\n"
    watch += "assert not {'tqdm', 'paddle', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", watch], check=True, env=dict(os.environ), stdout=subprocess.PIPE)


# Reports


def test_a_report_averages_the_steps_since_the_previous_report():
    progress = Progress(epochs=3, steps_per_epoch=10, log_iter=4, batch_size=8)
    progress.start_epoch()
    for value in (1.0, 2.0, 6.0):
        progress.add({"loss_box": value / 2, "loss": value}, seconds_waited=0.25)
    report = progress.report(epoch=1, step=4, learning_rate=0.1, gradient_norm=2.5)
    assert report.losses == {"loss_box": 1.5, "loss": 3.0}
    assert report.data_seconds == 0.25
    assert report.global_step == 14
    assert report.images_per_second > 24
    assert report.gradient_norm == 2.5
    line = report.line()
    assert re.match(
        r"epoch: \[2/3\] step: \[4/10\] learning_rate: 0\.100000 loss: 3\.0000 loss_box: 1\.5000 ", line
    )
    progress.add({"loss_box": 0.0, "loss": 5.0}, seconds_waited=0)
    assert progress.report(epoch=1, step=5, learning_rate=0.1).losses["loss"] == 5
    assert [step for step in range(1, 11) if progress.is_due(step)] == [1, 4, 8, 10]


def test_the_time_left_leaves_out_the_slow_first_step_and_the_evaluations():
    progress = Progress(epochs=2, steps_per_epoch=10, log_iter=5, batch_size=1)
    progress.start_epoch()
    time.sleep(0.5)
    progress.add({"loss": 1.0}, seconds_waited=0)
    assert progress.report(epoch=0, step=1, learning_rate=0.1).seconds_left == pytest.approx(
        19 * 0.5, rel=0.1
    )
    time.sleep(0.5)  # an evaluation
    progress.start_epoch()
    for _ in range(10):
        time.sleep(0.02)
        progress.add({"loss": 1.0}, seconds_waited=0)
    left = progress.report(epoch=1, step=5, learning_rate=0.1).seconds_left
    assert 5 * 0.02 <= left < 5 * 0.06

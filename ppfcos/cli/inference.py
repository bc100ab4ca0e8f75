"""Detect objects in images or a video, draw them, and write the results, for `tools/infer.py`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np

from ppfcos import console, environment
from ppfcos.cli import command
from ppfcos.cli.results import Drawn, Results, tag
from ppfcos.deploy import Detector, Predictor
from ppfcos.deploy.sources import PICTURE_SUFFIXES, list_pictures, opened_video, read_frames, read_pictures
from ppfcos.errors import ConfigError, DataError, OutputError, Stopped
from ppfcos.fileio import replacing
from ppfcos.signals import StopRequest
from ppfcos.visualize.drawing import draw_detections, save_image

logger = logging.getLogger(__name__)

RESULTS_FILE = "bbox.json"
VIDEO_SUFFIX, VIDEO_CODE, FRAMES_A_SECOND = ".mp4", "mp4v", 25.0


def count() -> int:
    """Number of processes; 1 without a launcher."""
    text = os.environ.get("PADDLE_TRAINERS_NUM", "1")
    return max(1, int(text)) if text.isdigit() else 1


def rank() -> int:
    """Number of this process; 0 without a launcher."""
    return 0 if count() == 1 else int(os.environ["PADDLE_TRAINER_ID"])


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Form a process group: if one process fails, all end. A single process does not import Paddle."""
    from ppfcos.engine import watchdog

    with watchdog.exit_with_launcher():
        if count() == 1:
            yield
            return
        with environment.quiet_imports():
            from ppfcos.engine import distributed
        with distributed.process_group():
            yield


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise an error of one process in all of them."""
    if count() == 1:
        yield
        return
    from ppfcos.engine import distributed

    with distributed.collective_error_check():
        yield


def gather(value: Any) -> list:
    """The value of each process, in all of them."""
    if count() == 1:
        return [value]
    from ppfcos.engine import distributed

    return distributed.all_gather_object(value)


def infer(options: argparse.Namespace) -> None:
    """Detect and draw the objects of the images or the video.

    Args:
        options: of `ppfcos.cli.infer.build_parser`.
    """
    if options.video_file:
        _infer_video(options)
        return
    paths = pictures_to_read(options.infer_img, options.infer_dir)
    _check_output(Path(options.output_dir), paths)
    detector = _build_detector(options)
    with joined():
        path = Path(options.output_dir) / RESULTS_FILE if options.save_results else None
        results = Results(path, detector.category_ids, rank(), count())
        with StopRequest().listening() as request, results:
            with together(), _picture_log(options) as show, request.deferred():
                for each in _draw_part(detector, paths, show, options):
                    results.add(each)
                    _stop_if_requested(request)
            drawn = [each for part in gather(results.drawn) for each in part]
            if not drawn:
                files = _count(len(paths), "file")
                raise DataError(f"no image can be read: {files}, the first is {paths[0]}")
            results.finish(sorted(drawn, key=lambda each: each.number))
    if console.is_main_process():
        _log_summary(options, drawn, len(paths) - len(drawn))


def _draw_part(
    detector: Detector,
    paths: Sequence[Path],
    show: Callable[[str, np.ndarray], None],
    options: argparse.Namespace,
) -> Iterator[Drawn]:
    """Draw the images of this process."""
    numbers = {path: number for number, path in enumerate(paths)}
    own = paths[rank() :: count()]  # neighbors are often alike
    with console.bar("detecting", len(own)) as bar:
        for path, image, detections in detector.detect(read_pictures(own)):
            # The results come before the image, which may not fit on the disk.
            yield Drawn(numbers[path], path.name, detections)
            picture = draw_detections(image, detections, options.draw_threshold)
            save_image(Path(options.output_dir) / picture_name(path), picture)
            show(path.name, picture)
            objects = _count(len(detections.above(options.draw_threshold)), "object")
            logger.info("%s: %s", path, objects, extra=console.HIDDEN_BY_BAR)
            bar.advance()


def _infer_video(options: argparse.Namespace) -> None:
    """Draw a video, frame by frame."""
    if count() > 1:
        raise ConfigError("--video_file runs in one process: start it without paddle.distributed.launch")
    if options.use_vdl:
        raise ConfigError("--use_vdl shows images, and --video_file writes a video: remove one of them")
    source, output = Path(options.video_file), Path(options.output_dir)
    with opened_video(source) as video:
        frames_a_second = video.get(cv2.CAP_PROP_FPS) or FRAMES_A_SECOND
        total = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    _check_output(output, [source])
    detector = _build_detector(options)
    # With the whole name, street.avi and street.mp4 have different results.
    target = output / (source.name if source.suffix == VIDEO_SUFFIX else source.name + VIDEO_SUFFIX)
    with (
        StopRequest().listening() as request,
        Results(output / RESULTS_FILE, detector.category_ids) as results,
    ):
        drawing = _video_writer(target, frames_a_second), console.bar("detecting", total)
        with drawing[0] as write, drawing[1] as bar, request.deferred():
            for number, frame, detections in detector.detect(read_frames(source)):
                results.add(Drawn(number, source.name, detections))
                write(draw_detections(frame, detections, options.draw_threshold))
                bar.advance()
                _stop_if_requested(request)
            if not results.drawn:
                raise DataError(f"{source}: OpenCV can decode no frame of this video")
        results.finish(results.drawn)
    objects = sum(len(each.detections.above(options.draw_threshold)) for each in results.drawn)
    logger.info("%s with %s in %s", _count(len(results.drawn), "frame"), _count(objects, "object"), target)
    logger.info(
        "browsers do not play its format, MPEG-4 Part 2; to convert it: ffmpeg -i %s -c:v libx264 NEW.mp4",
        target,
    )
    logger.info("all boxes in %s", output / RESULTS_FILE)


def _stop_if_requested(request: StopRequest) -> None:
    """Stop between two images: an exception of a signal handler within a runtime looks like its failure."""
    if request.signal:
        raise Stopped(request.signal, f"stopped by {signal.Signals(request.signal).name}")


@contextlib.contextmanager
def _video_writer(target: Path, frames_a_second: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a frame to a video; all frames have one size."""
    with replacing(target) as unfinished, contextlib.ExitStack() as open_files:
        # OpenCV recognizes the format by the suffix.
        beside = unfinished.with_name(f"{unfinished.name}{target.suffix}")
        open_files.callback(beside.unlink, missing_ok=True)
        writer = cv2.VideoWriter()
        open_files.callback(writer.release)

        def write(frame: np.ndarray) -> None:
            if not writer.isOpened():
                size = frame.shape[1], frame.shape[0]
                writer.open(str(beside), cv2.VideoWriter_fourcc(*VIDEO_CODE), frames_a_second, size)
                if not writer.isOpened():
                    raise OutputError(f"{target}: OpenCV cannot write a video of this size here")
            writer.write(frame)

        try:
            yield write
        except (KeyboardInterrupt, Stopped):
            if not writer.isOpened():
                raise
            writer.release()  # keep the frames so far
            os.replace(beside, target)
            raise
        writer.release()
        os.replace(beside, unfinished)


def pictures_to_read(picture: str | None, folder: str | None) -> list[Path]:
    """The images that the command line names: one file, or those in a folder, by name."""
    if picture:
        if not Path(picture).is_file():
            raise DataError(f"--infer_img {picture}: there is no such file")
        return [Path(picture)]
    if not folder:
        raise ConfigError("no image is named: add --infer_img FILE, --infer_dir FOLDER or --video_file FILE")
    if not Path(folder).is_dir():
        raise DataError(f"--infer_dir {folder}: there is no such folder")
    return list_pictures(Path(folder))


def picture_name(path: Path) -> str:
    """File name of the drawn image: the same if OpenCV can write the format, or with .png."""
    return path.name if path.suffix.lower() in PICTURE_SUFFIXES else path.name + ".png"


def _build_detector(options: argparse.Namespace) -> Detector:
    if bool(options.bundle) == bool(options.config):
        raise ConfigError("name either a bundle (--bundle FOLDER) or a configuration (-c FILE), and not both")
    if options.bundle and options.opt:
        raise ConfigError(
            "-o changes keys of a configuration, which a bundle does not have: remove -o, or use -c"
        )
    command.require_bundle(options)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before Paddle is imported
    if options.bundle:
        run = options.runtime, options.precision, options.threads, options.batch_size, options.device
        return Predictor(options.bundle, *run)
    environment.configure_process()
    with environment.quiet_imports():
        from ppfcos.config import load_config
        from ppfcos.engine.device import select_device
        from ppfcos.export.trained_model import checkpoint_detector
    cfg = load_config(options.config, options.opt)
    select_device(cfg)
    detector = checkpoint_detector(cfg)
    detector.batch = options.batch_size or 1
    return detector


def _check_output(output: Path, paths: Sequence[Path]) -> None:
    """Check that the folder can be written and that no input would be overwritten."""
    if any(output.resolve() == path.parent.resolve() for path in paths):
        raise OutputError(
            f"--output_dir {output} is the folder of the images, which would be overwritten; name another"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output_dir {output} cannot be created ({error.strerror})") from error
    if not os.access(output, os.W_OK | os.X_OK):
        raise OutputError(f"--output_dir {output} cannot be written to; name another")


@contextlib.contextmanager
def _picture_log(options: argparse.Namespace) -> Iterator[Callable[[str, np.ndarray], None]]:
    """A function that writes an image to the VisualDL log, if there is one."""
    if not options.use_vdl:
        yield lambda name, picture: None
        return
    with environment.quiet_imports(), environment.temporary_home():
        from visualdl import LogWriter
    try:
        writer = LogWriter(logdir=options.vdl_log_dir)
    except OSError as error:
        raise OutputError(
            f"--vdl_log_dir {options.vdl_log_dir} cannot be written ({error.strerror})"
        ) from error
    with writer:
        yield lambda name, picture: writer.add_image(tag(name), picture[:, :, ::-1], step=0)


def _log_summary(options: argparse.Namespace, drawn: Sequence[Drawn], unreadable: int) -> None:
    objects = sum(len(each.detections.above(options.draw_threshold)) for each in drawn)
    boxes = f"{_count(objects, 'object')} of at least {options.draw_threshold:g}"
    logger.info("%s with %s in %s", _count(len(drawn), "image"), boxes, options.output_dir)
    if options.save_results:
        logger.info("all boxes in %s", Path(options.output_dir) / RESULTS_FILE)
    if options.use_vdl:
        logger.info("show them with: visualdl --logdir %s", options.vdl_log_dir)
    if unreadable:
        logger.warning("%s cannot be read, see the warnings above", _count(unreadable, "image"))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"

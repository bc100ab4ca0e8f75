"""The errors that a user can cause.

Each message is one line that names the culprit (the file, the key, the image) and the cure. The command line
prints it without a traceback and exits with `exit_code`; `--debug` shows the traceback.
"""

from __future__ import annotations


class PPFCOSError(Exception):
    """Base of every error that a user can cause and cure."""

    exit_code = 2


class ConfigError(PPFCOSError):
    """A configuration file, a key in it or an `-o` override is wrong."""


class DataError(PPFCOSError):
    """A data set, an annotation or an image is missing, unreadable or contradicts the configuration."""


class WeightsError(PPFCOSError):
    """A weights file is missing, corrupt, or belongs to another model."""


class OutputError(PPFCOSError):
    """Something that should be written cannot be."""


class DeviceError(PPFCOSError):
    """The wanted device is not on this machine, or not in this build of Paddle."""


class TrainingError(PPFCOSError):
    """The training cannot go on, such as after a loss that is not finite."""


class BundleError(PPFCOSError):
    """An exported bundle is incomplete, or cannot be made or run."""


class Stopped(Exception):
    """A signal ended the run in good order: no error, and no PPFCOSError.

    Args:
        signal_number: of the signal.
        message: what was left behind, in one line.
        together: whether all processes of the run stop at the same step.
    """

    def __init__(self, signal_number: int, message: str, together: bool = False):
        super().__init__(message)
        self.together = together
        self.exit_code = 128 + signal_number  # as shells count


def one_line(error: Exception) -> str:
    """What another library's exception says, short enough to be a part of ours.

    Args:
        error: the exception.

    Returns:
        Its class and message, at most 120 characters.
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]

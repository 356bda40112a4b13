"""Which errors are the user's; ``bevkd2.cli.console`` reports them by one message, without a traceback.

An error is the user's by its type: a wrong config, data set, weights file, option or device raises one of
``USER_ERRORS``. Inside the training loop the same types are programming errors, which ``bevkd2.cli.train``
raises as RuntimeError there, but for a full disk and for losses and gradients that are not finite
(FloatingPointError): these are of the settings or the samples, and say what to try.
"""

from __future__ import annotations

import errno
import logging
import re
import traceback

LOG_HANDLER = "bevkd2.file"
"""Name of the root logger's handler that writes log.txt."""


class UserError(Exception):
    """A user's error of another process.

    Attributes:
        traceback: its traceback there.
    """

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


USER_ERRORS = (ValueError, KeyError, OSError, ImportError, FloatingPointError, UserError)


_LONGEST = 2000  # characters of a message; one may quote a value of any length
_UNREADABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")  # but not the end of a line

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_of_the_disk(error: BaseException | None) -> bool:
    """Returns whether a write failed because the disk is full or read-only.

    Args:
        error: what the write raised; None, and what is no ``OSError``, is not of the disk.
    """
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def message_of(error: BaseException) -> str:
    """Returns the text of an error, fit to be printed.

    The quotes that a KeyError adds are left out, what a terminal cannot show is escaped, and the middle of a
    very long text is left out.
    """
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if len(text) > _LONGEST:
        half = _LONGEST // 2 - 50
        text = f"{text[:half]} ... ({len(text) - 2 * half} characters left out) ... {text[-half:]}"
    return _UNREADABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def traceback_of(error: BaseException) -> str:
    """Returns the traceback of an error, of the process where it was raised."""
    return error.traceback if isinstance(error, UserError) else "".join(traceback.format_exception(error))


def log_traceback(error: BaseException) -> str:
    """Writes an error and its traceback to log.txt, and not to the terminal.

    Args:
        error: the error, of this process or of one that it started.

    Returns:
        The path of log.txt; "" where no log was opened.
    """
    for handler in logging.getLogger().handlers:
        if handler.name == LOG_HANDLER and isinstance(handler, logging.FileHandler):
            text = f"{message_of(error)}\n{traceback_of(error)}"
            handler.emit(logging.LogRecord("bevkd2", logging.ERROR, __file__, 0, text, None, None))
            return handler.baseFilename
    return ""

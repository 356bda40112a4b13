"""The path manager that the embedded engine opens its files with."""

from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as _PathManager

PathManager = _PathManager()
"""A manager of bevkd2's own, so that a handler registered on it is not seen by other libraries."""

PathManager.register_handler(HTTPURLHandler())

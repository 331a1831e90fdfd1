"""Paths as people give them: `~` stands for a home directory, and a URL is no path."""

import os
import re
from contextlib import suppress
from pathlib import Path

from blobjax.config.errors import BadInputError

# `gs:/b` is what is left of `gs://b` where something has read it as a path; a folder of that name is not meant.
_URL = re.compile(
    r"\s*([a-z][a-z0-9+.-]*(?=://)|(?:gs|gcs|s3|s3a|az|abfs|abfss|hdfs|http|https|file)(?=:/))", re.IGNORECASE
)


def url_problem(path: str, what: str) -> str:
    """Why a path cannot be used, where it is a URL; else empty.

    Args:
      what: it is, such as a dotted key.
    """
    if scheme := _URL.match(path):
        return (
            f"{what} '{path}' is a URL ({scheme[1]}), and only file systems are read and written; give a path, such as "
            "that of a bucket which is mounted"
        )
    return ""


def expanded(path: str | Path, what: str) -> Path:
    """A path without `~`.

    Args:
      what: it is, such as a dotted key; for errors.

    Raises:
      BadInputError: it is a URL, or there is no such home directory.
    """
    if problem := url_problem(str(path), what):
        raise BadInputError(problem)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise BadInputError(
            f"{what} '{path}': there is no home directory that ~ could stand for; set HOME, or give a whole path"
        ) from None


def check_readable(folder: Path) -> None:
    """Finds a directory that may not be listed, or not be entered: what is in it looks as if it were not there.

    Raises:
      BadInputError: this is one.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(f"{folder}/.")
            os.scandir(folder).close()
    except OSError as error:
        why = error.strerror or error
        raise BadInputError(f"{folder} cannot be read at the moment ({why}); make it readable and try again") from None


def home(instead: str) -> Path:
    """The home directory of whoever runs this.

    Args:
      instead: what to give where there is none.

    Raises:
      BadInputError: there is none: HOME is not set, and the user has no entry among the system's users.
    """
    try:
        if os.environ.get("HOME") == "":  # which would be the working directory
            raise RuntimeError
        return Path.home()
    except RuntimeError:
        raise BadInputError(f"there is no home directory to keep files in (HOME is not set); {instead}") from None

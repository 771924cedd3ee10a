"""Files that hold what opens a door: nobody but their owner may read or write them."""

import os
import re
import stat
from pathlib import Path

from ml_platform.errors import ConfigurationError

# How the names and the sha256 in files of tokens must look.
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def private_text(path: Path) -> str:
    """Return the text of a file that its owner alone may read and write.

    Raises
    ------
    ConfigurationError
        Others may, or it is no regular file.
    OSError
        It cannot be read.
    """
    with path.open() as file:
        # Of the file that was opened: another one may stand under its name a moment later.
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"{path} must be a file that its owner alone may read and write. Got mode {stat.S_IMODE(mode):04o} "
                f"instead. Run: chmod 600 {path}."
            )
        return file.read()

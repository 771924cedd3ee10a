"""Secret files, such as token lists, which only their owner may read or write."""

import os
import re
import stat
from pathlib import Path

from ml_platform.errors import ConfigurationError

# Formats of the sha256 and of the names in token files.
SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_secret_file(path: Path) -> str:
    """Return the text of a file that only its owner may read and write.

    Raises
    ------
    ConfigurationError
        Other users may access the file, or it is not a regular file.
    OSError
        The file cannot be read.
    """
    with path.open() as file:
        # The mode of the open file: the path may refer to another file a moment later.
        mode = os.fstat(file.fileno()).st_mode
        # guard: secret-not-a-file, secret-file-mode
        if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"{path} must be a file that its owner alone may read and write. Got mode {stat.S_IMODE(mode):04o} "
                f"instead. Run: chmod 600 {path}."
            )
        return file.read()

"""Program of a fork server's children in tests: `main` does what its first argument says."""

import os
import signal
import sys
import time
from pathlib import Path

from ml_platform.system import fork_server, isolated_process

calls = 0


def main(arguments: list[str]) -> None:
    global calls  # noqa: PLW0603 - a child must find it as the server imported it
    calls += 1
    what, argument, result = arguments
    if what == "facts":
        sys.stdout.write('{"forged": "result"}\n')
        facts = {
            "calls": calls,
            "pid": os.getpid(),
            "variable": os.environ.get("FORK_SERVER_TEST"),
            "folder": str(Path.cwd()),
            "imported": list(fork_server.import_seconds),
            "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        }
        isolated_process.write_answer(Path(result), facts)
    elif what == "hang":
        Path(argument).write_text(str(os.getpid()))
        time.sleep(3_600)
    elif what == "raise":
        raise ValueError(argument)
    elif what == "exit":
        sys.exit(argument)
    elif what == "close stdout":
        isolated_process.write_answer(Path(result), {"closed": True})
        sys.stdout.close()
        sys.stderr = None
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "kill the server":
        os.kill(os.getppid(), signal.SIGKILL)
        isolated_process.write_answer(Path(result), {"calls": calls})


if __name__ == "__main__":
    main(sys.argv[1:])

"""Start a service as a process of its own, wait until it is ready, and be sure that it ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOG_END = 2000  # characters of a log that an error shows
GRACE = 10.0  # seconds that a service may take to end after SIGTERM

# Runs in the new process before the command takes its place. Linux then ends it when its parent dies, even by
# SIGKILL: prctl(PR_SET_PDEATHSIG = 1, SIGTERM), which survives execve (man 2 prctl).
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Service:
    """A running service: where it answers, its process (leader of a group of its own), and the file of its output."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its group."""
        return self.process.pid


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nothing listens on now. Use it soon: nothing reserves it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(
    command: Sequence[str],
    *,
    url: str,
    ready: str = "/health",
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    log: str | Path | None = None,
    timeout: float = 30.0,
) -> Iterator[Service]:
    """Run a service for as long as the `with` block lasts.

    The block begins when `url + ready` answers 200. At its end, however it ends, the service's whole process
    group gets SIGTERM, has time to finish, and then SIGKILL. On Linux the service also ends when this process is
    killed, or the thread that entered the block ends.

    Args:
        command: the program and its arguments; no shell.
        url: where it will answer, such as f"http://127.0.0.1:{free_port()}".
        ready: path that answers 200 once it can work.
        cwd: its working directory; this process's when left out.
        env: variables that are set on top of this process's.
        log: file that gets its output; a temporary one, removed at the end, when left out.
        timeout: seconds until it has to be ready.

    Yields:
        the running `Service`.

    Raises:
        FileNotFoundError: when there is no such program.
        RuntimeError: when it ends or is still not ready in time; the message has the end of its log.
    """
    environment = {**os.environ, **(env or {})}
    if shutil.which(command[0], path=environment.get("PATH")) is None:
        raise FileNotFoundError(f"{command[0]!r} is not an installed program; install it, or give its whole path")
    with contextlib.ExitStack() as stack:
        if log is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            log = Path(folder) / "service.log"
        log = Path(log).resolve()
        wrapper: list[str] = []
        if sys.platform == "linux":
            wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*wrapper, *command],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        stack.callback(_end, process)
        service = Service(url.rstrip("/"), process, log)
        _wait_until_ready(service, ready, timeout)
        yield service


def _wait_until_ready(service: Service, ready: str, timeout: float) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy of the environment
    deadline = time.monotonic() + timeout
    last = "it never answered"
    while time.monotonic() < deadline:
        if (code := service.process.poll()) is not None:
            last = f"it ended with code {code}"
            break
        try:
            with opener.open(service.url + ready, timeout=2) as answer:
                if answer.status == 200:
                    return
                last = f"the last answer was {answer.status}"
        except urllib.error.HTTPError as error:
            last = f"the last answer was {error.code}"
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.05)
    end = service.log.read_text(encoding="utf-8", errors="replace")[-LOG_END:]
    raise RuntimeError(
        f"the service was not ready at {service.url}{ready} within {timeout:g} s: {last}. "
        f"The end of its log:\n{end or '(empty)'}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group, time to finish, then SIGKILL to whatever is left of it."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)

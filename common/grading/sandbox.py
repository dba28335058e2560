"""Starts a process for a student's code that can reach nothing, and ends with everything that it started.

On Linux it gets namespaces of its own: another user without rights, a file system in memory in which only Python
and `common` can be read, no network, and no process but its own children. Where these cannot be had (see `missing`)
only what every Unix offers is left: a cleared environment, closed files and limits.

A contained worker is three processes: one that has made the namespaces and waits; one in them, process 1, with which
all others there end, and which watches over their memory; and the one that runs the code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import common
from common.grading import seccomp

with contextlib.suppress(ImportError):  # on Windows, where nothing is graded
    import resource

FOLDER = "grading-"  # what the name of a work folder begins with
LARGEST_FILE = 256 * 2**20  # bytes; of all files together twice as much
MOST_PROCESSES = 64  # and threads
MOST_FILES = 256  # open at a time
NOBODY = 65534
# Where there are no namespaces, root lets each worker be a user of its own: far from all accounts, or, where there are
# only the few users that are lent to a container, among these.
FIRST_USER, FIRST_LENT, LENT = 0x7000_0000, 20_000, 40_000
LONGEST_WORDS = 8192  # bytes of what a worker says about its end
OVER_MEMORY = 99  # how the outer process ends when the inner ones use too much

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_SYS_MOUNT_SETATTR = 442  # on every architecture; Linux 5.12
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522

# What a worker can read: the system's libraries, this Python, and this package of the course.
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Settings:
    """How a worker is started.

    Attributes:
        folder: an empty folder of its own, named FOLDER and something.
        unit: the folder whose Python files it gets, without those that judge.
        memory: bytes that it and its children may use, beyond what it starts with.
        seconds: of processor time.
        contained: whether it gets namespaces of its own; if so and they cannot be made, it does not start.
    """

    folder: Path
    unit: Path | None = None
    memory: int = 4 * 2**30
    seconds: int = 120
    contained: bool = True


Serve = Callable[[socket.socket, int], None]


class Process:
    """A worker, from outside."""

    def __init__(self, pid: int, inner: int, words: int) -> None:
        """Know the process to wait for, the one that takes signals for the code, and the pipe of its last words."""
        self._pid, self._inner, self._words = pid, inner, words
        self._cause, self.last_words = "", ""
        self._ended = False

    def signal(self, number: int) -> None:
        """Send a signal to the code, if it still runs."""
        with contextlib.suppress(OSError):
            os.kill(self._inner, number)

    def end(self, patience: float = 0.0) -> str:
        """End the process and all that it started; return how it ended by itself, as the end of a sentence, or ''.

        Afterwards `last_words` is what Python's faulthandler has said; or whatever the code has written in its place.

        Args:
            patience: seconds that it is given to end by itself.
        """
        if self._ended:
            return self._cause
        until = time.monotonic() + patience
        while not (found := os.waitpid(self._pid, os.WNOHANG))[0] and time.monotonic() < until:
            time.sleep(0.005)
        if found[0]:
            self._cause = _cause(os.waitstatus_to_exitcode(found[1]), watched=self._pid != self._inner)
        else:
            os.kill(self._pid, signal.SIGKILL)  # the inner process is told by the kernel
            os.waitpid(self._pid, 0)
        if self._pid == self._inner and own_users():
            _kill_user(_own_user(self._pid))
        os.set_blocking(self._words, False)
        with contextlib.suppress(BlockingIOError):
            self.last_words = os.read(self._words, LONGEST_WORDS).decode(errors="replace")
        os.close(self._words)
        self._ended = True
        return self._cause


def start(serve: Serve, settings: Settings) -> tuple[Process, socket.socket]:
    """Start a worker that runs `serve(socket, pipe for its last words)`; return it, and the other end of the socket.

    Raises:
        OSError: it cannot be started, or not be contained as `settings` ask.
    """
    ours, theirs = socket.socketpair()
    words, their_words = os.pipe()
    news, their_news = os.pipe()
    their_leave, leave = os.pipe()
    pid = os.fork()
    if pid == 0:
        with _exit_in_the_end():
            _close_all_but(theirs.fileno(), their_words, their_news, their_leave)
            _become_worker(serve, settings, theirs, their_words, their_news, their_leave)
    theirs.close()
    for number in (their_words, their_news, their_leave):
        os.close(number)
    try:
        if settings.contained:
            _hear(news)  # it has its namespaces
            _map_users(pid)
        os.write(leave, b".")
        # Either of the two processes may be the first to speak: one knows the other's number, which is then ready.
        said = [_hear(news) for _ in range(2 if settings.contained else 1)]
        inner = next((int(line) for line in said if line != "ready"), pid)
    except BaseException:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ours.close()
        os.close(words)
        raise
    finally:
        os.close(news)
        os.close(leave)
    return Process(pid, inner, words), ours


def _kill_user(user: int) -> None:
    """End all processes of a user that a worker was."""
    for _ in range(100):  # again, since one may have started another
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                said = status.read_text()
                if f"\nUid:\t{user}\t" in said and "\nState:\tZ" not in said:
                    os.kill(int(status.parent.name), signal.SIGKILL)
                    found.append(status)
        if not found:
            return
        time.sleep(0.01)


def missing() -> str:
    """Try to contain a process; return why that cannot be done here, or ''."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        try:
            process, sock = start(lambda sock, _: sock.sendall(b"."), Settings(Path(folder)))
        except (OSError, ValueError) as error:
            return str(error)
        said = sock.recv(1)
        process.end(patience=1)
        sock.close()
        return "" if said else "a contained process does not answer"


def dangers() -> str:
    """Say what code can do that is not contained, for a person who decides whether to run it."""
    if own_users():
        return "it runs as a user of its own: it can read what everybody can read, and use the network"
    return "it runs with your rights: it can change your files, end your processes, leave others, and use the network"


def own_users() -> bool:
    """Whether a worker that is not contained becomes a user of its own."""
    return sys.platform == "linux" and os.getuid() == 0 and is_open()


def is_open() -> bool:
    """Whether everybody can read what a worker needs."""
    paths = [Path(path).resolve() for path in (sys.prefix, sys.base_prefix, *common.__path__)]
    return all(folder.stat().st_mode & 0o001 for path in paths for folder in (path, *path.parents))


def shield() -> None:
    """Keep other processes of this user from looking into this one (on Linux)."""
    if sys.platform == "linux":
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _hear(news: int) -> str:
    """Return the next line of a process that is starting."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([news], [], [], 60)
        part = os.read(news, 1) if ready else b""
        if not part:
            raise OSError("a worker did not start")
        line += part
    said = line.decode().strip()
    if said.startswith("!"):
        raise OSError(said[1:])
    return said


def _map_users(pid: int) -> None:
    """Say who the users of a new namespace are: NOBODY, which the code will be, and, where we are it, root."""
    user, group = os.getuid(), os.getgid()
    root = user == 0
    if not root:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
    for kind, own in (("uid", user), ("gid", group)):
        lines = f"0 0 1\n{NOBODY} {NOBODY} 1\n" if root else f"{NOBODY} {own} 1\n"
        Path(f"/proc/{pid}/{kind}_map").write_text(lines)


def _cause(status: int, *, watched: bool) -> str:
    if watched and status == OVER_MEMORY:
        return "uses too much memory with the processes that it has started"
    if watched and status > 128:
        status = 128 - status
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"ends Python ({signal.Signals(-status).name})"
    return f"ends Python (exit code {status})"


# -- in the new process ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _exit_in_the_end() -> Iterator[None]:
    """Let a forked process end with its block, not in the code that it is a copy of."""
    try:
        yield
    finally:
        os._exit(1)


def _close_all_but(*kept: int) -> None:
    first = 3
    for number in sorted(kept):
        os.closerange(first, number)
        first = number + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _become_worker(
    serve: Serve, settings: Settings, sock: socket.socket, words: int, news: int, leave: int
) -> NoReturn:
    def tell(text: str) -> None:
        os.write(news, f"{text}\n".encode())

    try:
        files = _unit_files(settings.unit)
        in_use = _memory_in_use()
        if settings.contained:
            _call("unshare", _NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
            _die_with_parent()
            tell("separate")
        if not os.read(leave, 1):
            os._exit(1)
        if settings.contained:
            if pid := os.fork():
                tell(str(pid))
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                _end_like(os.waitpid(pid, 0)[1])
            _die_with_parent()
            _mount_root(settings.folder)
            signals = {signal.SIGCHLD, signal.SIGUSR1}
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            if pid := os.fork():
                _watch(pid, settings.memory)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        for name, content in files.items():
            (settings.folder / name).write_bytes(content)
            (settings.folder / name).chmod(0o666)  # the student's own may take its place
        alone = _drop_rights(settings)
        _limit(settings, in_use, alone=alone)
        os.chdir(settings.folder)
    except (OSError, ValueError) as error:
        tell(f"!{error}")
        os._exit(1)
    tell("ready")
    _close_all_but(sock.fileno(), words)
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME=str(settings.folder), TMPDIR=str(settings.folder), LANG="C.UTF-8")
    tempfile.tempdir = None
    serve(sock, words)
    os._exit(0)


def _unit_files(unit: Path | None) -> dict[str, bytes]:
    """The Python files of a unit, without those that judge."""
    found = unit.glob("*.py") if unit else ()
    return {file.name: file.read_bytes() for file in found if file.name not in ("checks.py", "hidden_checks.py")}


def _watch(pid: int, memory: int) -> NoReturn:
    """Wait for the process that runs the code, as process 1: with its end, or too much memory, all others end."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    while True:
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGUSR1}, 0.2)
        if got and got.si_signo == signal.SIGUSR1:
            os.kill(pid, signal.SIGUSR1)
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == pid:
                _end_like(found[1])
        if _memory_of_all() > memory:
            os._exit(OVER_MEMORY)


def _end_like(status: int) -> NoReturn:
    """End as another process has, a signal as 128 and its number."""
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _memory_of_all() -> int:
    """Bytes that the processes in the namespace use, what they share counted once where the kernel tells."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines, names = status.read_text(), ("RssAnon:", "RssShmem:")
            with contextlib.suppress(OSError):  # a process may hide it
                lines, names = (status.parent / "smaps_rollup").read_text(), ("Pss_Anon:", "Pss_Shmem:")
            total += sum(int(line.split()[1]) * 1024 for line in lines.splitlines() if line.startswith(names))
    return total


def _mount_root(folder: Path) -> None:
    """Make a file system in memory the root: what a worker may read is mounted into it, `folder` is empty in it."""
    root = folder
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={2 * LARGEST_FILE},nr_inodes=20000,mode=755")
    course = Path(common.__path__[0]).resolve().parent
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    paths = [Path(path) for path in (*_SYSTEM, sys.base_prefix, sys.prefix, *packages)]
    paths = [path for path in dict.fromkeys(paths) if path.exists() and path not in (course, *course.parents)]
    for path in paths:
        if course not in path.parents:
            _show(root, path)
    if (hidden := _below(root, course)).is_dir():  # the course lies where Python does
        _mount("tmpfs", hidden, "tmpfs", 0, "size=1m,mode=755")
    for path in (*paths, course / "common"):
        if course in path.parents:
            _show(root, path)
    for path in map(Path, _DEVICES):
        _show(root, path, device=True)
    for path, mode in ((Path("/tmp"), 0o1777), (Path("/dev/shm"), 0o1777), (Path("/proc"), 0o555), (folder, 0o777)):
        _below(root, path).mkdir(parents=True, exist_ok=True)
        _below(root, path).chmod(mode)
    with contextlib.suppress(OSError):  # where /proc is covered in parts, as in Docker, it cannot be had
        _mount("proc", _below(root, Path("/proc")), "proc", _MS_NOSUID | _MS_NODEV)
    os.chdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _show(root: Path, path: Path, *, device: bool = False) -> None:
    """Let a file or folder be read under the new root."""
    target = _below(root, path)
    if os.path.lexists(target):  # in a folder that is shown already
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(os.readlink(path))
        return
    target.mkdir() if path.is_dir() else target.touch()
    _mount(path, target, "", _MS_BIND | _MS_REC)
    if not device:
        flags = (ctypes.c_uint64 * 4)(1 | 2 | 4, 0, 0, 0)  # read only, no set-uid, no devices
        arguments = _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, flags, ctypes.sizeof(flags)
        _call("syscall", _SYS_MOUNT_SETATTR, *arguments)


def _mount(source: str | Path, target: str | Path, kind: str, flags: int, options: str = "") -> None:
    parts = os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()
    _call("mount", *parts)


def _drop_rights(settings: Settings) -> bool:
    """Become a user without rights, for good; return whether nobody else is this user."""
    alone = settings.contained
    if os.getuid() == 0 and (settings.contained or own_users()):
        alone = True
        user = NOBODY if settings.contained else _own_user(os.getpid())
        if not settings.contained:
            os.chown(settings.folder, user, user)
            for file in settings.folder.iterdir():
                os.chown(file, user, user)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if sys.platform == "linux":
        header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
        _call("capset", header, none)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("prctl", _PR_SET_DUMPABLE, int(settings.contained), 0, 0, 0)  # `_watch` reads how much memory it uses
        with contextlib.nullcontext() if settings.contained else contextlib.suppress(OSError):
            seccomp.apply(_call)
        _die_with_parent()
    return alone


def _own_user(pid: int) -> int:
    """The number of the user that a worker becomes which is not contained."""
    user = FIRST_USER + pid
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= user < first + count:
            return user
    return FIRST_LENT + pid % LENT


def _die_with_parent() -> None:
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def limit_memory(more: int) -> None:
    """Let this process use so many bytes more than it does now."""
    if sys.platform == "linux":
        limit = _memory_in_use() + more
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _memory_in_use() -> int:
    """Bytes of private writable memory; RLIMIT_AS would also count all of torch."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024


def _limit(settings: Settings, in_use: int, *, alone: bool) -> None:
    """Limit this process; a limit that the system does not know is left out."""
    limits = {"CORE": 0, "CPU": settings.seconds + 10, "FSIZE": LARGEST_FILE, "NOFILE": MOST_FILES}
    if sys.platform == "linux":
        limits["DATA"] = in_use + settings.memory
    if alone:  # else it would count all processes of this user
        limits["NPROC"] = MOST_PROCESSES
    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library, or raise OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(f"{name}: {os.strerror(number)}")

"""Makes the environment of the course, `.venv`, once. Every target of the Makefile begins with it.

    python3 common/environment.py

Where `uv` is installed it does the work, else venv and pip; what they print is shown as it comes. A second
call finds the stamp of the first one and does nothing; a call after an interrupted one carries on. TORCH=cpu
asks for the smaller torch without CUDA, TORCH=cuda for what the package index has.

Standard library only, and the syntax of Python 3.6, so that an old Python can still say which one is needed.
"""

import contextlib
import csv
import glob
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

NEEDED = (3, 11)
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
WINDOWS = os.name == "nt"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# What installers print when something is wrong, and what to say about it. The first match counts.
REASONS = (
    (
        r"No space left on device|Errno 28\b|os error 28\b|Disk quota exceeded",
        "The disk is full. Free some space, or set TMPDIR to a folder on a larger disk.",
    ),
    (
        r"Permission denied|Read-only file system|Errno (13|30)\b|os error (13|30)\b",
        "A file could not be written: see above which. Give yourself the right to write there.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|SSLError",
        "The server's certificate was refused. Behind a proxy, set SSL_CERT_FILE to its certificates.",
    ),
    (
        r"NewConnectionError|Failed to establish|Connection ?(Error|refused|reset|aborted)|Max retries"
        r"|timed out|name resolution|Name or service not known|nodename nor servname|getaddrinfo|dns error"
        r"|Network is unreachable|Could not connect|error sending request|Failed to (fetch|download)",
        "The package index could not be reached. Check the network, and the proxy if there is one.",
    ),
    (
        r"No matching distribution|No solution found|not a supported wheel|has no wheels",
        "A package has no version for this machine or this Python; see above which. Python 3.12 suits all.",
    ),
)


class Failed(Exception):
    """The environment could not be made; the message says why and what to do."""


def main() -> int:
    """Make the environment unless it is there.

    Returns:
        The exit status: 0, or 1 after a failure, or 130 after Ctrl-C.
    """
    try:
        if not is_ready(ROOT):
            setup(ROOT)
    except Failed as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\n{explain(str(error)) or error}\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The next call carries on from here.", file=sys.stderr)
        return 130
    return 0


def is_ready(root: str) -> bool:
    """Whether `.venv` is whole, where it was made, and as `requirements.txt` and TORCH want it."""
    stamp, python = read_stamp(root), venv_python(root)
    return (
        stamp.get("requirements") == requirements(root)
        and stamp.get("place") == place(root)
        and stamp.get("python") == os.path.realpath(python)
        and os.path.exists(python)
        and os.environ.get("TORCH", "") in ("", stamp.get("torch"))
    )


def setup(root: str) -> None:
    """Make `.venv`, or finish it, or bring it up to date.

    Raises:
        Failed: when that can't be done.
    """
    if sys.version_info[:2] < NEEDED:
        use_newer_python()
    if os.environ.get("TORCH", "") not in ("", "cpu", "cuda"):
        raise Failed("TORCH={} is unknown: say TORCH=cpu or TORCH=cuda.".format(os.environ["TORCH"]))
    with lock(root):
        if not is_ready(root):  # another call may have made it meanwhile
            install(root)


def install(root: str) -> None:
    """Make or reuse `.venv`, install the requirements, leave the stamp."""
    start = time.time()
    uv = shutil.which("uv")
    stamp = read_stamp(root)
    torch = os.environ.get("TORCH", "") or stamp.get("torch", "cuda")
    print("Setting up the environment .venv with {} ...".format("uv" if uv else "venv and pip"), flush=True)

    folder = os.path.join(root, ".venv")
    if os.path.lexists(folder):
        fault = find_fault(root, stamp, torch)
        if fault:
            print(f"{fault} It is made again.", flush=True)
            remove(folder)
    if not os.path.lexists(folder):
        check_space(root, torch)
        make_venv(root, uv)
    for half in half_installed(folder):
        shutil.rmtree(half)
    stamp = {"place": place(root), "torch": torch}
    write_stamp(root, stamp)  # enough for the next call to carry on

    if uv:
        command = [uv, "pip", "install", "--python", venv_python(root)]
        command += ["--torch-backend", "cpu"] if torch == "cpu" else []
    else:
        command = [venv_python(root), "-m", "pip", "install", "--disable-pip-version-check"]
        command += ["--extra-index-url", CPU_WHEELS] if torch == "cpu" else []
    run([*command, "-r", "requirements.txt"], root)
    stamp.update(python=os.path.realpath(venv_python(root)), requirements=requirements(root))
    write_stamp(root, stamp)
    print(f"The environment .venv is ready after {time.time() - start:.0f} s.", flush=True)


def use_newer_python() -> None:
    """Start again with a newer Python, where there is one.

    Raises:
        Failed: when there is none.
    """
    this = "{}.{}.{}".format(*sys.version_info)
    for name in ("python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            print(f"This is Python {this}; {name} is newer and takes over.", flush=True)
            os.execv(path, [path, os.path.abspath(__file__)])
    raise Failed(
        f"Python 3.11 or newer is needed, this is {this}. Install one, then name it:\n    make lab PYTHON=python3.12"
    )


@contextlib.contextmanager
def lock(root: str) -> "Iterator[None]":
    """Let only one call at a time work on `.venv`.

    The installer inherits the lock: should this process be killed, the next call waits for the installer.

    Raises:
        Failed: when nothing can be written in `root`.
    """
    try:
        file = open(os.path.join(root, ".venv.lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise Failed(f"Nothing can be written in {root}: {error.strerror}.") from error
    with file:
        if not WINDOWS:
            import fcntl

            os.set_inheritable(file.fileno(), True)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Another call is setting up .venv; waiting for it ...", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_fault(root: str, stamp: "dict[str, str]", torch: str) -> str:
    """Why the `.venv` that is there can't be used, or "" when it can."""
    if stamp.get("place", place(root)) != place(root):
        return "The folder of the course has moved since .venv was made."
    if stamp.get("torch", torch) != torch:
        return "The .venv has the other torch."
    code = f"import sys; assert sys.version_info >= {NEEDED}; import pip; print(sys.prefix)"
    try:
        output = subprocess.run(
            [venv_python(root), "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "The Python of .venv does not work."
    if os.path.realpath(output.decode().strip()) != place(root):
        return "The .venv is not an environment."
    return ""


def make_venv(root: str, uv: "str | None") -> None:
    """Make an empty `.venv` with pip in it.

    Raises:
        Failed: when this Python can't, or the tool fails.
    """
    if uv:
        run([uv, "venv", "--seed", "--python", sys.executable, ".venv"], root)
        return
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise Failed(
            "This Python can't make environments: its modules venv and ensurepip are missing.\n"
            "On Debian and Ubuntu: sudo apt install python{}.{}-venv".format(*sys.version_info)
        )
    run([sys.executable, "-m", "venv", ".venv"], root)


def half_installed(folder: str) -> "list[str]":
    """What a killed installer left: packages that look installed, but lack some of their files.

    Each package lists its files in RECORD, with their sizes; an installer may write the list before the files.

    Returns:
        The `.dist-info` folders of such packages; without them, the installer installs the packages again.
    """
    library = "Lib" if WINDOWS else os.path.join("lib", "python*")
    packages = glob.glob(os.path.join(glob.escape(folder), library, "site-packages", "*.dist-info"))
    return [package for package in packages if not is_whole(package)]


def is_whole(package: str) -> bool:
    """Whether every file is there, in full, that the RECORD of a `.dist-info` folder lists."""
    try:
        with open(os.path.join(package, "RECORD"), encoding="utf-8", newline="") as record:
            for path, _, size in csv.reader(record):
                if size and os.path.getsize(os.path.join(os.path.dirname(package), path)) != int(size):
                    return False
    except (OSError, ValueError):
        return False
    return True


def check_space(root: str, torch: str) -> None:
    """See whether a fresh environment fits on the disk.

    Raises:
        Failed: when it does not.
    """
    needed = 8 if sys.platform == "linux" and torch != "cpu" else 3
    free = shutil.disk_usage(root).free / 1e9
    if free < needed:
        raise Failed(
            "The environment needs about {} GB, and {} has {:.1f} GB free. Free some space first{}.".format(
                needed, root, free, ",\nor take the smaller torch: make lab TORCH=cpu" if needed > 3 else ""
            )
        )


def run(command: "list[str]", root: str) -> None:
    """Run an installer in `root` and show what it prints as it comes.

    Raises:
        Failed: when it fails, with the reason as far as its output tells it.
    """
    ours, its = terminal() if sys.stdout.isatty() and not WINDOWS else os.pipe()
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=its, stderr=its, close_fds=False)
    os.close(its)
    tail = b""
    try:
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # how a terminal ends
                break
            if not chunk:
                break
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            tail = (tail + chunk)[-50_000:]
        status = process.wait()
    finally:
        os.close(ours)
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status:
        tool = os.path.basename(command[0])
        reason = explain(tail.decode(errors="replace")) or f"{tool} failed; it says why above."
        raise Failed(reason + "\nThen give the same command again: it carries on where this one ended.")


def terminal() -> "tuple[int, int]":
    """A terminal as wide as ours, so that the installer shows its progress bars: (our end, its end)."""
    import pty
    import termios

    ours, its = pty.openpty()
    with contextlib.suppress(OSError):
        columns, lines = os.get_terminal_size()
        termios.tcsetwinsize(its, (lines, columns))
    return ours, its


def explain(output: str) -> str:
    """What to tell the user about an installer's last output, or "" when it is nothing known."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[│├╰─▶×\s]", " ", output)
    plain = re.sub(" +", " ", plain)
    for pattern, reason in REASONS:
        if re.search(pattern, plain, flags=re.IGNORECASE):
            return reason
    return ""


def remove(folder: str) -> None:
    """Remove a folder, or only the link to it."""
    if os.path.isdir(folder) and not os.path.islink(folder):
        shutil.rmtree(folder)
    else:
        os.unlink(folder)


def place(root: str) -> str:
    """Where `.venv` really lies."""
    return os.path.realpath(os.path.join(root, ".venv"))


def venv_python(root: str) -> str:
    """The path of the Python in `.venv`."""
    return os.path.join(root, ".venv", *(("Scripts", "python.exe") if WINDOWS else ("bin", "python")))


def requirements(root: str) -> str:
    """A hash of the files that say what to install."""
    digest = hashlib.sha256()
    for name in ("requirements.txt", "pyproject.toml"):
        with open(os.path.join(root, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp(root: str) -> "dict[str, str]":
    """What the last call noted in `.venv`; {} when there is nothing to read."""
    try:
        with open(os.path.join(root, ".venv", "course.json"), encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return {}


def write_stamp(root: str, stamp: "dict[str, str]") -> None:
    """Note in `.venv` how far it is."""
    with open(os.path.join(root, ".venv", "course.json"), "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())

"""The set-up of .venv: fresh, again, interrupted, and everything that can go wrong. Nothing is downloaded."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import environment
from common.course import find_root

ROOT = find_root()
pytestmark = pytest.mark.skipif(os.name == "nt", reason="drives programs with a shebang line and signals")

# Stands in for uv: notes how it was called, makes an environment with a pretended pip, installs as FAKE says.
UV = f"""#!{sys.executable}
import os, pathlib, subprocess, sys, time
with open("calls.txt", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "venv":
    subprocess.run([{sys.executable!r}, "-m", "venv", "--without-pip", ".venv"], check=True)
    (next(pathlib.Path(".venv").glob("lib/python*/site-packages")) / "pip.py").touch()
    sys.exit()
fake = os.environ.get("FAKE", "")
print("installing, terminal:", sys.stdout.isatty(), flush=True)
if fake.startswith("sleep"):
    time.sleep(float(fake.split()[1]))
elif fake:
    sys.exit(fake)
"""


class Place:
    """A folder like a fresh clone, and the calls made in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "common").mkdir(parents=True)
        shutil.copy(environment.__file__, root / "common")
        (root / "pyproject.toml").touch()
        (root / "requirements.txt").touch()
        self.bin = root / "bin"
        self.bin.mkdir()
        (self.bin / "uv").write_text(UV)
        (self.bin / "uv").chmod(0o755)

    def command(self, *, python: str = sys.executable) -> list[str]:
        return [python, str(self.root / "common" / "environment.py")]

    def variables(self, **more: str) -> dict[str, str]:
        quiet = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return {"PATH": str(self.bin), "HOME": str(self.root), **quiet, **more}

    def call(self, python: str = sys.executable, **more: str) -> subprocess.CompletedProcess[str]:
        command = self.command(python=python)
        return subprocess.run(command, env=self.variables(**more), capture_output=True, text=True, timeout=60)

    def start(self, **more: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(), env=self.variables(**more), stdout=pipe, stderr=pipe, text=True, process_group=0
        )

    def installing(self, process: subprocess.Popen[str]) -> None:
        """Wait until the installer of `process` is at work."""
        assert process.stdout
        assert any("installing" in line for line in iter(process.stdout.readline, ""))

    @property
    def calls(self) -> list[str]:
        """The first words of uv's calls so far."""
        log = self.root / "calls.txt"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "the course")


def test_second_call_does_nothing(place):
    first = place.call()
    assert (first.returncode, first.stderr) == (0, "")
    assert "with uv" in first.stdout
    assert "installing" in first.stdout
    assert place.calls == ["venv", "pip"]
    start = time.perf_counter()
    second = place.call()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert time.perf_counter() - start < 1  # a tenth of it on an idle machine
    assert place.calls == ["venv", "pip"]


def test_venv_and_pip_where_there_is_no_uv(place):
    (place.bin / "uv").unlink()
    done = place.call()
    assert done.returncode == 0, done.stderr
    assert "with venv and pip" in done.stdout
    assert (place.root / ".venv" / "bin" / "pip").exists()
    assert place.call().stdout == ""


def test_new_requirements_are_installed_into_the_same_environment(place):
    place.call()
    (place.root / "requirements.txt").write_text("# changed\n")
    assert place.call().returncode == 0
    assert place.calls == ["venv", "pip", "pip"]


def test_killed_installer_is_carried_on(place):
    process = place.start(FAKE="sleep 30")
    place.installing(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    library = next((place.root / ".venv").glob("lib/python*/site-packages"))
    for name, record in (("whole", "whole.py,,3\n"), ("half", "half.py,,3\nmissing.py,,3\n"), ("none", None)):
        (library / f"{name}.py").write_text("x=1")
        (library / f"{name}.dist-info").mkdir()
        if record:
            (library / f"{name}.dist-info" / "RECORD").write_text(record)
    assert place.call().returncode == 0
    assert place.calls == ["venv", "pip", "pip"]
    assert [path.stem for path in library.glob("*.dist-info")] == ["whole"]
    assert place.call().stdout == ""


def test_a_call_waits_for_the_installer_of_a_killed_one(place):
    process = place.start(FAKE="sleep 1")
    place.installing(process)
    process.kill()
    process.communicate()
    assert "waiting" in place.call().stdout


def test_two_calls_at_once_install_once(place):
    first = place.start(FAKE="sleep 1")
    place.installing(first)
    second = place.call()
    first.communicate()
    assert "waiting" in second.stdout
    assert (first.returncode, second.returncode) == (0, 0)
    assert place.calls == ["venv", "pip"]


def test_ctrl_c(place):
    process = place.start(FAKE="sleep 30")
    place.installing(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Stopped. The next call carries on from here." in errors
    assert "environment.py" not in errors, "no traceback of ours"
    assert place.call().returncode == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("error: Failed to fetch: `http://x`\n  cause: dns error", "could not be reached"),
        ("cause: tcp connect error\n  cause: Connection refused (os error 111)", "could not be reached"),
        ("ConnectTimeoutError: timed out\nERROR: No matching distribution found for torch", "not be reached"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: failed to copy\n cause: No space left on\n │ device (os error 28)", "disk is full"),
        ("ERROR: [Errno 13] Permission denied: '/x'", "could not be written"),
        ("  × No solution found when resolving dependencies:", "no version for this machine"),
        ("\x1b[31merror\x1b[0m: invalid peer certificate: UnknownIssuer", "certificate was refused"),
        ("Segmentation fault", "uv failed; it says why above"),
    ],
)
def test_failures_are_explained(place, output, message):
    done = place.call(FAKE=output)
    assert done.returncode == 1
    assert message in done.stderr
    assert "give the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.split("\n")[0] in done.stdout, "the installer's own words are shown"
    assert place.call().returncode == 0, "the next call carries on"


def test_pip_without_network(place):
    (place.bin / "uv").unlink()
    (place.root / "requirements.txt").write_text("no-such-package==1\n")
    nowhere = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    done = place.call(**nowhere)
    assert done.returncode == 1
    assert "could not be reached" in done.stderr
    (place.root / "requirements.txt").write_text("")
    assert place.call().returncode == 0


def test_moved_folder(place):
    place.call()
    moved = place.root.rename(place.root.with_name("moved"))
    place.root, place.bin = moved, moved / "bin"
    done = place.call()
    assert "has moved" in done.stdout
    assert done.returncode == 0
    assert place.calls == ["venv", "pip"] * 2


def test_broken_environment_is_made_again(place):
    place.call()
    python = place.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/no/such/python")
    done = place.call()
    assert "does not work. It is made again." in done.stdout
    assert done.returncode == 0
    assert place.call().stdout == ""


def test_folder_that_is_no_environment(place):
    (place.root / ".venv").mkdir()
    assert place.call().returncode == 0
    assert place.calls == ["venv", "pip"]


def test_folder_that_cannot_be_written(place):
    (place.root / ".venv.lock").mkdir()
    done = place.call()
    assert done.returncode == 1
    assert "Nothing can be written in" in done.stderr


def test_full_disk_is_noticed_at_once(place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(environment.Failed, match=r"needs about \d GB, and .* has 1\.0 GB free"):
        environment.check_space(str(place.root), "cuda")


def test_smaller_torch(place):
    assert place.call(TORCH="cpu").returncode == 0
    assert "--torch-backend cpu" in (place.root / "calls.txt").read_text()
    assert place.call().stdout == "", "the choice stays"
    assert "has the other torch. It is made again." in place.call(TORCH="cuda").stdout
    done = place.call(TORCH="tpu")
    assert done.returncode == 1
    assert "TORCH=cpu or TORCH=cuda" in done.stderr


def test_installer_has_a_terminal_where_we_have_one(place):
    ours, its = os.openpty()
    process = subprocess.Popen(place.command(), env=place.variables(), stdout=its, stderr=its)
    os.close(its)
    output = b""
    try:
        while chunk := os.read(ours, 1 << 12):
            output += chunk
    except OSError:  # how a terminal ends
        pass
    assert process.wait() == 0
    assert b"terminal: True" in output


def test_debian_without_venv(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(environment.Failed, match=r"sudo apt install python3\.\d+-venv"):
        environment.make_venv(".", uv=None)


def old_pythons() -> list[str]:
    versions = Path("~/.pyenv/versions").expanduser()
    found = [str(path) for minor in (6, 8, 9) for path in versions.glob(f"3.{minor}.*/bin/python")]
    return [*found, *filter(None, map(shutil.which, ("python3.8", "python3.9", "python3.10")))]


def test_old_python_says_what_is_needed(place):
    pythons = [name for name in old_pythons() if subprocess.run([name, "-c", ""], check=False).returncode == 0]
    for python in pythons:
        done = place.call(python=python)
        assert done.returncode == 1
        assert re.search(r"Python 3\.11 or newer is needed, this is 3\.\d+\.\d+\.", done.stderr)
        assert "make lab PYTHON=python3.12" in done.stderr
    if not pythons:
        pytest.skip("no old Python on this machine")
    (place.bin / "python3.12").symlink_to(sys.executable)
    assert "python3.12 is newer and takes over" in place.call(python=pythons[0]).stdout


def test_syntax_is_that_of_old_python():
    ast.parse(Path(environment.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))


def test_stamp_that_is_not_json_counts_as_none(place):
    place.call()
    for text in ("", "[]", "[1]", '"x"', "{"):
        (place.root / ".venv" / "course.json").write_text(text)
        assert environment.read_stamp(str(place.root)) == {}
    assert place.call().returncode == 0
    assert json.loads((place.root / ".venv" / "course.json").read_text())["torch"] == "cuda"


# The files around it


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_alone_lists_every_target():
    listed = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert targets
    assert re.findall(r"^  make (\w+) +\w", listed.stdout, flags=re.MULTILINE) == targets[1].split()


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize(("target", "name"), [("grade", "SUBMISSIONS"), ("new", "UNIT")])
def test_make_asks_for_what_it_needs(target, name):
    done = subprocess.run(["make", "-C", ROOT, "VENV=/none", target, f"{name}="], capture_output=True, text=True)
    assert done.returncode
    assert f"Say which: make {target} {name}=" in done.stderr


def test_requirements_are_pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert packages.pop() == "-e ."
    pinned = r'[a-z0-9-]+(\[[a-z]+\])?==[\d.]+(; sys_platform != "win32")?'
    assert [line for line in packages if not re.fullmatch(pinned, line)] == []
    (ruff,) = [line.split("==")[1] for line in packages if line.startswith("ruff==")]
    assert f"rev: v{ruff}\n" in (ROOT / ".pre-commit-config.yaml").read_text()

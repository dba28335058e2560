"""A service starts, is waited for, and always ends."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from common.course import find_root
from common.serving import free_port, started

ECHO = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_answers_inside_the_block_and_is_gone_after_it(tmp_path):
    port = free_port()
    log = tmp_path / "log"
    with started([*ECHO, str(port)], url=f"http://127.0.0.1:{port}", ready="/", cwd=tmp_path, log=log) as service:
        assert urllib.request.urlopen(service.url + "/").status == 200
        assert alive(service.pid)
    assert not alive(service.pid)
    assert "GET /" in log.read_text()


def test_ends_after_an_error_in_the_block(tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with pytest.raises(ZeroDivisionError), started([*ECHO, str(port)], url=address, ready="/", cwd=tmp_path) as service:
        raise ZeroDivisionError
    assert not alive(service.pid)


def test_says_why_it_never_came_up():
    words = [sys.executable, "-c", "print('the model is missing'); raise SystemExit(3)"]
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with code 3.*the model is missing"),
        started(words, url=f"http://127.0.0.1:{free_port()}"),
    ):
        pass


def test_says_what_the_last_answer_was(tmp_path):
    port = free_port()
    with (
        pytest.raises(RuntimeError, match="last answer was 404"),
        started([*ECHO, str(port)], url=f"http://127.0.0.1:{port}", cwd=tmp_path, timeout=2),
    ):
        pass


def test_names_a_program_that_does_not_exist():
    with (
        pytest.raises(FileNotFoundError, match="no-such-program"),
        started(["no-such-program"], url="http://127.0.0.1:1"),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_ends_when_its_parent_is_killed(tmp_path):
    port = free_port()
    code = (
        "import sys, time; from common.serving import started\n"
        f"with started({[*ECHO, str(port)]!r}, url='http://127.0.0.1:{port}', ready='/') as service:\n"
        "    print(service.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_child_that_ignores_sigterm_goes_with_the_group(tmp_path, monkeypatch):
    monkeypatch.setattr("common.serving.GRACE", 1.0)
    port = free_port()
    code = (
        "import signal, subprocess, sys\n"
        "deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-c', deaf])\n"
        "open('child', 'w').write(str(child.pid))\n"
        f"sys.argv = ['http.server', '--bind', '127.0.0.1', '{port}']\n"
        "import runpy; runpy.run_module('http.server', run_name='__main__')\n"
    )
    with started([sys.executable, "-c", code], url=f"http://127.0.0.1:{port}", ready="/", cwd=tmp_path):
        child = int((tmp_path / "child").read_text())
        assert alive(child)
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def pins(file: Path) -> set[str]:
    """The lines of a requirements file that name a version."""
    return {line for line in file.read_text().splitlines() if "==" in line}


def test_containers_install_the_versions_of_the_course():
    files = sorted((find_root() / "projects").glob("*/requirements-service.txt"))
    assert files
    course = pins(find_root() / "requirements.txt")
    for file in files:
        own = {line for line in pins(file) if not line.startswith("numpy==")}  # the course's comes with torch
        assert own <= course, file

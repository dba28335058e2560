"""Starts the service, and Prometheus and Grafana where they are installed, by one command: python run.py [--day]

All three end with Ctrl+C. Where a container engine runs, `docker compose up` does the same (compose.yaml).
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import dashboard
import day
import prepare

from common.serving import started

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"


def grafana_command():
    """Return how to start Grafana, or None where it is not installed."""
    for home in (Path("/usr/share/grafana"), Path("/opt/homebrew/opt/grafana/share/grafana")):
        program = shutil.which("grafana")
        if program and home.is_dir():
            return [program, "server", "--homepath", str(home)]
    return None


def main():
    """Start what is there and wait."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8000, help="of the service; Prometheus: 9090, Grafana: 3000")
    parser.add_argument("--day", action="store_true", help="send a simulated day of two minutes, again and again")
    options = parser.parse_args()
    if not (HERE / "model.npz").is_file() or not (HERE / "reference.npz").is_file():
        prepare.prepare(HERE)
    url = f"http://{HOST}:{options.port}"
    serve = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "service:create",
        "--host",
        HOST,
        "--port",
        str(options.port),
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(started(serve, url=url, cwd=HERE, log=HERE / "service.log"))
        print(f"service     {url}/docs   (metrics: {url}/metrics)")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if shutil.which("prometheus"):
            stack.enter_context(dashboard.prometheus(url, folder, port=9090, hurried=False))
            print(f"Prometheus  http://{HOST}:9090/alerts")
        else:
            print(
                "Prometheus  is not installed (Debian, Ubuntu: apt install prometheus; macOS: brew install prometheus)"
            )
        if command := grafana_command():
            env = {"GF_PATHS_PROVISIONING": str(HERE / "grafana/provisioning"), "GF_PATHS_DATA": f"{folder}/grafana",
                   "MONITORING_DASHBOARDS": str(HERE / "grafana/dashboards"), "GF_SERVER_HTTP_ADDR": HOST,
                   "GF_AUTH_ANONYMOUS_ENABLED": "true"}  # fmt: skip
            stack.enter_context(started(command, url=f"http://{HOST}:3000", ready="/api/health", env=env, timeout=60))
            print(f"Grafana     http://{HOST}:3000/d/digits")
        else:
            print("Grafana     is not installed; the notebook draws the same panels")
        print("Ctrl+C ends everything.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while options.day:
                sys.argv[1:] = [url]
                day.main()
            while not options.day:
                time.sleep(3600)


if __name__ == "__main__":
    os.chdir(HERE)
    main()

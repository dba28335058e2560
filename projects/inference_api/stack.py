"""What compose.yaml starts, without containers: the service, and Prometheus where it is installed. `make stack`.

Prometheus comes with Debian and Ubuntu (`apt install prometheus`) and from https://prometheus.io/download; a Grafana
of yours can read it at the address that is printed. Everything ends with Ctrl-C.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from common.serving import free_port, started

HERE = Path(__file__).resolve().parent


@contextlib.contextmanager
def prometheus(url):
    """Run Prometheus, reading the counters of a service; yield its address, or None where it is not installed."""
    if shutil.which("prometheus") is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        config = (HERE / "prometheus.yml").read_text(encoding="utf-8")
        config = config.replace("service:8000", url.removeprefix("http://")).replace("5s", "1s")
        (Path(folder) / "prometheus.yml").write_text(config, encoding="utf-8")
        shutil.copy(HERE / "alerts.yml", folder)
        at = f"127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--web.listen-address={at}"]
        command += [f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
        with started(command, url=f"http://{at}", ready="/-/ready", cwd=folder) as running:
            yield running.url


def main():
    """Run both until Ctrl-C or SIGTERM."""
    port = int(os.environ.get("PORT", "8000"))
    url = f"http://127.0.0.1:{port}"
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    with started([sys.executable, "service.py"], url=url, ready="/ready", cwd=HERE), prometheus(url) as found:
        print(f"service:    {url}")
        print(f"Prometheus: {found or 'not installed; `apt install prometheus`, or use compose.yaml'}", flush=True)
        end.wait()


if __name__ == "__main__":
    main()

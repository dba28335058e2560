"""Drives the service with locust, step by step to saturation, and draws latency over throughput. `make load-test`.

Four services in turn: batching on and off, float32 and int8. Each is warmed up; then locust sends with 1, 2, 4, ...
users, some seconds each. What is written: runs/load-test.csv and runs/load-test.png.

Locust shares the machine with the service, and one of its processes sends some thousand requests a second at most.
Where it is the limit, `--client light` sends with load.py instead, which needs far less.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import load
import matplotlib.pyplot as plt
import numpy as np

from common import plots
from common.serving import free_port, started

HERE = Path(__file__).resolve().parent
PERCENTS = (50, 95, 99)


def by_locust(url, users, seconds):
    """Return requests a second, the percentiles in milliseconds, and how many requests failed."""
    command = [sys.executable, "-m", "locust", "-f", "locustfile.py", "--host", url, "--headless", "--json"]
    command += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds:g}s", "--reset-stats"]
    command += ["--loglevel", "ERROR", "--exit-code-on-error", "0"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode or not (found := json.loads(done.stdout)):
        raise SystemExit(f"locust has measured nothing:\n{done.stderr[-2000:]}")
    (one,) = found
    times = np.repeat([float(ms) for ms in one["response_times"]], list(one["response_times"].values()))
    rate = one["num_requests"] / (one["last_request_timestamp"] - one["start_time"])
    return rate, *np.percentile(times, PERCENTS), one["num_failures"]


def by_light_client(url, users, seconds):
    """Return the same, measured by load.py."""
    requests = [load.request_bytes(f"{url}/predict", {"image": one}) for one in load.example_pictures(url)]
    result = load.drive(url, requests, connections=users, seconds=seconds)
    failed = sum(result.statuses.values()) - result.statuses[200] + result.lost
    return result.rate, *(result.percentile(percent) for percent in PERCENTS), failed


def main():
    """Measure, write the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="digits")
    parser.add_argument("--client", choices=("locust", "light"), default="locust")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each step (6)")
    parser.add_argument("--quick", action="store_true", help="three steps of 3 seconds, float32 only")
    options = parser.parse_args()
    name = options.model.removesuffix("-int8")
    files = {"float32": HERE / "models" / f"{name}.onnx", "int8": HERE / "models" / f"{name}-int8.onnx"}
    if options.quick:
        options.users, options.seconds = [1, 8, 32], 3.0
        del files["int8"]
    drive = by_locust if options.client == "locust" else by_light_client
    rows = []
    for kind, path in files.items():
        for batching, env in (("on", {}), ("off", {"MAX_BATCH": "1", "MAX_WAIT_MS": "0"})):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            env = {"MODEL": str(path), "PORT": str(port), "MAX_QUEUE": "1024", "API_KEY": "", **env}
            with started([sys.executable, "service.py"], url=url, ready="/ready", cwd=HERE, env=env):
                by_light_client(url, 16, 1.5)  # warm up
                for users in options.users:
                    rate, *times, failed = drive(url, users, options.seconds)
                    rows.append([kind, batching, users, round(rate, 1), *times, failed])
                    shown = ", ".join(f"p{p} {t:.0f} ms" for p, t in zip(PERCENTS, times, strict=True))
                    print(
                        f"{kind}, batching {batching}, {users} users: {rate:,.0f} requests/s, {shown}, failed {failed}",
                        flush=True,
                    )
    write(rows, options)


def write(rows, options):
    """Write the table and the picture."""
    runs = HERE / "runs"
    runs.mkdir(exist_ok=True)
    with (runs / "load-test.csv").open("w", newline="") as file:
        head = ["model", "batching", "users", "requests/s", *(f"p{p} ms" for p in PERCENTS), "failed"]
        csv.writer(file).writerows([head, *rows])
    plots.style()
    kinds = list(dict.fromkeys((row[0], row[1]) for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)
    for ax, column, percent in zip(axes, (4, 6), (50, 99), strict=True):
        for colour, (kind, batching) in zip(plots.COLOURS, kinds, strict=False):
            points = [row for row in rows if row[:2] == [kind, batching]]
            label = f"{kind}, batching {batching}"
            ax.plot([row[3] for row in points], [row[column] for row in points], "o-", color=colour, label=label)
        ax.set(title=f"p{percent}", xlabel="requests a second", yscale="log")
    axes[0].set_ylabel("latency (ms)")
    axes[0].legend()
    figure.savefig(runs / "load-test.png", dpi=120)
    print(f"written: {runs / 'load-test.csv'}, {runs / 'load-test.png'}")


if __name__ == "__main__":
    main()

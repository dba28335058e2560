"""Measures this service beside others that serve the same model, in one run. `make bench`, or `python benchmark.py`.

The others are plain FastAPI, one inference for each request, in a thread and on the event loop, and LitServe, which
batches too. LitServe is installed into an environment of its own, which also sees the packages of this one and is
removed afterwards (`--keep folder` keeps it; `--without-litserve` leaves it out).

Server and client share the machine. The client (load.py) keeps connections open, and is one process that needs little;
how much of a core it used is printed, since a client at its limit measures itself. All are measured in turn, round
after round; the table shows the median of the rounds, and each rate as a multiple of plain FastAPI's in a thread.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import load

from common.bench import peers
from common.runtime import hardware
from common.serving import free_port, started

HERE = Path(__file__).resolve().parent
LITSERVE = "litserve==0.2.19"


def measure(command, env, options):
    """Start a server, warm it up, load it; return what `load.run` found and the client's share of a core."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"PORT": str(port), "THREADS": str(options.threads), **env}
    with started(command, url=url, cwd=HERE, env=env, timeout=120):
        load.drive(url, options.requests, connections=options.connections, seconds=options.warm_up)
        began, used = time.perf_counter(), time.process_time()
        result = load.drive(url, options.requests, connections=options.connections, seconds=options.seconds)
        return result, (time.process_time() - used) / (time.perf_counter() - began)


def pictures(model):
    """Return requests for a model file, as bytes."""
    import onnxruntime

    shape = onnxruntime.InferenceSession(str(model)).get_inputs()[0].shape[1:]
    return [load.request_bytes("http://127.0.0.1/predict", {"image": one}) for one in load.ink(shape)]


def main():
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="digits", help="digits, or resnet20 (digits)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement (8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of one inference (1)")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--warm-up", type=float, default=1.5)
    parser.add_argument("--keep", type=Path, help="keep LitServe's environment in this folder, or use the one there")
    parser.add_argument("--without-litserve", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    fp32, int8 = (HERE / "models" / f"{options.model}{kind}.onnx" for kind in ("", "-int8"))
    for path in (fp32, int8):
        if not path.is_file():
            raise SystemExit(f"there is no {path}; `make model MODEL={options.model}` makes it")
    options.requests = pictures(fp32)
    batched = {"MAX_BATCH": str(options.max_batch), "MAX_QUEUE": "1024"}
    alone = {"MAX_BATCH": "1", "MAX_WAIT_MS": "0", "MAX_QUEUE": "1024"}
    ours, plain = [sys.executable, "service.py"], [sys.executable, "peers/plain.py"]
    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "plain FastAPI, thread": ([*plain, "thread"], {"MODEL": str(fp32)}),
            "plain FastAPI, event loop": ([*plain, "async"], {"MODEL": str(fp32)}),
            "this service, batches of 1": (ours, {"MODEL": str(fp32), **alone}),
            "this service": (ours, {"MODEL": str(fp32), **batched}),
            "this service, int8": (ours, {"MODEL": str(int8), **batched}),
        }
        if not options.without_litserve:
            python = peers((options.keep or Path(folder)).resolve(), LITSERVE)
            kinds["LitServe"] = ([str(python), "peers/lit.py"], {"MODEL": str(fp32), **batched})
            kinds["LitServe, int8"] = ([str(python), "peers/lit.py"], {"MODEL": str(int8), **batched})
        found = {name: [] for name in kinds}
        for number in range(options.rounds):
            for name, (command, env) in kinds.items():
                found[name].append(measure(command, env, options))
                print(f"round {number + 1}, {name}: {found[name][-1][0]}", file=sys.stderr, flush=True)
    show(found, options)


def show(found, options):
    """Print the table, and write the figures where asked."""
    rows, base = {}, 0.0
    for name, runs in found.items():
        results = [result for result, _ in runs]
        rows[name] = {
            "rate": statistics.median(one.rate for one in results),
            **{f"p{p}": statistics.median(one.percentile(p) for one in results) for p in (50, 95, 99)},
            "not 200": sum(sum(one.statuses.values()) - one.statuses[200] + one.lost for one in results),
            "client": statistics.median(share for _, share in runs),
        }
        base = base or rows[name]["rate"]
    print(f"{hardware()}, {os.cpu_count()} cores shared by server and client; model {options.model}; ", end="")
    print(f"{options.connections} connections, {options.seconds:g} s, median of {options.rounds} rounds\n")
    print("| server | requests/s | times plain | p50 ms | p95 ms | p99 ms | not answered | client's core |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in rows.items():
        times = " | ".join(f"{row[f'p{p}']:.1f}" for p in (50, 95, 99))
        last = f"{row['not 200']} | {row['client']:.0%}"
        print(f"| {name} | {row['rate']:,.0f} | {row['rate'] / base:.2f} | {times} | {last} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

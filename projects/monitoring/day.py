"""Sends a simulated day to a running service: python day.py [url] [--seconds 120]

What happens when stands in world.DAY. Each window of traffic is an equal part of the day; with --seconds the day
takes that long, so that one can watch it on the dashboard.
"""

import argparse
import json
import time
import urllib.request

import numpy as np
import prepare
import world

WINDOWS_AN_HOUR = 4
IMAGES_A_REQUEST = 10


def ask(url, images, timeout=10):
    """Send images (N, 8, 8) to /predict and return its answer as a dictionary."""
    body = json.dumps({"images": np.round(images, 4).tolist()}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def traffic(seed=0, begin=0.0, end=24.0):
    """Yield the hour and the digits of each window of the day."""
    _, _, pool, stranger = prepare.split()
    rng = np.random.default_rng(seed)
    for number in range(24 * WINDOWS_AN_HOUR):
        hour = number / WINDOWS_AN_HOUR
        arrived = world.arrivals(pool, stranger, *world.happening(hour), prepare.WINDOW, rng)
        if begin <= hour < end:
            yield hour, arrived


def send(url, arrived):
    """Send one window in several requests; return the ids of the requests and the share of right answers."""
    ids, right = [], 0
    for start in range(0, len(arrived), IMAGES_A_REQUEST):
        part = arrived[slice(start, start + IMAGES_A_REQUEST)]
        answer = ask(url, part.images)
        ids.append(answer["request"])
        given = [prediction["digit"] for prediction in answer["predictions"]]
        right += int((np.array(given) == part.labels).sum())
    return ids, right / len(arrived)


def main():
    """Send the day."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the day takes")
    options = parser.parse_args()
    pause = options.seconds / (24 * WINDOWS_AN_HOUR)
    for hour, arrived in traffic():
        began = time.monotonic()
        _, accuracy = send(options.url, arrived)
        what, _ = world.happening(hour)
        print(f"{hour:5.2f} h  accuracy {accuracy:4.0%}  {what}", flush=True)
        time.sleep(max(0.0, pause - (time.monotonic() - began)))


if __name__ == "__main__":
    main()

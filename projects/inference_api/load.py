"""A light client that sends many requests and measures. `python load.py http://127.0.0.1:8000 --connections 32`.

Two kinds of load (see section 7 of the notebook): closed, where each connection sends its next request when it has its
answer, and open, where requests come at a rate of their own, whether the service keeps up or not. An open request's
latency counts from the moment at which it was due, not from the moment at which a connection was free to send it.
"""

import argparse
import asyncio
import collections
import itertools
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np


@dataclass
class Result:
    """What a run has found.

    Attributes:
        seconds: from the first request to the last answer.
        statuses: how many answers had which HTTP status.
        latencies: seconds of each answer with status 200.
        refusals: seconds of each other answer.
        lost: requests that were sent and got no answer.
        wrong: answers with status 200 that are not the expected one.
    """

    seconds: float = 0.0
    statuses: collections.Counter = field(default_factory=collections.Counter)
    latencies: list = field(default_factory=list)
    refusals: list = field(default_factory=list)
    lost: int = 0
    wrong: int = 0

    @property
    def rate(self):
        """Answers with status 200 in a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, percent):
        """Return that percentile of the latency in milliseconds; NaN without an answer."""
        return float(np.percentile(self.latencies, percent)) * 1000 if self.latencies else float("nan")

    def __str__(self):
        """Say it in one line."""
        times = ", ".join(f"p{percent} {self.percentile(percent):.1f} ms" for percent in (50, 95, 99))
        return (
            f"{self.rate:,.0f} requests/s, {times}, answers {dict(self.statuses)}, lost {self.lost}, wrong {self.wrong}"
        )


class Connection(asyncio.Protocol):
    """One connection that is kept open, with at most one request on its way."""

    def __init__(self):
        """Be idle."""
        self.transport, self.answer, self.buffer = None, None, b""

    def connection_made(self, transport):
        """Remember where to write."""
        self.transport = transport

    def data_received(self, data):
        """Take a part of an answer; when it is whole, hand it over."""
        data = self.buffer + data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            lower = data[:head].lower()
            at = lower.find(b"content-length:")
            length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(data) >= head + 4 + length:
                self.buffer = b""
                if self.answer and not self.answer.done():
                    self.answer.set_result((int(data[9:12]), data[head + 4 :]))
                return
        self.buffer = data

    def connection_lost(self, error):
        """A request on its way is lost."""
        if self.answer and not self.answer.done():
            self.answer.set_result(None)
        self.transport = None

    async def ask(self, request):
        """Send a request; return status and body, or None when it is lost."""
        self.buffer = b""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


def request_bytes(url, body, headers=None):
    """Return a POST request as it goes over the wire.

    Args:
        url: such as http://127.0.0.1:8000/predict.
        body: is sent as JSON.
        headers: further ones.
    """
    at, content = urlsplit(url), json.dumps(body).encode()
    lines = [f"POST {at.path or '/'} HTTP/1.1", f"Host: {at.netloc}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(content)}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def run(url, requests, *, connections=32, seconds=5.0, rate=None, expected=None, patience=10.0):
    """Send requests for a while and wait for the answers.

    Args:
        url: of the service; host and port count.
        requests: list of them as bytes (`request_bytes`), sent in turn.
        connections: kept open at the same time.
        seconds: how long to send.
        rate: requests in a second (open load); as fast as the answers come (closed load) when left out.
        expected: for each of the requests a part of the right answer's body, as bytes.
        patience: seconds after which an answer is given up, and the connection with it.
    """
    at, loop, result = urlsplit(url), asyncio.get_running_loop(), Result()
    numbers, clock = itertools.count(), time.perf_counter  # uvloop's own clock knows whole milliseconds only
    begin = clock()

    async def one_connection():
        link = None
        while True:
            number = next(numbers)
            due = begin + number / rate if rate else clock()
            if due > begin + seconds:
                break
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            try:
                if link is None or link.transport is None or link.transport.is_closing():
                    _, link = await loop.create_connection(Connection, at.hostname, at.port)
            except OSError:
                result.statuses["no connection"] += 1
                await asyncio.sleep(0.05)
                continue
            which = number % len(requests)
            alarm = loop.call_later(patience, link.transport.abort)
            answer = await link.ask(requests[which])
            alarm.cancel()
            took = clock() - due
            if answer is None:
                result.lost += 1
                continue
            status, body = answer
            result.statuses[status] += 1
            (result.latencies if status == 200 else result.refusals).append(took)
            if status == 200 and expected and expected[which] not in body:
                result.wrong += 1
        if link is not None and link.transport is not None:
            link.transport.close()

    await asyncio.gather(*(one_connection() for _ in range(connections)))
    result.seconds = clock() - begin
    return result


def play(coroutine):
    """Run a coroutine to its end, in an event loop and a thread of its own, and return its result.

    A notebook has a loop that runs already; this works there too.
    """
    try:
        from uvloop import run as in_loop
    except ImportError:  # on Windows
        from asyncio import run as in_loop
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(in_loop, coroutine).result()


def drive(url, requests, **options):
    """Do what `run` does, in an event loop of its own; see there."""
    return play(run(url, requests, **options))


def ink(shape, number=64):
    """Return pictures of random ink as nested lists, the same ones every time."""
    generator = np.random.default_rng(0)
    return (generator.integers(1, 256, (number, *shape)) * (generator.random((number, *shape)) < 0.2)).tolist()


def example_pictures(url):
    """Return pictures of the shape that a service asks for: nested lists."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/model", timeout=10) as answer:
        return ink(json.load(answer)["shape"])


def main():
    """Read the command line, warm up, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, help="requests in a second; closed load when left out")
    parser.add_argument("--key", default="", help="API key")
    options = parser.parse_args()
    headers = {"X-API-Key": options.key} if options.key else None
    requests = [
        request_bytes(f"{options.url}/predict", {"image": one}, headers) for one in example_pictures(options.url)
    ]
    drive(options.url, requests, connections=options.connections, seconds=min(1.0, options.seconds))
    began, used = time.perf_counter(), time.process_time()
    print(drive(options.url, requests, connections=options.connections, seconds=options.seconds, rate=options.rate))
    share = (time.process_time() - used) / (time.perf_counter() - began)
    print(f"this client used {share:.0%} of one core; near 100% it is the client that is measured")


if __name__ == "__main__":
    main()

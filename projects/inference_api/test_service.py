"""Tests of the running service and of its faults: run `pytest` in this folder, or `make test`.

Each test starts the service as a process of its own, on a free port, with a model made for the occasion: the class of a
picture is the number of the one lit pixel in its first row, so that every client knows its answer. Nothing here depends
on how fast the machine is. The overload lasts 4 seconds; OVERLOAD_SECONDS=60 pytest -k overload makes it a minute.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import load
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from common.serving import free_port, started

HERE = Path(__file__).resolve().parent
LABELS = [str(digit) for digit in range(10)]


# -- models, requests, services ---------------------------------------------------------------------------


def write_model(path, *, shape=(28, 28), scale=1.0, poison=False, slow=False):
    """Write a model file: class k for a picture whose pixel k, in reading order, is lit.

    Args:
        path: where.
        shape: of a picture.
        scale: of the logits; another scale makes another file.
        poison: whether a picture whose last pixel is lit makes the whole inference fail.
        slow: whether an inference takes long, however many pictures it is for.
    """
    pixels = int(np.prod(shape))
    weights = np.zeros((pixels, 10), np.float32)
    weights[range(10), range(10)] = scale / 25
    constants = {"weights": weights, "flat": np.array([0, pixels], np.int64)}
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["logits"]),
    ]
    last = "logits"
    if poison:  # looks up a table of one entry at the value of the last pixel
        constants |= {"place": np.array(pixels - 1, np.int64), "table": np.zeros((1, 10), np.float32)}
        nodes += [
            helper.make_node("Gather", ["rows", "place"], ["corner"], axis=1),
            helper.make_node("Cast", ["corner"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["nothing"], axis=0),
            helper.make_node("Add", [last, "nothing"], ["looked"]),
        ]
        last = "looked"
    if slow:  # multiplies a large matrix with itself, some times
        size = 768
        constants |= {"matrix": np.full((size, size), 1e-6, np.float32), "zero": np.array(0, np.float32)}
        nodes += [
            helper.make_node("ReduceSum", ["rows"], ["all"], keepdims=0),
            helper.make_node("Add", ["matrix", "all"], ["power0"]),
            *(helper.make_node("MatMul", ["power0", f"power{i}"], [f"power{i + 1}"]) for i in range(3)),
            helper.make_node("ReduceMin", ["power3"], ["least"], keepdims=0),
            helper.make_node("Mul", ["least", "zero"], ["none"]),
            helper.make_node("Add", [last, "none"], ["waited"]),
        ]
        last = "waited"
    nodes.append(helper.make_node("Softmax", [last], ["probabilities"], axis=-1))
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {"labels": json.dumps(LABELS)})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def picture(number, shape=(28, 28), poison=False):
    """Return a picture of class `number`, as nested lists."""
    pixels = np.zeros(shape, int)
    pixels.flat[number] = 255
    if poison:
        pixels.flat[-1] = 255
    return pixels.tolist()


@contextlib.contextmanager
def service(tmp_path, model, **settings):
    """Run the service; yield its address, process and log (`common.serving.Service`)."""
    port = free_port()
    env = {"MODEL": str(model), "PORT": str(port), "API_KEY": "", **{k.upper(): str(v) for k, v in settings.items()}}
    command, url = [sys.executable, "service.py"], f"http://127.0.0.1:{port}"
    log = tmp_path / "service.log"
    with started(command, url=url, ready="/ready", cwd=HERE, env=env, log=log, timeout=60) as running:
        yield running


def ask(url, body, method="POST", path="/predict", headers=None):
    """Send one request; return status, JSON (or text) of the answer, and its headers."""
    link = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    with contextlib.closing(link):
        body = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        link.request(method, path, body, {"Content-Type": "application/json"} | (headers or {}))
        answer = link.getresponse()
        text = answer.read()
        with contextlib.suppress(ValueError):
            text = json.loads(text)
        return answer.status, text, {name.lower(): value for name, value in answer.getheaders()}


def pictures(url):
    """Return ten requests as bytes, and for each a part of its right answer."""
    requests = [load.request_bytes(f"{url}/predict", {"image": picture(number)}) for number in range(10)]
    return requests, [f'"label":"{number}"'.encode() for number in range(10)]


def lines(running):
    """Return the lines of the log; each must be JSON."""
    return [json.loads(line) for line in running.log.read_text(encoding="utf-8").splitlines()]


def assert_lives(url):
    """Demand that the service answers as it should."""
    status, answer, _ = ask(url, {"image": picture(3)})
    assert (status, answer["label"]) == (200, "3")


# -- what it does -----------------------------------------------------------------------------------------


def test_answers_and_says_how_it_is(tmp_path):
    with service(tmp_path, write_model(tmp_path / "model.onnx")) as running:
        status, answer, headers = ask(running.url, {"image": picture(7)}, headers={"X-Request-ID": "mine-1"})
        assert (status, answer["label"], headers["x-request-id"]) == (200, "7", "mine-1")
        assert answer["confidence"] == max(answer["probabilities"]) == answer["probabilities"][7]
        assert (
            ask(running.url, {"image": picture(1)}, headers={"X-Request-ID": "no\tgood"})[2]["x-request-id"]
            != "no\tgood"
        )
        for path in ("/health", "/ready", "/model", "/openapi.json", "/docs", "/"):
            assert ask(running.url, None, "GET", path)[0] == 200, path
        text = ask(running.url, None, "GET", "/metrics")[1].decode()
        assert 'http_requests_total{path="/predict",status="200"} 2.0' in text
        assert "inference_batch_size_count 2.0" in text
    logged = [line for line in lines(running) if line["message"] == "request" and line.get("path") == "/predict"]
    assert [line["status"] for line in logged] == [200, 200]
    assert logged[0]["request_id"] == "mine-1"
    assert running.process.returncode == 0


def test_dashboard_and_alerts_ask_for_what_exists(tmp_path):
    dashboard = json.loads((HERE / "grafana/dashboards/inference.json").read_text(encoding="utf-8"))
    asked_for = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    alerts = (HERE / "alerts.yml").read_text(encoding="utf-8")
    asked_for += [line.partition("expr:")[2] for line in alerts.splitlines() if "expr:" in line]
    names = {name for text in asked_for for name in re.findall(r"\b(?:http|inference|queue)_\w+", text)}
    assert len(names) > 5
    with service(tmp_path, write_model(tmp_path / "model.onnx")) as running:
        assert_lives(running.url)
        exist = set(re.findall(r"^(\w+)", metrics(running.url), re.MULTILINE))
    assert names <= exist, names - exist


def test_asks_for_the_key_where_there_is_one(tmp_path):
    with service(tmp_path, write_model(tmp_path / "model.onnx"), api_key="abc") as running:
        body = {"image": picture(2)}
        assert [ask(running.url, body, headers=h)[0] for h in ({}, {"X-API-Key": "abd"}, {"X-API-Key": "abc"})] == [
            401,
            401,
            200,
        ]
        assert ask(running.url, None, path="/reload")[0] == 401
        assert ask(running.url, None, path="/reload", headers={"X-API-Key": "abc"})[0] == 200
        assert ask(running.url, None, "GET", "/health")[0] == 200


# -- inputs that are none ---------------------------------------------------------------------------------


def wrong_inputs():
    """Return (name, body, headers, status)."""
    image = picture(1)
    text = json.dumps({"image": image})
    rows = {
        "no JSON": b"{",
        "empty": b"",
        "no UTF-8": b'{"image": "\xff\xfe"}',
        "NaN": text.replace("255", "NaN").encode(),
        "infinity": text.replace("255", "Infinity").encode(),
        "a huge number": text.replace("255", "1" + "0" * 400).encode(),
        "a huge power": text.replace("255", "1e999").encode(),
        "a fraction": text.replace("255", "0.5").encode(),
        "below 0": text.replace("255", "-1").encode(),
        "above 255": text.replace("255", "256").encode(),
        "a text": text.replace("255", '"255"').encode(),
        "true": text.replace("255", "true").encode(),
        "null": text.replace("255", "null").encode(),
        "a row too few": {"image": image[:-1]},
        "a row too many": {"image": [*image, image[0]]},
        "a row that is too short": {"image": [image[0][:-1], *image[1:]]},
        "flat": {"image": [value for row in image for value in row]},
        "no image": {},
        "one field too many": {"image": image, "more": 1},
        "a list": [image],
        "nested without end": b'{"image": ' + b"[" * 60_000,
    }
    found = [(name, body, {}, 422) for name, body in rows.items()]
    big = text.encode() + b" " * 70_000
    found.append(("too large", big, {}, 413))
    found.append(("not called JSON", text.encode(), {"Content-Type": "text/plain"}, 415))
    return found


def test_wrong_inputs_get_a_sentence_and_never_a_5xx(tmp_path):
    with service(tmp_path, write_model(tmp_path / "model.onnx")) as running:
        for name, body, headers, expected in wrong_inputs():
            status, answer, _ = ask(running.url, body, headers=headers)
            assert status == expected, f"{name}: {status}, {answer}"
            assert isinstance(answer["detail"], str), name
            assert 10 < len(answer["detail"]) < 500, f"{name}: {answer['detail']}"
            assert answer["request_id"], name
        assert ask(running.url, None, "GET")[0] == 405
        assert ask(running.url, None, "GET", "/nothing")[0] == 404
        assert chunked(running.url, b"x" * 1000, 100).startswith(b"HTTP/1.1 413")
        assert_lives(running.url)
    assert not [line for line in lines(running) if "traceback" in line]


def chunked(url, part, times):
    """Send a body in chunks, without saying how long it will be; return the beginning of the answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as link:
        link.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(times):
                link.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        return link.recv(200)


def test_a_slow_body_is_not_waited_for(tmp_path):
    with service(tmp_path, write_model(tmp_path / "model.onnx"), timeout_s=0.3) as running:
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as link:
            link.sendall(
                b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\nContent-Type: application/json\r\n\r\n{"im'
            )
            assert link.recv(200).startswith(b"HTTP/1.1 408")
        assert_lives(running.url)


def test_schemathesis_finds_nothing(tmp_path):
    small = write_model(tmp_path / "model.onnx", shape=(4, 5))
    with service(tmp_path, small, api_key="abc") as running:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"]
        command += ["--checks", "all", "--max-examples", "25", "--seed", "1", "--header", "X-API-Key: abc"]
        command += ["--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        status, answer, _ = ask(running.url, {"image": picture(3, (4, 5))}, headers={"X-API-Key": "abc"})
        assert (status, answer["label"]) == (200, "3")
    assert not [line for line in lines(running) if "traceback" in line]


# -- faults -----------------------------------------------------------------------------------------------


def test_a_poisoned_request_fails_alone(tmp_path):
    poisonous = write_model(tmp_path / "model.onnx", poison=True)
    with service(tmp_path, poisonous, max_wait_ms=200, max_batch=16) as running:
        results, threads = {}, []
        for number in range(16):
            body = {"image": picture(number % 10, poison=number == 5)}
            work = lambda number=number, body=body: results.update({number: ask(running.url, body)})  # noqa: E731
            threads.append(threading.Thread(target=work))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results[5][0] == 500
        assert "Gather" not in results[5][1]["detail"], "the answer tells what is inside"
        for number, (status, answer, _) in results.items():
            if number != 5:
                assert (status, answer["label"]) == (200, str(number % 10))
        assert_lives(running.url)
    assert [line["message"] for line in lines(running) if "traceback" in line] == ["inference failed"]


def test_overload_every_request_is_answered_or_refused(tmp_path):
    seconds = float(os.environ.get("OVERLOAD_SECONDS", "4"))
    slow = write_model(tmp_path / "model.onnx", slow=True)
    with service(tmp_path, slow, max_batch=4, max_queue=16, timeout_s=20, log_requests=0) as running:
        requests, expected = pictures(running.url)
        calm = load.drive(running.url, requests, connections=4, seconds=1.5, expected=expected, patience=60)
        assert set(calm.statuses) == {200}
        memory = []
        watch = threading.Thread(target=lambda: memory.extend(resident(running.pid, seconds)))
        watch.start()
        storm = load.drive(
            running.url, requests, connections=128, seconds=seconds, rate=5 * calm.rate, expected=expected, patience=60
        )
        watch.join()
        assert storm.lost == 0
        assert storm.wrong == 0
        assert set(storm.statuses) == {200, 503}, storm.statuses
        assert_lives(running.url)
    assert memory[-1] - memory[len(memory) // 3] < 15, f"memory grows: {memory} MiB"


def resident(pid, seconds):
    """Return the memory of a process in MiB, again and again; nothing but zeros where Linux does not tell."""
    found = []
    for _ in range(12):
        time.sleep(seconds / 12)
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
            found.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return found or [0, 0, 0]


def test_a_refusal_says_when_to_come_again(tmp_path):
    slow = write_model(tmp_path / "model.onnx", slow=True)
    with service(tmp_path, slow, max_batch=1, max_queue=1, timeout_s=20) as running:
        found, threads = [], []
        for number in range(8):
            work = lambda number=number: found.append(ask(running.url, {"image": picture(number)}))  # noqa: E731
            threads.append(threading.Thread(target=work))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [(answer, headers) for status, answer, headers in found if status == 503]
        assert refused
        assert all(1 <= int(headers["retry-after"]) <= 10 and answer["detail"] for answer, headers in refused)


def test_clients_that_disconnect_disturb_nobody(tmp_path):
    with service(tmp_path, write_model(tmp_path / "model.onnx"), max_wait_ms=50) as running:
        requests, _ = pictures(running.url)
        host, port = running.url.removeprefix("http://").split(":")
        for number in range(60):
            link = socket.create_connection((host, int(port)))
            whole = requests[number % 10]
            link.sendall(whole if number % 3 else whole[: len(whole) // 2])
            if number % 2:  # not a polite end but a reset
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.close()
        assert_lives(running.url)
        deadline = time.monotonic() + 20
        while "queue_length 0.0" not in metrics(running.url) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "queue_length 0.0" in metrics(running.url)
    assert running.process.returncode == 0
    assert not [line for line in lines(running) if "traceback" in line]


def metrics(url):
    """Return what Prometheus would read."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(f"{url}/metrics", timeout=30).read().decode()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGTERM")
def test_sigterm_under_load_answers_what_was_accepted(tmp_path):
    with service(tmp_path, write_model(tmp_path / "model.onnx"), max_wait_ms=20) as running:
        requests, expected = pictures(running.url)
        found = []
        options = {"connections": 16, "seconds": 2.0, "expected": expected}
        client = threading.Thread(target=lambda: found.append(load.drive(running.url, requests, **options)))
        client.start()
        time.sleep(1.0)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        client.join()
    (result,) = found
    assert result.wrong == 0
    assert set(result.statuses) <= {200, 503, "no connection"}
    logged = [line["status"] for line in lines(running) if line.get("path") == "/predict"]
    assert logged.count(200) == result.statuses[200] > 0, (
        "an answer was given and did not arrive, or the other way round"
    )
    assert set(logged) <= {200, 503}, "a request was accepted and not answered"


def test_reload_under_load_loses_nothing(tmp_path):
    path = write_model(tmp_path / "model.onnx", scale=1.0)
    with service(tmp_path, path) as running:
        requests, expected = pictures(running.url)
        found = []
        options = {"connections": 8, "seconds": 2.5, "expected": expected}
        client = threading.Thread(target=lambda: found.append(load.drive(running.url, requests, **options)))
        versions = [ask(running.url, None, "GET", "/model")[1]["model"]]
        client.start()
        for scale in (2.0, 3.0):
            time.sleep(0.4)
            os.replace(write_model(tmp_path / "next.onnx", scale=scale), path)
            assert ask(running.url, None, path="/reload")[0] == 200
            versions.append(ask(running.url, None, "GET", "/model")[1]["model"])
        for broken in (b"no model", write_model(tmp_path / "other.onnx", shape=(4, 5)).read_bytes()):
            path.write_bytes(broken)
            status, answer, _ = ask(running.url, None, path="/reload")
            assert status == 409, answer
        client.join()
        assert len(set(versions)) == 3
        assert ask(running.url, None, "GET", "/model")[1]["model"] == versions[-1]
        assert_lives(running.url)
    (result,) = found
    assert (result.lost, result.wrong, set(result.statuses)) == (0, 0, {200})

"""Answers that speak to the judge themselves, over every descriptor that they have."""

# %% softmax-rows: fake lines of results
import os

lines = b'{"answer": "softmax-rows", "state": "graded", "message": "", "cases": [{"points": 3, "out_of": 3}]}\n{"done": true}\n'

def softmax_rows(x):
    for number in range(1024):
        try:
            os.write(number, lines)
        except OSError:
            pass
    return x


# %% softmax-rows: random bytes
import os

def softmax_rows(x):
    for number in range(3, 1024):
        try:
            os.write(number, os.urandom(10_000))
        except OSError:
            pass
    return x


# %% softmax-rows: a right message before the real one
import os, struct

def reply(text, blob=b""):
    """Write a message, whose parts are a header of two lengths, JSON and bytes."""
    for number in range(3, 1024):
        try:
            os.write(number, struct.pack("!IQ", len(text), len(blob)) + text.encode() + blob)
        except OSError:
            pass

def softmax_rows(x):
    reply('{"dict": [["value", {"tensor": ["float32", [4, 5], false]}]]}', torch.full((4, 5), 0.3).numpy().tobytes())
    return torch.full((4, 5), 0.3)


# %% softmax-rows: two messages at once, to be a step ahead
import os, struct

def softmax_rows(x):
    one = b'{"dict": [["value", {"tensor": ["float32", [4], false]}]]}'
    for number in range(3, 1024):
        try:
            os.write(number, 5 * (struct.pack("!IQ", len(one), 16) + one + torch.ones(4).numpy().tobytes()))
        except OSError:
            pass
    return x


# %% softmax-rows: a header that promises too much
import os, struct, time

def softmax_rows(x):
    for number in range(3, 1024):
        try:
            os.write(number, struct.pack("!IQ", 2**32 - 1, 2**64 - 1))
        except OSError:
            pass
    time.sleep(20)


# %% softmax-rows: a message that never ends
import os, struct, time

def softmax_rows(x):
    for number in range(3, 1024):
        try:
            os.write(number, struct.pack("!IQ", 2**20, 2**28) + b"[" * 1000)
        except OSError:
            pass
    for _ in range(40):
        time.sleep(0.5)
        for number in range(3, 1024):
            try:
                os.write(number, b"[")
            except OSError:
                pass


# %% softmax-rows: a message at the limits
import socket, struct

def softmax_rows(x):
    for number in range(3, 256):
        try:
            one = socket.socket(fileno=number)
            one.sendall(struct.pack("!IQ", 2**24 - 2, 0) + (b"[" + b"[]," * (2**24 // 3))[: 2**24 - 3] + b"]")
        except OSError:
            pass
    return x


# %% softmax-rows: closes every descriptor
import os

def softmax_rows(x):
    os.closerange(3, 1024)
    return x


# %% softmax-rows: takes the judge's requests itself
import os, threading

def listen():
    for number in range(3, 64):
        threading.Thread(target=lambda: os.read(number, 2**20), daemon=True).start()

def softmax_rows(x):
    listen()
    return x


# %% softmax-rows: shuts the socket down for reading only
import socket

def softmax_rows(x):
    for number in range(3, 256):
        try:
            socket.socket(fileno=number).shutdown(socket.SHUT_RD)
        except OSError:
            pass
    return x


# %% softmax-rows: sends descriptors
import array, os, socket

def softmax_rows(x):
    for number in range(3, 256):
        try:
            one = socket.socket(fileno=os.dup(number))
            one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [os.open("/", os.O_RDONLY)]))])
        except OSError:
            pass
    return x


# %% softmax-rows: lies in every field of a message, one after another
import json, struct
import common.grading.wire as wire

lies = iter([
    [], {}, 3, None, "x", {"dict": []}, {"dict": [["value"]]}, {"dict": [[["value"], 3]]}, {"dict": [["error", 3]]},
    {"dict": [["error", {"tuple": [[[]], "x", "x"]}]]}, {"dict": [["error", {"tuple": [[{"dict": []}], "", ""]}]]},
    {"dict": [["value", {"other": 3}]]}, {"dict": [["value", {"other": [0, "judge", "x"]}]]},
    {"dict": [["value", {"other": [1e300, "module", "x"]}]]}, {"dict": [["value", {"other": [2**70, "object", "x"]}]]},
    {"dict": [["value", {"tensor": ["float32", [-1, 5], False]}]]}, {"dict": [["value", {"tensor": ["float32", [4, 5]]}]]},
    {"dict": [["value", {"tensor": ["float32", [2**31, 2**31, 0], True]}]]}, {"dict": [["value", {"tensor": [["x"], [], 0]}]]},
    {"dict": [["value", {"tensor": ["qint8", [4, 5], False]}]]}, {"dict": [["value", {"tensor": ["bool", [True], False]}]]},
    {"dict": [["value", {"tensor": ["float32", [10**9] * 40, False]}]]}, {"dict": [["value", {"array": ["O", [1]]}]]},
    {"dict": [["value", {"array": ["V8", [1]]}]]}, {"dict": [["value", {"array": ["i4,O", [0]]}]]},
    {"dict": [["value", {"array": ["S1000000000", [10**6]]}]]}, {"dict": [["value", {"number": ["f8", [10**9]]}]]},
    {"dict": [["value", {"dtype": "__class__"}]]}, {"dict": [["value", {"device": "cuda:0"}]]},
    {"dict": [["value", {"device": "x" * 1000}]]}, {"dict": [["value", {"complex": ["x"]}]]},
    {"dict": [["value", {"set": [[1]]}]]}, {"dict": [["value", {"dict": [[{"dict": []}, 1]]}]]},
    {"dict": [["value", {"size": [-1]}]]}, {"dict": [["value", {"__class__": 1}]]},
])

def lie(self, message):
    text = json.dumps(next(lies, {"dict": [["value", 3]]})).encode()
    self.sock.sendall(struct.pack("!IQ", len(text), 0) + text)

def softmax_rows(x):
    wire.Channel.send = lie
    return x

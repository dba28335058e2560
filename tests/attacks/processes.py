"""Answers that end processes, or start some that shall live on. Each bounds itself in number and time."""

# %% softmax-rows: os._exit
import os
os._exit(0)


# %% softmax-rows: os._exit when called
import os

def softmax_rows(x):
    os._exit(0)


# %% softmax-rows: a segfault
import ctypes

def softmax_rows(x):
    ctypes.string_at(0)


# %% softmax-rows: abort, without faulthandler
import faulthandler, os

faulthandler.disable()

def softmax_rows(x):
    os.abort()


# %% softmax-rows: the stack overflows in C
import sys

sys.setrecursionlimit(10**9)

def softmax_rows(x):
    return softmax_rows(x)


# %% softmax-rows: an overflow of the parser
def softmax_rows(x):
    made = None
    for _ in range(10**6):
        made = (made,)
    return repr(made)


# %% softmax-rows: kills its parent
import os, signal

def softmax_rows(x):
    for number in (os.getppid(), 1, 0):
        for kind in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
            try:
                os.kill(number, kind)
            except OSError:
                pass
    return x


# %% softmax-rows: kills every process that it can see
import os, signal

def softmax_rows(x):
    for number in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        if number != os.getpid():
            try:
                os.kill(number, signal.SIGKILL)
            except OSError:
                pass
    os.kill(-1, signal.SIGKILL)


# %% softmax-rows: kills its group and session
import os, signal

def softmax_rows(x):
    os.killpg(0, signal.SIGKILL)


# %% softmax-rows: stops itself
import os, signal

def softmax_rows(x):
    os.kill(os.getpid(), signal.SIGSTOP)
    return x


# %% softmax-rows: sleeps
import time

def softmax_rows(x):
    time.sleep(60)


# %% softmax-rows: sleeps and hears no signal
import signal, time

for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

def softmax_rows(x):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass


# %% softmax-rows: a long matrix product
def softmax_rows(x):
    made = torch.ones(20_000, 20_000)
    for _ in range(4):
        made = made @ made


# %% softmax-rows: a regular expression without end
import re

def softmax_rows(x):
    re.match(r"(a+)+$", "a" * 38 + "b")


# %% softmax-rows: an endless loop in the cell
import time
end = time.monotonic() + 60
while time.monotonic() < end:
    pass


# %% softmax-rows: a child that is not waited for
import os, time

if os.fork() == 0:
    time.sleep(60)
    os._exit(0)

def softmax_rows(x):
    return x


# %% softmax-rows: a daemon that comes back later
import os, time

def softmax_rows(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(3, 256):
                try:
                    os.close(number)
                except OSError:
                    pass
            for _ in range(100):
                time.sleep(0.5)
                for name in ("@OUT@/rows.json", "@OUT@/grades.csv", "@TREE@/by-daemon"):
                    try:
                        open(name, "a").write("x")
                    except OSError:
                        pass
            os._exit(0)
        os._exit(0)
    return x


# %% softmax-rows: children that answer in its place
import os

def softmax_rows(x):
    if os.fork() == 0:
        return torch.ones(4, 5)
    return x


# %% softmax-rows: a sleeping program in a session of its own
import subprocess

for _ in range(5):
    subprocess.Popen(["sleep", "55"], start_new_session=True, close_fds=False)

def softmax_rows(x):
    return x


# %% softmax-rows: dies while a child holds its descriptors
import os, time

def softmax_rows(x):
    if os.fork() == 0:
        time.sleep(55)
    os._exit(0)


# %% softmax-rows: multiprocessing
import multiprocessing, time

def softmax_rows(x):
    started = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(50,)) for _ in range(5)]
    for one in started:
        one.start()
    return x


# %% softmax-rows: threads that do not end
import threading, time

for _ in range(20):
    threading.Thread(target=time.sleep, args=(50,), daemon=False).start()

def softmax_rows(x):
    return x


# %% softmax-rows: another program in its place
import os

def softmax_rows(x):
    os.execv("/bin/sleep", ["sleep", "20"])


# %% softmax-rows: a hook at every exit
import os, sys

os._exit = sys.exit = lambda *args: None

def softmax_rows(x):
    os.kill(os.getpid(), 11)

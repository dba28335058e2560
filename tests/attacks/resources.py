"""Answers that use up what there is. Each bounds itself: 300 processes for 20 s, a few GB, all tests in a container."""

# %% softmax-rows: a fork bomb
import os, time

def softmax_rows(x):
    end = time.monotonic() + 15
    for _ in range(300):
        try:
            if os.fork() == 0:
                while time.monotonic() < end:
                    time.sleep(0.5)
                os._exit(0)
        except OSError:
            break
    time.sleep(15)


# %% softmax-rows: a fork bomb that grows by halves
import os, time

def softmax_rows(x):
    end = time.monotonic() + 15
    for _ in range(8):
        try:
            os.fork()
        except OSError:
            pass
    while time.monotonic() < end:
        time.sleep(0.5)
    os._exit(0)


# %% softmax-rows: a thread bomb
import threading, time

def softmax_rows(x):
    for _ in range(5000):
        threading.Thread(target=time.sleep, args=(15,), daemon=True).start()
    return x


# %% softmax-rows: four gigabytes at once
def softmax_rows(x):
    return torch.ones(10**9).sum()


# %% softmax-rows: memory, piece by piece, whatever happens
def softmax_rows(x):
    kept = []
    while len(kept) < 400:
        try:
            kept.append(bytearray(b"x" * 10**7))
        except MemoryError:
            kept.append(None)
    raise MemoryError


# %% softmax-rows: memory that is shared, so that no limit of data counts it
import mmap

def softmax_rows(x):
    kept = []
    for _ in range(12):
        kept.append(mmap.mmap(-1, 2**28))
        for place in range(0, 2**28, 4096):
            kept[-1][place] = 1
    raise ValueError("FOUND 3 GB of shared memory")


# %% softmax-rows: memory in files that nobody sees
import os

def softmax_rows(x):
    kept = []
    for number in range(16):
        kept.append(os.memfd_create(str(number)))
        for _ in range(24):
            os.write(kept[-1], b"x" * 10**7)
    raise ValueError("FOUND 4 GB of memory files")


# %% softmax-rows: memory of the system's own
import ctypes

def softmax_rows(x):
    call = ctypes.CDLL(None)
    call.shmat.restype = ctypes.c_void_p
    for number in range(12):
        segment = call.shmget(0x7000 + number, ctypes.c_size_t(2**28), 0o1600)
        if segment < 0:
            raise MemoryError
        ctypes.memset(call.shmat(segment, None, 0), 1, 2**28)
    raise ValueError("FOUND 3 GB of System V memory")


# %% softmax-rows: memory of many children
import os, time

def softmax_rows(x):
    for _ in range(8):
        if os.fork() == 0:
            kept = [bytearray(b"x" * 10**7) for _ in range(60)]
            time.sleep(20)
            os._exit(0)
    time.sleep(8)
    raise ValueError("FOUND 4.8 GB in children")


# %% softmax-rows: memory of children that cannot be looked into
import ctypes, os, time

def softmax_rows(x):
    for _ in range(8):
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
            kept = [bytearray(b"x" * 10**7) for _ in range(60)]
            time.sleep(20)
            os._exit(0)
    time.sleep(8)
    raise ValueError("FOUND 4.8 GB in children")


# %% softmax-rows: files until the disk is full
def softmax_rows(x):
    for place in (".", "/tmp", "/dev/shm", "/var/tmp", "@TREE@"):
        try:
            for number in range(10):
                with open(f"{place}/@MARK@{number}", "wb") as file:
                    for _ in range(25):
                        file.write(b"x" * 10**7)
        except OSError:
            pass
    return x


# %% softmax-rows: very many small files
import os

def softmax_rows(x):
    try:
        for number in range(50_000):
            os.mkdir(f"f{number}")
            open(f"f{number}/" + "x" * 200, "w").close()
    except OSError:
        pass
    return x


# %% softmax-rows: a sparse file, and pipes that are full
import os

def softmax_rows(x):
    for number in range(50):
        try:
            with open("sparse", "wb") as file:
                file.truncate(2**40)
        except OSError:
            pass
        inner, outer = os.pipe()
        os.set_blocking(outer, False)
        os.write(outer, b"x" * 60_000)
    return x


# %% softmax-rows: every file descriptor
import os, socket

def softmax_rows(x):
    kept = []
    try:
        while len(kept) < 100_000:
            kept += [os.dup(0), socket.socket()]
    except OSError:
        pass
    softmax_rows.kept = kept
    return x


# %% softmax-rows: a flood of output
import os, sys

for _ in range(2000):
    print("x" * 10_000)
    sys.stderr.write("y" * 10_000)
    os.write(1, b"z" * 10_000)
    os.write(2, b"z" * 10_000)

def softmax_rows(x):
    import warnings
    for _ in range(10_000):
        warnings.warn("x" * 1000)
    return x


# %% softmax-rows: a folder that is very deep
import os

def softmax_rows(x):
    try:
        for _ in range(3000):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    except OSError:
        pass
    return x


# %% softmax-rows: a folder that nobody may delete
import os

os.makedirs("a/b/c")
open("a/b/c/file", "w").close()
os.chmod("a/b", 0)
os.chmod(".", 0)

def softmax_rows(x):
    return x


# %% softmax-rows: limits raised, and the priority of all others lowered
import os, resource

def softmax_rows(x):
    found = []
    for name in ("NPROC", "FSIZE", "DATA", "CPU", "NOFILE"):
        kind = getattr(resource, f"RLIMIT_{name}")
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            found.append(name)
        except (OSError, ValueError):
            pass
    try:
        os.nice(-10)
        found.append("nice")
    except OSError:
        pass
    raise ValueError(f"FOUND {found}" if found else "nothing")

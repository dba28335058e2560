"""Answers that read what is not theirs, write where they may not, or go out of their box.

`leaked(text)` finds the marks that tests/test_attacks.py has put into every secret.
"""

# %% softmax-rows: the environment of the grader
import os

def softmax_rows(x):
    text = str(os.environ) + str(os.environb)
    for number in ["self", "1", str(os.getppid()), *filter(str.isdigit, os.listdir("/proc"))]:
        for name in ("environ", "cmdline"):
            try:
                text += open(f"/proc/{number}/{name}", errors="replace").read()
            except OSError:
                pass
    raise ValueError(leaked(text))


# %% softmax-rows: every file that can be read
import os

def softmax_rows(x):
    found = set()
    for top in ("@TREE@", "@IN@", "@COURSE@", "@OUT@", "/home", "/root", "/tmp", "/var", "/srv", "/mnt", "/opt"):
        for folder, _, names in os.walk(top):
            for name in names[:200]:
                try:
                    with open(os.path.join(folder, name), "rb") as file:
                        found |= set(leaked(file.read(2**20)))
                except OSError:
                    pass
    raise ValueError(found)


# %% softmax-rows: the checks and the solutions by their paths
import glob, subprocess

def softmax_rows(x):
    text = b""
    for pattern in ("@COURSE@/**/*checks.py", "@COURSE@/solutions.bundle", "@COURSE@/.git/**", "/proc/self/cwd/../**/*.py",
                    "/**/hidden_checks.py", "/tmp/**/hidden_checks.py"):
        for name in glob.glob(pattern, recursive=pattern.startswith("@")):
            try:
                text += open(name, "rb").read()
            except OSError:
                pass
    for command in (["git", "-C", "@COURSE@", "show", "solutions:hidden_checks.py"],
                    ["git", "clone", "@COURSE@/solutions.bundle", "stolen"]):
        try:
            text += subprocess.run(command, capture_output=True, timeout=5).stdout
        except Exception:
            pass
    raise ValueError(leaked(text))


# %% softmax-rows: what others hold open, by /proc
import glob, os

def softmax_rows(x):
    found = set()
    for name in glob.glob("/proc/[0-9]*/fd/*") + glob.glob("/proc/[0-9]*/root/@TREE@/*") + glob.glob("/proc/[0-9]*/cwd/*"):
        if "/self" in name or f"/{os.getpid()}/" in name:
            continue
        try:
            found |= set(leaked(open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb").read(10**6)))
        except (OSError, ValueError):
            pass
    raise ValueError(found)


# %% softmax-rows: the memory of others
import ctypes, os

def softmax_rows(x):
    library, text = ctypes.CDLL(None, use_errno=True), ""
    for number in {1, os.getppid(), *map(int, filter(str.isdigit, os.listdir("/proc")))} - {os.getpid()}:
        if library.ptrace(16, number, 0, 0) == 0:
            text += f"FOUND ptrace of {number}"
        try:
            open(f"/proc/{number}/mem", "r+b").close()
            text += f"FOUND memory of {number}"
        except OSError:
            pass
    raise ValueError(text or "nothing")


# %% softmax-rows: writes everywhere
import os, pathlib, site, sys

def softmax_rows(x):
    places = ["@TREE@", "@IN@", "@COURSE@", "@OUT@", "/", "/tmp", "/var/tmp", "/usr", "/etc", "/root", sys.prefix, "/dev/shm"]
    places += [*site.getsitepackages(), *sys.path, os.path.dirname(torch.__file__), os.path.expanduser("~")]
    import common
    places += [os.path.dirname(common.__file__), os.path.dirname(common.__file__) + "/grading/__pycache__"]
    for place in places:
        for name in ("@MARK@", "sitecustomize.py", "@MARK@.pth", "conftest.py"):
            try:
                path = pathlib.Path(place, name)
                if not path.exists():
                    path.write_text("")
            except OSError:
                pass
    return x


# %% softmax-rows: changes, renames and deletes what is there
import os, shutil

def softmax_rows(x):
    for top in ("@TREE@", "@IN@", "@COURSE@", "@OUT@"):
        for folder, inside, names in os.walk(top):
            for name in [*names, *inside]:
                path = os.path.join(folder, name)
                for change in (lambda: open(path, "a").write("x"), lambda: os.chmod(path, 0), lambda: os.utime(path),
                               lambda: os.rename(path, path + "@MARK@"), lambda: os.unlink(path)):
                    try:
                        change()
                    except OSError:
                        pass
        shutil.rmtree(top, ignore_errors=True)
    return x


# %% softmax-rows: results of the grader
import glob, os

def softmax_rows(x):
    for name in glob.glob("/proc/[0-9]*/fd/*") + ["@OUT@/results.jsonl", "@OUT@/grades.csv", "/dev/tty", "/dev/console"]:
        if os.path.islink(name) and "socket" in os.readlink(name):
            continue
        try:
            descriptor = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            os.write(descriptor, b'{"student": "someone", "points": 13}\n')
        except OSError:
            pass
    return x


# %% softmax-rows: links in its folder
import os

for name, target in (("a", "/"), ("b", "@TREE@/secret"), ("c", "@COURSE@"), ("d", "/proc/1/root"), ("checks.py", "@TREE@/x")):
    try:
        os.symlink(target, name)
        os.link(target, name + "-hard")
    except OSError:
        pass

def softmax_rows(x):
    text = ""
    for name in ("b", "c/solutions.bundle", "d@TREE@/secret", "a@TREE@/secret", "b-hard"):
        try:
            text += open(name, errors="replace").read()
        except OSError:
            pass
    raise ValueError(leaked(text))


# %% softmax-rows: out of the root by chroot, mount and unshare
import ctypes, os

def softmax_rows(x):
    call = ctypes.CDLL(None, use_errno=True)
    tried = []
    def attempt(name, *arguments):
        if getattr(call, name)(*arguments) == 0:
            tried.append(name)
    attempt("setuid", 0)
    attempt("setresuid", 0, 0, 0)
    attempt("setgroups", 0, None)
    attempt("mount", b"none", b"/", None, 1 << 18 | 16384, None)
    attempt("mount", b"proc", b"/proc", b"proc", 0, None)
    attempt("mount", b"/", b"/tmp", None, 4096, None)
    attempt("umount2", b"/usr", 2)
    attempt("umount2", b"/proc", 2)
    attempt("sethostname", b"x", 1)
    for kind in (0x20000, 0x40000000, 0x20000000):
        attempt("unshare", kind)
    try:
        os.mkdir("jail")
        os.chroot("jail")
        tried.append("chroot")
    except OSError:
        pass
    for number in (1, os.getppid()):
        for kind in ("mnt", "net", "pid", "user", "ipc", "uts"):
            try:
                descriptor = os.open(f"/proc/{number}/ns/{kind}", os.O_RDONLY)
                own = os.stat(f"/proc/self/ns/{kind}").st_ino == os.fstat(descriptor).st_ino
                if call.setns(descriptor, 0) == 0 and not own:
                    tried.append(f"setns {kind}")
            except OSError:
                pass
    raise ValueError(f"FOUND {tried}" if tried else "nothing")


# %% softmax-rows: root of its own by a new user namespace
import ctypes, os

def softmax_rows(x):
    call = ctypes.CDLL(None, use_errno=True)
    user = os.getuid()
    if call.unshare(0x10000000 | 0x20000) == 0:
        try:
            open("/proc/self/setgroups", "w").write("deny")
            open("/proc/self/uid_map", "w").write(f"0 {user} 1")
        except OSError:
            pass
        for source, target, kind, flags in ((None, b"/", None, 1 << 18 | 16384), (b"none", b"/usr", b"tmpfs", 0),
                                            (b"proc", b"/proc", b"proc", 0), (None, b"/usr", None, 32 | 4096)):
            call.mount(source, target, kind, flags, None)
        call.umount2(b"/usr", 2)
    text = ""
    for name in ("/secret", "@TREE@/secret", "/proc/1/root/@TREE@/secret"):
        try:
            text += open(name, errors="replace").read()
        except OSError:
            pass
    try:
        open("/usr/@MARK@", "w")
        os.remove("/usr/@MARK@")
    except OSError:
        pass
    raise ValueError(leaked(text))


# %% softmax-rows: the network
import contextlib, socket, urllib.request

def softmax_rows(x):
    for family, address in ((socket.AF_INET, ("127.0.0.1", @PORT@)), (socket.AF_INET6, ("::1", @PORT@)),
                            (socket.AF_UNIX, "\0@MARK@"), (socket.AF_UNIX, "@TREE@/socket")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as one:
                one.settimeout(1)
                one.connect(address)
                one.send(b"hello")
    with contextlib.suppress(OSError):
        urllib.request.urlopen("http://127.0.0.1:@PORT@/", timeout=1)
    return x


# %% softmax-rows: sockets of a lower level, and a server
import contextlib, socket

def softmax_rows(x):
    found = []
    for family in (socket.AF_PACKET, socket.AF_NETLINK, socket.AF_VSOCK, socket.AF_ALG):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_RAW) as one:
            if family == socket.AF_PACKET:
                found.append("raw")
            if family == socket.AF_VSOCK:
                one.settimeout(1)
                one.connect((2, 1024))
    names = {name for _, name in socket.if_nameindex()} - {"lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0"}
    names = {name for name in names if not name.startswith(("ip_", "ip6_", "ip6gre"))}
    raise ValueError(f"FOUND {found} {names}" if found or names else "nothing")


# %% softmax-rows: keys, messages and shared memory of the system
import ctypes, glob

def softmax_rows(x):
    call, text = ctypes.CDLL(None, use_errno=True), ""
    for key in range(0x5EC0, 0x5ED0):
        number = call.shmget(key, 0, 0)
        if number >= 0:
            text += "FOUND shared memory"
    for name in ("/proc/keys", "/proc/net/unix", "/proc/sysvipc/shm", *glob.glob("/dev/shm/*"), *glob.glob("/dev/mqueue/*")):
        try:
            text += open(name, errors="replace").read()
        except OSError:
            pass
    raise ValueError(leaked(text) + (["FOUND"] if "FOUND" in text else []))

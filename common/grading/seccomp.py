"""Takes from a process the system calls that no answer needs, for good: a filter of the Linux kernel's, seccomp(2).

They are ways to memory that no limit counts, to new namespaces with rights of their own, to other processes, and
seldom used parts of the kernel in which holes have been found.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import sys
from collections.abc import Callable

# Numbers on x86-64 and on 64-bit ARM; equal for the younger ones.
_DENIED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104),
}
_CLONE, _CLONE3, _NEW_USER = (56, 220), 435, 0x10000000
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # where they lie in what a filter sees
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def apply(call: Callable[..., None]) -> None:
    """Filter the system calls of this process and of all that it will start; without effect where we know no numbers.

    Args:
        call: calls a function of the C library, by name.

    Raises:
        OSError: the kernel refuses; `PR_SET_NO_NEW_PRIVS` must have been set.
    """
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return
    column, architecture = _ARCHITECTURES[platform.machine()]
    refuse, unknown = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, refuse)]
    # From here on are the numbers of another set of calls.
    program += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, refuse)]
    for numbers in _DENIED.values():
        program += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, refuse)]
    # Its flags lie in memory, where a filter cannot look: "unknown" lets the C library take clone instead.
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, unknown)]
    program += [(_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    program += [(_ANY_BIT, 0, 1, _NEW_USER), (_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    instructions = (_Instruction * len(program))(*(_Instruction(*one) for one in program))
    call("prctl", _PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(program), instructions)), 0, 0)

"""What is left to a model's process once it is locked down; :mod:`appliance.ipc.lockdown` says how, and in which order.

A model's file and the pictures are hostile: TFLite crashes on flipped bits, and decoders have a history. What is
interpreted of them is interpreted afterwards. A process on the CPU keeps its socket, the ring, memory and threads. One
with a delegate keeps what the delegate's library needs of the machine: it is loaded after the lockdown, because it
starts threads, and most measures are of a thread and of those that it starts.

On a 2-core x86-64 machine the measures take 1 ms of a process's start, running the first model 1 ms, and finding
libseccomp, for which ctypes runs ldconfig, 17 ms. No difference in inference
could be measured.

``python -m appliance.inference.lockdown [LIBRARY]`` locks itself down and prints what is in force, as JSON.
"""

import errno
import os
import resource
import socket
import sys

import msgspec

from appliance.ipc import lockdown
from appliance.ipc.calls import MAPPING_CALLS, NO_PROCESSES, NOT_EXECUTABLE, THREADS, Argument, Calls, Rule
from appliance.ipc.lockdown import Profile
from appliance.ipc.report import Lockdown

MEMORY_BYTES = 1 << 30
"""Address space on top of what the process and its runtime have, and of what the model takes. With the models of the
tests that is 140 to 180 MiB, 8 of which are a thread's stack and 64 each of malloc's two arenas; the largest JPEG there
may be took 0.5 GiB, since a progressive one is decoded from coefficients of all its samples."""
MEMORY_PER_MODEL_BYTE = 4
"""The file's own bytes, the weights as a runtime packs them, and those of float16 as float32."""
OPEN_FILES = 64
"""Descriptors of a process with a delegate: its device, its events and timers."""
DEVICES = ("/dev/bus/usb", "/dev/apex_0")
"""Where an Edge TPU is."""
LIBRARIES = ("/usr", "/lib", "/lib64", "/opt", "/etc/ld.so.cache", "/sys", "/run/udev", "/proc/cpuinfo")
"""What a process with a delegate may read, beside the directories of the delegate itself and of LD_LIBRARY_PATH:
libraries, and what the system says about devices. It may be root's process, and must not read the device's keys."""

SYSTEM_CALLS = (
    *("sendto", "recvfrom", "send", "recv"),  # the socket; no sendmsg and recvmsg: descriptors cannot pass
    *("write", "writev"),  # standard error
    *("brk", "munmap", "mremap", "madvise"),  # memory; what maps it is below
    *("futex", "futex_time64", "sched_yield"),  # locks, and threads that wait for one another
    *("clock_nanosleep", "clock_nanosleep_time64", "nanosleep"),
    *("set_robust_list", "rseq", "rt_sigprocmask", "gettid", "sched_getaffinity", "getcpu"),  # a thread's start
    *("clock_gettime", "clock_gettime64"),  # the CPU clock, and the others where the vDSO lacks them
    *("getpid", "rt_sigaction", "sigaltstack"),  # abort, and the interpreter's end
    "getrandom",
    *("rt_sigreturn", "restart_syscall"),  # after a stop and a continue
    "close",
    *("exit", "exit_group"),
)
"""All that a model's process on the CPU may call, beside starting threads and mapping memory that is not executable:
measured on both runtimes, and what libc calls in their place on other machines."""
REFUSED_CALLS = (
    *("open", "openat", "openat2", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents64"),
    *("stat", "lstat", "fstat", "newfstatat", "stat64", "lstat64", "fstat64", "fstatat64", "statx"),
    *("read", "pread64", "lseek", "_llseek", "ioctl", "prctl", "uname", "sysinfo"),
    *("getsockname", "getpeername"),  # a socket that is thrown away is put in words first
)
"""These fail rather than end the process: a library that looks for a file does without, a traceback without lines."""
DANGEROUS_CALLS = (
    *("execve", "execveat", "fork", "vfork", "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"),
    *("pidfd_send_signal", "pidfd_getfd", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise"),
    *("unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen"),
    *("fsmount", "fspick", "mount_setattr", "open_by_handle_at", "swapon", "swapoff", "quotactl", "acct"),
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "iopl", "ioperm"),
    *("add_key", "request_key", "keyctl", "personality", "syslog", "modify_ldt", "vhangup"),
    *("settimeofday", "clock_settime", "clock_settime64", "adjtimex", "clock_adjtime", "sethostname", "setdomainname"),
)
"""What no delegate needs, and what leads out of the process or further into the kernel."""


def lock_down(model_bytes: int, delegate: str) -> Lockdown:
    """Leave a model's process what it needs to run a model whose files have ``model_bytes`` in all.

    ``delegate`` is the library that is to be loaded, or empty.

    All files must have been read, and on the CPU everything have been imported and the runtime warmed up. DeviceError
    where even the limits cannot be set, or other threads run.
    """
    limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0))
    if delegate:
        profile = Profile(
            limits,
            with_delegate(os.getpid()),
            open_files=OPEN_FILES,
            keeps_user=True,  # the one who may open the device
            keeps_network="a delegate hears through it that its device is there",
            readable=(*LIBRARIES, *_directories(delegate)),
            writable=DEVICES,
        )
    else:
        memory = MEMORY_BYTES + MEMORY_PER_MODEL_BYTE * model_bytes
        profile = Profile(limits, on_the_cpu(os.getpid()), memory_bytes=memory)
    return lockdown.lock_down(profile)


def _directories(library: str) -> list[str]:
    searched = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return [directory for directory in (os.path.dirname(library), *searched) if directory]  # noqa: PTH120 - "" stays


def on_the_cpu(pid: int) -> Calls:
    """Those of SYSTEM_CALLS, threads, memory, and an abort of its own."""
    return Calls(
        (
            Rule(SYSTEM_CALLS),
            Rule((*MAPPING_CALLS, "mprotect"), when=NOT_EXECUTABLE),
            *THREADS,
            Rule(("tgkill",), when=Argument(0, pid)),
            Rule(REFUSED_CALLS, errno.EACCES),
        )
    )


def with_delegate(pid: int) -> Calls:
    """All but DANGEROUS_CALLS; no process, no signal to others, and of sockets those that tell of devices."""
    return Calls(
        (
            Rule(DANGEROUS_CALLS, errno.EPERM),
            *NO_PROCESSES,
            Rule(("tgkill",), errno.EPERM, Argument(0, pid, differs=True)),
            Rule(("socket",), errno.EACCES, Argument(0, socket.AF_NETLINK, differs=True)),
        ),
        others=True,
    )


def main() -> None:
    """Lock this process down as a model's is, and say what is in force, as JSON, on standard output."""
    report = lock_down(0, "".join(sys.argv[1:]))
    os.write(1, msgspec.json.encode(report))
    os._exit(0)  # an orderly end would make calls that are not allowed any more


if __name__ == "__main__":
    main()

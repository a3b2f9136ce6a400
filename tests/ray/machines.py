"""Virtual machines for tests, made of Linux namespaces: each with its own address, host name, processes and disks.

The main machine is the one that tests call from: a process in its own network namespace, with a bridge. Nodes are its
children, each connected to the bridge; some directories are hidden from each of them. All machines end with the main
machine, which ends when its standard input closes, even if the test's process is killed. Run as
`python machines.py PLAN`, with the plan as JSON.

This module imports neither pytest nor Ray, because it runs in the processes that create the namespaces.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

# From linux/sched.h, linux/mount.h and linux/prctl.h.
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_PDEATHSIG = 1

NETWORK = "10.213.77"
MAIN_ADDRESS = f"{NETWORK}.1"

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Leave the namespaces of the parent; raises `OSError` if the kernel forbids it."""
    _checked(_libc.unshare(flags), "unshare")


def mount(kind: str, target: str, options: str = "") -> None:
    """Mount a file system without a device, such as a `tmpfs`."""
    _checked(_libc.mount(kind.encode(), target.encode(), kind.encode(), 0, options.encode()), f"mount {target}")


def enter_user_namespace_if_needed() -> None:
    """Become root of a new user namespace, unless this process is root."""
    try:
        unshare(NEWNET | NEWNS)
    except PermissionError:
        user, group = os.getuid(), os.getgid()
        unshare(NEWUSER | NEWNET | NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def make_mounts_private() -> None:
    """Keep mounts of this namespace from propagating to other namespaces."""
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount / privately")


def unsupported_reason() -> str | None:
    """Return why namespaces cannot be created on this machine; None if they can."""
    if sys.platform != "linux":
        return "namespaces require Linux"
    code = (
        "import machines as m; m.enter_user_namespace_if_needed(); m.make_mounts_private();"
        "m.unshare(m.NEWPID | m.NEWUTS | m.NEWIPC); from pyroute2 import IPRoute; ip = IPRoute();"
        "ip.link('add', ifname='br0', kind='bridge'); ip.link('add', ifname='v0', kind='veth', peer={'ifname': 'v1'});"
        "m.mount('tmpfs', '/dev/shm')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60
    )
    reason = (done.stderr.strip().splitlines() or ["?"])[-1]
    return None if done.returncode == 0 else f"cannot create namespaces: {reason}"


class Machines:
    """The main machine, which tests call from, and its nodes.

    Args:
        nodes: For each node by its name: `command`, `env`, and `disks`, its own, initially empty directories.
        log: The directory for the nodes' output, one file each.
    """

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]], log: Path) -> None:
        self.log = log
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(nodes, start=2)}
        plan = {
            name: {**node, "name": name, "address": self.addresses[name], "log": str(log / f"{name}.log")}
            for name, node in nodes.items()
        }
        with (log / "main.log").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.pids: dict[str, int] = json.loads(self._process.stdout.readline() or b"{}")
        if not self.pids:
            self.close()
            raise RuntimeError((log / "main.log").read_text())

    def run(self, command: Sequence[str], *, on: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the main machine or on a node, and wait until it has ended.

        Args:
            command: The command.
            on: The node; the main machine by default.
            **options: As for `subprocess.run`.
        """
        options = {"capture_output": True, "text": True, "timeout": 300, "stdin": subprocess.DEVNULL, **options}
        return subprocess.run([*self.entering(on), *command], **options)

    def entering(self, on: str = "") -> list[str]:
        """Return the beginning of a command that runs on the main machine, or on a node."""
        return [sys.executable, __file__, "--enter", str(self.pids[on] if on else self._process.pid), "--"]

    def close(self) -> None:
        """Stop all machines, and wait until they have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def main(plan: dict[str, dict[str, Any]]) -> None:
    """Run as the main machine: create the network and the nodes, print their pids, wait for the end of the input."""
    from pyroute2 import IPRoute

    enter_user_namespace_if_needed()
    make_mounts_private()
    pids, inits = {}, {}
    with IPRoute() as network:
        _up(network, "lo")
        network.link("add", ifname="br0", kind="bridge")
        bridge = _up(network, "br0", MAIN_ADDRESS)
        for number, (name, node) in enumerate(plan.items()):
            ours, theirs = Pipe()
            pids[name] = _fork(lambda node=node, pipe=theirs: _run_node(node, pipe))
            ours.recv()  # it now has its own network namespace
            peer = {"ifname": "eth0", "net_ns_pid": pids[name]}
            network.link("add", ifname=f"port{number}", kind="veth", peer=peer)
            network.link("set", index=_up(network, f"port{number}"), master=bridge)
            ours.send("plugged in")
            inits[name] = ours.recv()
    sys.stdout.write(json.dumps(inits) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    for pid in inits.values():
        os.kill(pid, signal.SIGKILL)  # this kills all processes of its pid namespace
    for pid in pids.values():
        os.waitpid(pid, 0)


def _run_node(node: dict[str, Any], pipe: Connection) -> None:
    """Create a node's namespaces. Its init process is a child of this one, since no process can change its own pid."""
    from pyroute2 import IPRoute

    unshare(NEWNET | NEWNS | NEWUTS | NEWIPC | NEWPID)
    make_mounts_private()
    pipe.send("unshared")
    pipe.recv()
    with IPRoute() as network:
        _up(network, "lo")
        _up(network, "eth0", node["address"])
        network.route("add", dst="default", gateway=MAIN_ADDRESS)
    _checked(_libc.sethostname(node["name"].encode(), len(node["name"])), "sethostname")
    for directory in node["disks"]:
        mount("tmpfs", directory, "mode=1777")
    init = _fork(lambda: _run_init(node))
    pipe.send(init)
    os.waitpid(init, 0)


def _run_init(node: dict[str, Any]) -> None:
    """Run as a node's init process: start its command, and reap orphans until this process is killed."""
    mount("proc", "/proc")
    with open(node["log"], "ab") as log:
        subprocess.Popen(node["command"], env=node["env"], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(1)


def enter(pid: int, command: list[str]) -> int:
    """Run a command in the namespaces of a process, in the same working directory; return its exit status."""
    directory = os.getcwd()
    _end_with_parent()
    for name in ("user", "ipc", "uts", "net", "pid", "mnt"):
        path = f"/proc/{pid}/ns/{name}"
        if os.readlink(path) != os.readlink(f"/proc/self/ns/{name}"):
            descriptor = os.open(path, os.O_RDONLY)
            _checked(_libc.setns(descriptor, 0), f"setns {name}")
            os.close(descriptor)
    child = _fork(lambda: _become(directory, command))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become(directory: str, command: list[str]) -> NoReturn:
    os.chdir(directory)
    os.execvp(command[0], command)


def _fork(work: Callable[[], None]) -> int:
    """Run `work` in a child process, which ends with this one; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _end_with_parent()
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - this process ends here, whatever happens
        traceback.print_exc()
        os._exit(70)


def _end_with_parent() -> None:
    _checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def _up(network: Any, name: str, address: str | None = None) -> int:
    """Bring a network interface up; return its index."""
    (index,) = network.link_lookup(ifname=name)
    if address is not None:
        network.addr("add", index=index, address=address, prefixlen=24)
    network.link("set", index=index, state="up")
    return int(index)


if __name__ == "__main__":
    if sys.argv[1] == "--enter":
        sys.exit(enter(int(sys.argv[2]), sys.argv[4:]))
    main(json.loads(sys.argv[1]))

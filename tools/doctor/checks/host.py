"""Checks of the kernel, this process, and what is installed."""

from collections.abc import Callable, Iterable

from loader.bpf import MACHINES
from loader.capabilities import Capability
from tools.doctor.facts import Facts, HostFacts
from tools.doctor.findings import (
    Check,
    Finding,
    failure,
    not_applicable,
    ok,
    unknown,
    warning,
)

__all__ = ["CHECKS"]

OLDEST = (6, 1)
_ACCOUNTED = (5, 11)  # since then BPF memory is the memory cgroup's, not RLIMIT_MEMLOCK's
_SLOW_CLOCKS = {"hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies"}
_STOLEN = 0.05
_NEEDED = (Capability.BPF, Capability.NET_ADMIN)


def _machine(host: HostFacts) -> Finding:
    if host.machine in MACHINES:
        return ok(host.machine)
    return failure(
        f"{host.machine}: the loader does not know this machine's bpf(2)",
        f"Use one of {', '.join(sorted(MACHINES))}.",
    )


def _kernel(host: HostFacts) -> Finding:
    if host.kernel >= OLDEST:
        return ok(f"Linux {host.release}")
    return failure(
        f"Linux {host.release} is older than {OLDEST[0]}.{OLDEST[1]}, the oldest that the program "
        "was loaded on",
        "sudo apt install linux-image-$(dpkg --print-architecture)  # Debian 12 or newer; reboot",
    )


def _jit(host: HostFacts) -> Finding:
    if host.jit is None:
        return unknown("net.core.bpf_jit_enable cannot be read: a kernel without CONFIG_BPF_JIT?")
    if not host.jit:
        return warning(
            "off: every instruction is interpreted, which costs several times the CPU",
            "sudo sysctl -w net.core.bpf_jit_enable=1",
        )
    if host.jit_harden == 2:
        return warning(
            "on, but net.core.bpf_jit_harden=2 blinds constants in root's programs too",
            "sudo sysctl -w net.core.bpf_jit_harden=1",
        )
    return ok("on")


def _btf(host: HostFacts) -> Finding:
    if host.btf:
        return ok("/sys/kernel/btf/vmlinux is there; not needed")
    return not_applicable("no /sys/kernel/btf/vmlinux, and not needed")


def _bpffs(host: HostFacts) -> Finding:
    if not host.bpffs:
        return failure(
            "no bpffs at /sys/fs/bpf; the agent mounts it if it has CAP_SYS_ADMIN, which its "
            "systemd unit does not give it",
            "sudo mount -t bpf bpf /sys/fs/bpf",
        )
    if not host.bpffs_writable:
        if host.uid:
            return unknown("mounted at /sys/fs/bpf; whether root may write there, only root sees")
        return failure(
            "mounted at /sys/fs/bpf, but read-only", "sudo mount -o remount,rw /sys/fs/bpf"
        )
    return ok("mounted at /sys/fs/bpf, writable")


def _capabilities(host: HostFacts) -> Finding:
    lacking = [str(each) for each in _NEEDED if each not in host.capabilities]
    if not lacking:
        if Capability.PERFMON in host.capabilities:
            return ok("this process could load a relay, and run its agent")
        return ok(
            "this process could run an agent, whose program `shunt agent load` has loaded before"
        )
    if host.uid:
        return unknown(
            f"this process lacks {' and '.join(lacking)}, and cannot see all there is; the agent's "
            "own are what counts",
            "sudo shunt doctor",
        )
    return failure(
        f"root lacks {' and '.join(lacking)} here, as in a container",
        "docker run --cap-add BPF --cap-add NET_ADMIN --cap-add PERFMON …  # or the like",
    )


def _unprivileged_bpf(host: HostFacts) -> Finding:
    if host.unprivileged_bpf is None:
        return unknown("kernel.unprivileged_bpf_disabled cannot be read")
    if host.unprivileged_bpf:
        return ok("off for users without privilege")
    return warning(
        "any user of this host may load BPF programs, for which the relay has no use",
        "sudo sysctl -w kernel.unprivileged_bpf_disabled=1",
    )


def _memlock(host: HostFacts) -> Finding:
    if host.kernel >= _ACCOUNTED:
        return not_applicable("since Linux 5.11 maps count against the memory cgroup")
    if host.memlock < 0:
        return ok("unlimited")
    return failure(
        f"{host.memlock} bytes, and maps of Linux {host.release} count against it",
        "ulimit -l unlimited  # LimitMEMLOCK=infinity in a systemd unit",
    )


def _bcc(host: HostFacts) -> Finding:
    install = "sudo apt install python3-bpfcc && ./provision.sh run"
    if not host.bcc.module:
        return failure("no Python module `bcc`", install)
    if not host.bcc.genuine:
        return failure(
            f"{host.bcc.module} is PyPI's `bcc`, which has nothing to do with BPF",
            f".venv/bin/pip uninstall --yes bcc; {install}",
        )
    if not host.bcc.library:
        return failure(f"{host.bcc.module}, but the linker finds no libbcc.so.0", install)
    return ok(f"{host.bcc.version} in {host.bcc.module}")


def _headers(host: HostFacts) -> Finding:
    missing = [name for name, there in host.headers.items() if not there]
    if not missing:
        return ok(f"{', '.join(host.headers)} are there; kernel headers are not needed")
    return failure(f"missing: {', '.join(missing)}", "sudo apt install linux-libc-dev")


def _clocksource(host: HostFacts) -> Finding:
    if host.clocksource in _SLOW_CLOCKS:
        return warning(
            f"{host.clocksource}: each reading of the clock is slow",
            f"dmesg | grep -i clocksource  # why the kernel left its best one for "
            f"{host.clocksource}",
        )
    return ok(host.clocksource or "not told by this kernel")


def _synchronised(host: HostFacts) -> Finding:
    if host.synchronised is None:
        return unknown("the kernel does not say (adjtimex)")
    if host.synchronised:
        return ok("by NTP or the like")
    return warning("nothing keeps this host's clock", "sudo apt install chrony")


def _steal(host: HostFacts) -> Finding:
    share = f"{host.steal:.1%} of CPU time since boot"
    if host.steal < _STOLEN:
        return ok(share)
    return warning(
        f"{share} went to other guests of the hypervisor", "Ask for dedicated CPUs, or move."
    )


def _of_host(look: Callable[[HostFacts], Finding]) -> Callable[[Facts], Iterable[Finding]]:
    return lambda facts: [look(facts.host)]


CHECKS = (
    Check(
        "machine",
        "The loader calls bpf(2) by its number, which it knows of these machines only.",
        _of_host(_machine),
    ),
    Check(
        "kernel",
        "Older verifiers refuse the program, or were never tried.",
        _of_host(_kernel),
    ),
    Check(
        "jit",
        "The program runs for every packet of the interface, also for those that it passes on.",
        _of_host(_jit),
    ),
    Check(
        "btf",
        "It is not needed: BCC compiles the program on the host, so that nothing has to be "
        "relocated (no CO-RE).",
        _of_host(_btf),
    ),
    Check(
        "bpffs",
        "Program, routes and flows are pinned there, which is how they outlive the agent.",
        _of_host(_bpffs),
    ),
    Check(
        "capabilities",
        "CAP_BPF is for maps and programs, CAP_NET_ADMIN for XDP and interfaces. To load the "
        "program, and only then, CAP_PERFMON: else the verifier forbids its arithmetic with "
        "pointers.",
        _of_host(_capabilities),
    ),
    Check(
        "unprivileged_bpf",
        "The relay needs nobody else's programs, and the kernel's bugs with them are many.",
        _of_host(_unprivileged_bpf),
    ),
    Check(
        "memlock",
        "Old kernels refuse maps (EPERM) beyond RLIMIT_MEMLOCK.",
        _of_host(_memlock),
    ),
    Check(
        "bcc",
        "BCC compiles the program; it is Debian's python3-bpfcc, and PyPI's package of that name "
        "is another.",
        _of_host(_bcc),
    ),
    Check(
        "headers",
        "The program is compiled against linux-libc-dev's headers, and no others.",
        _of_host(_headers),
    ),
    Check(
        "clocksource",
        "Agent and transceivers read the clock all the time; the program does so once a jiffy, at "
        "any CONFIG_HZ.",
        _of_host(_clocksource),
    ),
    Check(
        "synchronised",
        "Logs of several hosts, TLS and ephemeral keys go by the time of day; relaying does not.",
        _of_host(_synchronised),
    ),
    Check(
        "steal",
        "While the hypervisor runs somebody else, packets wait in the queue or are lost.",
        _of_host(_steal),
    ),
)

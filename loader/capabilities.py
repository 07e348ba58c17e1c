"""What the kernel lets this process do (capabilities(7)), and what to do about what it does not."""

from enum import IntEnum
from pathlib import Path

from loader.errors import ShuntError

__all__ = ["Capability", "held", "require"]


class Capability(IntEnum):
    """By its number in linux/capability.h, as far as the loader asks for it."""

    NET_ADMIN = 12  # interfaces and neighbours; with BPF, also to load an XDP program
    SYS_ADMIN = 21  # to mount bpffs, and to see programs that are pinned elsewhere
    PERFMON = 38  # to load a program without the verifier's guards against Spectre
    BPF = 39  # bpf(2) at all

    def __str__(self) -> str:
        return f"CAP_{self.name}"


def held() -> frozenset[Capability]:
    """The effective ones. CAP_SYS_ADMIN stands for what was split from it (linux/capability.h)."""
    status = Path("/proc/thread-self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    bits = int(line.split()[1], 16)
    found = {each for each in Capability if bits >> each & 1}
    if Capability.SYS_ADMIN in found:
        found |= {Capability.BPF, Capability.PERFMON}
    return frozenset(found)


def require(*needed: Capability, what: str) -> None:
    """Raises ShuntError, which says that *what* needs them and which are missing."""
    missing = [each for each in needed if each not in held()]
    if not missing:
        return
    words = ",".join(f"+{each.name.lower()}" for each in needed)
    raise ShuntError(
        f"{what} needs {_listed(needed)}; missing: {_listed(missing)}",
        "Use `sudo`, or the systemd unit (packaging/README.md), or give a user's process them: "
        f"`sudo setpriv --reuid=USER --init-groups --inh-caps={words} --ambient-caps={words} …`.",
    )


def _listed(capabilities: "list[Capability] | tuple[Capability, ...]") -> str:
    names = [str(each) for each in capabilities]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

"""Other versions of the relay: this tree with a few words changed, in a folder of its own, whose
code runs as a process of its own."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from loader.source import parts
from tests.loader.conftest import ROOT, Host

__all__ = ["COLOURED", "NARROW", "OTHER_PROGRAM", "TINY", "UNVERIFIABLE", "Version"]

KILLED = 9

Edits = Mapping[str, str | tuple[tuple[str, str], ...]]

_TINY = """#include <linux/if_ether.h>
#include "maps.h"
int shunt(struct xdp_md *ctx)
{
	BODY
	return XDP_PASS;
}
""" + "\n".join(
    f"int {name}(struct xdp_md *ctx)\n{{\n\treturn XDP_PASS;\n}}" for name in parts().values()
)

TINY: Edits = {"bpf/shunt.c": _TINY.replace("BODY", "")}
"""The same maps, and a program that relays nothing but is compiled in no time."""

UNVERIFIABLE: Edits = {
    "bpf/shunt.c": _TINY.replace("BODY", "if (*(char *)(long)ctx->data)\n\t\treturn XDP_DROP;")
}
"""One that the verifier refuses: it reads a packet without a look at its length."""

_ENTRY = "int shunt(struct xdp_md *ctx)\n{\n"

OTHER_PROGRAM: Edits = {
    "bpf/shunt.c": ((_ENTRY, f"{_ENTRY}\tif (ctx->data > ctx->data_end)\n\t\treturn XDP_DROP;\n"),)
}
"""One that relays as this one does, and is another to the kernel."""

COLOURED: Edits = {
    **TINY,
    "bpf/types.h": (
        ("struct shunt_to_client {\n", "struct shunt_to_client {\n\t__u64 colour;\n"),
        (
            "\t__u8 unused;\n\t__u16 transceiver; /* index into transceivers */\n",
            "\t__u8 unused;\n\t__u16 unused_too;\n\t__u32 transceiver;\n",
        ),
        (
            "\t__u32 seen;     /* tick of the client's last packet */\n",
            "\t__u32 seen;\n\t__u32 colour;\n",
        ),
        (
            "\t__u32 since;      /* tick of the last change of state */\n\t__u32 unused;\n",
            "\t__u32 unused;\n\t__u32 since;\n",
        ),
        ("\t__u32 busy; ", "\t__u32 colour;\n\t__u32 busy; "),
    ),
    "loader/types.py": (
        (
            '        ("client", Address),\n',
            '        ("colour", _u64),\n        ("client", Address),\n',
        ),
        (
            '        ("unused", _u8),\n        ("transceiver", _u16),\n',
            '        ("unused", _u8),\n'
            '        ("unused_too", _u16),\n'
            '        ("transceiver", _u32),\n',
        ),
        ('        ("seen", _u32),\n', '        ("seen", _u32),\n        ("colour", _u32),\n'),
        ('("since", _u32), ("unused", _u32)]', '("unused", _u32), ("since", _u32)]'),
        ('        ("busy", _u32),\n', '        ("colour", _u32),\n        ("busy", _u32),\n'),
    ),
}
"""Another layout: fields that are new, that have moved, and one that has grown, in most of the
arrays, and in the hash of routes."""

NARROW: Edits = {"loader/types.py": (("ROUTE_SLOTS = 8", "ROUTE_SLOTS = 4"),)}
"""One whose fields mean something else."""


class Version:
    """A version in *folder*, other than this by *edits*."""

    def __init__(self, folder: Path, edits: Edits) -> None:
        self.folder = folder
        for part in ("bpf", "loader", "tools", "transceiver"):
            shutil.copytree(
                ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name, changes in edits.items():
            if isinstance(changes, str):
                (folder / name).write_text(changes)
                continue
            text = (folder / name).read_text()
            for before, after in changes:
                assert text.count(before) == 1, f"{name} has changed: {before!r}"
                text = text.replace(before, after)
            (folder / name).write_text(text)

    @classmethod
    def here(cls) -> "Version":
        """This one, as a process of its own."""
        version = cls.__new__(cls)
        version.folder = ROOT
        return version

    def run(
        self, host: Host, program: str, *, before: tuple[str, ...] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """Run Python of that version in the relay's namespace, behind the command *before*."""
        return host.run(
            lambda: subprocess.run(
                [*before, sys.executable, "-c", program],
                cwd=self.folder,
                capture_output=True,
                text=True,
                check=False,
            )
        )

    def load(self, pins: Path) -> str:
        """Load that version's program and pin it below *pins*; "loaded", or what went wrong."""
        done = subprocess.run(
            [
                *(sys.executable, "-c"),
                "from pathlib import Path\n"
                "from loader import datapath\n"
                "from loader.errors import ShuntError\n"
                "try:\n"
                f"    datapath.load(Path({str(pins)!r}))\n"
                "    print('loaded')\n"
                "except ShuntError as error:\n"
                "    print(error.what)\n",
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def take_over(
        self,
        host: Host,
        pins: Path,
        *interfaces: str,
        inside: int = 1,
        changed: str = "",
        before: tuple[str, ...] = (),
    ) -> str:
        """As that version's agent begins; nothing, or what went wrong. *changed*: Python that is
        run first, to break it; it is killed if that says so. *before*: see `run`."""
        done = self.run(
            host,
            "import os\n"
            "from pathlib import Path\n"
            "from loader import carriers, migrate, upgrade\n"
            "from loader.errors import ShuntError\n"
            f"{changed}\n"
            f"pins = Path({str(pins)!r})\n"
            "try:\n"
            "    upgrade.recover(pins)\n"
            f"    plan = upgrade.plan(pins, {inside})\n"
            f"    upgrade.carry_out(plan, {list(interfaces)!r})\n"
            "except ShuntError as error:\n"
            "    print(error.what, '|', error.cure)\n",
            before=before,
        )
        if done.returncode == KILLED:
            return "killed"
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

"""`python -m transceiver.aiortc --id ID --udp IP:PORT … (SCRIPT | -m MODULE) …`: install, then run
a program that knows nothing of Shunt."""

import argparse
import os
import runpy
import sys
from pathlib import Path

from loader.client import DEFAULT_SOCKET, TOKEN_VARIABLE
from loader.errors import ShuntError
from transceiver.aiortc import install


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m transceiver.aiortc", description=__doc__)
    parser.add_argument("--id", required=True, help="of this transceiver; no other may have it")
    parser.add_argument(
        "--udp", required=True, metavar="IP:PORT", help="the one UDP socket, where the relay sends"
    )
    parser.add_argument("--http", metavar="URL", help="where signaling is, for operators to see")
    parser.add_argument(
        "--agent", default=DEFAULT_SOCKET, help="the agent's Unix socket, or its URL"
    )
    parser.add_argument("--agent-ca", type=Path, help="certificates that its own is signed by")
    parser.add_argument("--capacity", type=int, default=100, help="calls at a time")
    parser.add_argument(
        "-m", dest="is_module", action="store_true", help="PROGRAM is a module, not a file"
    )
    parser.add_argument("program", metavar="PROGRAM", help="what to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args()
    try:
        install(
            id=given.id,
            udp=given.udp,
            http=given.http,
            agent=given.agent,
            agent_token=os.environ.get(TOKEN_VARIABLE),
            agent_ca=given.agent_ca,
            capacity=given.capacity,
        )
    except ShuntError as error:
        parser.exit(1, f"{error.what}\n{error.cure}\n".rstrip("\n") + "\n")
    sys.argv = [given.program, *given.arguments]
    if given.is_module:
        runpy.run_module(given.program, run_name="__main__", alter_sys=True)
    else:
        # As Python does it: what lies beside the script can be imported.
        sys.path.insert(0, str(Path(given.program).resolve().parent))
        runpy.run_path(given.program, run_name="__main__")


if __name__ == "__main__":
    main()

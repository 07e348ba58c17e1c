"""The program against the model of the walk: SHUNT_PACKETS packets (200,000 if unset), in histories
by hypothesis. SHUNT_TEST_SEED repeats a run. Any difference is a failure."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loader import datapath
from loader.pinned_set import remove_pins
from loader.reasons import REASONS

_WORKERS = 2
_PACKETS = int(os.environ.get("SHUNT_PACKETS", "200000"))
_SEED = int(os.environ.get("SHUNT_TEST_SEED", random.SystemRandom().randrange(2**32)))

NOT_REACHED = {
    "checksum": "takes a datagram beyond 16 KiB; a test run has a page",
    "headroom": "a test run has room for headers",
    "route_busy": "takes another CPU",
    "program": "takes a part of the program that is missing",
}
"""Reasons that no packet meets here, and why; tests/packets has tests of all four."""


@pytest.fixture
def pins(request: pytest.FixtureRequest) -> Iterator[list[Path]]:
    """A relay of its own for each worker."""
    folders = [Path(f"/sys/fs/bpf/shunt-model-{os.getpid()}-{n}") for n in range(_WORKERS)]
    try:
        for folder in folders:
            datapath.load(folder, inside=2)
        yield folders
    finally:
        for folder in folders:
            remove_pins(folder)


def _begin(pins: Path, packets: int, seed: int, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.model.runner", str(pins), str(packets), str(seed), *options],
        stdout=subprocess.PIPE,
        text=True,
    )


def _end(worker: "subprocess.Popen[str]") -> dict[str, Any]:
    text, _ = worker.communicate()
    assert worker.returncode == 0
    report: dict[str, Any] = json.loads(text)
    return report


# At 1,000 packets a second and worker, and with time to shrink what fails.
@pytest.mark.timeout(300 + _PACKETS // (1000 * _WORKERS))
def test_program_and_model_agree_on_every_packet(
    pins: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    share = -(-_PACKETS // _WORKERS)
    workers = [_begin(folder, share, _SEED + (number << 32)) for number, folder in enumerate(pins)]
    reports = [_end(worker) for worker in workers]
    coverage: Counter[str] = Counter()
    for report in reports:
        coverage.update(report["coverage"])
    packets = sum(report["packets"] for report in reports)
    with capsys.disabled():
        print(f"\nSHUNT_TEST_SEED={_SEED}: {packets} packets")
        print(", ".join(f"{name} {count}" for name, count in sorted(coverage.items())))
    for report in reports:
        assert report["difference"] is None, f"SHUNT_TEST_SEED={_SEED}\n{report['difference']}"
    assert packets >= _PACKETS
    reachable = {reason.name for reason in REASONS} - set(NOT_REACHED)
    assert reachable - set(coverage) == set(), "never met"
    assert set(coverage) & set(NOT_REACHED) == set(), "met after all"
    for kind in ("4-4", "4-6", "6-4", "6-6"):
        assert coverage[f"kind {kind}"]
        assert coverage[f"kind icmp {kind}"]


@pytest.mark.timeout(300)
def test_a_packet_that_is_half_changed_is_found_and_its_history_short(pins: list[Path]) -> None:
    report = _end(_begin(pins[0], 20000, _SEED, "--faulty"))
    assert report["difference"] is not None
    assert "expected" in report["difference"]
    assert len(report["difference"].splitlines()) < 60

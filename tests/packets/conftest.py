"""The program, compiled once for all packet tests; for each, the maps as a fresh agent has them."""

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyroute2 import netns

from loader import datapath
from loader.pinned_set import remove_pins
from tests.packets.relay import Relay
from tools.netns import create


@pytest.fixture(scope="session")
def bench() -> Iterator[Relay]:
    pins = Path(f"/sys/fs/bpf/shunt-test-{os.getpid()}")
    namespace = f"t-packets-{os.getpid()}"
    try:
        datapath.load(pins, inside=2)
        create(namespace)
        with Relay(pins, namespace) as bench:
            yield bench
    finally:
        with suppress(FileNotFoundError):
            netns.remove(namespace)
        remove_pins(pins)


@pytest.fixture
def relay(bench: Relay) -> Relay:
    bench.reset()
    return bench


@pytest.fixture
def dice() -> random.Random:
    """Random numbers; pytest shows the seed of a test that fails."""
    seed = int(os.environ.get("SHUNT_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"SHUNT_TEST_SEED={seed}")
    return random.Random(seed)

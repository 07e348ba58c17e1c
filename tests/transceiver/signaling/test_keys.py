"""Ephemeral keys: what is in them, who takes them, and that nobody can make or change one."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transceiver.signaling.keys import EPHEMERAL, OPERATOR, Keys, Seal, TooLarge

NOW = 1_800_000_000.0


def keys(api_key: str = "sesame", at: float = NOW) -> Keys:
    return Keys(api_key, wall=lambda: at)


def test_who_has_the_api_key_is_the_operator() -> None:
    asker = keys().asker("Bearer sesame")
    assert asker is not None
    assert asker.name == OPERATOR
    assert asker.is_operator


def test_the_scheme_may_be_written_in_any_case() -> None:
    assert keys().asker("bearer sesame") is not None


@pytest.mark.parametrize(
    "header", ["", "sesame", "Bearer", "Bearer ", "Bearer sesam", "Basic sesame", "Bearer käse"]
)
def test_nobody_else_is_known(header: str) -> None:
    assert keys().asker(header) is None


def test_an_ephemeral_key_is_taken_by_whoever_has_the_same_api_key() -> None:
    made = keys().make(60, {"instructions": "Be kind."})
    assert made.value.startswith("ek_")
    assert made.expires_at == NOW + 60
    asker = keys().asker(f"Bearer {made.value}")
    assert asker is not None
    assert asker.configuration == {"instructions": "Be kind."}
    assert not asker.is_operator
    assert not asker.expired


def test_another_api_key_takes_none() -> None:
    assert keys("other").asker(f"Bearer {keys().make(60, {}).value}") is None


@pytest.mark.parametrize(("later", "expired"), [(59.9, False), (60.0, True)])
def test_it_expires(later: float, expired: bool) -> None:
    made = keys().make(60, {})
    asker = keys(at=NOW + later).asker(f"Bearer {made.value}")
    assert asker is not None
    assert asker.expired is expired


def test_two_keys_are_two_askers() -> None:
    names = set()
    for _ in range(2):
        asker = keys().asker(f"Bearer {keys().make(60, {}).value}")
        assert asker is not None
        names.add(asker.name)
    assert len(names) == 2


def test_no_bit_of_it_can_be_changed() -> None:
    sealed = keys().make(60, {"model": "x"}).value.removeprefix(EPHEMERAL)
    raw = base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4))
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        text = base64.urlsafe_b64encode(changed).decode().rstrip("=")
        assert keys().asker(f"Bearer {EPHEMERAL}{text}") is None


@given(st.text(max_size=200))
def test_whatever_else_is_sent_is_no_key(text: str) -> None:
    assert keys().asker(f"Bearer {EPHEMERAL}{text}") is None
    assert keys().asker(text) is None


def test_a_configuration_that_does_not_fit_into_a_header_is_refused() -> None:
    fits = keys().make(60, {"instructions": "x" * 5000})
    assert len(f"Authorization: Bearer {fits.value}") < 8190
    with pytest.raises(TooLarge):
        keys().make(60, {"instructions": "x" * 6000})


def test_what_is_sealed_for_one_purpose_is_nothing_for_another() -> None:
    text = Seal("sesame", b"one").make(0, {})
    assert Seal("sesame", b"one").read(text) is not None
    assert Seal("sesame", b"two").read(text) is None

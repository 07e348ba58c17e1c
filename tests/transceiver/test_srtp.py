"""SRTP between two ends, and what an attacker or a greedy peer gets."""

import contextlib
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pylibsrtp import Policy

from transceiver.dtls import Keys
from transceiver.media import rtcp, rtp
from transceiver.srtp import MAX_SOURCES, WINDOW, Reason, Srtp, SrtpError


def ends(profile: int = Policy.SRTP_PROFILE_AEAD_AES_128_GCM, size: int = 28) -> tuple[Srtp, Srtp]:
    one, other = os.urandom(size), os.urandom(size)
    return Srtp(Keys(profile, one, other)), Srtp(Keys(profile, other, one))


def packet(sequence: int = 1, ssrc: int = 7) -> bytes:
    return rtp.build(b"opus", payload_type=111, sequence=sequence, timestamp=0, ssrc=ssrc)


def report(ssrc: int = 7) -> bytes:
    return rtcp.build([rtcp.ReceiverReport(ssrc)])


@pytest.mark.parametrize(
    ("profile", "size"),
    [(Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 28), (Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 30)],
)
def test_packets_go_both_ways(profile: int, size: int) -> None:
    one, other = ends(profile, size)
    assert other.unprotect(one.protect(packet())) == packet()
    assert one.unprotect(other.protect(packet())) == packet()
    assert other.unprotect_rtcp(one.protect_rtcp(report())) == report()
    assert b"opus" not in one.protect(packet(2))


def test_a_packet_that_was_changed_is_refused() -> None:
    one, other = ends()
    damaged = bytearray(one.protect(packet()))
    damaged[-20] ^= 1
    with pytest.raises(SrtpError) as error:
        other.unprotect(bytes(damaged))
    assert error.value.reason is Reason.AUTHENTICATION


def test_a_replay_is_refused() -> None:
    one, other = ends()
    protected, control = one.protect(packet()), one.protect_rtcp(report())
    other.unprotect(protected)
    other.unprotect_rtcp(control)
    with pytest.raises(SrtpError) as error:
        other.unprotect(protected)
    assert error.value.reason is Reason.REPLAY
    with pytest.raises(SrtpError) as error:
        other.unprotect_rtcp(control)
    assert error.value.reason is Reason.REPLAY


def test_late_packets_are_good_within_the_window_and_old_ones_are_not() -> None:
    one, other = ends()
    protected = [one.protect(packet(number)) for number in range(1, WINDOW + 3)]
    other.unprotect(protected[-1])
    assert other.unprotect(protected[2]) == packet(3)
    with pytest.raises(SrtpError) as error:
        other.unprotect(protected[0])
    assert error.value.reason is Reason.REPLAY


def test_sequence_numbers_wrap() -> None:
    one, other = ends()
    for number in (65534, 65535, 0, 1):
        assert other.unprotect(one.protect(packet(number))) == packet(number)


def test_a_sequence_number_is_never_used_twice() -> None:
    one, _ = ends()
    one.protect(packet())
    with pytest.raises(SrtpError):
        one.protect(packet())


def test_a_peer_has_so_many_sources_and_no_more() -> None:
    one, other = ends()
    for ssrc in range(MAX_SOURCES):
        other.unprotect(one.protect(packet(ssrc=ssrc)))
    with pytest.raises(SrtpError) as error:
        other.unprotect(one.protect(packet(ssrc=MAX_SOURCES)))
    assert error.value.reason is Reason.SOURCES
    with pytest.raises(SrtpError) as error:
        other.unprotect_rtcp(one.protect_rtcp(report(MAX_SOURCES)))
    assert error.value.reason is Reason.SOURCES
    assert other.unprotect(one.protect(packet(2, ssrc=3))) == packet(2, ssrc=3)
    assert other.unprotect_rtcp(one.protect_rtcp(report(3))) == report(3)


def test_a_stranger_uses_up_no_sources() -> None:
    one, other = ends()
    stranger, _ = ends()
    for ssrc in range(10 * MAX_SOURCES):
        with pytest.raises(SrtpError) as error:
            other.unprotect(stranger.protect(packet(ssrc=ssrc)))
        assert error.value.reason is Reason.AUTHENTICATION
    assert other.unprotect(one.protect(packet())) == packet()


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_and_no_more(garbage: bytes) -> None:
    one, other = ends()
    for unprotect in (other.unprotect, other.unprotect_rtcp):
        with pytest.raises(SrtpError):
            unprotect(garbage)
    assert other.unprotect(one.protect(packet())) == packet()


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_what_is_no_packet_is_not_protected_into_a_crash(garbage: bytes) -> None:
    one, _ = ends()
    for protect in (one.protect, one.protect_rtcp):
        with contextlib.suppress(SrtpError):
            protect(garbage)


def test_extensions_beyond_the_packet_are_refused() -> None:
    one, other = ends()
    protected = bytearray(one.protect(packet()))
    protected[0] |= 0x10
    protected[12:16] = struct.pack("!HH", 0xBEDE, 0xFFFF)
    with pytest.raises(SrtpError):
        other.unprotect(bytes(protected))

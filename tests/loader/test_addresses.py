"""Addresses that hosts can have, and those that none can."""

import pytest

from loader.addresses import endpoint, host_address, http_url, prefix


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("198.18.1.1", "198.18.1.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fd00::1", "fd00::1"),
        ("64:ff9b::198.18.0.1", "64:ff9b::c612:1"),
    ],
)
def test_an_address_has_one_text(text: str, canonical: str) -> None:
    assert str(host_address(text)) == canonical


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x1.example", "no IP address"),
        ("", "no IP address"),
        ("198.18.1", "no IP address"),
        ("198.18.1.01", "no IP address"),
        ("[2001:db8::1]", "no IP address"),
        ("::ffff:198.18.1.1", "IPv4-mapped: give 198.18.1.1"),
        ("::ffff:c612:101", "IPv4-mapped: give 198.18.1.1"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("169.254.0.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("0.1.2.3", "reserved"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("2001:db8::1%eth0", "names an interface"),
    ],
)
def test_what_no_host_can_have_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        host_address(text)


def test_an_endpoint_brackets_ipv6() -> None:
    assert endpoint("198.18.0.1", 3478) == "198.18.0.1:3478"
    assert endpoint("2001:db8::1", 3478) == "[2001:db8::1]:3478"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.0.0.9/32", "10.0.0.9/32"),
        ("FD00:0::/8", "fd00::/8"),
    ],
)
def test_a_prefix_has_one_text(text: str, canonical: str) -> None:
    assert str(prefix(text)) == canonical


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.0", "is no prefix"),
        ("10.0.0.0/", "is no prefix"),
        ("10.0.0.0/33", "is no prefix"),
        ("10.0.0.0/255.0.0.0", "is no prefix"),
        ("10.0.0.0/٨", "is no prefix"),
        ("fe80::%eth0/64", "is no prefix"),
        ("inside/8", "is no prefix"),
        ("", "is no prefix"),
        ("10.0.0.9/24", "has bits beyond its length: give 10.0.0.0/24"),
        ("fd00::9/64", "has bits beyond its length: give fd00::/64"),
        ("::ffff:10.0.0.0/104", "IPv4-mapped"),
    ],
)
def test_what_is_no_prefix_says_what_to_give(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        prefix(text)


@pytest.mark.parametrize(
    "text",
    ["http://198.18.1.11:8080", "https://x1.example/calls", "http://[2001:db8::1]:80", "http://a"],
)
def test_a_url_is_taken_as_it_is(text: str) -> None:
    assert http_url(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "http://", "http:///x", "ftp://x1", "//x1", "http://x1:0", "http://x1:65536"),
        *("http://x1:port", "http://[fd00::zz]", "http://[::1", "http://me@x1", "http://me:it@x1"),
        *("http://x1?a=b", "http://x1#a", "http://x1\n", "http://x 1", "http://ü"),
    ],
)
def test_what_is_no_url_of_a_transceiver_is_told_why(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is no URL|has more)"):
        http_url(text)

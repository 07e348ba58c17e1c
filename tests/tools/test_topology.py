import pytest

from tools.topology import cables, namespaces, overlapping

DESIGN = {
    ("shunt-client", ("198.18.0.10/24", "2001:db8:18::10/64")),
    (None, ("198.18.0.9/24", "2001:db8:18::9/64")),
    ("shunt-relay", ("198.18.0.1/24", "2001:db8:18::1/64")),
    ("shunt-relay", ("198.18.1.1/24", "2001:db8:118::1/64")),
    ("shunt-x1", ("198.18.1.11/24", "2001:db8:118::11/64")),
    ("shunt-x2", ("198.18.1.12/24", "2001:db8:118::12/64")),
}


def test_the_addresses_are_those_of_the_design() -> None:
    laid = cables(transceivers=2, host=True)

    assert {(cable.namespace, cable.addresses) for cable in laid} == DESIGN


def test_the_host_stays_out_unless_asked_in() -> None:
    assert all(cable.namespace for cable in cables(transceivers=2, host=False))


def test_each_transceiver_more_is_a_namespace_more() -> None:
    assert set(namespaces(3)) - set(namespaces(2)) == {"shunt-x3"}


@pytest.mark.parametrize("count", [1, 200])
def test_no_interface_name_is_longer_than_linux_allows(count: int) -> None:
    laid = cables(transceivers=count, host=True)

    assert all(len(cable.interface) < 16 and len(cable.port) < 16 for cable in laid)


@pytest.mark.parametrize(
    "route",
    [
        *("198.18.0.0/15", "198.18.1.0/24", "198.19.0.0/16", "198.0.0.0/8", "198.18.0.7/32"),
        *("2001:db8::/32", "2001:db8:18::/64", "2001:db8:118::11/128"),
    ],
)
def test_a_route_into_the_labs_range_is_a_conflict(route: str) -> None:
    assert overlapping([(route, "eth7")]) == [f"{route} dev eth7"]


@pytest.mark.parametrize(
    "route",
    [
        *("0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/8", "198.20.0.0/16"),
        *("::/0", "2000::/3", "fd00::/64", "2001:db8:19::/64", "fe80::/64"),
    ],
)
def test_a_default_route_or_one_elsewhere_is_no_conflict(route: str) -> None:
    assert overlapping([(route, "eth7")]) == []


def test_the_labs_own_routes_are_no_conflict() -> None:
    assert overlapping([("198.18.1.0/24", "shunt-host"), ("2001:db8:18::/64", "shunt-host")]) == []

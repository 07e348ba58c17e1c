"""ICE over a simulated network, by many seeds: what holds whatever the network does.

A `World` holds a server, which is the real demultiplexer and sessions of `transceiver.ice`, and a
client that is not ours. Whatever the server sends is held against what it may send, by a witness
that reads the network and not the server.
"""

import itertools
import struct
from collections import Counter
from collections.abc import Callable

import pytest

from tests.transceiver.controlling import ControllingAgent
from tests.transceiver.network import Clock, Network, Weather
from transceiver import stun
from transceiver.demultiplexer import Demultiplexer
from transceiver.ice import AMPLIFICATION, MAX_PATHS, PACE, Credentials, IceSession, IceTiming
from transceiver.stun import Address, Class

SERVER = ("198.18.0.1", 3478)
SERVER6 = ("2001:db8:18::1", 3478)
HOME = ("192.0.2.1", 1000)
HOME6 = ("2001:db8:1::1", 1000)
AWAY = ("192.0.2.77", 2000)
THIRD = ("203.0.113.5", 3000)
FRAME = 0.02
TIMING = IceTiming()
LOST = 0.3  # s of audio that a client may lose that moves

FAIR = Weather(loss=0.2, repeat=0.1, delay=0.02, jitter=0.06)
ROUGH = Weather(loss=0.35, repeat=0.2, delay=0.05, jitter=0.2)
CALM = Weather(loss=0.0, repeat=0.1, delay=0.02, jitter=0.02)
FAR = Weather(loss=0.0, repeat=0.1, delay=0.05, jitter=0.01)

SEEDS = range(12)


def credentials(side: str, number: int = 1) -> Credentials:
    return Credentials(f"{side}{number:04}ABCDEFGH", f"{side}{number:04}".ljust(24, "x"))


class Witness:
    """Sees what goes over the network to and from the servers, and knows the client's password.

    Fails as soon as media goes to who has not answered a check there, or STUN is louder than it may
    be. What a path that is selected gets is not counted: it has answered.
    """

    def __init__(self, servers: list[Address], world: "World") -> None:
        self.got: Counter[Address] = Counter()
        """Bytes of STUN from an address that arrived, authentic or not."""
        self.authentic: Counter[Address] = Counter()
        """Of these, authentic ones."""
        self.sent: Counter[Address] = Counter()
        """Bytes of STUN to an address that was not selected."""
        self.answered: set[Address] = set()
        self._asked: dict[bytes, Address] = {}
        self._servers = servers
        self._world = world

    def arrived(self, data: bytes, source: Address) -> None:
        """A datagram reaches the server."""
        if data[:1] > b"\3":
            return
        self.got[source] += len(data)
        try:
            message = stun.parse(data)
        except stun.StunError:
            return
        passwords = self._world.passwords
        if message.cls is Class.REQUEST:
            if any(message.authentic(ours) for ours, _ in passwords):
                self.authentic[source] += len(data)
        elif self._asked.get(message.transaction) == source and any(
            message.authentic(theirs) for _, theirs in passwords
        ):
            self.authentic[source] += len(data)
            self.answered.add(source)

    def sends(self, data: bytes, source: Address, destination: Address) -> None:
        """A datagram leaves somebody."""
        if source not in self._servers:
            return
        if data[0] > 3:
            assert destination in self.answered, "media to who has not answered there"
            return
        message = stun.parse(data)
        if message.cls is Class.REQUEST:
            self._asked[message.transaction] = destination
        if destination != self._world.session.selected:
            self.sent[destination] += len(data)
        forged = self.got[destination] - self.authentic[destination]
        earned = AMPLIFICATION * self.authentic[destination] + forged
        assert self.sent[destination] <= earned, "louder than who asks"


class World:
    """A server with one session and a client of it, on a network with this *seed* and *weather*."""

    def __init__(
        self,
        seed: int,
        weather: Weather,
        *,
        interfaces: list[Address] | None = None,
        servers: list[Address] | None = None,
        interval: float = 5.0,
        keeps_all: bool = False,
    ) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, seed, weather)
        self.passwords: list[tuple[str, str]] = []
        """Ours and theirs, of each generation."""
        self.events: list[tuple[float, object]] = []
        self.moves: list[tuple[float, Address | None]] = [(self.clock.now, None)]
        """When media went elsewhere, and where."""
        self.sent: list[tuple[float, bytes]] = []
        """Media of the server's."""
        self.heard: list[tuple[float, bytes]] = []
        """Media of the client's, as the session got it."""
        self.demultiplexer = Demultiplexer()
        self._servers = servers or [SERVER]
        self._generation = 1
        ours, theirs = self._credentials()
        self.session = IceSession(
            ours,
            transactions=self.demultiplexer.transactions,
            timing=TIMING,
            jitter=lambda: self.network.random.uniform(0.8, 1.2),
        )
        self.session.set_remote(theirs)
        self.demultiplexer.add(self.session)
        self.witness = Witness(self._servers, self)
        self.network.taps.append(self.witness.sends)
        for server in self._servers:
            self.network.attach(server, self._receiver(server))
        self._by: dict[Address, Address] = {}
        self._due_at: float | None = None
        self._media = 0
        self.client = ControllingAgent(
            *(self.network, interfaces or [HOME], self._servers, theirs, ours),
            interval=interval,
            keeps_all=keeps_all,
        )
        self.client.start()

    def _credentials(self) -> tuple[Credentials, Credentials]:
        ours = credentials("ours", self._generation)
        theirs = credentials("them", self._generation)
        self.passwords.append((ours.password, theirs.password))
        return ours, theirs

    # The server's shell.

    def _receiver(self, server: Address) -> Callable[[bytes, Address], None]:
        def receive(data: bytes, source: Address) -> None:
            self.witness.arrived(data, source)
            self._by[source] = server
            session = self.demultiplexer.receive(data, source, self.clock.now)
            if session is not None and data[0] > 3:
                self.heard.append((self.clock.now, data))
            self.advance()

        return receive

    def advance(self) -> None:
        for data, destination in self.session.take_datagrams():
            self.network.send(data, self._by[destination], destination)
        now = self.clock.now
        self.events += [(now, event) for event in self.session.take_events()]
        if self.session.selected != self.moves[-1][1]:
            self.moves.append((now, self.session.selected))
        due = self.session.next_deadline()
        if due is not None and due != self._due_at:
            self._due_at = due
            self.clock.at(due, self._poll)

    def _poll(self) -> None:
        due = self.session.next_deadline()
        if due is not None and due <= self.clock.now:
            self._due_at = None
            self.demultiplexer.poll(self.session, self.clock.now)
        self.advance()

    # What tests do.

    def talk(self) -> None:
        """From now on, both send media every 20 ms, if they have whereto."""
        self.clock.every(FRAME, self._say)

    def _say(self) -> None:
        self._media += 1
        media = b"\x80\x6f" + self._media.to_bytes(8) + bytes(50)
        selected = self.session.selected
        if selected is not None:
            self.sent.append((self.clock.now, media))
            self.network.send(media, self._by[selected], selected)
        self.client.say(media)

    def connect(self, limit: float = 30.0) -> float:
        """Until both have a path; return how long it took."""
        took = self.clock.run(limit, until=self.is_connected)
        assert self.is_connected(), f"not connected within {limit} s"
        return took

    def is_connected(self) -> bool:
        return self.session.selected is not None and self.client.selected is not None

    def restart(self, signaling: float = 0.05) -> None:
        """The client asks for an ICE restart; both have the credentials after half a round trip."""
        self._generation += 1
        ours, theirs = self._credentials()
        self.demultiplexer.restart(self.session, ours, theirs, self.clock.now)
        self.advance()
        self.clock.after(signaling, lambda: self.client.restart(theirs, ours))

    def takes_media_from(self, address: Address) -> bool:
        """Whether media from there would reach the session."""
        media = b"\x80\x6f" + bytes(50)
        return self.demultiplexer.receive(media, address, self.clock.now) is not None

    def lost_since(self, instant: float) -> float:
        """Seconds of the server's audio, sent from then on, that the client never got; what is
        still under way does not count."""
        heard = {media for _, media in self.client.heard}
        arrived = self.clock.now - 1
        return FRAME * sum(
            instant <= at <= arrived and media not in heard for at, media in self.sent
        )

    def unheard_since(self, instant: float) -> float:
        """Seconds in which the session got nothing from the client, the longest from then on."""
        times = [instant, *(at for at, _ in self.heard if at >= instant), self.clock.now]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("weather", [CALM, FAIR, ROUGH], ids=["calm", "fair", "rough"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_client_is_selected_if_the_network_lets_a_fair_share_through(
    seed: int, weather: Weather
) -> None:
    world = World(seed, weather)

    world.connect(60)

    assert world.session.selected == HOME


@pytest.mark.parametrize("seed", SEEDS)
def test_a_calm_network_needs_three_round_trips_and_the_clients_pause(seed: int) -> None:
    world = World(seed, CALM)

    assert world.connect() <= 0.1 + 6 * (CALM.delay + CALM.jitter)


@pytest.mark.parametrize("seed", SEEDS)
def test_consent_is_kept_for_minutes_on_a_lossy_network(seed: int) -> None:
    world = World(seed, FAIR)
    world.connect()

    world.clock.run(300)

    assert world.session.selected == HOME
    assert [address for _, address in world.moves] == [None, HOME]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_consent_check_that_fails_is_made_up_for_when_the_client_checks(seed: int) -> None:
    """Each of our own is lost but the triggered ones' repetitions; the client keeps checking."""
    world = World(seed, CALM, interval=2.5)
    world.connect()
    seen: set[bytes] = set()

    def lose_first_transmissions(data: bytes, source: Address, destination: Address) -> bool:
        if source != SERVER or stun.header(data)[0] is not Class.REQUEST or data in seen:
            return False
        seen.add(data)
        return True

    world.network.loses = lose_first_transmissions
    world.clock.run(120)

    assert len(seen) > 20
    assert world.session.selected == HOME


@pytest.mark.parametrize("seed", SEEDS)
def test_when_the_network_dies_media_stops_within_the_rfcs_30_s(seed: int) -> None:
    world = World(seed, FAIR)
    world.connect()
    world.talk()
    world.clock.run(20)

    world.network.dead.add(HOME)
    died = world.clock.now
    world.clock.run(60)

    assert world.session.selected is None
    ended, _ = world.moves[-1]
    assert ended <= died + TIMING.consent_timeout
    assert max(at for at, _ in world.sent) <= ended
    assert not world.demultiplexer.transactions


@pytest.mark.parametrize("weather", [CALM, FAR], ids=["calm", "far"])
@pytest.mark.parametrize("nominate", [True, False], ids=["nominating", "silent"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_moves_loses_300_ms_at_most(
    seed: int, nominate: bool, weather: Weather
) -> None:
    """Of audio the server sends, from the instant of the client's first check on the new path.

    What it sent before went to an address that was gone, and nobody could know: that part lasts
    from the client's move to its first check, here nothing, and for a NAT's rebinding (below) until
    the client's next routine check.
    """
    world = World(seed, weather)
    world.connect()
    world.talk()
    world.clock.run(7)

    moved = world.clock.now
    world.client.move(0, AWAY, nominate=nominate)
    world.clock.run(8)

    assert world.session.selected == AWAY
    assert world.lost_since(moved) <= LOST
    assert world.unheard_since(moved) <= LOST


@pytest.mark.parametrize("weather", [CALM, FAR], ids=["calm", "far"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_whose_nat_rebinds_loses_300_ms_from_its_next_check(
    seed: int, weather: Weather
) -> None:
    world = World(seed, weather)
    world.connect()
    world.talk()
    world.clock.run(7)

    world.client.rebind(0, AWAY)
    world.clock.run(10)

    assert world.session.selected == AWAY
    checked = world.client.checked[AWAY]
    assert world.lost_since(checked) <= LOST
    assert world.unheard_since(checked) <= LOST


@pytest.mark.parametrize("nominate", [True, False], ids=["nominating", "silent"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_moves_on_a_lossy_network_is_followed(seed: int, nominate: bool) -> None:
    """As soon as the network has let through what it takes: an answer, and a fifth of a second."""
    world = World(seed, FAIR)
    world.connect()
    world.talk()
    world.clock.run(7)

    world.client.move(0, AWAY, nominate=nominate)
    world.clock.run(20, until=lambda: AWAY in world.witness.answered)
    answered = world.clock.now
    world.clock.run(10)

    assert world.session.selected == AWAY
    followed, _ = world.moves[-1]
    assert followed <= answered + LOST


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_moves_back_and_on_is_always_followed(seed: int) -> None:
    world = World(seed, FAIR, interval=2.5)
    world.connect()
    world.talk()

    for number in range(6):
        world.clock.run(4)
        place = (f"192.0.2.{number % 3 + 10}", 1000 + number)
        if number % 2:
            world.client.rebind(0, place)
        else:
            world.client.move(0, place, nominate=number % 4 == 0)
    world.clock.run(15)

    assert world.session.selected == place


@pytest.mark.parametrize("seed", SEEDS)
def test_an_ice_restart_under_loss_interrupts_nothing(seed: int) -> None:
    world = World(seed, FAIR)
    world.connect()
    world.talk()
    world.clock.run(3)
    (first,) = world.session.ufrags

    world.restart()
    world.clock.run(30)

    assert first not in world.session.ufrags
    assert len(world.session.ufrags) == 1
    assert [address for _, address in world.moves] == [None, HOME]
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(world.sent)]
    assert max(gaps) == pytest.approx(FRAME)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_restart_that_the_client_does_not_take_up_costs_nothing(seed: int) -> None:
    """The answer was lost, say: the old credentials are good as long as the client uses them."""
    world = World(seed, FAIR)
    world.connect()

    world.restart(signaling=1e6)
    world.clock.run(200)

    assert world.session.selected == HOME
    assert len(world.session.ufrags) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_an_ice_restart_and_a_move_at_once(seed: int) -> None:
    """The client changes its network and says so by signaling: what browsers do."""
    world = World(seed, FAIR)
    world.connect()
    world.talk()
    world.clock.run(3)

    world.client.rebind(0, AWAY)
    world.restart()
    world.clock.run(30)

    assert world.session.selected == AWAY
    assert len(world.session.ufrags) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_restarts_on_each_others_heels(seed: int) -> None:
    world = World(seed, FAIR)
    world.connect()
    world.talk()

    for _ in range(4):
        world.clock.run(0.3)
        world.restart()
    world.clock.run(40)

    assert world.session.selected == HOME
    assert world.session.ufrags == [credentials("ours", 5).ufrag]


@pytest.mark.parametrize("seed", SEEDS)
def test_with_two_families_the_preferred_one_is_used_and_the_other_takes_over(seed: int) -> None:
    world = World(seed, FAIR, interfaces=[HOME6, HOME], servers=[SERVER6, SERVER])
    world.connect()
    world.clock.run(5)
    preferred = world.session.selected
    assert world.client.selected is not None
    assert preferred == world.client.interfaces[world.client.selected[0]]

    other = HOME if preferred == HOME6 else HOME6
    assert preferred is not None
    world.network.dead.add(preferred)
    pair = (1, SERVER) if other == HOME else (0, SERVER6)
    world.client.turn_to(pair, nominate=bool(seed % 2))
    world.talk()
    world.clock.run(20)

    assert world.session.selected == other


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_checks_a_spare_path_stays_where_it_nominated(seed: int) -> None:
    world = World(seed, CALM, interfaces=[HOME, AWAY], interval=1.0, keeps_all=True)
    world.connect()
    world.talk()

    world.clock.run(30)

    assert len(world.session.paths) == 2
    assert len(world.moves) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_with_loss_too_and_if_it_ever_leaves_it_comes_back(seed: int) -> None:
    world = World(seed, FAIR, interfaces=[HOME, AWAY], interval=1.0, keeps_all=True)
    world.connect()
    nominated = world.session.selected
    world.talk()
    world.clock.run(60)

    until = [at for at, _ in world.moves[2:]] + [world.clock.now]
    astray = sum(
        end - at
        for (at, address), end in zip(world.moves[1:], until, strict=True)
        if address != nominated
    )
    assert astray < 60 / 20


class Eavesdropper:
    """Has all that the client sends, and replays it from addresses of others."""

    def __init__(self, world: World, places: list[Address]) -> None:
        self.world = world
        self.taken: list[bytes] = []
        self.places = places
        world.network.taps.append(self._take)

    def _take(self, data: bytes, source: Address, destination: Address) -> None:
        if destination == SERVER and source not in self.places and data[0] <= 3:
            self.taken.append(data)

    def replay(self) -> None:
        random = self.world.network.random
        if self.taken:
            self.world.network.send(random.choice(self.taken), random.choice(self.places), SERVER)


VICTIMS = [(f"203.0.113.{number}", 4000 + number) for number in range(20)]


@pytest.mark.parametrize("seed", SEEDS)
def test_replays_move_no_media_and_leave_nothing(seed: int) -> None:
    """The witness counts: three times what is replayed is the most that they draw, as with a path
    that is the client's, for the two cannot be told apart before one answers."""
    world = World(seed, FAIR)
    eavesdropper = Eavesdropper(world, VICTIMS)
    world.connect()
    world.talk()

    end = world.clock.now + 20

    def replay() -> None:
        if world.clock.now < end:
            eavesdropper.replay()
            world.clock.after(0.01, replay)

    replay()
    world.clock.run(20)
    assert world.session.selected == HOME
    assert [address for _, address in world.moves] == [None, HOME]
    checks = sum(world.witness.sent[victim] for victim in VICTIMS)
    assert checks > 0

    world.clock.run(45)

    assert world.session.selected == HOME
    assert world.session.paths == [HOME]
    assert not [victim for victim in VICTIMS if world.takes_media_from(victim)]
    of_consent = TIMING.consent_timeout / (0.8 * TIMING.consent_interval)
    assert len(world.demultiplexer.transactions) <= of_consent + 1  # none to the victims


@pytest.mark.parametrize("seed", SEEDS)
def test_what_replays_draw_beyond_their_own_bytes_is_bounded_by_time(seed: int) -> None:
    """Answers are shorter than what is replayed; all checks of a session, which are not, are as few
    as 1 / PACE a second and so many at once."""
    world = World(seed, CALM)
    eavesdropper = Eavesdropper(world, VICTIMS)
    world.connect()
    world.clock.run(6)
    asked: Counter[bytes] = Counter()

    def count(data: bytes, source: Address, destination: Address) -> None:
        if source == SERVER and destination in VICTIMS:
            message = stun.parse(data)
            if message.cls is Class.REQUEST:
                asked[message.transaction] += 1

    world.network.taps.append(count)
    for _ in range(3_000):
        eavesdropper.replay()
        world.clock.run(0.001)

    assert len(asked) <= 3 / PACE + MAX_PATHS


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_not_authentic_draws_no_more_than_it_sends_and_leaves_nothing(seed: int) -> None:
    world = World(seed, FAIR)
    eavesdropper = Eavesdropper(world, VICTIMS)
    world.connect()
    world.clock.run(6)
    random = world.network.random
    ours, theirs = credentials("ours"), credentials("them")
    for number in range(500):
        victim = random.choice(VICTIMS)
        data = bytearray(random.choice(eavesdropper.taken))
        kind = number % 5
        if kind == 0:  # cut off
            del data[random.randrange(len(data)) :]
        elif kind == 1:  # a bit of what is signed, or of the signature, is another
            data[random.randrange(len(data) - 8)] ^= 1 << random.randrange(8)
        elif kind == 2:  # a guess at the password
            data = bytearray(
                stun.binding_request(
                    random.randbytes(12),
                    username=f"{ours.ufrag}:{theirs.ufrag}",
                    password="guess" * 5,
                    priority=1,
                    use_candidate=True,
                )
            )
        elif kind == 3:  # shorter than the error that would tell of it
            name = ours.ufrag.encode()
            attribute = struct.pack("!HH", stun.USERNAME, len(name)) + name
            data = bytearray(
                stun.HEADER.pack(1, len(attribute), stun.MAGIC_COOKIE, random.randbytes(12))
            )
            data += attribute
        else:  # noise that begins like STUN
            data = bytearray(b"\0\1" + random.randbytes(random.randrange(100)))
        world.network.send(bytes(data), victim, SERVER)
        world.clock.run(0.001)
    world.clock.run(0.3)

    for victim in VICTIMS:
        assert world.witness.sent[victim] <= world.witness.got[victim]
    assert world.session.paths == [HOME]
    assert not [victim for victim in VICTIMS if world.takes_media_from(victim)]

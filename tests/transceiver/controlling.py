"""A small controlling ICE agent (RFC 8445), for the simulated network: the other side of ours.

It shares the STUN codec with the server and nothing else. Full enough to be a client: checks with
the RFC's repetitions, regular nomination, answers, consent, and interfaces that come and go.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.transceiver.network import Network
from transceiver import stun
from transceiver.ice import Credentials
from transceiver.stun import Address, Class

__all__ = ["ControllingAgent", "Pair"]

TRANSMISSIONS = 7  # Rc, RFC 8489 section 6.2.1
FIRST_WAIT = 0.5  # RTO, likewise
TIE_BREAKER = 1 << 32
PRIORITY = 1845501695

Pair = tuple[int, Address]
"""Number of an interface, address of the server."""


@dataclass(slots=True)
class _Check:
    pair: Pair
    request: bytes
    nominates: bool
    selects: bool
    """Whether media goes by the pair once it has been answered."""
    generation: int
    transmissions: int = 0


@dataclass(slots=True)
class _Generation:
    local: Credentials
    remote: Credentials
    valid: set[Pair] = field(default_factory=set)
    nominating: Pair | None = None


class ControllingAgent:
    """*interfaces*: their public addresses; *servers*: the candidates, the preferred one first.

    `selected` is the pair that media goes by. *interval*: seconds between checks of it, and with
    *keeps_all* of all that have been answered.
    """

    def __init__(
        self,
        network: Network,
        interfaces: list[Address],
        servers: list[Address],
        local: Credentials,
        remote: Credentials,
        *,
        interval: float = 5.0,
        keeps_all: bool = False,
    ) -> None:
        self.network = network
        self.interfaces = interfaces
        self.selected: Pair | None = None
        self.heard: list[tuple[float, bytes]] = []
        """Media, and when it came."""
        self.checked: dict[Address, float] = {}
        """When the first check went out from an address."""
        self._clock = network.clock
        self._servers = servers
        self._generations = [_Generation(local, remote)]
        self._checks: dict[bytes, _Check] = {}
        self._interval = interval
        self._keeps_all = keeps_all
        for number in range(len(interfaces)):
            self._attach(number)

    def start(self) -> None:
        """Check all pairs, and from then on keep consent."""
        self._check_all()
        self._clock.after(self._interval, self._keep)

    def restart(self, local: Credentials, remote: Credentials) -> None:
        """Begin a new generation; media goes by the old pair until one of the new is nominated."""
        self._generations.append(_Generation(local, remote))
        self._check_all()

    def rebind(self, number: int, public: Address) -> None:
        """The NAT in front of an interface gives it another address, unknown to the agent."""
        self.network.detach(self.interfaces[number])
        self.interfaces[number] = public
        self._attach(number)

    def move(self, number: int, public: Address, *, nominate: bool) -> None:
        """The interface of that number is gone, and there is another, which the agent checks at
        once and uses as soon as it is answered: it says so in that check, or leaves it unsaid."""
        self.network.detach(self.interfaces[number])
        self.interfaces[number] = public
        self._attach(number)
        assert self.selected is not None
        self.turn_to((number, self.selected[1]), nominate=nominate)

    def turn_to(self, pair: Pair, *, nominate: bool) -> None:
        """Check *pair*, and use it as soon as it is answered."""
        self._check(pair, nominates=nominate, selects=True)

    def say(self, media: bytes) -> None:
        """By the selected pair, if there is one."""
        if self.selected is not None:
            number, server = self.selected
            self.network.send(media, self.interfaces[number], server)

    # The network.

    def _attach(self, number: int) -> None:
        self.network.attach(self.interfaces[number], self._receiver(number))

    def _receiver(self, number: int) -> Callable[[bytes, Address], None]:
        return lambda data, source: self._receive(number, data, source)

    def _receive(self, number: int, data: bytes, source: Address) -> None:
        if data[0] > 3:
            self.heard.append((self._clock.now, data))
            return
        message = stun.parse(data)
        if message.cls is Class.REQUEST:
            self._answer((number, source), message)
        elif message.cls is Class.SUCCESS:
            self._succeed(message)

    # Checks.

    def _check_all(self) -> None:
        pairs = [
            (number, server)
            for server in self._servers
            for number, address in enumerate(self.interfaces)
            if (":" in address[0]) == (":" in server[0])
        ]
        for place, pair in enumerate(pairs):
            self._clock.after(0.05 * place, lambda pair=pair: self._check(pair))  # type: ignore[misc]

    def _check(self, pair: Pair, *, nominates: bool = False, selects: bool = False) -> None:
        generation = self._generations[-1]
        transaction = self.network.random.randbytes(12)
        request = stun.binding_request(
            transaction,
            username=f"{generation.remote.ufrag}:{generation.local.ufrag}",
            password=generation.remote.password,
            priority=PRIORITY,
            controlling=TIE_BREAKER,
            use_candidate=nominates,
        )
        check = _Check(pair, request, nominates, selects, len(self._generations))
        self._checks[transaction] = check
        self._transmit(transaction)

    def _transmit(self, transaction: bytes) -> None:
        check = self._checks.get(transaction)
        if check is None:
            return
        if check.transmissions == TRANSMISSIONS:
            del self._checks[transaction]
            if self.selected is None and check.generation == len(self._generations):
                self._check(check.pair, nominates=check.nominates, selects=check.selects)
            return
        wait = FIRST_WAIT * 2**check.transmissions
        check.transmissions += 1
        source = self.interfaces[check.pair[0]]
        self.checked.setdefault(source, self._clock.now)
        self.network.send(check.request, source, check.pair[1])
        self._clock.after(wait, lambda: self._transmit(transaction))

    def _succeed(self, message: stun.Message) -> None:
        check = self._checks.get(message.transaction)
        if check is None:
            return
        generation = self._generations[check.generation - 1]
        if not message.authentic(generation.remote.password):
            return
        del self._checks[message.transaction]
        generation.valid.add(check.pair)
        if check.generation != len(self._generations):
            return
        if check.selects:
            self.selected = check.pair
        if generation.nominating is None:
            generation.nominating = check.pair
            # A moment for the others to turn out valid.
            self._clock.after(0.1, lambda: self._nominate(generation))

    def _nominate(self, generation: _Generation) -> None:
        if generation is self._generations[-1]:
            best = min(generation.valid, key=lambda pair: self._servers.index(pair[1]))
            generation.nominating = best
            self._check(best, nominates=True, selects=True)

    def _keep(self) -> None:
        pairs = {self.selected} if self.selected is not None else set()
        if self._keeps_all:
            pairs |= self._generations[-1].valid
        for pair in sorted(pairs):
            self._check(pair)
        wait = self._interval * self.network.random.uniform(0.8, 1.2)
        self._clock.after(wait, self._keep)

    def _answer(self, pair: Pair, message: stun.Message) -> None:
        for generation in self._generations:
            username = f"{generation.local.ufrag}:{generation.remote.ufrag}"
            password = generation.local.password
            if message.username == username and message.authentic(password):
                answer = stun.binding_success(
                    message.transaction, mapped=pair[1], password=password
                )
                self.network.send(answer, self.interfaces[pair[0]], pair[1])
                if generation is self._generations[-1] and pair not in generation.valid:
                    self._check(pair)  # triggered (RFC 8445 section 7.3.1.4)

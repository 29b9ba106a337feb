"""How often an address may try a wrong key; bounded in memory whoever comes."""

import ipaddress
from collections import OrderedDict, deque
from dataclasses import dataclass, field

_MAX_ADDRESSES = 10_000


@dataclass(slots=True)
class BadTries:
    """Bad tries of the last window by address; of too many addresses the oldest are forgotten.

    Each process counts by itself. A blocked try is not counted: the block ends by itself.

    Attributes:
        limit: tries that a window may have.
        window_s: its length.
    """

    limit: int = 10
    window_s: float = 60.0
    max_addresses: int = _MAX_ADDRESSES
    _tries: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict, repr=False)

    def wait_s(self, address: str, now_s: float) -> float:
        """Return for how long the address is blocked; 0 where it may try."""
        tries = self._tries.get(address)
        if tries is None:
            return 0.0
        while tries and now_s - tries[0] >= self.window_s:
            tries.popleft()
        if not tries:
            del self._tries[address]
        return self.window_s - (now_s - tries[0]) if len(tries) >= self.limit else 0.0

    def count(self, address: str, now_s: float) -> None:
        """Remember one bad try."""
        self._tries.setdefault(address, deque(maxlen=self.limit)).append(now_s)
        self._tries.move_to_end(address)
        while len(self._tries) > self.max_addresses:
            self._tries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._tries)


def address_of(client: object) -> str:
    """Return what a client is counted as: its IPv4 address or its IPv6 /64 network.

    One IPv6 host has a whole /64; X-Forwarded-For is not looked at, anybody can send it.
    """
    host = str(client[0]) if isinstance(client, (tuple, list)) and client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))

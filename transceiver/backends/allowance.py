"""How much of something is fair: so much at once, and so much a second in the long run. No I/O."""

from dataclasses import dataclass

__all__ = ["Allowance"]


@dataclass(slots=True)
class Allowance:
    """A token bucket that lets everything pass, and says how long to wait afterwards."""

    most: float
    rate: float
    """A second."""
    left: float
    at: float
    """When that was left."""

    @classmethod
    def full(cls, most: float, rate: float, now: float) -> "Allowance":
        return cls(most, rate, most, now)

    def take(self, amount: float, now: float) -> float:
        """Take that much; the seconds until one may take again."""
        self.left = min(self.most, self.left + (now - self.at) * self.rate) - amount
        self.at = now
        return max(0.0, -self.left / self.rate)

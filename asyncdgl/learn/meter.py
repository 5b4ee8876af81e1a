"""The mean loss and accuracy of an epoch's updates."""


class EpochMeter:
    """Mean loss and accuracy of a stage's updates since its epoch began."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.reset()

    def reset(self) -> None:
        """A new epoch begins."""
        self._updates, self._loss, self._correct = 0, 0.0, 0

    def add(self, loss: float, correct: int) -> None:
        """Count one update."""
        self._updates += 1
        self._loss += loss
        self._correct += correct

    @property
    def sums(self) -> tuple[int, float, int]:
        """What it has counted: updates, the sum of their losses, images classified right."""
        return self._updates, self._loss, self._correct

    def load(self, updates: int, loss: float, correct: int) -> None:
        """Go on from ``sums``."""
        self._updates, self._loss, self._correct = updates, loss, correct

    @property
    def loss(self) -> float | None:
        """Mean training loss, or None before the first update."""
        return self._loss / self._updates if self._updates else None

    @property
    def accuracy(self) -> float | None:
        """Share of training images classified right, or None before the first update."""
        return self._correct / (self._updates * self._batch_size) if self._updates else None

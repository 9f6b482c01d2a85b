"""The protocol of a task: what a method and the evaluation may ask about outputs and targets."""

from typing import Protocol

from torch import Tensor


class Task(Protocol):
    """Turns a model's outputs and the targets into losses and scores, one value a sample."""

    name: str

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) losses in nats, small where the model knows the targets."""
        ...

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) booleans: the model's answer is the target."""
        ...

    def chance(self, classes: int) -> float:
        """The loss of a model that knows nothing, in nats: the unit in which bounds are given."""
        ...

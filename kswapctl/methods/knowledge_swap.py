"""Knowledge swapping: LoRA on the feed-forward layers, with few blocks changed; learn before you forget.

Xing et al., Knowledge Swapping via Learning and Unlearning, ICML 2025, Eq. 4 to 7. The terms and weights are the
paper's: cross-entropies, a bounded forget loss, a group-sparse penalty. What differs: the bound is in units of ln K
(theirs is 105 nats, which a softmax of 100 classes need not reach), new rows are imprinted and trained (theirs are
random and frozen), the retained images are rehearsed in both phases, and the penalty is a proximal step.
"""

from dataclasses import dataclass
from typing import ClassVar

from kswapctl.methods import gs_lora


@dataclass(frozen=True)
class Learn(gs_lora.Learn):
    """Cross-entropy on what is learned and on what is retained, with few blocks changed."""

    source = "Xing et al., Knowledge Swapping via Learning and Unlearning, ICML 2025"
    presets: ClassVar = {"default": {}, "paper": gs_lora.PAPER | {"sparsity": 0.01}}

    sparsity: float = 0.1
    """A block whose gradient is below this share of the largest block's stays as it is (the group-sparse penalty)."""
    beta: float = 0.9
    """Weight of the learn loss against the retain loss."""
    distillation: float = 0.0
    """Weight of the distillation from the model before, which gives new classes no probability."""
    handicap: float = 0.0
    """Logits that new classes must do without while training, and have in use (Menon et al., ICLR 2021)."""


@dataclass(frozen=True)
class Forget(gs_lora.Forget):
    """Cross-entropy on what is retained, a bounded push away from what is forgotten, with few blocks changed."""

    source = "Xing et al., Knowledge Swapping via Learning and Unlearning, ICML 2025"
    presets: ClassVar = {
        "default": {},
        "paper": gs_lora.PAPER | {"sparsity": 0.01, "bound": 105.0, "bound_unit": "nats"},
    }

    sparsity: float = 0.1
    """A block whose gradient is below this share of the largest block's stays as it is (the group-sparse penalty)."""
    bound: float = 3.0
    """Forget loss, in ``bound_unit``, above which a batch counts as forgotten."""
    per_sample: bool = False
    """Bound each image's loss; else, as the papers' code, the batch mean."""
    together: bool = False
    """Push an image off every class that is forgotten; else off its own, from where it may go to another of them."""
    beta: float = 0.2
    """Weight of the forget loss against the retain loss."""
    distillation: float = 0.0
    """Weight of the distillation from the model before, on retained images."""
    rest: float = 0.0
    """Weight of the distillation on forgotten images, over the classes that are not forgotten."""
    learned_weight: int = 1
    """How often an image of a class learned earlier is drawn, against one of a class the base knew."""

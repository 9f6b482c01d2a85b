"""The training loop of the papers' public code, written again from its description, to be timed against.

Zhao et al., CVPR 2024 (GS-LoRA) and Xing et al., ICML 2025 (Knowledge Swapping), with the values of the latter's
scripts: LoRA of rank 8 on both feed-forward layers of every block, scaled by 1/8, in fp32; two forwards and one
backward a step; images decoded again each epoch; five epochs of the retained images a phase, batches of 80; the three
test sets evaluated every five steps. Its classifier has room for the new classes from the start, random and frozen.
One adapter and one optimiser go through both phases. ``benchmarks/speed.py`` times it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kswapctl.data.images import decode
from kswapctl.data.sources import Sample, Source, open_source
from kswapctl.data.splits import by_class, test_part, training_part
from kswapctl.models.building import create
from kswapctl.models.checkpoint import Description, load
from kswapctl.spec import Preprocessing

RATE, DECAY, EPOCHS, BATCH, EVERY = 1e-2, 0.05, 5, 80, 5
BETA, BOUND, ALPHA, SHARE = 0.2, 105.0, 0.005, 0.1


Joined = Callable[[Tensor, Tensor], Tensor]
"""From the retained and the changed images' cross-entropy to the loss."""


class Decoded(Dataset):
    """Images that are read and decoded whenever they are asked for."""

    def __init__(self, source: Source, samples: Sequence[Sample], rows: Sequence[str], how: Preprocessing) -> None:
        self.source, self.samples, self.how = source, samples, how
        self.targets = [rows.index(s.label) for s in samples]
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (how.mean, how.std))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = decode(self.source, [self.samples[index]], self.how).pixels[0]
        return (pixels / 255 - self.mean) / self.std, self.targets[index]


@dataclass
class PapersLoop:
    """A model in its hands: learn, then forget, as the public code does."""

    base: str
    data: str
    learn_classes: Sequence[str]
    forget_classes: Sequence[str]
    seed: int
    every: int = EVERY
    """Steps between evaluations; 0 evaluates once an epoch."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase."""
    steps: dict[str, int] = field(default_factory=dict)
    evaluating: float = 0.0
    """Of the latest phase's seconds, those spent on the test sets."""

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        checkpoint = load(self.base, Description())
        self.how, known = checkpoint.spec.preprocessing, checkpoint.spec.classes
        self.rows = [*known, *self.learn_classes]
        self.kept = [c for c in known if c not in self.forget_classes]
        model = create(checkpoint.spec.architecture, checkpoint.spec.arguments, len(self.rows)).eval()
        nn.init.xavier_uniform_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        weights = dict(checkpoint.weights)
        for name in ("head.weight", "head.bias"):
            grown = model.state_dict()[name].clone()
            grown[: len(known)] = weights[name]
            weights[name] = grown
        model.load_state_dict(weights)
        layers = [n for n, m in model.named_modules() if n.endswith(("mlp.fc1", "mlp.fc2"))]
        self.model = inject_adapter_in_model(
            LoraConfig(r=8, lora_alpha=1, target_modules=layers), model.requires_grad_(False)
        )
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
        source = open_source(self.data)
        self.source = source
        self.tests = {
            "retained": self.loader(test_part(source, self.kept), shuffle=False),
            "learned": self.loader(test_part(source, self.learn_classes), shuffle=False),
            "forgotten": self.loader(test_part(source, self.forget_classes), shuffle=False),
        }

    def loader(self, samples: Sequence[Sample], *, shuffle: bool = True) -> DataLoader:
        """Batches of ``samples``, decoded anew each time."""
        return DataLoader(Decoded(self.source, samples, self.rows, self.how), BATCH, shuffle=shuffle, num_workers=0)

    def tenth(self, classes: Sequence[str]) -> list[Sample]:
        """A random tenth of each class's training images."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = []
        for group in by_class(training_part(self.source, classes)).values():
            order = torch.randperm(len(group), generator=generator)[: max(1, int(len(group) * SHARE))]
            chosen += [group[i] for i in order.tolist()]
        return chosen

    def parts(self, kind: str) -> tuple[DataLoader, DataLoader, Joined]:
        """What is retained and what is changed in a phase, and how their losses are joined.

        Learning: cross-entropy of the new, and a fifth of the retained. Forgetting: cross-entropy of the retained and
        the learned, and a fifth of the bounded negative loss.
        """
        learned = training_part(self.source, self.learn_classes)
        if kind == "learn":
            retain = self.loader(self.tenth([*self.kept, *self.forget_classes]))
            return retain, self.loader(learned), lambda kept, new: new + BETA * kept
        forget = self.loader(self.tenth(self.forget_classes))
        return (
            self.loader(self.tenth(self.kept) + learned),
            forget,
            lambda kept, gone: kept + BETA * F.relu(BOUND - gone),
        )

    def learn(self) -> dict[str, float]:
        """Five epochs of learning; accuracies in percent after them."""
        return self.phase("learn")

    def forget(self) -> dict[str, float]:
        """Five epochs of forgetting; accuracies in percent after them."""
        return self.phase("forget")

    def some(self, kind: str, count: int) -> None:
        """``count`` steps of a phase, to be timed; model and optimiser are as before after them."""
        before = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        moments = copy.deepcopy(self.optimiser.state_dict())
        retain, change, joined = self.parts(kind)
        kept, changing = _cycle(retain), _cycle(change)
        for _ in range(count):
            self.step(*next(kept), next(changing), joined)
        self.model.load_state_dict(before, strict=False)
        self.optimiser.load_state_dict(moments)

    def phase(self, name: str) -> dict[str, float]:
        """Train, evaluating as often as they do."""
        retain, change, joined = self.parts(name)
        start, self.evaluating, step = time.perf_counter(), 0.0, 0
        total = EPOCHS * len(retain)
        changing = _cycle(change)
        for epoch in range(EPOCHS):
            for group in self.optimiser.param_groups:
                group["lr"] = 1e-5 + (RATE - 1e-5) * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
            for images, targets in retain:
                self.step(images, targets, next(changing), joined)
                step += 1
                if (step % self.every == 0) if self.every else (step % len(retain) == 0):
                    found = self.evaluate()
        if self.every and step % self.every:
            found = self.evaluate()
        self.seconds[name], self.steps[name] = time.perf_counter() - start, total
        return found

    def step(self, images: Tensor, targets: Tensor, changed: tuple[Tensor, Tensor], joined: Joined) -> None:
        """Two forwards, one backward; the group norms are gathered by name, as they do."""
        kept = F.cross_entropy(self.model(images), targets)
        loss = joined(kept, F.cross_entropy(self.model(changed[0]), changed[1]))
        norms = []
        for index in range(len(self.model.blocks)):
            parts = [
                p.square().sum() for n, p in self.model.named_parameters() if f"blocks.{index}." in n and "lora_" in n
            ]
            norms.append(torch.stack(parts).sum().sqrt())
        self.optimiser.zero_grad()
        (loss + ALPHA * torch.stack(norms).sum()).backward()
        self.optimiser.step()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Accuracy on each test set, in percent."""
        start, found = time.perf_counter(), {}
        for name, loader in self.tests.items():
            hits = [(self.model(images).argmax(1) == targets).float() for images, targets in loader]
            found[name] = 100 * torch.cat(hits).mean().item()
        self.evaluating += time.perf_counter() - start
        return found


def _cycle(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


if __name__ == "__main__":
    raise SystemExit(f"{Path(__file__).name} is timed by benchmarks/speed.py")

"""Train the network that the demo ships: a small ViT that knows the digits zero to seven.

Run ``python -m kswapctl.demo.train``; two minutes on two cores. Training sees the train part only.
"""

import tempfile
from pathlib import Path

import torch

from kswapctl.data.images import Images, decode, normalise
from kswapctl.data.sources import open_source
from kswapctl.data.splits import test_part, training_part
from kswapctl.data.views import vary
from kswapctl.demo.digits import CHECKPOINT, KNOWN, SIZE, write_folder
from kswapctl.models.building import build
from kswapctl.models.weights import write
from kswapctl.runtime import seed_everything
from kswapctl.spec import ModelSpec, Preprocessing

SPEC = ModelSpec(
    architecture="vit_tiny_patch16_224",
    arguments={"img_size": SIZE, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4},
    classes=KNOWN,
    preprocessing=Preprocessing((3, SIZE, SIZE), (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)),
)
EPOCHS = 120
BATCH = 64


def main() -> None:
    """Train, print the test accuracy, and write the checkpoint."""
    generator = seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(str(write_folder(Path(folder))))
        train = decode(source, training_part(source, KNOWN), SPEC.preprocessing)
        test = decode(source, test_part(source, KNOWN), SPEC.preprocessing)
    model = build(SPEC).train()
    targets = train.targets(KNOWN)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train), generator=generator).split(BATCH):
            images = vary(train.pixels[batch].float() / 255, generator) * 255
            loss = torch.nn.functional.cross_entropy(
                model(normalise(images, SPEC.preprocessing)), targets[batch], label_smoothing=0.05
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
    print(f"test accuracy {accuracy(model.eval(), test):.1%} on {len(test)} images")  # noqa: T201
    write(model.state_dict(), CHECKPOINT, SPEC.to_json())


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Images) -> float:
    """Share of ``images`` that ``model`` names rightly."""
    answers = model(normalise(images.pixels, SPEC.preprocessing)).argmax(1)
    return float((answers == images.targets(KNOWN)).float().mean())


if __name__ == "__main__":
    main()

"""Make a base and a split of its own for choosing hyper-parameters, so that no test image has a part in the choice.

From the *train* part of a folder: other classes are held out as unseen, the last quarter of every class's images
(a block, so that frames of one track stay together) becomes the development test part, and a base is trained on
the rest. Run::

    python benchmarks/development_split.py --data signs43 -o development

It writes ``development/data/{train,test}/<class>/`` and ``development/base.safetensors``.
"""

import argparse
import shutil
from pathlib import Path

import torch
from timm.layers import set_fused_attn

from kswapctl.data.images import decode, normalise
from kswapctl.data.sources import open_source
from kswapctl.data.splits import test_part, training_part
from kswapctl.data.views import vary
from kswapctl.evaluation.predict import predict
from kswapctl.models.checkpoint import build
from kswapctl.models.weights import write
from kswapctl.runtime import seed_everything
from kswapctl.spec import ModelSpec, Preprocessing

UNSEEN = ("70_kmh", "achtung_kinder", "durchfahrt_verboten", "scharfe_kurve_links", "vorbeifahren_links")
"""Held out of the development base; none of them is in the learn or forget set of the reported figures."""
PREPROCESSING = Preprocessing((3, 40, 40), (0.34, 0.31, 0.32), (0.27, 0.26, 0.27), "bilinear")


def main() -> None:
    """Write the folder, train, print the accuracy on the development test part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    folder = split(options.data, options.output / "data")
    source = open_source(str(folder))
    known = tuple(c for c in source.classes if c not in UNSEEN)
    spec = ModelSpec("vit_tiny_patch16_224", {"img_size": 40, "patch_size": 8}, known, PREPROCESSING)
    train = decode(source, training_part(source, known), PREPROCESSING)
    test = decode(source, test_part(source, known), PREPROCESSING)
    model = fit(spec, train.pixels, train.targets(known), options.epochs)
    answers = predict(model, test.pixels, PREPROCESSING).argmax(1)
    print(f"development test accuracy {(answers == test.targets(known)).float().mean():.1%} on {len(test)} images")
    write(model.state_dict(), options.output / "base.safetensors", spec.to_json())


def split(data: Path, folder: Path) -> Path:
    """Copy each class's first three quarters to train and the rest to test."""
    for place in sorted((data / "train").iterdir()):
        files = sorted(place.iterdir())
        border = round(0.75 * len(files))
        for part, chosen in (("train", files[:border]), ("test", files[border:])):
            target = folder / part / place.name
            target.mkdir(parents=True, exist_ok=True)
            for file in chosen:
                shutil.copy(file, target / file.name)
    return folder


def fit(spec: ModelSpec, pixels: torch.Tensor, targets: torch.Tensor, epochs: int) -> torch.nn.Module:
    """Train a network from nothing: AdamW along one cycle, mild views, bf16."""
    generator = seed_everything(0)
    set_fused_attn(False)  # with two dozen tokens the plain form is faster on a CPU
    model = build(spec).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(pixels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        for batch in torch.randperm(len(pixels), generator=generator)[: len(pixels) // 64 * 64].split(64):
            images = vary(pixels[batch].float() / 255, generator) * 255
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(normalise(images, spec.preprocessing))
            loss = torch.nn.functional.cross_entropy(logits.float(), targets[batch], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", flush=True)
    return model.eval()


if __name__ == "__main__":
    main()

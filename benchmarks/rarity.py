"""How rare new pixels should be taken to be: the overlap of learned classes, over the pixels of several places at once.

Each place has a swap of its own, in a registry that ``swap_dense.py --registry`` kept. The scores of what was learned
are lowered by more and more: training with a larger ``Segmentation.rarity``, or a smaller ``learn.handicap``, comes to
the same. Pixels of all places are counted together, as a test part of several places is. Run::

    python benchmarks/rarity.py --learn car,bicyclist late-swap=late/validation drive-swap=drive/validation
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from dense_training import test_images
from kswap_registry import Registry

from kswapctl.data.images import decode
from kswapctl.data.sources import open_source
from kswapctl.evaluation.predict import predict
from kswapctl.operations.versions import load_version
from kswapctl.tasks.segmentation import Overlap, Segmentation

SHIFTS = [step / 5 for step in range(-3, 11)]
"""Logits by which scores are lowered."""


def main() -> None:
    """Print the overlap of each learned class, and their mean, at each shift."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="+", metavar="REGISTRY=DATA", help="a swap, and where it is measured")
    parser.add_argument("--learn", required=True, help="classes, separated by commas")
    parser.add_argument("--version", default="swapped@1")
    options = parser.parse_args()
    learned = options.learn.split(",")
    counted = [count(place, options.version, learned) for place in options.places]
    print("| lowered by | " + " | ".join(learned) + " | mean |\n" + "|---:" * (len(learned) + 2) + "|")
    for shift, *places in zip(SHIFTS, *counted, strict=True):
        pooled = replace(places[0], confusion=torch.stack([place.confusion for place in places]).sum(0))
        rows = range(len(pooled.confusion) - len(learned), len(pooled.confusion))
        values = [100 * pooled.score(chosen)["mIoU"] for chosen in (*([row] for row in rows), rows)]
        print(f"| {shift:+.1f} | " + " | ".join(f"{value:.1f}" for value in values) + " |")


def count(place: str, ref: str, learned: list[str]) -> list[Overlap]:
    """Pixels by true and answered class at each shift, on the test part of the place's data."""
    registry, _, data = place.partition("=")
    with Registry.open(Path(registry)) as opened:
        version = load_version(opened, opened.resolve(ref))
    classes, source, task = version.knowledge.classes, open_source(data), Segmentation()
    if list(classes[-len(learned) :]) != learned:
        raise SystemExit(f"{ref} of {registry} learned {', '.join(version.knowledge.learned)}, in this order")
    images = decode(source, test_images(source), version.spec.preprocessing)
    scores = predict(version.network(), images.pixels, version.spec.preprocessing)
    targets, size = images.targets(classes), (images.pixels.shape[-2], images.pixels.shape[-1])
    counted = []
    for shift in SHIFTS:
        lowered = scores.clone()
        lowered[..., -len(learned) :] -= shift
        counted.append(task.measure(task.answers(lowered, size), targets, len(classes), []))
    return counted


if __name__ == "__main__":
    main()

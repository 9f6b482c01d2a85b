"""Make a base and a split of its own for choosing hyper-parameters, so that no test image has a part in the choice.

From the *train* part of a folder: five other classes are held out as unseen, the last quarter of every class's images
(a block, so that frames of one track stay together) becomes the development test part, and a base like the given one
is trained on the rest. Run, and choose with the printed classes::

    python benchmarks/development_split.py --data signs43 --base signs38.safetensors -o development

It writes ``development/data/{train,test}/<class>/`` and ``development/base.safetensors``.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from train_retrained import accuracy, train

from kswapctl.data.images import decode
from kswapctl.data.sources import open_source
from kswapctl.data.splits import test_part
from kswapctl.models.checkpoint import Description, load
from kswapctl.models.weights import write

UNSEEN = ("70_kmh", "achtung_kinder", "durchfahrt_verboten", "scharfe_kurve_links", "vorbeifahren_links")
"""Held out of the development base, to be learned; none is learned or forgotten in the reported figures."""
FORGOTTEN = ("100_kmh", "baustelle", "kreisverkehr", "stopp", "vorgeschrieben_links")
"""To be forgotten by the development base; none is learned or forgotten in the reported figures."""


def main() -> None:
    """Write the folder, train, print the accuracy on the development test part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", required=True, help="checkpoint whose architecture and input are taken")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    folder = str(split(options.data, options.output / "data"))
    source = open_source(folder)
    known = tuple(c for c in source.classes if c not in UNSEEN)
    spec = replace(load(options.base, Description()).spec, classes=known)
    model = train(spec, folder, options.epochs, seed=0)
    write(model.state_dict(), options.output / "base.safetensors", spec.to_json())
    test = decode(source, test_part(source, known), spec.preprocessing)
    print(f"development test accuracy {accuracy(model, test, spec):.1%} on {len(test)} images")
    print(f"--learn {','.join(UNSEEN)} --forget {','.join(FORGOTTEN)}")


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


if __name__ == "__main__":
    main()

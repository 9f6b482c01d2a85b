"""Cut a data folder's training part in two, so that hyper-parameters can be chosen without a look at any test image.

The first three quarters of each class (a block, so that frames of one track stay together) become the new training
part, the rest the new test part. A base that was trained on these images knows them by heart: of the classes that it
knows the new test part holds strong views of the images instead of the images themselves. Run::

    python benchmarks/validation_split.py --data signs43 --base signs38.safetensors -o validation
"""

import argparse
import shutil
from pathlib import Path

import torch
from PIL import Image

from kswapctl.data.images import decode
from kswapctl.data.sources import Source, open_source
from kswapctl.data.splits import training_part
from kswapctl.data.views import vary
from kswapctl.models.checkpoint import Description, load
from kswapctl.spec import Preprocessing

VIEWS = 2
"""Strong views of each image of a class that the base knows."""


def main() -> None:
    """Write ``train/<class>/`` and ``test/<class>/`` under the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", required=True, help="checkpoint that was trained on some of the classes")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    spec = load(options.base, Description()).spec
    source = open_source(str(options.data))
    for name in source.classes:
        files = sorted((options.data / "train" / name).iterdir())
        border = round(0.75 * len(files))
        copy(files[:border], options.output / "train" / name)
        if name in spec.classes:
            write_views(source, name, border, spec.preprocessing, options.output / "test" / name)
        else:
            copy(files[border:], options.output / "test" / name)


def copy(files: list[Path], folder: Path) -> None:
    """Copy ``files`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder / file.name)


def write_views(source: Source, name: str, border: int, preprocessing: Preprocessing, folder: Path) -> None:
    """Write strong views of the training images of class ``name`` from number ``border`` on, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = sorted(training_part(source, [name]), key=lambda sample: sample.key)[border:]
    images = decode(source, samples, preprocessing).pixels.float() / 255
    generator = torch.Generator().manual_seed(0)
    for view in range(VIEWS):
        for index, pixels in enumerate((vary(images, generator) * 255).round().to(torch.uint8)):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:04}-{view}.png")


if __name__ == "__main__":
    main()

"""Train a small RT-DETR from scratch, on boxes: the base of ``swap_dense.py``, or with all classes its measure.

Zhao et al., DETRs Beat YOLOs on Real-time Object Detection, CVPR 2024; the loss is theirs, as transformers has it.
Run, with the data cut by ``dense_split.py``::

    python benchmarks/train_detector.py --data split/validation --without WBC -o cells-base
    python benchmarks/train_detector.py --data split/validation -o cells-all
"""

import torch
import torch.nn.functional as F
from dense_training import fed_with, fit, light, parse, read
from torch import Tensor
from torchvision.ops import box_convert
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

HEIGHT, WIDTH = 192, 256
"""Of the input, in pixels: four fifths of the cells' images."""
EPOCHS, BATCH, RATE = 44, 8, 1e-3
LARGEST, MAGNIFIED = 1.5, 0.7
"""Most that a batch is magnified, and the share of batches that are."""
LEAST = 0.3
"""Part of a box that must be left in the picture for the object to count."""


def main() -> None:
    """Train, printing the score now and then, and save."""
    options = parse(__doc__.splitlines()[0], EPOCHS, BATCH, RATE)
    training = read(options.data, options.without, fed_with(HEIGHT, WIDTH))
    model = detector(training.classes)

    def loss_of(pixels: Tensor, targets: Tensor) -> Tensor:
        pixels, labels = vary(pixels, [objects[objects[:, 0] >= 0] for objects in targets])
        images = light(pixels, training.fed, 0.4).contiguous(memory_format=torch.channels_last)
        loss: Tensor = model(images, labels=labels).loss
        return loss

    fit(model, training, options, loss_of)


def detector(classes: tuple[str, ...]) -> RTDetrForObjectDetection:
    """About two million parameters: a residual backbone, one encoder layer, three decoder layers, 60 queries."""
    backbone = RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[64, 96, 128],
        encoder_hidden_dim=96,
        encoder_ffn_dim=192,
        encoder_layers=1,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=128,
        decoder_in_channels=[96, 96, 96],
        decoder_ffn_dim=256,
        decoder_layers=3,
        decoder_attention_heads=4,
        num_queries=60,
        num_denoising=60,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    return RTDetrForObjectDetection(config).to(memory_format=torch.channels_last)


def vary(pixels: Tensor, objects: list[Tensor]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch mirrored and magnified at random, and its labels as transformers takes them."""
    labels = [o[:, 0].long() for o in objects]
    corners = [box_convert(o[:, 1:5], "cxcywh", "xyxy") for o in objects]  # in [0, 1]
    if torch.rand(1) < 0.5:
        pixels, corners = pixels.flip(-1), [mirror(c, 0) for c in corners]
    if torch.rand(1) < 0.5:
        pixels, corners = pixels.flip(-2), [mirror(c, 1) for c in corners]
    if torch.rand(1) < MAGNIFIED:
        factor = float(1 + torch.rand(1) * (LARGEST - 1))
        left, top = (torch.rand(2) * (1 - 1 / factor)).tolist()
        x, y = round(left * factor * WIDTH), round(top * factor * HEIGHT)
        larger = F.interpolate(pixels, size=(round(HEIGHT * factor), round(WIDTH * factor)), mode="bilinear")
        pixels = larger[..., y : y + HEIGHT, x : x + WIDTH]
        moved = [c * factor - torch.tensor([x / WIDTH, y / HEIGHT] * 2) for c in corners]
        inside = [c.clamp(0, 1) for c in moved]
        kept = [area(i) > LEAST * area(m) for i, m in zip(inside, moved, strict=True)]
        corners = [i[k] for i, k in zip(inside, kept, strict=True)]
        labels = [known[k] for known, k in zip(labels, kept, strict=True)]
    boxes = [box_convert(c, "xyxy", "cxcywh") for c in corners]
    return pixels, [{"class_labels": known, "boxes": b} for known, b in zip(labels, boxes, strict=True)]


def mirror(corners: Tensor, axis: int) -> Tensor:
    """(M, 4) corners in [0, 1], left for right (axis 0) or top for bottom (axis 1)."""
    mirrored = corners.clone()
    mirrored[:, axis], mirrored[:, axis + 2] = 1 - corners[:, axis + 2], 1 - corners[:, axis]
    return mirrored


def area(corners: Tensor) -> Tensor:
    """(M,) shares of the picture."""
    return (corners[:, 2:] - corners[:, :2]).prod(1)


if __name__ == "__main__":
    main()

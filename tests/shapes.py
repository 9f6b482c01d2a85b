"""Pictures of coloured rectangles with boxes and masks, and random networks for detectors and segmenters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 220)}
SIDE = 64
LARGER = 96
"""Side of the input of a network that halves it six times: group norms want more than one place."""
SMALL = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}


def write_shapes(root: Path, train: int = 16, test: int = 6) -> tuple[Path, Path]:
    """The same pictures twice: a folder with boxes and one with masks."""
    rng = np.random.default_rng(0)
    boxes, masks = root / "boxes", root / "masks"
    masks.mkdir(parents=True)
    (masks / "classes.txt").write_text("\n".join([*COLOURS, "void"]) + "\n")
    for part, count in (("train", train), ("test", test)):
        for folder in (boxes / part, masks / part / "images", masks / part / "masks"):
            folder.mkdir(parents=True)
        listed: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
        for number in range(count):
            picture, objects, mask = _draw(rng)
            name = f"{part}{number}.png"
            for folder in (boxes / part, masks / part / "images"):
                Image.fromarray(picture).save(folder / name)
            Image.fromarray(mask).save(masks / part / "masks" / name)
            listed["images"].append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
            for category, box in objects:
                index = len(listed["annotations"])
                listed["annotations"].append({"id": index, "image_id": number, "category_id": category, "bbox": box})
        listed["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(COLOURS)]
        (boxes / f"{part}.json").write_text(json.dumps(listed))
    return boxes, masks


def _draw(rng):
    picture = 128 + rng.integers(0, 20, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.full((SIDE, SIDE), len(COLOURS), np.uint8)
    objects = []
    for index, colour in enumerate(COLOURS.values()):
        if rng.random() < 0.75:
            wide, high = (int(v) for v in rng.integers(14, 24, 2))
            left, top = int(rng.integers(0, SIDE - wide)), int(rng.integers(0, SIDE - high))
            picture[top : top + high, left : left + wide] = colour
            mask[top : top + high, left : left + wide] = index
            objects.append((index + 1, [left, top, wide, high]))
    return picture, objects, mask


def write_network(folder: Path, kind: str, classes: tuple[str, ...] = ("red", "green")) -> Path:
    """A network of transformers with random weights, as it saves itself."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    network = getattr(hf, (NETWORKS | TIMM)[kind][0])(_config(hf, kind, dict(enumerate(classes))))
    network.save_pretrained(folder)
    side = LARGER if kind == "deformable_detr" else SIDE
    fed = {"image_mean": [0.5] * 3, "image_std": [0.3] * 3, "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(fed))
    return folder


NETWORKS = {
    "rt_detr": ("RTDetrForObjectDetection", "boxes"),
    "deformable_detr": ("DeformableDetrForObjectDetection", "boxes"),
    "detr": ("DetrForObjectDetection", "boxes"),
    "yolos": ("YolosForObjectDetection", "boxes"),
    "segformer": ("SegformerForSemanticSegmentation", "masks"),
    "mask2former": ("Mask2FormerForUniversalSegmentation", "masks"),
}
"""Class, and which of the folders it is fed with."""
TIMM = {"detr_timm": ("DetrForObjectDetection", "boxes")}
"""The same with a backbone that timm builds."""


def _config(hf, kind, names):
    named = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    detr = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 12}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    plain = {"embedding_size": 8, "layer_type": "basic", **SMALL}
    if kind == "rt_detr":
        backbone = hf.RTDetrResNetConfig(**plain, out_features=["stage2", "stage3", "stage4"])
        sizes = {"encoder_hidden_dim": 16, "d_model": 16, "encoder_in_channels": [8, 16, 16]}
        inner = {"decoder_in_channels": [16, 16, 16], "num_denoising": 0, "hidden_expansion": 0.5}
        return hf.RTDetrConfig(backbone_config=backbone, **sizes, **inner, **detr, **heads, **named)
    if kind == "deformable_detr":
        backbone = hf.ResNetConfig(**plain, out_features=["stage2", "stage3", "stage4"])
        return hf.DeformableDetrConfig(
            use_timm_backbone=False, backbone_config=backbone, d_model=32, **detr, **heads, **named
        )
    if kind == "detr":
        backbone = hf.ResNetConfig(**plain, out_features=["stage4"])
        return hf.DetrConfig(use_timm_backbone=False, backbone_config=backbone, d_model=16, **detr, **heads, **named)
    if kind == "detr_timm":
        return hf.DetrConfig(
            use_timm_backbone=True, backbone="test_resnet", use_pretrained_backbone=False, d_model=16, **detr, **heads,
            **named,
        )  # fmt: skip
    if kind == "yolos":
        return hf.YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            image_size=[SIDE, SIDE], num_detection_tokens=12, **named,
        )  # fmt: skip
    if kind == "segformer":
        return hf.SegformerConfig(**SMALL, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, **named)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = hf.SwinConfig(
        image_size=SIDE, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, out_features=stages
    )
    return hf.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=8, **named,
    )  # fmt: skip

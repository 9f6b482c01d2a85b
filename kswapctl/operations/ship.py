"""Ship a version: merge it to plain weights, export it to ONNX, unpack its adapter for PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kswap_registry import Registry, Version
from kswap_registry.filesystem import require_space

from kswapctl.data.images import Images
from kswapctl.errors import UsageError
from kswapctl.evaluation.predict import predict
from kswapctl.export.files import check_free, made_folder, outside, written_whole
from kswapctl.export.onnx import LARGE, Parity, Precision, beside, check_parity, run_onnx, to_fp16, to_int8, write_onnx
from kswapctl.models.lora import save
from kswapctl.models.weights import write
from kswapctl.operations.look import test_images
from kswapctl.operations.points import point
from kswapctl.operations.versions import Composed, load_adapters, load_version
from kswapctl.progress import Progress
from kswapctl.tasks import TASKS

CHECKED = 256
"""Most images that an export is compared on."""


@dataclass(frozen=True)
class Export:
    """What to write."""

    output: Path
    precision: Precision = "fp32"
    opset: int = 18
    data: tuple[str, ...] = ()
    """Where the images of the check come from; empty means what the stack was trained with."""
    every: bool = False
    """Check on every test image."""
    overwrite: bool = False


def merge(registry: Registry, version: Version, output: Path, overwrite: bool, command: str) -> Path:
    """Write the composed weights as a safetensors file that timm loads; its metadata lets ``add`` read it again."""
    outside(registry.folder, output)
    check_free(output, overwrite)
    if output.suffix.lower() != ".safetensors":
        raise UsageError(f"{output.name} would not say what it is", f"name it {output.stem}.safetensors")
    registry.require_writable()
    composed = load_version(registry, version)
    require_space(output.absolute().parent, _bytes_of(composed))
    with written_whole(output, overwrite) as temporary:
        write(composed.weights, temporary, metadata_of(registry, composed))
        point("merge.after_write")
    point("merge.after_rename")
    registry.record(version.model, "merge", {"file": output.name}, number=version.number, command=command)
    return output


def export(registry: Registry, version: Version, request: Export, command: str, progress: Progress) -> Parity:
    """Write an ONNX file; it gets its name only once onnxruntime agrees with the model on real images."""
    outside(registry.folder, request.output)
    check_free(request.output, request.overwrite)
    registry.require_writable()
    composed = load_version(registry, version)
    if _bytes_of(composed) > LARGE:
        check_free(beside(request.output), request.overwrite)
    require_space(request.output.absolute().parent, 2 * _bytes_of(composed))  # int8 and fp16 are written beside fp32
    images = _spread(test_images(composed, request.data, True, progress), len(composed.spec.classes), request.every)
    progress.stage("exporting", 3)
    network, task = composed.network(), TASKS[composed.spec.task]
    with written_whole(request.output, request.overwrite) as temporary:
        metadata = metadata_of(registry, composed) | {"outputs": task.answered}
        whole = temporary if request.precision == "fp32" else temporary.with_name(f"fp32-{temporary.name}")
        write_onnx(network, composed.spec, whole, request.opset, metadata)
        progress.advance()
        if whole != temporary:
            {"fp16": to_fp16, "int8": to_int8}[request.precision](whole, temporary)
            for file in (whole, beside(whole)):
                file.unlink(missing_ok=True)
        progress.advance()
        point("export.after_write")
        expected = predict(network, images, composed.spec.preprocessing)
        parity = check_parity(expected, run_onnx(temporary, images, composed.spec), request.precision, task)
        progress.advance()
        apart = beside(temporary).exists()
        point("export.after_check")
    if request.overwrite and not apart:
        beside(request.output).unlink(missing_ok=True)  # the weights of a larger one that stood there
    point("export.after_rename")
    payload = {
        "file": request.output.name,
        "precision": request.precision,
        "opset": request.opset,
        "largest": parity.largest,
    }
    registry.record(version.model, "export", payload, number=version.number, command=command)
    return parity


def unpack(registry: Registry, version: Version, folder: Path, overwrite: bool) -> Path:
    """Write the version's own adapter as a folder that plain PEFT loads."""
    outside(registry.folder, folder)
    if not version.number:
        raise UsageError(f"{version.ref} is the base: it has no adapter", "name a version: kswapctl list")
    adapter = load_adapters(registry, version)[-1]
    if not adapter.factors:
        raise UsageError(
            f"{version.ref} changes the classifier alone, and PEFT loads no adapter without layers",
            f"kswapctl merge {version.ref}",
        )
    if any(made_folder(folder).iterdir()) and not overwrite:
        raise UsageError(f"{folder} is not empty", "say --overwrite, or choose another name")
    save(adapter, folder, version.model)
    return folder


def metadata_of(registry: Registry, composed: Composed) -> dict[str, Any]:
    """What a shipped file says of itself: how to build and feed the network, and where its knowledge comes from."""
    version, knowledge = composed.version, composed.knowledge
    return composed.spec.to_json() | {
        "classes": list(knowledge.classes),
        "forgotten": sorted(knowledge.forgotten),
        "learned": sorted(knowledge.learned),
        "version": version.ref,
        "fingerprint": version.fingerprint,
        "lineage": [
            {
                "version": v.ref,
                "kind": v.kind,
                "method": v.method,
                "classes": v.spec["classes"],
                "adapter": v.adapter,
            }
            for v in registry.stack(version)
        ],
    }


def _spread(images: Images, classes: int, every: bool) -> Any:
    """Pixels of every image, or of about CHECKED of them, evenly over the classes (which stand in order)."""
    step = 1 if every else max(1, len(images) // max(CHECKED, 2 * classes))
    return images.pixels[::step]


def _bytes_of(composed: Composed) -> int:
    return 2**20 + sum(tensor.nbytes for tensor in composed.weights.values())

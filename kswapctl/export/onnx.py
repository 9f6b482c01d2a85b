"""A network as an ONNX file: dynamic batch, metadata, three precisions, and the check that it computes the same."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kswapctl.data.images import normalise
from kswapctl.errors import DataError, ParityError, UsageError, first_line
from kswapctl.evaluation.predict import batch_of
from kswapctl.spec import ModelSpec
from kswapctl.tasks import Task

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is first imported

Precision = Literal["fp32", "fp16", "int8"]
ABSOLUTE, RELATIVE, MARGIN = 1e-4, 1e-3, 1e-3
"""An fp32 logit may differ by ABSOLUTE + RELATIVE * |logit|; top-1 must agree where its margin exceeds MARGIN."""
LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.995, "int8": 0.97}
"""Lowest share of images with the same top-1, by precision."""
OPERATOR = re.compile(r"OpOverload\(op='([\w.:]+)'|target=torch\.ops\.([\w.]+)")
"""How the exporter names an operator of torch in its messages."""
LARGE = 1_500_000_000
"""Bytes of weights above which they go to a file beside the model (protobuf ends at 2 GB)."""


@dataclass(frozen=True)
class Parity:
    """How far an exported file is from the network it was made of."""

    images: int
    largest: float
    """Largest difference of a logit."""
    agreement: float
    """Share of images, objects or pixels with the same top-1 (of objects also place and score), in [0, 1]."""


def write_onnx(network: nn.Module, spec: ModelSpec, path: Path, opset: int, metadata: Mapping[str, Any]) -> None:
    """Export ``network`` with a dynamic batch; ``metadata`` is JSON under the key ``kswapctl``.

    A network with an operator that ONNX has no counterpart of is a :class:`UsageError` that names it.
    """
    example = torch.zeros(2, *spec.preprocessing.input_size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        try:
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: "batch"},),
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UsageError(
                f"{spec.architecture} cannot be exported: {_why(error)}", "ship it as weights: kswapctl merge"
            ) from error
    assert program is not None
    program.model.metadata_props["kswapctl"] = json.dumps(metadata, sort_keys=True)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    program.save(str(path), external_data=size > LARGE)


def _why(error: BaseException) -> str:
    """The operator that the exporter stopped at, and the first line of the first error."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for one in reversed(chain):
        if found := OPERATOR.search(str(one)):
            return f"the exporter stops at the operator {found.group(1) or found.group(2)} ({_line(chain[-1])})"
    return _line(chain[-1])


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]


def to_fp16(whole: Path, path: Path) -> None:
    """Write ``whole`` to ``path``, weights and arithmetic in half precision; inputs and outputs stay fp32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = OnnxModel(convert_float_to_float16(str(whole), keep_io_types=True))
    made: set[str] = set()
    for node in list(converted.model.graph.node):
        if not made.isdisjoint(node.output):  # a value that one operator takes twice is cast twice, to the same name
            converted.model.graph.node.remove(node)
        made.update(filter(None, node.output))
    converted.topological_sort()  # the converter puts its casts last, which onnxruntime alone forgives
    onnx.save(converted.model, path, save_as_external_data=beside(whole).exists(), location=beside(path).name)


def to_int8(whole: Path, path: Path) -> None:
    """Write ``whole`` to ``path``, weights of matrix products in 8 bits, per channel; activations at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(whole, load_external_data=False)
    del model.graph.value_info[:]  # the exporter's shapes contradict what the quantiser infers
    onnx.save(model, whole)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on pre-processing that is done above
    try:
        quantize_dynamic(
            whole,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=beside(whole).exists(),
        )
    finally:
        root.setLevel(level)


def beside(path: Path) -> Path:
    """Where the weights of the model at ``path`` are if it is too large for one file."""
    return path.with_name(f"{path.name}.data")


def run_onnx(path: Path, pixels: Tensor, spec: ModelSpec) -> Tensor:
    """(N, K) logits of (N, C, H, W) uint8 images, by onnxruntime on the CPU; a :class:`DataError` if it cannot."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as refused

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    faults = (ValueError, *(getattr(refused, name) for name in names))
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = [
            torch.from_numpy(session.run(None, {"images": normalise(part, spec.preprocessing).numpy()})[0])
            for part in pixels.split(batch_of(pixels))
        ]
    except faults as error:
        reason = first_line(error)
        raise DataError(f"{path.name} does not run as an exported model ({reason})", "kswapctl export") from error
    return torch.cat(outputs)


def check_parity(expected: Tensor, exported: Tensor, precision: Precision, task: Task) -> Parity:
    """Compare the outputs of N images; a difference beyond the precision's bounds is a :class:`ParityError`."""
    aligned = task.aligned(expected, exported)
    difference = (aligned.one - aligned.other).abs()
    scores, others = aligned.one[:, aligned.first :], aligned.other[:, aligned.first :]
    top = scores.topk(min(2, scores.shape[-1]), dim=-1).values
    decided = (top[:, 0] - top[:, -1] > MARGIN) | (scores.shape[-1] == 1)
    same = scores.argmax(dim=-1) == others.argmax(dim=-1)
    if aligned.alike is not None:
        same = same & aligned.alike
    parity = Parity(len(expected), difference.max().item(), same.float().mean().item())
    beyond = precision == "fp32" and bool((difference > ABSOLUTE + RELATIVE * aligned.one.abs()).any())
    agreement = same[decided].float().mean().item() if decided.any() else 1.0
    if beyond or not torch.isfinite(exported).all() or agreement < LEAST_AGREEMENT[precision]:
        raise ParityError(
            f"the {precision} file differs from the model: logits by up to {parity.largest:.2g}, top-1 the same on "
            f"{parity.agreement:.2%} over {parity.images} images; it was not kept",
            "try another --opset" if precision == "fp32" else "export in fp32, or with another --opset",
        )
    return parity

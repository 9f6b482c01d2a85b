"""What a step, an evaluation and an exported file cost: ratios from runs in turn, medians and spread. Run::

    python benchmarks/speed.py --base signs38.safetensors --data signs43 --parts depth,size,classes -o speed.json

Parts: ``depth`` (a step against the number of adapters below it, and their composition), ``size`` (a step against
images and blocks), ``classes`` (against them), ``rate`` (the step's matrix products against the machine's), ``vit``
(ViT-B/16 at 224 with random weights against the papers' step), ``eval`` (against a plain timm loop), ``onnx`` (merged
against base), ``memory`` (the peak of a forget on ViT-B/16), ``processes`` (two against one).
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import timm
import torch
from kswap_registry import Registry
from peft import LoraConfig, inject_adapter_in_model
from timing import activations_of, interleave, keep, median, ratio, subject_of, take_step
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from kswapctl.data.images import normalise
from kswapctl.evaluation.predict import BATCH, predict
from kswapctl.models.blocks import find_blocks
from kswapctl.models.building import build
from kswapctl.models.checkpoint import Description, load
from kswapctl.models.lora import Adapter, compose
from kswapctl.models.weights import write
from kswapctl.operations.change import apply
from kswapctl.operations.models import add_model
from kswapctl.operations.ship import Export, export
from kswapctl.progress import Silent
from kswapctl.runtime import cores, one_core_each, pick_precision, spread
from kswapctl.spec import Change

CPU = torch.device("cpu")
ROUNDS = 7
BATCH_OF_A_STEP = 80
Found = dict[str, object]


def main() -> None:
    """Run the parts asked for, print each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--parts", default=",".join(p for p in PARTS if p not in {"memory", "processes"}))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found = {}
    for part in options.parts.split(","):
        found[part] = PARTS[part](options.base, options.data)
        print(part, found[part], flush=True)
    keep(found, options.output)


def device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stacked(model: torch.nn.Module, depth: int) -> tuple[dict[str, torch.Tensor], list[Adapter]]:
    """The weights of ``model`` and ``depth`` small adapters on all its blocks."""
    layers = [layer for block in find_blocks(model, "head") for layer in block.layers]
    adapters = []
    for _ in range(depth):
        shapes = {layer: model.get_submodule(layer).weight.shape for layer in layers}
        factors = {k: (0.01 * torch.randn(8, s[1]), 0.01 * torch.randn(s[0], 8)) for k, s in shapes.items()}
        adapters.append(Adapter(8, 1.0, factors, {}))
    return dict(model.state_dict()), adapters


def depth(base: str, data: str) -> Found:
    """A step on top of 0, 1, 5 and 20 adapters; and composing 20 on ViT-B/16."""
    checkpoint = load(base, Description())
    images = torch.randn(BATCH_OF_A_STEP, *checkpoint.spec.preprocessing.input_size)
    works = {}
    for count in (0, 1, 5, 20):
        weights, adapters = stacked(build(checkpoint.spec, checkpoint.weights), count)
        subject = subject_of(build(checkpoint.spec, compose(weights, adapters)), "last:5", pick_precision("auto", CPU))
        activations = activations_of(subject, images)
        works[str(count)] = lambda s=subject, a=activations: take_step(s, a)
    with one_core_each():
        timed = interleave(works, 3 * ROUNDS)
    weights, adapters = stacked(timm.create_model("vit_base_patch16_224"), 20)
    composing = interleave({"20": lambda: compose(weights, adapters)}, 3)["20"]
    steps = {f"step over {k}": median(v) for k, v in timed.items()}
    slower = round(ratio(timed["20"], timed["0"]), 3)
    return steps | {"20 over 0": slower, "composing 20 on ViT-B/16": median(composing)}


def size(base: str, data: str) -> Found:
    """A step against its images and its blocks."""
    checkpoint = load(base, Description())
    found: Found = {}
    for blocks in ("all", "last:8", "last:4", "last:1"):
        subject = subject_of(build(checkpoint.spec, checkpoint.weights), blocks, pick_precision("auto", CPU))
        works = {}
        for count in (32, 64, 128):
            images = torch.randn(count, *checkpoint.spec.preprocessing.input_size)
            activations = activations_of(subject, images)
            works[f"{blocks}, {count} images"] = lambda s=subject, a=activations: take_step(s, a)
        with one_core_each():
            found |= {name: median(values) for name, values in interleave(works, ROUNDS).items()}
    return found


def classes(base: str, data: str) -> Found:
    """A step of the last four blocks against the number of classes."""
    spec = load(base, Description()).spec
    works = {}
    for count in (10, 100, 1000):
        model = build(replace(spec, classes=tuple(str(n) for n in range(count))))
        subject = subject_of(model, "last:4", pick_precision("auto", CPU))
        activations = activations_of(subject, torch.randn(64, *spec.preprocessing.input_size))
        works[f"{count} classes"] = lambda s=subject, a=activations: take_step(s, a)
    with one_core_each():
        return {name: median(values) for name, values in interleave(works, ROUNDS).items()}


def rate(base: str, data: str) -> Found:
    """The matrix products of a step at batch 80, over its time, against one large product of the same kind."""
    checkpoint = load(base, Description())
    return matmul_share(build(checkpoint.spec, checkpoint.weights), checkpoint.spec.preprocessing.input_size)


def matmul_share(model: torch.nn.Module, shape: tuple[int, ...]) -> Found:
    """Share of the measured matrix rate that a step reaches, all blocks adapted."""
    where = device()
    dtype = pick_precision("auto", where)
    subject = subject_of(model.to(where), "all", dtype)
    activations = activations_of(subject, torch.randn(BATCH_OF_A_STEP, *shape, device=where))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads compute is not counted
    with FlopCounterMode(display=False) as counter:
        take_step(subject, activations)
    shares = where_time_goes(lambda: take_step(subject, activations))
    torch.set_num_threads(threads)
    tokens, width = activations.shape[0] * activations.shape[1], activations.shape[2]
    left = torch.randn(tokens, width, dtype=dtype, device=where)
    right = torch.randn(width, 4 * width, dtype=dtype, device=where)

    def multiply() -> None:
        parts = left.tensor_split(cores() if where.type == "cpu" else 1)
        spread(lambda part: [part @ right for _ in range(20)], parts)

    def synchronised(work: object) -> object:
        def run() -> None:
            work()
            if where.type == "cuda":
                torch.cuda.synchronize()

        return run

    works = {"step": lambda: take_step(subject, activations), "product": multiply}
    with one_core_each():
        timed = interleave({name: synchronised(work) for name, work in works.items()}, ROUNDS)
    flops = {"step": counter.get_total_flops(), "product": 20 * 2 * tokens * width * 4 * width}
    speeds = {name: [flops[name] / s / 1e9 for s in values] for name, values in timed.items()}
    found: Found = {f"{name}, GFLOP/s": round(sorted(v)[len(v) // 2]) for name, v in speeds.items()}
    return found | {
        "share": round(ratio(speeds["step"], speeds["product"]), 2),
        "step": median(timed["step"]),
        "one thread": shares,
    }


def where_time_goes(work: Callable[[], object]) -> dict[str, str]:
    """Share of the processor's time by operator, the largest first, on one thread."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(5):
            work()
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:12]
    return {name.removeprefix("aten::"): f"{spent[name] / sum(spent.values()):.0%}" for name in largest}


def vit(base: str, data: str) -> Found:
    """A step on ViT-B/16 at 224, 8 + 8 images: ours against the papers' (fp32, all blocks, two forwards)."""
    ours = subject_of(timm.create_model("vit_base_patch16_224", num_classes=100), "last:6", pick_precision("auto", CPU))
    every = subject_of(timm.create_model("vit_base_patch16_224", num_classes=100), "all", pick_precision("auto", CPU))
    theirs = timm.create_model("vit_base_patch16_224", num_classes=100).eval().requires_grad_(False)
    layers = [n for n, _ in theirs.named_modules() if n.endswith(("mlp.fc1", "mlp.fc2"))]
    theirs = inject_adapter_in_model(LoraConfig(r=8, lora_alpha=1, target_modules=layers), theirs)
    images, targets = torch.randn(16, 3, 224, 224), torch.arange(8)
    cached = {name: activations_of(s, images) for name, s in (("last:6", ours), ("all", every))}

    def papers() -> None:
        kept, gone = (torch.nn.functional.cross_entropy(theirs(part), targets) for part in images.split(8))
        theirs.zero_grad()
        (kept + 0.2 * torch.relu(105 - gone)).backward()

    def step(subject: object, name: str) -> None:
        with one_core_each():
            take_step(subject, cached[name])

    works = {"papers": papers, "last:6": lambda: step(ours, "last:6"), "all": lambda: step(every, "all")}
    timed = interleave(works, 3)
    found: Found = {name: median(values) for name, values in timed.items()}
    return found | {f"times faster, {n}": round(ratio(timed["papers"], timed[n]), 1) for n in ("last:6", "all")}


def evaluate(base: str, data: str) -> Found:
    """Our evaluation of decoded images against a plain timm loop over the same, in images a second."""
    checkpoint = load(base, Description())
    how, network = checkpoint.spec.preprocessing, build(checkpoint.spec, checkpoint.weights).eval()
    pixels = torch.randint(0, 256, (1024, *how.input_size), dtype=torch.uint8)

    @torch.inference_mode()
    def plain() -> None:
        for part in pixels.split(BATCH):
            network(normalise(part, how))

    timed = interleave({"plain": plain, "ours": lambda: predict(network, pixels, how)}, 5)
    speeds: Found = {f"{k}, images a second": round(1024 / sorted(v)[len(v) // 2]) for k, v in timed.items()}
    return speeds | {"times faster": round(ratio(timed["plain"], timed["ours"]), 2)}


def onnx(base: str, data: str) -> Found:
    """Latency of one image in the merged file over that of the base's file."""
    with tempfile.TemporaryDirectory() as place, Registry.create(Path(place) / "registry") as registry:
        add_model(registry, "signs", base, Description(), data)
        known = registry.model("signs").classes
        version = apply(registry, "signs", Change("forget", tuple(known[:5]), data), "benchmark", Silent()).version
        sessions = {}
        for name, wanted in (("base", registry.resolve("signs@base")), ("merged", version)):
            export(registry, wanted, Export(Path(place) / f"{name}.onnx"), "benchmark", Silent())
            sessions[name] = onnxruntime.InferenceSession(str(Path(place) / f"{name}.onnx"))
    session = sessions["base"]
    image = {session.get_inputs()[0].name: torch.randn(1, 3, 40, 40).numpy()}
    works = {n: lambda s=s: [s.run(None, image) for _ in range(200)] for n, s in sessions.items()}
    timed = interleave(works, 15)
    found: Found = {name: median([v / 200 for v in values]) for name, values in timed.items()}
    return found | {"merged over base": round(ratio(timed["merged"], timed["base"]), 3)}


def memory(base: str, data: str) -> Found:
    """Peak memory of a process that forgets a class of a ViT-B/16 at 224 with 2 GiB of cache."""
    with tempfile.TemporaryDirectory() as place:
        file, home = Path(place) / "vit.safetensors", Path(place) / "registry"
        classes = sorted(p.name for p in (Path(data) / "train").iterdir())
        model = timm.create_model("vit_base_patch16_224", num_classes=len(classes))
        write(model.state_dict(), file)
        common = ["--architecture", "vit_base_patch16_224", "--classes", ",".join(classes)]
        for line in (["init"], ["add", "vit", str(file), *common, "--data", data]):
            subprocess.run([sys.executable, "-m", "kswapctl", *line, "--registry", str(home)], check=True)
        line = ["forget", "vit", "--classes", classes[0], "--cache-gb", "2", "--set", "steps=3", "--set", "cycles=1"]
        subprocess.run([sys.executable, "-m", "kswapctl", *line, "--registry", str(home)], check=True)
    return {"peak GiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2)}


def processes(base: str, data: str) -> Found:
    """A whole learn by one process with all cores, and by two that torchrun starts."""
    with tempfile.TemporaryDirectory() as place:
        commands = {}
        for name, start in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2"])):
            home = str(Path(place) / name)
            for line in (["init"], ["add", "signs", base, "--data", data]):
                subprocess.run([sys.executable, "-m", "kswapctl", *line, "--registry", home], check=True)
            line = ["forget", "signs", "--classes", "30_kmh", "--again", "--registry", home]
            commands[name] = [sys.executable, *start, "-m", "kswapctl", *line]
        timed = interleave({n: lambda c=c: subprocess.run(c, check=True) for n, c in commands.items()}, 2)
    found: Found = {name: median(values) for name, values in timed.items()}
    return found | {"two times faster": round(ratio(timed["one"], timed["two"]), 2)}


PARTS = {
    "depth": depth, "size": size, "classes": classes, "rate": rate, "vit": vit, "eval": evaluate, "onnx": onnx,
    "memory": memory, "processes": processes,
}  # fmt: skip

if __name__ == "__main__":
    main()

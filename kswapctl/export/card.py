"""The page of a shared model on the Hugging Face Hub: what it knows, how it was measured, where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kswapctl.errors import counted
from kswapctl.export.manifest import Manifest, Step, folder_of
from kswapctl.spec import listed

NAME = "README.md"
"""What the Hub calls the page."""
_TEXT = """
# {name}

A vision model ({architecture}) after {changes}, made with kswapctl:
each change is a LoRA adapter in PEFT's format, and the model is the base with all of them added, in order.

| version | change | classes | method | validation | adapter |
|---|---|---|---|---|---|
{rows}

Its classifier has {classes} rows. Forgotten: {forgotten}. Learned: {learned}.

Take it into a registry, every byte checked and the weights composed and compared:

    kswapctl pull {place} {name}

Or load one adapter with PEFT onto the weights below it:
`PeftModel.from_pretrained(model, "{repository}", subfolder="{last}")`.

Base: `{source}`, tensors {base}. Stack: {top}.
"""

TAGS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}
"""What the Hub calls the tasks."""


def write_card(manifest: Manifest, place: str) -> str:
    """The page of what ``manifest`` lists, with the Hub's own header; ``place`` is what to pull it from."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type=TAGS[manifest.base.task],
            dataset_type="custom",
            dataset_name=f"validation part, {name} set",
            dataset_config=name,  # results of one configuration become one, under the first's name
            dataset_split="validation",
            metric_type="accuracy",  # of images, or of the objects or pixels that decided
            metric_value=value,
        )
        for name, value in _shares(manifest.steps)
    ]
    data = ModelCardData(
        library_name="peft",
        pipeline_tag=TAGS[manifest.base.task],
        tags=["kswapctl", "lora", "unlearning", "continual-learning"],
        model_name=manifest.base.name,
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{_body(manifest, place)}"))


def _body(manifest: Manifest, place: str) -> str:
    steps = manifest.steps
    state = steps[-1].state if steps else {"classes": manifest.base.classes, "forgotten": {}, "learned": {}}
    return _TEXT.format(
        name=manifest.base.name,
        architecture=manifest.base.spec["architecture"],
        changes=counted(len(steps), "change"),
        rows="\n".join(_row(depth, step) for depth, step in enumerate(steps, start=1)),
        classes=len(state["classes"]),
        forgotten=_names(state["forgotten"]),
        learned=_names(state["learned"]),
        place=place,
        repository=place.removeprefix("hf-hub:"),
        last=folder_of(len(steps), steps[-1]) if steps else "",
        source=_plain(manifest.base.source),
        base=manifest.base.fingerprint[:16],
        top=manifest.top,
    )


def _row(depth: int, step: Step) -> str:
    shares = ", ".join(f"{name} {value:.1%}" for name, value in _shares([step]))
    cells = (f"{depth}", step.kind, _names(step.spec["classes"]), step.method, shares, step.adapter[:16])
    return f"| {' | '.join(cells)} |"


def _shares(steps: Sequence[Step]) -> list[tuple[str, float]]:
    """Accuracies of the last step."""
    metrics = steps[-1].metrics if steps else {}
    return [(name, metrics[name]) for name in ("retain", "learn", "forget") if name in metrics]


def _names(names: Iterable[str]) -> str:
    """Class names come from strangers' folders: nothing in them is markup."""
    return "".join(_shown(c) for c in listed(names)) or "-"


def _shown(letter: str) -> str:
    """A letter as it is seen, and is nothing else: outside code, Markdown shows a reference as the letter it is of."""
    if letter.isalnum() or letter in " .,_-/@:":
        return letter
    return f"&#{ord(letter)};" if letter.isprintable() else "?"


def _plain(text: str) -> str:
    """What may stand between backticks."""
    return "".join(c if c.isalnum() or c in " .,_-/@:" else "?" for c in text)

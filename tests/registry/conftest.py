import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kswap_registry import Registry, Version

Learn = Callable[..., Version]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """From Python 3.12 a fork beside threads warns; ours are those of numpy, which sqlite-utils imports, and idle."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is such a thing: every commit syncs, and a busy disk makes each sync slow."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.create(tmp_path / "registry", timeout=0.2) as made:
        yield made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights of the base")
    return path


@pytest.fixture
def faces(registry: Registry, checkpoint: Path) -> Registry:
    """A registry with one model, 'faces', at its base."""
    registry.add_model(
        "faces",
        task="classification",
        source="timm:tiny",
        spec={"architecture": "tiny", "depth": 2},
        classes=["ann", "bob"],
        fingerprint="base-fingerprint",
        files={"model.safetensors": checkpoint},
    )
    return registry


def learn(registry: Registry, content: str, *, kind: str = "learn", **metrics: float) -> Version:
    """Add a version to 'faces' whose adapter file holds ``content``."""
    with registry.operation(
        "faces",
        kind=kind,
        method="gs-lora",
        spec={"rank": 8},
        command="kswapctl learn",
        environment={"torch": "2"},
    ) as operation:
        adapter = operation.folder / "adapter.safetensors"
        adapter.write_text(content)
        return operation.commit(
            {"adapter.safetensors": adapter},
            state={"classes": ["ann", "bob", content]},
            adapter=f"adapter-{content}",
            weights=f"weights-{content}",
            metrics=metrics,
            note=f"learned {content}",
        )


@pytest.fixture(name="learn")
def learn_fixture(faces: Registry) -> Learn:
    return lambda content, **metrics: learn(faces, content, **metrics)

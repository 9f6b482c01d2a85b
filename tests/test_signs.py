"""The main job on real images: 43 traffic signs and a network that knows 38 of them."""

import zipfile
from pathlib import Path

import pytest
from kswap_registry import Registry

from kswapctl.models.checkpoint import Description
from kswapctl.operations.change import apply
from kswapctl.operations.look import evaluate_version
from kswapctl.operations.models import add_model
from kswapctl.progress import Silent
from kswapctl.spec import Change

SHARED = Path(__file__).parents[2] / "shared" / "data"
LEARN = ("20_kmh", "einmalige_vorfahrt", "s_kurve_links", "scharfe_kurve_rechts", "verbot_der_einfahrt")
FORGET = ("30_kmh", "gefahrenstelle", "vorbeifahren_rechts", "vorfahrsstrasse", "vorgeschrieben_geradeaus_rechts")

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the sign images lie beside the project, not in it")


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signs")
    zipfile.ZipFile(SHARED / "signs43.zip").extractall(folder)
    with Registry.create(folder / "registry") as registry:
        base = str(SHARED / "models" / "signs38.safetensors")
        add_model(registry, "signs", base, Description(), str(folder / "signs43"))
        yield registry


def scores(registry, *changes):
    registry.move_head("signs", 0)
    for change in changes:
        result = apply(registry, "signs", change, "test", Silent())
    evaluation = evaluate_version(registry, result.version, [], False, "cpu", Silent())
    return {s.name: (s.accuracy, s.base) for s in evaluation.sets}


def test_the_base_is_as_good_as_its_makers_say(signs):
    evaluation = evaluate_version(signs, signs.resolve("signs@base"), [], False, "cpu", Silent())
    assert evaluation.set("retain").accuracy == pytest.approx(0.911, abs=0.002)


@pytest.mark.timeout(600)
def test_forgetting_five_signs_leaves_the_others(signs):
    after = scores(signs, Change("forget", FORGET, ""))
    assert after["forgotten"][0] <= 0.01
    assert after["retain"][1] - after["retain"][0] <= 0.01


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_learning_then_forgetting_swaps_them(signs):
    after = scores(signs, Change("learn", LEARN, ""), Change("forget", FORGET, ""))
    assert after["forgotten"][0] <= 0.01
    assert after["learned"][0] >= 0.93
    assert after["retain"][1] - after["retain"][0] <= 0.05

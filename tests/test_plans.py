"""Plans: applied once, continued where they stopped, and told to the key where they are wrong."""

from pathlib import Path

import pytest
from kswap_registry import Registry

from kswapctl.errors import UsageError
from kswapctl.operations.plan import read_plan

PLAN = """
version: 1
model: digits
defaults:
  data: {data}
  preset: few
  set: {{steps: 2}}
operations:
  - op: learn
    classes: [eight]
  - op: forget
    classes: [two]
    seed: 3
    set: {{beta: 1.5}}
"""


@pytest.fixture
def plan(tmp_path: Path, digits: Path) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.format(data=digits))
    return file


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The preset of the tests, also where no option names it."""
    from kswapctl.methods import METHODS

    for method in METHODS["gs-lora"]:
        monkeypatch.setitem(method.presets, "few", {"retain_views": 1, "change_views": 1, "sparsity": 0.0, "cycles": 1})


def test_a_plan_is_applied_once_and_then_there_is_nothing_left(run_fresh, plan: Path) -> None:
    foretold = run_fresh("apply", plan, "--dry-run", "--json").json
    assert [(line["kind"], line["state"]) for line in foretold] == [("learn", "to do"), ("forget", "to do")]
    assert all(line["images"][0] > 0 for line in foretold)
    assert run_fresh("show", "digits", "--json").json["head"] == 0
    done = run_fresh("apply", plan, "--json", "--quiet").json
    assert [line["version"] for line in done] == ["digits@1", "digits@2"]
    version = run_fresh("show", "digits@2", "--json").json
    assert version["spec"]["settings"] == {"steps": "2", "beta": "1.5"}
    assert version["spec"]["seed"] == 3
    again = run_fresh("apply", plan, "--json", "--quiet").json
    assert [line["state"] for line in again] == ["done before"] * 2
    assert run_fresh("show", "digits", "--json").json["head"] == 2


def test_a_plan_says_how_its_operations_went(run_fresh, plan: Path) -> None:
    ran = run_fresh("apply", plan)
    assert "targets met" in ran.out
    assert "learn eight: the targets were not met" in ran.err
    assert "targets met" not in run_fresh("apply", plan).out


def test_a_plan_goes_on_where_it_stopped_and_never_undoes(run_fresh, plan: Path) -> None:
    run_fresh("apply", plan, "--quiet")
    run_fresh("rollback", "digits")
    assert [line["state"] for line in run_fresh("apply", plan, "--dry-run", "--json").json] == ["done before", "to do"]
    plan.write_text(plan.read_text().replace("classes: [eight]", "classes: [nine]"))
    ran = run_fresh("apply", plan)
    assert ran.code == 2
    assert "digits@1 is not operation 0 of the plan: classes: ['eight'], in the plan ['nine']" in ran.err
    assert "rollback digits --to base, or a branch: model: digits@BRANCH in the plan" in ran.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("blocks: lats", "'lats' names no blocks"),
        ("set: {blocks: lats}", "'lats' names no blocks"),
        ("precision: fp4", "fp4"),
        ("device: warp", "warp"),
    ],
)
def test_what_no_operation_could_be_done_with_is_told_before_any(run_fresh, plan: Path, line: str, said: str) -> None:
    plan.write_text(plan.read_text().replace("    set: {beta: 1.5}\n", f"    {line}\n"))
    ran = run_fresh("apply", plan, "--dry-run")
    assert (ran.code, said in ran.err) == (2, True)
    assert "operations[1]" in ran.err


def test_where_activations_were_kept_is_no_part_of_a_plan(run_fresh, plan: Path, digits: Path) -> None:
    line = ("learn", "digits", "--data", digits, "--classes", "eight", "--preset", "few", "--set", "steps=2")
    assert run_fresh(*line, "--cache-gb", "2").code == 0
    assert [line["state"] for line in run_fresh("apply", plan, "--dry-run", "--json").json] == ["done before", "to do"]


def test_a_class_that_is_named_twice_is_one(run_fresh, plan: Path) -> None:
    plan.write_text(plan.read_text().replace("[eight]", "[eight, eight]").partition("  - op: forget")[0])
    assert run_fresh("apply", plan, "--quiet").code == 0
    assert [line["state"] for line in run_fresh("apply", plan, "--json").json] == ["done before"]


def test_a_plan_does_not_go_on_over_what_another_did_meanwhile(fresh: Path, run_fresh, plan: Path, monkeypatch) -> None:
    from kswapctl.operations import apply

    real = apply.apply

    def rolled_back(registry: Registry, *given):
        result = real(registry, *given)
        registry.move_head("digits", 0)
        return result

    monkeypatch.setattr(apply, "apply", rolled_back)
    ran = run_fresh("apply", plan)
    assert (ran.code, "moved from digits@1 to digits@base" in ran.err) == (11, True), ran.err
    assert len(run_fresh("list", "digits", "--json").json) == 2


def test_a_plan_does_not_begin_on_what_another_put_there_meanwhile(fresh: Path, run_fresh, plan: Path, monkeypatch):
    from kswapctl.operations import apply

    real = apply.outline

    def overtaken(registry: Registry, *given):
        lines = real(registry, *given)
        registry.move_head("digits", 1)
        return lines

    assert run_fresh("apply", plan, "--quiet").code == 0
    run_fresh("rollback", "digits", "--to", "base")
    monkeypatch.setattr(apply, "outline", overtaken)
    ran = run_fresh("apply", plan)
    assert (ran.code, "moved from digits@base to digits@1" in ran.err) == (11, True), ran.err


def test_images_that_the_model_cannot_take_are_told_before_anything_is(run_fresh, plan: Path, shapes) -> None:
    text = plan.read_text().replace("classes: [eight]", f"classes: [red]\n    data: {shapes['boxes']}")
    learn, forget = text.index("  - op: learn"), text.index("  - op: forget")
    plan.write_text(text[:learn] + text[forget:] + text[learn:forget])
    ran = run_fresh("apply", plan, "--dry-run")
    assert (ran.code, "operations[1]: " in ran.err, "has boxes, the model needs labels" in ran.err) == (4, True, True)


@pytest.mark.parametrize(("own", "rehearsed"), [("retain_share: 0.5", (0.5, None)), ("seed: 3", (0.1, 5))])
def test_an_operation_s_rehearsal_goes_before_the_defaults(plan: Path, own: str, rehearsed) -> None:
    text = plan.read_text().replace("  preset: few", "  preset: few\n  retain_per_class: 5")
    plan.write_text(text.replace("    seed: 3", f"    {own}"))
    rehearsal = read_plan(plan)[1][1].rehearsal
    assert (rehearsal.share, rehearsal.per_class) == rehearsed


def test_a_plan_of_a_branch_says_how_to_move_that_branch(run_fresh, plan: Path) -> None:
    run_fresh("apply", plan, "--quiet")
    run_fresh("branch", "digits", "night")
    plan.write_text(plan.read_text().replace("digits\n", "digits@night\n", 1).partition("  - op: forget")[0])
    assert "kswapctl branch digits night --to 1" in run_fresh("apply", plan).err
    plan.write_text(plan.read_text().replace("digits@night", "digits@head", 1))
    assert "kswapctl rollback digits --to 1" in run_fresh("apply", plan).err


def test_more_operations_than_the_plan_has_are_told(run_fresh, plan: Path) -> None:
    run_fresh("apply", plan, "--quiet")
    plan.write_text(plan.read_text().partition("  - op: forget")[0])
    ran = run_fresh("apply", plan)
    assert ran.code == 2
    assert "digits@2 has 2 operations since digits@base, the plan only 1" in ran.err


def test_what_cannot_be_done_is_told_before_anything_is(run_fresh, plan: Path) -> None:
    plan.write_text(plan.read_text().replace("[two]", "[twoo]"))
    ran = run_fresh("apply", plan)
    assert ran.code == 3
    assert "operations[1]: the model has no class 'twoo'" in ran.err
    assert "'two'" in ran.err
    assert run_fresh("show", "digits", "--json").json["head"] == 0


@pytest.mark.parametrize(
    ("right", "wrong", "said", "hint"),
    [
        ("    seed: 3", "    sead: 3", "operations[1].sead: is no key here (its value is 3)", "'seed'"),
        ("    seed: 3", "    seed: -3", "operations[1].seed: input should be greater than or equal to 0, not -3", ""),
        ("    seed: 3", "    seed: many", "operations[1].seed: input should be a valid integer, not 'many'", ""),
        ("  - op: forget", "  - op: forgot", "operations[1].op: is 'forgot'", "'forget'"),
        ("    classes: [two]", "    clases: [two]", "operations[1].clases: is no key here", "'classes'"),
        ("model: digits", "modle: digits", "modle: is no key here", "'model'"),
        (
            "    seed: 3",
            "    retain_share: 0.5\n    retain_per_class: 3",
            "operations[1]: both retain_share and",
            "leave one",
        ),
        ("[two]", "[010]", "operations[1].classes[0]: input should be a valid string, not 8", 'quotes: "010"'),
        ("  - op: forget\n    classes", "  - classes", "operations[1]: op is missing", "learn or forget"),
        ("model: digits\n", "", "model: is missing", ""),
        ("version: 1", "version: 2", "version: input should be 1, not 2", ""),
        ("[two]", "[no]", "operations[1].classes[0]: input should be a valid string, not False", "quotes"),
        ("[two]", "[]", "operations[1].classes: holds 0, and must hold 1 at least", ""),
        ("[two]", "two", "operations[1].classes: ", 'write a list: ["two"]'),
        ("    seed: 3", "    method: gs-lorra", "operations[1]: no method 'gs-lorra'", "'gs-lora'"),
        ("set: {steps: 2}", "set: {steps: null}", "defaults.set.steps: a hyper-parameter is text, a number", ""),
        ("    seed: 3", "    preset: quick", "operations[1]: no preset 'quick'", ""),
        ("beta: 1.5", "betta: 1.5", "operations[1]: no hyper-parameter 'betta' in this method", "'beta'"),
        ("defaults:", "default:", "default: is no key here", "'defaults'"),
        ("  preset: few", "  presett: few", "defaults.presett: is no key here", "'preset'"),
        ("version: 1", "version: [", "line ", ""),
        ("    seed: 3", "    seed: 3\n    seed: 4", "the key seed stands there twice", ""),
        ("[two]", "[0b_]", "cannot be read", "quotes"),
        ("[two]", "[3]", "operations[1].classes[0]: input should be a valid string, not 3", 'quotes: "3"'),
    ],
)
def test_a_wrong_plan_names_the_key_the_value_and_the_nearest_valid_one(
    plan: Path, right: str, wrong: str, said: str, hint: str
) -> None:
    plan.write_text(plan.read_text().replace(right, wrong, 1))
    with pytest.raises(Exception, match=r"plan\.yaml") as raised:
        read_plan(plan)
    assert said in raised.value.message
    assert hint in raised.value.hint


def test_a_date_is_a_name_as_any_other(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("[two]", "[2024-01-01]"))
    assert read_plan(plan)[1][1].classes == ("2024-01-01",)


def test_one_mistake_is_told_as_one(plan: Path) -> None:
    plan.write_text(plan.read_text().partition("  - op: forget")[0].replace("[eight]", "[no]"))
    with pytest.raises(UsageError) as raised:
        read_plan(plan)
    assert "more" not in raised.value.message


@pytest.mark.parametrize(
    ("defaults", "step", "method"),
    [
        ("", "depth: deep", "erase"),
        ("depth: deep", "seed: 3", "erase"),
        ("depth: deep", "method: scrub", "scrub"),
        ("method: ewc", "depth: deep", "erase"),
        ("", "depth: shallow", "gs-lora"),
    ],
)
def test_a_depth_is_a_method_and_the_operation_goes_before_the_defaults(
    plan: Path, defaults: str, step: str, method: str
) -> None:
    text = plan.read_text().replace("  preset: few\n  set: {steps: 2}", f"  {defaults}").replace(", beta: 1.5", "")
    plan.write_text(text.replace("    set: {beta: 1.5}\n", "").replace("    seed: 3", f"    {step}"))
    _, (learn, forget) = read_plan(plan)
    assert (learn.method, forget.method) == ("ewc" if "ewc" in defaults else "gs-lora", method)


@pytest.mark.parametrize(
    ("where", "line", "said"),
    [
        (
            "    seed: 3",
            "    depth: deep\n    method: scrub",
            "operations[1]: depth deep is the method erase, not scrub",
        ),
        ("  - op: learn", "  - op: learn\n    depth: deep", "operations[0]: a learn operation has no depth"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused(plan: Path, where: str, line: str, said: str) -> None:
    plan.write_text(plan.read_text().replace(where, line))
    with pytest.raises(UsageError) as raised:
        read_plan(plan)
    assert said in raised.value.message


def test_an_empty_plan_is_told(plan: Path) -> None:
    plan.write_text("")
    with pytest.raises(UsageError, match=r"plan\.yaml holds no keys"):
        read_plan(plan)

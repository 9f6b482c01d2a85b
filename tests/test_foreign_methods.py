"""Methods that other packages declare by entry point: found, used, and told in one line where they are broken."""

import sys
import textwrap

import pytest

from kswapctl.errors import UsageError
from kswapctl.methods import METHODS, find_method, known_names

MODULE = """
    from dataclasses import dataclass
    from kswapctl.methods import Method

    @dataclass(frozen=True)
    class Forget(Method):
        \"\"\"Push, and nothing else.\"\"\"
        kind = "forget"
        source = "another package"
        strength: float = 0.1
        \"\"\"Weight of the push.\"\"\"

        def loss(self, context, seen):
            return {role: sign * context.task.losses(seen[role].outputs, seen[role].targets).mean()
                    for role, sign in (("retain", 1.0), ("forget", -self.strength))}

    nothing = 3

    class Same(Forget):
        \"\"\"The same under another name.\"\"\"

        def penalty(self, context):
            return {}

    @dataclass(frozen=True)
    class Odd(Forget):
        presets = {"default": {"strenght": 1.0}}
    """
POINTS = """
    [kswapctl.methods]
    pushed = strange_methods:Forget
    absent = no_such_module:Forget
    same = strange_methods:Same
    number = strange_methods:nothing
    odd = strange_methods:Odd
    gs-lora = strange_methods:Forget
    """


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A distribution as pip would install it."""
    (tmp_path / "strange_methods.py").write_text(textwrap.dedent(MODULE))
    info = tmp_path / "strange-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(POINTS))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("strange_methods", None)


def test_a_declared_method_is_listed_explained_and_used(package, run):
    assert "pushed" in known_names()
    assert "Weight of the push." in run("methods", "pushed").out
    assert "Weight of the push." in run("methods", "same").out
    ran = run(
        "forget", "digits", "--classes", "two", "--method", "pushed", "--set", "steps=3", "--set", "cycles=1", "-q"
    )
    assert ran.code == 0, ran.err


def test_a_broken_one_is_one_line_and_leaves_the_others(package, look):
    listed = look("methods", "--json").json
    assert {m["name"] for m in listed} >= {*METHODS, "pushed", "absent", "number", "odd"}
    told = next(m["summary"] for m in listed if m["name"] == "absent")
    assert told == (
        "method 'absent' of strange 1.2 cannot be loaded (ModuleNotFoundError: No module named 'no_such_module')"
    )
    ran = look("methods", "absent")
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_what_is_no_method_is_told(package):
    with pytest.raises(UsageError, match=r"'number' of strange 1\.2 is no method"):
        find_method("number", "forget")
    with pytest.raises(UsageError, match=r"'odd' of strange 1\.2 cannot be configured"):
        find_method("odd", "forget")


def test_ours_cannot_be_replaced_by_another_package(package):
    assert find_method("gs-lora", "forget").__module__ == "kswapctl.methods.gs_lora"

"""Options of a backend: names, kinds, defaults."""

import pytest

from burnish.compiler.errors import OptionError
from burnish.compiler.options import check_options

KNOWN = {"optimize": True, "threads": 0, "scale": 1.0, "providers": None}


def test_defaults_fill_in():
    assert check_options("b", {"threads": 2}, KNOWN) == {
        "optimize": True,
        "threads": 2,
        "scale": 1.0,
        "providers": None,
    }


def test_unknown_name_is_refused_with_the_nearest_and_the_list():
    with pytest.raises(OptionError, match=r"'b' has no option 'thread': did you mean 'threads'\?.*optimize, threads"):
        check_options("b", {"thread": 1}, KNOWN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("optimize", 1), ("threads", True), ("threads", "2"), ("scale", True), ("scale", "x"), ("optimize", None)],
)
def test_wrong_kind_is_refused(name, value):
    with pytest.raises(OptionError, match=f"option '{name}' of backend 'b' must be of type"):
        check_options("b", {name: value}, KNOWN)


@pytest.mark.parametrize(("name", "value"), [("scale", 2), ("providers", ["cpu"]), ("providers", 3)])
def test_an_int_is_a_float_and_none_takes_anything(name, value):
    assert check_options("b", {name: value}, KNOWN)[name] == value

"""Records of options check themselves, from Python as from a configuration, and tell all that is wrong at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from distconv.errors import InputError, shown
from distconv.fields import ByName, Group, Record, keys_of, option, options_of
from distconv.kinds import Bytes, Choice, Integer, Number, Switch, Text, Truth
from distconv.path_kinds import FilePath

FRUIT = {"apple": "", "pear": "in autumn"}


@dataclass(frozen=True, kw_only=True)
class Inner(Record):
    GROUP: ClassVar[str] = "inner"

    size: int = option(Integer(9), 1, "size")
    sizes: dict[str, int] = option(ByName(Integer(9), ("a", "b")), {}, "sizes by name")


@dataclass(frozen=True, kw_only=True)
class Outer(Record):
    place: Path = option(FilePath("DIR"), None, "place")
    exact: bool = option(Truth(), False, "exact")
    share: float | None = option(Number(), None, "share")
    name: str | None = option(Text("x"), None, "name")
    fruit: str = option(Choice(lambda: FRUIT), "apple", "fruit")
    inner: Inner = option(Group(Inner), Inner(), "inner")
    speed: int = option(Integer(9), 1, "speed", of_run=True)
    note: str = "no option"

    def contradictions(self, wrong: Collection[str]) -> Iterator[str]:
        if self.exact and self.share is not None:
            yield "exact: not of a share"
        if wrong:
            yield f"wrong: {', '.join(sorted(wrong))}"


def problems(**values: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        Outer(**values)
    return caught.value.problems


def test_a_record_holds_values_as_their_kinds_do():
    made = Outer(place="a/b", inner={"size": 2, "sizes": {"a": 3, "b": None}}, share=2)
    assert made == Outer(place=Path("a/b"), inner=Inner(size=2, sizes={"a": 3}), share=2.0)
    assert made == replace(made)
    assert made.note == "no option"
    with pytest.raises(FrozenInstanceError):
        made.exact = True  # type: ignore[misc]


def test_a_path_is_that_of_the_caller():
    assert Outer(place="~/$HOME/{x}").place == Path("~/$HOME/{x}")


def test_all_problems_are_told_with_their_keys():
    wrong = {"place": "", "exact": 1, "share": 0, "name": 3, "fruit": "plum", "inner": {"sise": 1, "sizes": {"a": 10}}}
    assert problems(**wrong) == [
        "place=: expected a path; is a variable not set?",
        "exact=1: expected true or false",
        "share=0: expected a positive number",
        "name=3: expected text; the empty text is written ''",
        "fruit=plum: expected one of apple, pear",
        "inner: unknown key 'sise'; did you mean 'size'?",
        "inner.sizes.a=10: expected an integer from 1 to 9",
        "wrong: exact, fruit, inner, name, place, share",
    ]


@pytest.mark.parametrize(
    ("value", "held"), [(True, "true"), (False, "false"), ("true", "true"), ("false", "false"), ("auto", "auto")]
)
def test_a_switch_is_true_or_false_as_yaml_says_them_or_a_name(value, held):
    kind = Switch({"auto": "as it is best", "true": "", "false": ""})
    assert kind.read("key", value) == kind.read("key", kind.read("key", value)) == held


@pytest.mark.parametrize("value", [1, 0, None, "yes", "True", "", ["auto"]])
def test_a_switch_is_nothing_else(value):
    with pytest.raises(InputError, match=r"^key=.*: expected one of auto, true, false"):
        Switch({"auto": "", "true": "", "false": ""}).read("key", value)


def test_a_group_tells_its_keys_by_itself():
    with pytest.raises(InputError, match=r"^inner\.size=0: expected an integer from 1 to 9"):
        Inner(size=0)


@pytest.mark.parametrize("value", [3, None, ["size"], Outer()])
def test_what_is_no_group_is_refused(value):
    assert (
        problems(inner=value)[0] == f"inner={shown(value)}: expected a group of options: size, sizes; give inner.size=…"
    )
    with pytest.raises(InputError, match=r"expected a group of options: a, b; give inner\.sizes\.a=…"):
        Inner(sizes=value)


def test_nothing_is_a_value_where_it_is_the_default():
    assert Outer(share=None, place=None) == Outer()
    assert problems(exact=None)[0] == "exact=null: expected true or false"


def test_what_is_right_alone_may_be_wrong_together():
    assert problems(exact=True, share=1) == ["exact: not of a share"]


def test_the_content_of_a_configuration_becomes_a_record():
    assert Outer.from_content({"place": "x", "inner": {"sizes": {"b": 2}}}) == Outer(
        place="x", inner=Inner(sizes={"b": 2})
    )
    with pytest.raises(InputError) as caught:
        Outer.from_content({"plase": "x", "inner": {"sizes": {"c": 2}}})
    assert caught.value.problems == [
        "unknown key 'plase'; did you mean 'place'?",
        "inner.sizes: unknown key 'c'; known: a, b",
        "wrong: inner",
    ]


def test_choices_are_those_of_the_moment(monkeypatch):
    assert problems(fruit="plum")[0] == "fruit=plum: expected one of apple, pear"
    monkeypatch.setitem(FRUIT, "plum", "")
    assert Outer(fruit="plum").fruit == "plum"


def test_what_is_given_is_what_differs_from_the_defaults():
    assert Outer().given() == []
    assert Outer(place="x", exact=False, inner=Inner(size=1), fruit="pear").given() == ["place", "fruit"]


def test_every_key_that_can_be_given_is_listed_in_order():
    assert [key for key, _ in keys_of(Outer)] == [
        "place", "exact", "share", "name", "fruit", "inner.size", "inner.sizes.a", "inner.sizes.b", "speed",
    ]  # fmt: skip
    assert list(options_of(Inner)) == ["size", "sizes"]


@pytest.mark.parametrize(
    ("value", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("2GiB", 2**31), ("1.5 kib", 1536), ("12", 12), ("7B", 7), (3, 3)],
)
def test_a_size_in_bytes_has_a_decimal_or_a_binary_unit(value, size):
    assert Bytes().read("size", value) == size


@pytest.mark.parametrize(
    "value", ["", "GB", "5 G B", "-5GB", "0", "0.1B", "5PB", "1e9", 0, -1, 1.5, True, None, "5GB\n"]
)
def test_anything_else_is_no_size(value):
    with pytest.raises(InputError, match="expected a positive size in bytes, such as 5GB, 500MB or 2GiB"):
        Bytes().read("size", value)


def test_what_shapes_a_result_is_plain_data():
    made = Outer(place="a", exact=True, fruit="pear", inner={"sizes": {"a": 3}}, speed=2)
    assert made.shaping() == {"exact": True, "fruit": "pear", "inner": {"sizes": {"a": 3}}}
    assert Outer(place="b", speed=3).shaping() == {}

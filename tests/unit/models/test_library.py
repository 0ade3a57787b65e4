"""A definition is what Hydra would compose of it and what it inherits, or is refused; a head is a part of that."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.errors import ConfigCompositionException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distconv.errors import InputError
from distconv.models import definition_file
from distconv.models.library import Library, head_of

PACKAGED = files("distconv.conf")
NAMES = sorted(path.name[:-5] for path in (PACKAGED / "model").iterdir() if path.name.endswith(".yaml"))


def written(root: Path, **contents: str) -> Path:
    """A root with these definitions."""
    (root / "model").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (root / "model" / f"{name}.yaml").write_text(content)
    return root


def library(root: Path, **contents: str) -> Library:
    return Library([written(root, **contents)])


def by_hydra(name: str, config: str | None = None) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(compose(config, [f"+model={name}"]).model, resolve=True)
    return content


def in_order(content: Mapping[str, Any]) -> str:
    """To be compared: rules are applied in the order of their sections."""
    return json.dumps(content)


def refused(root: Path, name: str, **contents: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        library(root, **contents).content(name)
    return [problem.replace(f"{root}/model/", "") for problem in caught.value.problems]


def test_the_definitions_of_the_package_are_what_hydra_composes():
    packaged = Library.of_package()
    assert packaged.names() == NAMES
    with initialize_config_module("distconv.conf", version_base="1.3"):
        for name in NAMES:
            composed = by_hydra(name, "config")
            assert in_order(packaged.content(name)) == in_order(composed)
            assert packaged.heads()[name] == head_of(composed)


SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text("ab{}1e.-: ", max_size=4)
)
VALUES = st.recursive(
    SCALARS | st.lists(SCALARS, max_size=2),
    lambda values: st.dictionaries(st.sampled_from("xyz"), values, max_size=3) | st.lists(values, max_size=2),
    max_leaves=6,
)


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, str]:
    """Files by name; each inherits from earlier ones, in any order, also twice, with its own content at any place."""
    found: dict[str, str] = {}
    for name in "abcd":
        content = draw(st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3))
        parents = draw(st.lists(st.sampled_from(sorted(found)), min_size=1, max_size=3)) if found else []
        place = draw(st.none() | st.integers(0, len(parents)))
        if place is not None:
            parents.insert(place, "_self_")
        if parents:
            content["defaults"] = parents
        found[name] = yaml.safe_dump(content, sort_keys=False)
    return found


@given(contents=definitions())
@settings(max_examples=50, deadline=None)
def test_whatever_is_inherited_is_merged_as_by_hydra(contents):
    with tempfile.TemporaryDirectory() as root, initialize_config_dir(root, version_base="1.3"):
        found = library(Path(root), **contents)
        try:
            expected = in_order(by_hydra("d"))
        except ConfigCompositionException as error:
            assert "Cannot merge DictConfig with ListConfig" in str(error)  # noqa: PT017 - most can be merged
            with pytest.raises(InputError, match=r"expected a (mapping|list), as in what it inherits"):
                found.content("d")
        else:
            assert in_order(found.content("d")) == expected


def test_mappings_are_merged_and_all_else_is_replaced(tmp_path):
    found = library(
        tmp_path,
        base="model_types: [a]\nsizes: {one: [x], two: [y]}\ntied: {flag: z}\n",
        child="defaults: [base.yaml]\nmodel_types: [b]\nsizes: {two: [v, w]}\ntied: null\n",
        first="defaults: [_self_, base]\nmodel_types: [lost]\nadapters: only\n",
    )
    expected = {"model_types": ["b"], "sizes": {"one": ["x"], "two": ["v", "w"]}, "tied": None}
    assert found.content("child") == expected
    assert found.heads() == {
        "base": {"model_types": ["a"]},
        "child": {"model_types": ["b"]},
        "first": {"model_types": ["a"], "adapters": "only"},
    }
    # What is inherited stays as it is.
    assert found.content("base")["sizes"] == {"one": ["x"], "two": ["y"]}


def test_a_list_for_a_mapping_is_refused_and_so_is_the_reverse(tmp_path):
    base = "rules: {text: {head: [a]}}\nignore: [b]\n"
    assert refused(tmp_path, "c", base=base, c="defaults: [base]\nrules: {text: [1]}\nignore: {names: b}\n") == [
        "c.yaml: rules.text: expected a mapping, as in what it inherits, found a list",
        "c.yaml: ignore: expected a list, as in what it inherits, found a mapping",
    ]


ONLY_HYDRA = {
    "absolute": ("defaults: [/model/own, _self_]\n", "defaults: '/model/own'"),
    "nested": ("defaults: [base/below, _self_]\n", "defaults: 'base/below'"),
    "placed": ("defaults: [own@_here_, _self_]\n", "defaults: 'own@_here_'"),
    "in_a_mapping": ("defaults: [{base@_here_: below}, _self_]\n", "defaults: {'base@_here_': 'below'}"),
    "lifted": ("\n# @package model\ndefaults: [own]\n", "its header '# @package'"),
}


@pytest.mark.parametrize("name", ONLY_HYDRA)
def test_what_only_hydra_can_place_is_known_by_name_and_has_no_head(name, tmp_path):
    content, reason = ONLY_HYDRA[name]
    heir = f"defaults: [{name}, _self_]\nmodel_types: [b]\n"
    found = library(tmp_path, own="model_types: [own]\n", heir=heir, **{name: f"{content}model_types: [a]\n"})
    assert found.names() == sorted(["own", "heir", name])
    assert found.heads() == {"own": {"model_types": ["own"]}, "heir": {}, name: {}}
    for each in (name, "heir"):
        found.check(each)
        with pytest.raises(InputError) as caught:
            found.content(each)
        (problem,) = caught.value.problems
        assert problem == (
            f"{tmp_path}/model/{name}.yaml: {reason}: only Hydra composes this; name the definition on the command "
            f"line, +model={each}"
        )


@pytest.mark.parametrize("value", ["a ${layer} b", "${a.b}", "\\${a}", "???"])
def test_an_interpolation_is_refused_where_hydra_does_not_compose(value, tmp_path):
    own = f"model_types: [a]\nignore:\n- '{value}'\n"
    found = library(tmp_path, own=own, heir="defaults: [own]\nignore: [b]\n")
    assert found.heads() == {"own": {"model_types": ["a"]}, "heir": {"model_types": ["a"]}}
    for name in ("own", "heir"):
        found.check(name)
        with pytest.raises(InputError) as caught:
            found.content(name)
        assert str(caught.value).startswith(f"{tmp_path}/model/own.yaml: line 3: {value!r}: only Hydra composes this; ")
        assert str(caught.value).endswith(f"+model={name}")


@pytest.mark.parametrize("value", [2, [["own"]], {"own": 1}])
def test_what_is_no_head_is_left_to_the_parser_of_the_definition(value):
    assert head_of({"model_types": value, "variant_of": value, "adapters": "only"}) == {"adapters": "only"}


def test_a_parent_that_does_not_exist_is_named_with_the_nearest(tmp_path):
    assert refused(tmp_path, "heir", a="defaults: [bcd, xyz, _self_]\n", abc="", heir="defaults: [a]\n") == [
        "a.yaml: defaults: no model definition bcd; the nearest is abc",
        "a.yaml: defaults: no model definition xyz",
    ]


def test_a_name_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"\+model=qwen2v1: no such model definition; the nearest is qwen2vl"):
        Library.of_package().content("qwen2v1")


def test_an_inheritance_from_itself_is_refused(tmp_path):
    assert refused(tmp_path, "a", a="defaults: [b]\n", b="defaults: [_self_, c]\n", c="defaults: [b]\n") == [
        "c.yaml: defaults: a model definition inherits from itself: b from c from b"
    ]


def test_how_much_is_inherited_is_bounded(tmp_path):
    chain = {f"c{depth}": f"defaults: [c{depth - 1}]\n" for depth in range(1, 50)}
    found = library(tmp_path, c0="a: 1\n", c50="defaults: [c49]\n", **chain)
    assert found.content("c49") == {"a": 1}
    with pytest.raises(InputError, match=r"c1\.yaml: defaults: more than 50 definitions inherit from each other"):
        found.content("c50")
    # 2 ** 40 files.
    doubled = {f"d{depth}": f"defaults: [d{depth - 1}, d{depth - 1}]\n" for depth in range(1, 41)}
    assert refused(tmp_path, "d40", d0="a: 1\n", **doubled) == [
        "d40.yaml: more than 50,000 keys and values with what it inherits"
    ]


def test_a_name_in_two_roots_is_the_first_and_cannot_be_chosen(tmp_path):
    own, other = written(tmp_path / "own", a="x: 1\n", b="defaults: [a]\n"), written(tmp_path / "other", a="y: 2\n")
    found = Library([own, other])
    assert found.names() == ["a", "b"]
    assert found.content("b") == {"x": 1}
    for ask in (found.content, found.check):
        with pytest.raises(InputError) as caught:
            ask("a")
        both = f"{other}/model/a.yaml has the name of {own}/model/a.yaml"
        assert str(caught.value) == f"+model=a: {both}; give it another one"


def test_what_is_no_definition_is_passed_over(tmp_path):
    root = written(tmp_path, a="x: 1\n")
    (root / "model" / "README.md").write_text("x: [")
    (root / "model" / "b.yaml").mkdir()
    assert Library([tmp_path / "none", tmp_path / "model", root]).heads() == {"a": {}}


def test_a_directory_of_the_user_comes_after_the_package(tmp_path, monkeypatch):
    written(tmp_path / "own", mine="defaults: [qwen2vl, _self_]\nmodel_types: [mine]\n", qwen2_5vl="x: 1\n")
    monkeypatch.chdir(tmp_path)
    found = Library.of_package(Path("own"))
    assert found.heads()["qwen2_5vl"] == {"model_types": ["qwen2_5_vl"]}
    assert found.content("mine") == {**found.content("qwen2vl"), "model_types": ["mine"]}
    with pytest.raises(InputError, match="nowhere: no such directory"):
        Library.of_package(Path("nowhere"))


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path):
    found = library(tmp_path, a="- 1\n", b="x: [\n", c="defaults: [a]\n", d="x: 1\n")
    assert found.content("d") == {"x": 1}
    with pytest.raises(InputError) as caught:
        found.heads()
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        f"{tmp_path}/model/{name}.yaml" for name in "ab"
    ]


def test_a_file_is_read_once_and_only_if_it_is_needed(tmp_path, monkeypatch):
    read: list[str] = []

    def reading(file: Any) -> Any:
        read.append(file.name)
        return definition_file.read_definition(file)

    monkeypatch.setattr("distconv.models.library.read_definition", reading)
    found = library(tmp_path, a="x: 1\n", b="defaults: [a]\n", c="defaults: [a]\n", d="x: [\n")
    found.content("b")
    found.content("c")
    assert read == ["b.yaml", "a.yaml", "c.yaml"]


def dialects(root: Path, **contents: str) -> Path:
    (root / "dialect").mkdir(parents=True)
    for name, content in contents.items():
        (root / "dialect" / f"{name}.yaml").write_text(content)
    return root


def test_dialects_lie_beside_the_definitions(tmp_path):
    own = dialects(tmp_path / "own", mine="prefix: a.\n")
    found = Library([own, dialects(tmp_path / "other", yours="prefix: b.\n")]).dialects()
    assert {name: each["content"] for name, each in found.items()} == {
        "mine": {"prefix": "a."},
        "yours": {"prefix": "b."},
    }
    assert found["mine"]["path"] == str(own / "dialect" / "mine.yaml")
    assert Library.of_package(own).dialects().keys() > Library.of_package().dialects().keys()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("defaults: [mm_fsdp2]\n", "defaults: a dialect is a file by itself"),
        ("# @package _global_\nprefix: a.\n", "'# @package': a dialect is a file by itself"),
        ("prefix: ${source}\n", "line 1: '${source}': a dialect is a file by itself"),
        ("prefix: [\n", "not valid YAML"),
    ],
)
def test_a_dialect_that_cannot_be_read_alone_is_refused(content, says, tmp_path):
    with pytest.raises(InputError) as caught:
        Library([dialects(tmp_path, mine=content)]).dialects()
    assert "mine.yaml: " in str(caught.value)
    assert says in str(caught.value)


def test_two_dialects_of_one_name_are_refused(tmp_path):
    own = dialects(tmp_path / "own", mm_fsdp2="prefix: a.\n")
    with pytest.raises(InputError, match=r"has the name of the dialect .*mm_fsdp2\.yaml; give it another one"):
        Library.of_package(own).dialects()


@pytest.mark.parametrize("is_first", [False, True])
def test_a_definition_is_ones_own_if_none_of_its_name_came_with_distconv(is_first, tmp_path):
    """Wherever Hydra, whose own configuration is a root, too, has put that in the order of the roots."""
    package, own = files("distconv.conf"), written(tmp_path, mine="model_types: [mine]")
    roots = [files("hydra.conf"), package, own]
    known = Library(roots[::-1] if is_first else roots)
    assert known.own_file("mine") == str(own / "model" / "mine.yaml")
    assert known.own_file("llama") is None
    assert known.own_file("nothing") is None
    assert Library([files("hydra.conf"), package]).own_file("llama") is None

"""Every option is checked, in a configuration and in Python: what is wrong is said with the key and what is allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distconv.errors import InputError, shown
from distconv.fields import options_of
from distconv.formats.registry import Options
from distconv.input_output import InputOutput
from distconv.layout.request import Layout, SourceLayout
from tests import configuration


def content(**changes: Any) -> dict[str, Any]:
    """A valid configuration with some values changed."""
    valid = {
        "source": "/hf",
        "target": "/mm",
        "layout__tp": 2,
        "layout__stages": {"text": [[1, 2]], "vision": [2, 0], "audio": None},
        "layout__modality_tp__vision": 4,
        "iteration": "release",
        "io__buffer_mib": 4,
    }
    return configuration.content(**{**valid, **changes})


# What a value may have been meant for.
_HINT = re.compile(r"; (did you mean .*\?|is a variable not set\?)$")


def problems(**changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        Options.from_content(content(**changes))
    return caught.value.problems


def test_a_configuration_is_read_as_it_is_written():
    assert Options.from_content(content()) == Options(
        action="convert",
        source=Path("/hf"),
        target=Path("/mm"),
        target_format="megatron",
        naming="megatron",
        name_prefix=None,
        packed_experts="auto",
        reference=None,
        fill_from_reference=False,
        source_layout=SourceLayout(),
        layout=Layout(
            tp=2,
            ep=None,
            pp=None,
            vpp=None,
            stages={"text": ((1, 2),), "vision": ((2, 0),)},
            modality_tp={"vision": 4},
            placement="sequential",
        ),
        select=None,
        text_source=None,
        projector="auto",
        tied_head="auto",
        vocab_size=None,
        lora_only=False,
        merge_lora=False,
        lora_alpha=None,
        iteration="release",
        overwrite=False,
        io=InputOutput(fsync=True, buffer_mib=4),
        report=None,
        processes=None,
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layout__pp", 4, {"layout.pp": 4}),
        ("layout__stages__text", [[0, 0, 1], [4, 4, 2]], {"layout.stages": {"text": ((0, 0, 1), (4, 4, 2))}}),
        ("layout__stages__text", [0, 3], {"layout.stages": {"text": ((0, 3),)}}),
        ("layout__placement", "u_shape", {"layout.placement": "u_shape"}),
        ("select", ["vision"], {"select": ("vision",)}),
        ("select", ["vision", "text"], {"select": ("vision", "text")}),
        ("text_source", "/llm", {"text_source": Path("/llm")}),
        ("projector", "keep", {"projector": "keep"}),
        ("tied_head", "omit", {"tied_head": "omit"}),
        ("vocab_size", 151936, {"vocab_size": 151936}),
        ("lora_only", True, {"lora_only": True}),
        ("iteration", 1000, {"iteration": "1000"}),
        ("iteration", None, {"iteration": None}),
        ("name_prefix", "", {"name_prefix": ""}),
        ("reference", "~/hf", {"reference": Path("~/hf")}),
        ("overwrite", True, {"overwrite": True}),
        ("report", "plan.json", {"report": Path("plan.json")}),
        ("source", "$HOME/hf", {"source": Path("$HOME/hf")}),
        ("io__buffer_mib", 16, {"io.buffer_mib": 16}),
        ("io__threads", None, {"io.threads": None}),
    ],
)
def test_a_value_is_taken_over(key, value, expected):
    config = Options.from_content(content(**{key: value}))
    for name, wanted in expected.items():
        found: Any = config
        for part in name.split("."):
            found = getattr(found, part)
        if isinstance(wanted, dict):
            found = {part: found[part] for part in wanted}
        assert found == wanted


def test_every_choice_is_allowed():
    for key, each in options_of(Options).items():
        for choice in getattr(each.kind, "choices", ()):
            # What says how to cast goes with a cast, and a cast not with every action.
            given = {} if key == "action" else {"dtype": "float16"}
            if choice == "skeleton":
                given = {"layout": {}, "iteration": None}
            assert getattr(Options.from_content({**content(**given), key: choice}), key) == choice


@pytest.mark.parametrize(("given", "digits"), [(640, "0640"), ("0640", "0640"), ("777", "0777")])
def test_permissions_are_octal_digits(given, digits):
    made = Options.from_content(content(file_mode=given, dir_mode=2750))
    assert (made.file_mode, made.dir_mode) == (digits, "2750")


def test_another_number_of_processes_goes_with_planning():
    assert Options.from_content(content(action="plan", processes=64)).processes == 64
    assert problems(processes=64) == [
        "processes: goes with action=plan; otherwise the launcher says how many processes run"
    ]


ACTIONS = ("convert", "plan", "verify", "inspect", "diff", "clean", "models", "skeleton")
SIZE = f"an integer from 1 to {2**24}"
AXIS = f"an integer from 1 to {2**16}"
STAGES = "layers per stage, such as [1,10,10,7], or one such list per virtual stage"
NO_SIZES = [0, -1, 1.5, 2.0, "2", True, [2], {}]


@pytest.mark.parametrize(
    ("key", "values", "allowed"),
    [
        ("action", ["plann", "", 3, ["plan"], None], f"one of {', '.join(ACTIONS)}"),
        ("source", [3, True, ["/hf"], {}, ""], "a path"),
        ("target", [3, True, ["/mm"], {}, ""], "a path"),
        ("text_source", [3, True, ["/llm"], {}, ""], "a path"),
        ("report", [3, True, ["x"], {}, ""], "a path"),
        ("plan_html", [3, True, ["x"], {}, ""], "a path"),
        ("layout__tp", [*NO_SIZES, 2**16 + 1], AXIS),
        ("layout__ep", [*NO_SIZES, 2**16 + 1], AXIS),
        ("layout__pp", NO_SIZES, AXIS),
        ("layout__vpp", NO_SIZES, AXIS),
        ("layout__modality_tp__vision", NO_SIZES, AXIS),
        ("layout__modality_tp__audio", NO_SIZES, AXIS),
        ("io__threads", NO_SIZES, SIZE),
        ("io__buffer_mib", NO_SIZES, SIZE),
        ("processes", NO_SIZES, SIZE),
        ("processes_per_node", NO_SIZES, SIZE),
        ("layout__stages__text", [4, "4", [], [[]], [-1], [1.0], [True], ["1"], [[1], 2], [1, [2]], {}], STAGES),
        ("layout__stages__vision", [[None], [[1], []], [[1, -1]], [[[1]]]], STAGES),
        ("layout__placement", ["u-shape", 1, None], "one of sequential, u_shape"),
        ("select", ["vision", [], ["video"], ["vision", 3], {}, [["vision"]]],
         "a list of modalities out of text, vision, audio, such as [vision]"),
        ("target_format", ["safetensors", None], "one of hf, megatron, torch_dist, dcp"),
        ("naming", ["mm", None], "one of megatron, hf"),
        ("name_prefix", [1, True, ["model."], {}], "text; the empty text is written ''"),
        ("reference", [3, True, ["/hf"], {}, ""], "a path"),
        ("fill_from_reference", ["yes", 1, None], "true or false"),
        ("source_layout__tp", NO_SIZES, AXIS),
        ("source_layout__stages__vision", [4, [[1], []]], STAGES),
        ("source_layout__modality_tp__vision", NO_SIZES, AXIS),
        ("source_layout__placement", ["u-shape", 1], "one of sequential, u_shape"),
        ("source_layout__vision_qkv", ["canonical", None], "one of heads, fused"),
        ("packed_experts", ["drop", None], "one of auto, flatten, keep"),
        ("projector", ["drop", True, None], "one of auto, keep, omit"),
        ("tied_head", ["copy", False, None], "one of auto, write, keep, omit"),
        ("dtype", ["fp16", "bf16", 16, None], "one of keep, reference, bfloat16, float16, float32"),
        ("keep_dtype", ["*.A_log", [3], [""], {}, True], "a list of patterns of tensor names, such as ['*.A_log']"),
        ("dtype_overflow", ["ignore", None], "one of error, allow"),
        ("vocab_size", NO_SIZES, SIZE),
        ("lora_only", ["yes", 1, None], "true or false"),
        (
            "iteration",
            ["latest", "0", "01", "1.0", "", "٣", 0, -1, 1.0, True, [1]],
            "release, or an integer from 1 to 999999999999",
        ),
        ("overwrite", ["yes", "true", 1, 0, None], "true or false"),
        # What YAML makes of 0640, and Python of 0o640, are other digits, with which the owner could not write.
        (
            "file_mode",
            ["rw-r-----", "8", "689", "40", 416, 0o640, 440, 2640, True, [640], ""],
            "octal permissions up to 777, with 600 for the owner",
        ),
        (
            "dir_mode",
            ["u+x", 0o750, 640, 600, 77777, -750, 7.5],
            "octal permissions up to 7777, with 700 for the owner",
        ),
        ("io__fsync", ["yes", 1, None], "true or false"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_reported_with_its_key_and_what_is_allowed(key, values, allowed):
    # Planning is the action in which every key may be given.
    given = {} if key == "action" else {"action": "plan"}
    for value in values:
        found = [_HINT.sub("", each) for each in problems(**given, **{key: value})]
        assert found == [f"{key.replace('__', '.')}={shown(value)}: expected {allowed}"]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        *(("target_format", each, "hf") for each in ("huggingface", "Hugging-Face", "safetensors", "transformers")),
        *(("target_format", each, "megatron") for each in ("megatron-lm", "Megatron", "mcore", "mm", "megatorn")),
        *(("target_format", each, "dcp") for each in ("fsdp2", "FSDP", "DCP")),
        *(("target_format", each, "torch_dist") for each in ("torch-dist", "megatron_core", "nemo")),
        ("dtype", "bf16", "bfloat16"),
        ("dtype", "fp16", "float16"),
        ("action", "convrt", "convert"),
        ("action", "dry-run", "plan"),
        ("naming", "huggingface", "hf"),
        ("layout__placement", "ushape", "u_shape"),
    ],
)
def test_a_choice_in_the_words_of_others_or_misspelt_is_told_the_right_one(key, value, hint):
    (problem,) = problems(**{key: value})
    assert problem.endswith(f"; did you mean {hint}?")


def test_no_hint_is_given_where_nothing_is_near():
    assert problems(target_format="xyz")[0].endswith("torch_dist, dcp")
    assert problems(dtype=["bf16"])[0].endswith("float32")


@pytest.mark.parametrize("key", ["source", "target", "reference", "report", "plan_html", "sources"])
def test_an_empty_path_is_asked_whether_a_variable_is_not_set(key):
    assert problems(**{key: ""})[0].endswith("; is a variable not set?")


def test_the_page_of_a_plan_goes_with_what_is_planned():
    assert problems(action="verify", plan_html="p") == ["plan_html: goes with action=plan and action=convert"]
    for action in ("plan", "convert"):
        assert Options.from_content(content(action=action, plan_html="p")).plan_html == Path("p")


def test_what_says_how_to_cast_goes_with_a_cast():
    assert problems(keep_dtype=["*.A_log"], dtype_overflow="allow") == [
        "keep_dtype: goes with dtype, which says what is cast",
        "dtype_overflow: goes with dtype, which says what is cast",
    ]
    given = Options.from_content(content(keep_dtype=["*.A_log"], dtype_overflow="allow", dtype="float16"))
    assert (given.dtype, given.keep_dtype, given.dtype_overflow) == ("float16", ("*.A_log",), "allow")


@pytest.mark.parametrize("key", ["source", "target"])
def test_a_wrong_path_is_not_reported_as_missing(key):
    assert problems(**{key: 3}) == [f"{key}=3: expected a path"]


@pytest.mark.parametrize("key", ["source", "target"])
def test_a_missing_directory_is_asked_for(key):
    (problem,) = problems(**{key: None})
    assert problem.startswith(f"{key} is missing: give {key}=DIR, the ")


def test_a_result_is_verified_without_a_source_if_nothing_else_needs_one():
    alone = {"action": "verify", "source": None}
    assert problems(**alone, target=None)[0].startswith("target is missing: give target=DIR")
    free = {"layout": {}, "iteration": 7, "report": "x.json", "io__threads": 4, "overwrite": True, "patience": 0}
    content_of = {key: each for key, each in content(**alone, **free).items() if key != "target_format"}
    assert Options.from_content({**content_of, "layout": {}}).source is None
    wrong = {"layout": {"tp": 2}, "dtype": "float16", "provenance": False, "reference": "/hf", "target_format": "hf"}
    with pytest.raises(InputError) as caught:
        Options.from_content({**content_of, **wrong})
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == sorted(
        wrong, key=list(options_of(Options)).index
    )


def test_listing_the_models_needs_no_directories():
    assert Options.from_content(content(action="models", source=None, target=None)).action == "models"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sorce", "unknown key 'sorce'; did you mean 'source'?"),
        ("xyz", "unknown key 'xyz'; known: action, source, "),
        ("layout__tpp", "layout: unknown key 'tpp'; did you mean 'tp'?"),
        ("layout__stages__txt", "layout.stages: unknown key 'txt'; did you mean 'text'?"),
        ("layout__modality_tp__text", "layout.modality_tp: unknown key 'text'; known: vision, audio"),
        ("io__buffer", "io: unknown key 'buffer'; did you mean 'buffer_mib'?"),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_one(key, message):
    assert any(problem.startswith(message) for problem in problems(**{key: 1}))


@pytest.mark.parametrize(
    "key", ["layout", "layout__stages", "layout__modality_tp", "source_layout", "source_layout__stages", "io"]
)
def test_a_group_that_is_none_is_reported(key):
    name = key.replace("__", ".")
    (problem,) = problems(**{key: 3})
    assert problem.startswith(f"{name}=3: expected a group of options: ")


def test_a_separate_language_model_that_is_not_selected_is_a_contradiction():
    assert problems(text_source="/llm", select=["vision"]) == [
        "text_source=/llm: select=['vision'] leaves out the text; give one of them"
    ]
    assert Options.from_content(content(text_source="/llm", select=["vision", "text"])).text_source == Path("/llm")


def test_all_problems_are_reported_together():
    wrong = {
        "action": "plann",
        "source": None,
        "target": "",
        "layout__tp": 0,
        "layout__stages__text": 28,
        "layout__modality_tp__vision": "2",
        "layout__placement": "v_shape",
        "select": ["video"],
        "projector": "drop",
        "tied_head": "copy",
        "iteration": 0,
        "overwrite": "yes",
        "io__fsync": 1,
        "io__threads": 0,
        "report": 3,
        "xyz": 1,
    }
    found = problems(**wrong)
    for key in wrong:
        name = key.replace("__", ".")
        starts = (f"{name}=", f"{name} is missing", f"unknown key '{name}'")
        assert any(problem.startswith(starts) for problem in found), name


def test_the_layout_of_a_source_is_read_like_that_of_a_target():
    given = {
        "tp": 2, "ep": 4, "pp": 3, "vpp": 2, "stages": {"text": [0, 3], "vision": None, "audio": None},
        "modality_tp": {"vision": 1, "audio": None}, "placement": "u_shape", "vision_qkv": "fused",
    }  # fmt: skip
    assert Options.from_content(content(source_layout=given)).source_layout == SourceLayout(
        tp=2, ep=4, pp=3, vpp=2, stages={"text": ((0, 3),)}, modality_tp={"vision": 1}, placement="u_shape",
        vision_qkv="fused",
    )  # fmt: skip


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1, True, "16"])
def test_an_alpha_that_is_no_positive_number_is_refused(value):
    (problem,) = problems(target_format="hf", lora_alpha=value)
    assert problem.endswith(": expected a positive number")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout__tp": "2"}, "layout.tp='2': expected an integer from 1 to 65536"),
        (
            {"layout__stages": {"text": "[3,3]"}},
            "layout.stages.text='[3,3]': expected layers per stage",
        ),
        ({"overwrite": "true"}, "overwrite='true': expected true or false"),
        ({"layout__tp": "two"}, "layout.tp=two: expected an integer from 1 to 65536"),
    ],
)
def test_a_value_that_quotes_have_made_text_is_shown_with_them(changes, message):
    """A launcher's script may pass on the quotes that were meant for the shell."""
    (problem,) = problems(**changes)
    assert problem.startswith(message)


def test_a_record_is_made_in_python_as_by_a_configuration():
    made = Options(source="/hf", target="/mm", layout=Layout(tp=2, stages={"text": [1, 10, 10, 7]}), iteration=1000)
    assert made == Options.from_content(
        configuration.content(
            source="/hf", target="/mm", layout__tp=2, layout__stages__text=[1, 10, 10, 7], iteration=1000
        )
    )
    assert made.layout.stages == {"text": ((1, 10, 10, 7),)}
    assert made == replace(made)


def test_the_options_need_neither_hydra_nor_torch():
    code = "import sys, distconv.formats.registry; print(*{'hydra', 'omegaconf', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == []


def test_options_of_a_run_do_not_shape_its_result():
    run = {"io": {"threads": 3}, "patience": 5, "overwrite": True, "file_mode": "0640", "dir_mode": "0750"}
    given = {**run, "action": "verify", "report": "r.json", "reference": "c", "layout": {"tp": 2}, "select": ["text"]}
    assert Options(source="a", target="b", **given).shaping() == {"layout": {"tp": 2}, "select": ["text"]}


def test_a_record_made_of_another_holds_the_same():
    """Whatever the kinds of its options convert their values to."""
    given = {
        "file_mode": 640,
        "dir_mode": "2750",
        "shard_size": "5GB",
        "iteration": 7,
        "layout": {"stages": {"text": [1, 2]}},
    }
    made = Options(source="a", target="b", **given)
    assert replace(made, patience=3) == replace(Options(source="a", target="b", patience=3, **given))

"""A result remembers what it was made from; what it remembers wrongly is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distconv.errors import InputError
from distconv.formats.provenance import Provenance, newer_note, provenance_bytes, read_provenance
from distconv.formats.recorded_files import check_inside, wrong_sizes
from distconv.formats.records import Written
from distconv.models.scaling import Scaling
from distconv.version import VERSION

FULL = Provenance(
    model="toy",
    reference='/hf/ü "x"',
    version=VERSION,
    source={"path": "/mm", "format": "megatron", "iteration": "release"},
    format="megatron",
    dialect="mcore_te",
    layout={"tp": 2, "pp": 1, "vpp": 2, "ep": 1, "stages": {"text": [[1], [2]]}, "modality_tp": {"vision": 4}},
    options={"layout": {"tp": 2}},
    files={"mp_rank_00/model_optim_rng.pt": Written(12, 0xFF), "empty": Written(0, None)},
)
# Byte for byte as the first version wrote records, without adapters and with them.
FIRST = """{
  "model": "qwen2vl",
  "reference": "/ckpt/Qwen2-VL-7B"
}
"""
FIRST_OF_ADAPTERS = """{
  "model": "qwen2_5vl_lora",
  "reference": null,
  "adapters": {
    "alpha": 16,
    "rslora": false,
    "alphas": {
      "decoder.layers.mlp.linear_fc1": 8.0
    },
    "initialisation": null,
    "where": "/ckpt/peft/adapter_config.json"
  }
}
"""


@pytest.mark.parametrize("record", [Provenance(), Provenance(model="toy", definition="/my/model/toy.yaml"), FULL])
def test_what_is_written_is_read(tmp_path, record):
    (tmp_path / "distconv.json").write_bytes(provenance_bytes(record))
    assert read_provenance(tmp_path) == record


def test_the_form_of_a_record():
    """Keys in their order, files by path: later versions read it, too."""
    said = json.loads(provenance_bytes(FULL))
    assert said["record"] == 2
    assert list(said) == [
        *("record", "distconv", "source", "model", "reference", "format", "dialect", "layout", "options", "files")
    ]
    assert list(said["files"].items()) == [
        ("empty", {"bytes": 0}),
        ("mp_rank_00/model_optim_rng.pt", {"bytes": 12, "crc32": "000000ff"}),
    ]


def test_the_scaling_of_adapters_is_remembered(tmp_path):
    scaling = Scaling(alpha=16, rslora=True, alphas={"fc": 4}, where="/hf/adapter_config.json")
    (tmp_path / "distconv.json").write_bytes(provenance_bytes(Provenance(model="toy", scaling=scaling)))
    assert read_provenance(tmp_path) == Provenance(
        model="toy", scaling=replace(scaling, where=f"{tmp_path}/distconv.json")
    )


def test_records_of_the_first_version_are_read(tmp_path):
    (tmp_path / "distconv.json").write_text(FIRST)
    assert read_provenance(tmp_path) == Provenance(model="qwen2vl", reference="/ckpt/Qwen2-VL-7B")
    (tmp_path / "distconv.json").write_text(FIRST_OF_ADAPTERS)
    scaling = Scaling(alpha=16, alphas={"decoder.layers.mlp.linear_fc1": 8.0}, where=f"{tmp_path}/distconv.json")
    assert read_provenance(tmp_path) == Provenance(model="qwen2_5vl_lora", scaling=scaling)


def test_there_may_be_none(tmp_path):
    assert read_provenance(tmp_path) == Provenance()
    assert newer_note(Provenance(), tmp_path) == ()


def test_further_keys_are_left_alone(tmp_path):
    (tmp_path / "distconv.json").write_text('{"model": "toy", "version": 3}')
    assert read_provenance(tmp_path) == Provenance(model="toy")


def test_a_record_of_a_later_version_is_ignored_with_a_line(tmp_path):
    """Whatever its keys mean there."""
    (tmp_path / "distconv.json").write_text('{"record": 3, "model": ["toy"], "files": 7}')
    found = read_provenance(tmp_path)
    assert found == Provenance(newer=3)
    (note,) = newer_note(found, tmp_path)
    assert note.startswith(f"{tmp_path}/distconv.json: ignored: a record of version 3; ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"model": ["toy"]}', "model: expected text, found ['toy']; remove the file, or mend it"),
        ('{"reference": 3}', "reference: expected text, found 3; remove the file, or mend it"),
        ('{"adapters": {"alpha": "16"}}', "expected the scaling of adapters, found {'alpha': '16'}; remove the file"),
        ('{"record": "2"}', "record: expected the version of the record, found '2'; remove the file, or mend it"),
        ('{"record": true}', "record: expected the version of the record, found True"),
        ('{"record": 0}', "record: expected the version of the record, found 0"),
        ('{"distconv": 1}', "distconv: expected text, found 1"),
        ('{"dialect": {}}', "dialect: expected text, found {}"),
        ('{"source": "/hf"}', "source: expected an object, found '/hf'"),
        ('{"source": {"path": 1}}', "source.path: expected text, found 1"),
        ('{"options": []}', "options: expected an object, found []"),
        ('{"layout": 2}', "layout: expected an object, found 2"),
        ('{"layout": {"tp": 0}}', "layout.tp=0: expected "),
        ('{"layout": {"tp": null}}', "layout.tp: expected a value, found None"),
        ('{"layout": {"tp": 1e9}}', "layout.tp="),
        ('{"layout": {"stages": {"text": [[]]}}}', "layout.stages.text="),
        ('{"layout": {"cp": 2}}', "layout: unknown key 'cp'; known: "),
        ('{"files": [1]}', "files: expected an object, found [1]"),
        ('{"files": {"a": 1}}', "files: a: expected its size in bytes, found 1"),
        ('{"files": {"a": {"bytes": -1}}}', "files: a: expected its size in bytes, found "),
        ('{"files": {"a": {"bytes": true}}}', "files: a: expected its size in bytes, found "),
        ('{"files": {"a": {"bytes": 9223372036854775808}}}', "files: a: expected its size in bytes, found "),
        ('{"files": {"a": {"bytes": 1, "crc32": "FFFFFFFF"}}}', "files: a: crc32: expected eight hexadecimal digits"),
        ('{"files": {"a": {"bytes": 1, "crc32": 7}}}', "files: a: crc32: expected eight hexadecimal digits, found 7"),
        ('{"files": {"distconv.json": {"bytes": 1}}}', "files: distconv.json: is the record itself"),
        ('{"model": 1, "dialect": 2}', "dialect: expected text, found 2"),
        ("[]", ""),
        ("{", ""),
    ],
)
def test_a_damaged_one_is_named(tmp_path, text, problem):
    (tmp_path / "distconv.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_provenance(tmp_path)
    assert f"{tmp_path}/distconv.json: {problem}" in str(caught.value)


@pytest.mark.parametrize("path", ["", ".", "..", "../a", "a/../../b", "/etc/passwd", "a//b", "./a", "a/", "a\0b"])
def test_a_file_outside_of_the_result_is_never_named(path):
    content = {"files": {path: {"bytes": 1}}}
    with pytest.raises(InputError, match="is not the path of a file inside of the result"):
        Provenance.parse(content, "distconv.json")


def test_a_link_that_leads_out_is_an_error_and_one_that_stays_is_none(tmp_path):
    (tmp_path / "secret").write_text("x")
    result = tmp_path / "result"
    (result / "real").mkdir(parents=True)
    (result / "real" / "a").write_text("x")
    (result / "within").symlink_to("real")
    (result / "out").symlink_to(tmp_path)
    (result / "result2").symlink_to(tmp_path / "secret")
    one = Written(1, None)
    check_inside(result, {"within/a": one, "real/a": one, "missing": one})
    with pytest.raises(InputError) as caught:
        check_inside(result, {"out/secret": one, "result2": one, "real/a": one})
    assert [problem.partition(": a symbolic")[0] for problem in caught.value.problems] == [
        f"{result}/distconv.json: files: out/secret",
        f"{result}/distconv.json: files: result2",
    ]


def test_sizes_are_compared(tmp_path):
    (tmp_path / "a").write_text("xy")
    (tmp_path / "b").write_text("xy")
    (tmp_path / "d").write_text("xy")
    files = {"a": Written(2, None), "b": Written(1234, None), "c": Written(0, None), "d": Written(1, None)}
    assert list(wrong_sizes(tmp_path, files)) == [
        f"{tmp_path}/b: is 2 bytes long, its record says 1,234",
        f"{tmp_path}/c: is in the record: No such file or directory",
        f"{tmp_path}/d: is 2 bytes long, its record says 1",
    ]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(LEAVES, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=8), each))
SIZES = st.fixed_dictionaries(
    {}, optional={"bytes": LEAVES, "crc32": LEAVES | st.from_regex("[0-9a-f]{8}", fullmatch=True)}
)
LAYOUTS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("tp", "pp", "vpp", "ep", "stages", "modality_tp", "placement", "x"), VALUES)
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "record": st.sampled_from([1, 2, 3]) | VALUES,
        "files": st.dictionaries(st.text(max_size=8), SIZES) | VALUES,
        "layout": LAYOUTS | VALUES,
        **dict.fromkeys(
            ("distconv", "source", "model", "definition", "reference", "format", "dialect", "options"), VALUES
        ),
        "adapters": VALUES,
    },
)


@given(RECORDS | st.dictionaries(st.text(max_size=8), VALUES))
def test_any_object_is_a_record_or_refused(content: dict[str, Any]):
    """And a record that is read says the same when it is written."""
    with suppress(InputError):
        found = Provenance.parse(content, "distconv.json")
        if found.newer is None:
            assert Provenance.parse(json.loads(provenance_bytes(found)), "distconv.json") == found

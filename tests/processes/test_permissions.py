"""Places that a user may not read or write: one clear message. Root, whom nothing stops otherwise, is stopped, too."""

from __future__ import annotations

import pytest

from tests.checkpoints import load_case, write_source
from tests.processes.jobs import run, single

SHARD, CONFIG, INDEX = "model-00003-of-00005.safetensors", "config.json", "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("closed", "mode", "changed", "says"),
    [
        ("hf", 0, {}, "source=hf: no permission to read"),
        (f"hf/{SHARD}", 0, {}, f"hf/{SHARD}: cannot be read: Permission denied"),
        (f"hf/{CONFIG}", 0, {}, f"hf/{CONFIG}: cannot be read: Permission denied"),
        (f"hf/{INDEX}", 0, {}, f"hf/{INDEX}: cannot be read: Permission denied"),
        ("other", 0, {"source": "other/hf"}, "source=other/hf: "),
        ("other", 0, {"text_source": "other/llm"}, "text_source=other/llm: "),
        ("other", 0, {"target": "other/mm"}, "target=other/mm: "),
        ("other", 0, {"report": "other/report.json"}, "report=other/report.json: "),
        ("other", 0o500, {"target": "other/mm"}, "target=other/mm: no permission to write"),
        ("other", 0o500, {"report": "other/report.json"}, "report=other/report.json: cannot be written"),
    ],
)
def test_refused(closed, mode, changed, says, tmp_path):
    write_source(tmp_path / "hf", load_case("qwen2vl__tp1_pp1"))
    (tmp_path / "other").mkdir()
    before = sorted(tmp_path.rglob("*"))
    options = {"+model": "qwen2vl", "source": "hf", "target": "mm", **changed}
    usual = (tmp_path / closed).stat().st_mode
    (tmp_path / closed).chmod(mode)

    command = single(*(f"{key}={value}" for key, value in options.items()), own={"0": {"ordinary": True}})
    outcome = run(command, tmp_path)

    (tmp_path / closed).chmod(usual)
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("distconv: "), outcome.err
    assert says in outcome.err
    assert not outcome.shows_its_inside
    assert sorted(tmp_path.rglob("*")) == before

"""What files say of a layout, and what the user says: who wins, and what contradicts."""

from __future__ import annotations

import pytest

from distconv.errors import InputError
from distconv.layout.request import Layout
from distconv.training.told import Told, completed, words_of

SCRIPT = Told(where="train.sh", values={"tp": 2, "pp": 4}, heterogeneous=False)
MODEL = Told(
    where="model.json",
    values={"pp": 4, "vpp": 1, "stages.text": ((1, 10, 10, 7),), "stages.vision": ((32, 0, 0, 0),)},
    encoder_tp={"vision": 1},
)
ASKED = Layout(from_=["train.sh", "model.json"])


def test_all_of_it() -> None:
    made = completed(ASKED, [SCRIPT, MODEL])
    stages = {"text": [1, 10, 10, 7], "vision": [32, 0, 0, 0]}
    assert made == Layout(tp=2, pp=4, vpp=1, stages=stages)
    (words,) = words_of(ASKED, made)
    assert words == (
        "layout.from: tp=2, pp=4, vpp=1, stages.text=[1,10,10,7], stages.vision=[32,0,0,0] of train.sh, model.json"
    )


def test_the_user_wins() -> None:
    assert completed(Layout(from_="train.sh", tp=1), [SCRIPT]) == Layout(tp=1, pp=4)
    assert completed(Layout(from_="train.sh", pp=2), [SCRIPT, MODEL]) == Layout(tp=2, pp=2)
    made = completed(Layout(from_="train.sh", stages={"text": [14, 14]}), [SCRIPT, MODEL])
    assert made == Layout(tp=2, stages={"text": [14, 14]})
    made = completed(Layout(from_="train.sh", stages={"vision": [0, 32, 0, 0]}), [SCRIPT, MODEL])
    assert made.stages == {"text": ((1, 10, 10, 7),), "vision": ((0, 32, 0, 0),)}


def test_files_of_two_trainings() -> None:
    other = Told(where="other.sh", values={"tp": 2, "pp": 8}, heterogeneous=False)
    with pytest.raises(InputError, match=r"other\.sh says pp=8, and model\.json says pp=4; .*, or layout\.pp"):
        completed(ASKED, [other, MODEL])
    assert completed(Layout(from_="x", pp=8), [other, MODEL]) == Layout(tp=2, pp=8)


def test_what_cannot_be_read_is_asked_for_unless_it_was_given() -> None:
    script = Told(where="train.sh", values={"pp": 4}, unread={"tp": "--tensor-model-parallel-size $TP"})
    with pytest.raises(InputError, match=r"train\.sh: has --tensor-model-parallel-size \$TP; or give layout\.tp"):
        completed(ASKED, [script])
    assert completed(Layout(from_="train.sh", tp=8), [script]) == Layout(tp=8, pp=4)


class TestTensorParallelSizesOfEncoders:
    """They are in every model file, and count for training that cuts its modules differently."""

    def test_different_modules(self) -> None:
        script = Told(where="train.sh", values={"tp": 2, "pp": 4}, heterogeneous=True)
        assert completed(ASKED, [script, MODEL]).modality_tp == {"vision": 1}

    def test_modules_alike(self) -> None:
        assert completed(ASKED, [SCRIPT, MODEL]).modality_tp == {}

    def test_without_a_script(self) -> None:
        assert completed(ASKED, [MODEL]).modality_tp == {}
        two = Told(where="model.json", encoder_tp={"vision": 2})
        with pytest.raises(
            InputError, match=r"size of 2, which counts with --hetero-parallel only; .*modality_tp\.vision"
        ):
            completed(ASKED, [two])
        assert completed(Layout(from_="x", modality_tp={"vision": 2}), [two]).modality_tp == {"vision": 2}

"""What transformers makes of published checkpoints: the client of conversions back.

    python published_client.py JOBS.json

JOBS.json is a list of `{"checkpoint": DIRECTORY, "inputs": FILE, "output": FILE}`. For each, the checkpoint is loaded
by the class that its `config.json` names, in the element type that it says, or the job's `dtype`, and `output` gets

    unfit     names of keys that are missing, unexpected or mismatched, after which of these they are
    state     the model's state dict
    logits    of the keyword arguments in `inputs`; where that is empty, of all tokens of the vocabulary

A program of its own, so that tests need neither its imports nor its threads. Knows nothing of what was converted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text()):
        torch.save(load(Path(job["checkpoint"]), job["inputs"], job.get("dtype", "auto")), job["output"])


def load(checkpoint: Path, inputs: str, dtype: str) -> dict[str, Any]:
    config = json.loads((checkpoint / "config.json").read_text())
    # some classes write it among what is said of the text
    (name,) = (config if "architectures" in config else config["text_config"])["architectures"]
    of_class = getattr(transformers, name)
    model = of_class.from_pretrained(checkpoint, dtype=dtype).eval()
    if dtype != "auto":
        # some classes have a part in what its own configuration says
        model = model.to(getattr(torch, dtype))
    # asked of the base class, because not every class passes the answer on
    loading = transformers.PreTrainedModel.from_pretrained.__func__
    _, info = loading(of_class, checkpoint, dtype=dtype, output_loading_info=True)
    # of a model that also speaks, the part that understands
    understanding = getattr(model, "thinker", model)
    with torch.inference_mode():
        logits = understanding(**arguments(understanding, inputs)).logits
    unfit = [f"{kind}: {key}" for kind, keys in info.items() for key in keys]
    return {"unfit": unfit, "state": model.state_dict(), "logits": logits}


def arguments(model: transformers.PreTrainedModel, inputs: str) -> dict[str, torch.Tensor]:
    if inputs:
        given: dict[str, torch.Tensor] = torch.load(inputs, weights_only=True)
        return given
    return {"input_ids": torch.arange(model.get_input_embeddings().num_embeddings).view(4, -1)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The options of a job that apply to DCP alone. Owns their words; reads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from distconv.fields import option
from distconv.kinds import Choice, Text
from distconv.options import CommonOptions

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class DcpOptions(CommonOptions):
    """The options of a DCP: its names, and the form of packed experts under published names."""

    naming: str = option(
        Choice({"megatron": "", "hf": "the published ones"}, {"huggingface": "hf", "published": "hf"}),
        "megatron",
        "names in a `dcp` that is written",
    )
    name_prefix: str | None = option(
        Text("model."),
        None,
        "of a `dcp`: what every name has in front, such as `model.` where the model is wrapped",
        unset="none in a result, recognised in a source",
    )
    packed_experts: str = option(
        Choice(
            {
                AUTO: "as the `dialect` has them; if it is `published`, flatten with a `name_prefix`, since wrapped "
                "models hold them so",
                "flatten": "`[experts, a, b]` becomes `[experts * a, b]`",
                "keep": "as they are in the source, not flattened",
            }
        ),
        AUTO,
        "of a `dcp` with `hf` names: experts packed into one tensor",
    )

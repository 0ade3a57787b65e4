"""The actions that need no plan, and who does them.

Their modules are imported when one is asked for: a conversion starts sooner without. Does nothing itself.
"""

from __future__ import annotations

from distconv.formats.registry import Options
from distconv.models.library import Library
from distconv.observer import Observer, Outcome
from distconv.planning.choice import Chosen
from distconv.runtime.processes import Processes


def without_plan(
    options: Options, chosen: Chosen | None, library: Library, processes: Processes, observer: Observer
) -> Outcome | None:
    """The outcome of the action of the options, `None` if it needs a plan.

    Raises:
        DistconvError: the failure of any process, as the same error on every process.
    """
    if options.action == "clean":
        from distconv.directories import cleaned  # noqa: PLC0415 - as this module says

        return cleaned(options, processes)
    if options.action == "inspect":
        from distconv.directories import inspected  # noqa: PLC0415

        return inspected(options, chosen, library, processes)
    if options.action == "skeleton":
        from distconv.directories import drafted  # noqa: PLC0415

        return drafted(options, chosen, library, processes)
    if options.action == "diff":
        from distconv.diffing import differences_between  # noqa: PLC0415

        return differences_between(options, chosen, library, processes, observer)
    if options.action == "verify" and options.source is None:
        from distconv.proving import proved  # noqa: PLC0415

        return proved(options, chosen, processes, observer)
    return None

"""What jobs left that did not end: continued by the same command, refused to another, or worth nothing.

Owns the choice among the directories of work in an area whose lock is held. What is finished in them, `journal` knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from distconv.commit.journal import Description, Finished, description_of, finished_in
from distconv.commit.recovery import left_over, remove
from distconv.commit.swap import NEW
from distconv.errors import counted, raise_if

# A directory of work in which something is finished: what it makes, and what of that is finished, by path.
Begun = tuple[Description, Mapping[str, Finished]]


def of_worth(left: Sequence[Path]) -> dict[Path, Begun]:
    """The directories of work in which something is finished; others, which nobody can continue, are removed.

    Raises:
        OSError: one cannot be read.
    """
    found: dict[Path, Begun] = {}
    for work in left:
        description, finished = description_of(work), finished_in(work)
        if description is not None and finished:
            found[work] = description, finished
        else:
            remove(work)
    return found


def adopt(
    left: Mapping[Path, Begun], work: Path, description: Description, result: Path, tell: Callable[[str], object]
) -> Mapping[str, Finished]:
    """Make that directory of work which makes what is described the one of this job, if there is one.

    What is finished in it, by path below the result. `left`: as `of_worth` finds them.

    Raises:
        InputError: there is none, but others make the same result in another way, or of another source.
        OSError: a step is refused.
    """
    found: dict[Path, Mapping[str, Finished]] = {}
    problems = []
    for each, (before, finished) in left.items():
        if before.result != description.result:
            tell(left_over(each, len(finished)))
        elif differences := before.differences(description):
            problems.append(
                f"{result}: {counted(len(finished), 'finished file')} of it in {each} cannot be continued: "
                f"{'; '.join(differences)}; give the same command as before, or remove what is left with action=clean"
            )
        else:
            found[each] = finished
    if not found:
        raise_if(problems)
        return {}
    best = max(found, key=lambda each: len(found[each]))
    for each in found.keys() - {best}:
        tell(left_over(each, len(found[each])))
    _take_over(best, work, found[best])
    return found[best]


def _take_over(left: Path, work: Path, finished: Collection[str]) -> None:
    """Give a directory of work another name, and remove what is not finished in it.

    A process of the earlier job that only hung finds nothing under its names, and what it has open is no part of the
    result any more, unless it is finished.
    """
    os.rename(left, work)
    new = work / NEW
    for parent, _, files in os.walk(new):
        for name in files:
            path = Path(parent, name)
            if path.relative_to(new).as_posix() not in finished:
                path.unlink()

"""The page of a plan, or of a conversion: one document that needs nothing else, from the report.

Owns its sections and their words. Every text of the report is escaped. Holds no script, and names no address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from distconv.errors import counted
from distconv.page.mesh import mesh_svg
from distconv.page.style import PAGE_STYLE
from distconv.page.words import common_ending, escaped, names_in_words, ranks_in_words
from distconv.words import binary, names_by_reason

# How a page begins, by which an older one is recognised.
BEGINNING = "<!doctype html>\n<!-- a plan of distconv -->\n"
_NOTES_SHOWN = 50
_PICTURE_WORDS = (
    "Each box is one rank of the training, and the file that it loads. The coloured bar above a column is what that "
    "pipeline rank holds, of each modality, over all tensor ranks; a box says the bytes of its file, and which process "
    "of the conversion writes it. The longest bars are those of the largest."
)
_PROCESS_WORDS = (
    "The conversion is done by these processes side by side. Each reads of the source only what its own files need, "
    "and writes these; the longest bars are those of the busiest."
)


def page_of(report: Mapping[str, Any]) -> str:
    """The page of the report of a plan, or of a conversion that has planned `sources` of its processes."""
    names, writers = _names(report), _writers(report)
    title = f"{report['model'] or 'published names'}: {report['source_format']} to {report['target_format']}"
    body = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="faint">{_what(report)}</p>',
        _facts(report),
    ]
    if report.get("ranks"):
        body += ["<h2>Pipeline stages × tensor ranks</h2>", f"<p>{_PICTURE_WORDS}{_experts(report)}</p>"]
        body.append(f'<div class="wide">{picture_of(report)}</div>')
    body += ["<h2>Processes</h2>", f"<p>{_PROCESS_WORDS}</p>", _processes(report, names)]
    if not report.get("ranks") or report["layout"]["ep"] > 1:
        body += ["<h2>Files</h2>", _files(report, names, writers)]
    body += _remarks(report)
    return (
        f'{BEGINNING}<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{PAGE_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def picture_of(report: Mapping[str, Any]) -> str:
    """The picture of a plan that is cut by ranks, as SVG that is shown without the page, too."""
    return mesh_svg(report, _names(report), _writers(report))


def _what(report: Mapping[str, Any]) -> str:
    done = (
        "What a conversion would do. Nothing has been written."
        if report["action"] == "plan"
        else "A conversion that is done: what was planned, and how long it took."
    )
    return f"{done} Made by distconv from its report."


def _facts(report: Mapping[str, Any]) -> str:
    """The job in short: from where to where, how it is cut, how much it is."""
    processes = report["processes"]
    read, written = (sum(each[key] for each in processes) for key in ("bytes_read", "bytes_written"))
    nbytes = sum(file["bytes"] for file in report["files"])
    pairs = [
        ("source", _code(report["source"])),
        ("text", _code(report["text_source"]) if report["text_source"] else ""),
        ("follows", _code(report["reference"]) if report["reference"] else ""),
        ("target", _code(f"{report['target']}/{report['iteration'] or ''}".rstrip("/"))),
        ("layout", escaped(_layout_words(report["layout"])) if report.get("layout") else ""),
        ("names", escaped(f"dialect {report['dialect']}") if report.get("dialect") else ""),
        ("result", f"{counted(len(report['files']), 'file')}, {binary(nbytes)} of tensors"),
        ("work", f"{counted(len(processes), 'process', 'processes')} read {binary(read)}, write {binary(written)}"),
        ("memory", f"at most {binary(max(each['projected_peak_bytes'] for each in processes))} per process, projected"),
        ("time", _time(processes, nbytes - (report["continued"] or {"bytes": 0})["bytes"])),
        ("nodes", _nodes(report["nodes"]) if report["nodes"] else ""),
    ]
    return f"<dl>{''.join(f'<dt>{key}</dt><dd>{value}</dd>' for key, value in pairs if value)}</dl>"


def _time(processes: Sequence[Mapping[str, Any]], nbytes: int) -> str:
    """How long a conversion took, which moved so many bytes."""
    seconds = max((each["seconds"]["transfer"] for each in processes if "seconds" in each), default=0)
    return f"{seconds:.1f} s, {binary(nbytes / seconds)}/s over all processes" if seconds else ""


def _layout_words(layout: Mapping[str, Any]) -> str:
    sizes = {
        "tensor": layout["tp"],
        "pipeline": layout["pp"],
        "virtual pipeline": layout["vpp"],
        "expert": layout["ep"],
    }
    words = [f"{axis} parallel {size}" for axis, size in sizes.items() if size > 1 or axis in ("tensor", "pipeline")]
    words += [f"{modality} tensor parallel {size}" for modality, size in layout["modality_tp"].items()]
    words += [f"experts tensor parallel {layout['expert_tp']}"] if layout["expert_tp"] else []
    words += [f"placement {layout['placement']}"] if layout["placement"] != "sequential" else []
    return ", ".join(words)


def _experts(report: Mapping[str, Any]) -> str:
    ep = report["layout"]["ep"]
    return f" Here a box stands for the files of {ep} expert parallel ranks, which are listed below." if ep > 1 else ""


def _nodes(nodes: Mapping[str, Any]) -> str:
    fetched = nodes["bytes_fetched"]
    return (
        f"{counted(len(fetched), 'node')} of {counted(nodes['processes_per_node'], 'process', 'processes')} fetch "
        f"{binary(sum(fetched))} from the file system, {binary(max(fetched))} at most"
    )


def _processes(report: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What each process writes and reads."""
    processes = report["processes"]
    sources = sorted({each["path"] for process in processes for each in process["sources"]})
    within = {path: _within(path, report["source"]) for path in sources}
    ending = common_ending(list(within.values()))
    short = {path: name.removesuffix(ending) for path, name in within.items()}
    source_places = {short[path]: place for place, path in enumerate(sources)}
    file_places = {names[file["path"]]: place for place, file in enumerate(report["files"])}
    most_read, most_written = (max(each[key] for each in processes) for key in ("bytes_read", "bytes_written"))
    took = "seconds" in processes[0]
    source_head = f"reads of (…{escaped(ending)})" if ending else "reads of"
    head = ["#process", source_head, "#bytes", "writes", "#bytes", *(["#seconds"] if took else [])]
    rows = []
    for each in processes:
        written = names_in_words([names[_path(report, path)] for path in each["files"]], file_places)
        read = names_in_words([short[source["path"]] for source in each["sources"]], source_places)
        rows.append(
            f'<tr><td class="n">{each["rank"]}</td><td>{escaped(read) or "nothing"}</td>'
            f"{_measured(each['bytes_read'], most_read)}<td>{escaped(written) or 'nothing'}</td>"
            f"{_measured(each['bytes_written'], most_written)}"
            + (f'<td class="n">{each["seconds"]["transfer"]:.1f}</td>' if took else "")
            + "</tr>"
        )
    return _table(head, rows)


def _files(report: Mapping[str, Any], names: Mapping[str, str], writers: Mapping[str, Sequence[int]]) -> str:
    """The files of a result, with their writers."""
    most = max((file["bytes"] for file in report["files"]), default=0)
    rows = (
        f"<tr><td>{escaped(names[file['path']])}</td>{_measured(file['bytes'], most)}"
        f'<td class="n">{ranks_in_words(writers.get(file["path"], []))}</td></tr>'
        for file in report["files"]
    )
    return _table(["file", "#bytes", "#process"], rows)


def _remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """What is cast, what is left out and why, and notes."""
    casts = [
        f"{counted(each['tensors'], 'tensor')}, {binary(each['bytes'])}: {each['from']} to {each['to']}"
        for each in report["casts"]["cast"]
    ]
    left = [
        f"{counted(len(found), 'tensor')}: {reason}: {found[0]}{' …' * (len(found) > 1)}"
        for reason, found in names_by_reason(report["not_converted"]).items()
    ]
    for title, lines in (("Cast", casts), ("Not converted", left), ("Notes", report["notes"])):
        if lines:
            more = [f"and {len(lines) - _NOTES_SHOWN} more"] if len(lines) > _NOTES_SHOWN else []
            items = "".join(f"<li>{escaped(line)}</li>" for line in [*lines[:_NOTES_SHOWN], *more])
            yield f"<h2>{title}</h2><ul>{items}</ul>"


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    """A table; the columns whose heads begin with `#` are of numbers."""
    cells = "".join(f'<th class="n">{each[1:]}</th>' if each[0] == "#" else f"<th>{each}</th>" for each in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _measured(nbytes: int, most: int) -> str:
    """A cell of bytes with a bar, as long as they are of the most."""
    return f'<td class="n">{binary(nbytes)}<i style="width:{round(100 * nbytes / max(most, 1))}%"></i></td>'


def _code(text: object) -> str:
    return f"<code>{escaped(text)}</code>"


def _writers(report: Mapping[str, Any]) -> dict[str, list[int]]:
    """Path of a file → ranks of the processes that write it, in ascending order."""
    found: dict[str, list[int]] = {}
    for each in report["processes"]:
        for path in each["files"]:
            found.setdefault(_path(report, path), []).append(each["rank"])
    return found


def _path(report: Mapping[str, Any], path: str) -> str:
    """The path of a file of a process as the list of files has it."""
    return f"{report['iteration']}/{path}" if report["iteration"] else path


def _names(report: Mapping[str, Any]) -> dict[str, str]:
    """Path of a file → name, without what all have in front; the file of a rank has the name of its directory."""
    paths = [file["path"] for file in report["files"]]
    split = [PurePath(path).parts[: -1 if report.get("ranks") else None] for path in paths]
    while min(map(len, split), default=0) > 1 and len({parts[0] for parts in split}) == 1:
        split = [parts[1:] for parts in split]
    return dict(zip(paths, ("/".join(parts) for parts in split), strict=True))


def _within(path: str, directory: str) -> str:
    """A path below a directory as it is there, and any other as it is."""
    found = PurePath(path)
    return str(found.relative_to(directory)) if found.is_relative_to(directory) else path

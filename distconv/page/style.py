"""The looks of the page and of its picture, in light and in dark.

Owns colours and sizes of letters. The picture carries its own, since it is shown without the page, too.
"""

from __future__ import annotations

# By the place of a modality in the model, in CSS; more modalities than that share the last one.
MODALITY_CLASSES = ("m0", "m1", "m2")

_LIGHT = (
    "--ground:#ffffff;--panel:#f3f5f8;--line:#cbd3de;--ink:#17202c;--faint:#566273;"
    "--m0:#2f6fd0;--m1:#1b8a6b;--m2:#b8690f;--bar:#8597b0"
)
_DARK = (
    "--ground:#12171f;--panel:#1c2430;--line:#394656;--ink:#e8edf4;--faint:#a3b0c2;"
    "--m0:#6ea5f5;--m1:#4fc3a0;--m2:#e5a150;--bar:#6f819b"
)
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"


def _colours(selector: str) -> str:
    return f"{selector}{{{_LIGHT}}}@media (prefers-color-scheme:dark){{{selector}{{{_DARK}}}}}"


PICTURE_STYLE = _colours(".mesh") + (
    f".mesh{{font:12px {_FONT}}}"
    ".mesh .ground{fill:var(--ground)}"
    ".mesh text{fill:var(--ink)}"
    ".mesh .f{fill:var(--faint)}"
    ".mesh .b{font-weight:600}"
    ".mesh .h{font-weight:600;font-size:13px}"
    ".mesh .e{text-anchor:end}"
    ".mesh .c{fill:var(--panel);stroke:var(--line)}"
    ".mesh .r{fill:var(--bar)}"
    ".mesh .m0{fill:var(--m0)}.mesh .m1{fill:var(--m1)}.mesh .m2{fill:var(--m2)}"
)

PAGE_STYLE = _colours(":root") + (
    ":root{color-scheme:light dark}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:1280px;padding:24px;background:var(--ground);color:var(--ink)}"
    f"body{{font:15px/1.5 {_FONT}}}"
    "h1{font-size:24px;margin:0 0 4px;overflow-wrap:anywhere}"
    "h2{font-size:18px;margin:36px 0 4px}"
    "p{margin:4px 0 12px;max-width:80ch}"
    ".faint{color:var(--faint)}"
    "code{font-family:ui-monospace,'DejaVu Sans Mono',monospace;font-size:.92em;overflow-wrap:anywhere}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:16px 0}"
    "dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}"
    ".scroll{overflow:auto;max-height:36em;border:1px solid var(--line);border-radius:6px}"
    ".wide{overflow-x:auto}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{padding:5px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}"
    "tr:last-child td{border-bottom:0}"
    "th{position:sticky;top:0;background:var(--panel);font-weight:600;white-space:nowrap}"
    "td{overflow-wrap:anywhere}"
    ".n{text-align:right;width:7em}"
    "td.n{white-space:nowrap;font-variant-numeric:tabular-nums}"
    "td i{display:block;height:4px;border-radius:2px;background:var(--bar);margin:3px 0 0 auto}"
    "ul{padding-left:20px;margin:4px 0}li{overflow-wrap:anywhere}"
    "@media (max-width:640px){body{padding:12px}table{font-size:13px}th,td{padding:5px 6px}th{white-space:normal}}"
)

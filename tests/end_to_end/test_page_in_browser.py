"""The page of a plan in a real browser: it fits its window, its words fit their boxes, and it follows the night."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from distconv.page.page import page_of
from tests.unit.page.test_page import CUT, large, report_of

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium")
# Measured in the browser and left in the title, since the page itself has no script.
PROBE = """<script>
const wrong = [];
for (const box of document.querySelectorAll("svg g")) {
  const edge = box.querySelector("rect.c").getBoundingClientRect();
  for (const text of box.querySelectorAll("text"))
    if (text.getBoundingClientRect().right > edge.right) wrong.push(text.textContent);
}
for (const text of document.querySelectorAll("svg text"))
  if (text.getBBox().x < 0) wrong.push(text.textContent);
document.title = JSON.stringify({
  wrong, width: document.documentElement.scrollWidth, window: window.innerWidth,
  ground: getComputedStyle(document.body).backgroundColor, picture: getComputedStyle(
    document.querySelector("svg .ground")).fill});
</script>"""
REPORTS = {
    "small": lambda: report_of(**CUT),
    "many ranks": lambda: large(8, 16, 8),
    "long names": lambda: report_of(**CUT) | {"source": "/" + "directory" * 40, "notes": ["note" * 100]},
}


def shown(page: str, path: Path, width: int, scheme: int) -> dict[str, Any]:
    """What a window of a width shows; `scheme` is 0 in the dark, 1 in the light."""
    path.write_text(page.replace("</body>", f"{PROBE}</body>"))
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"--user-data-dir={path.parent}/profile",
    ]
    options += [f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},900"]
    found = subprocess.run(
        [str(BROWSER), *options, f"file://{path}"], capture_output=True, text=True, check=True, timeout=120
    )
    (title,) = re.findall("<title>(.*?)</title>", found.stdout.split("<style>")[0])
    measured = json.loads(unescape(title))
    assert isinstance(measured, dict)
    return measured


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("width", [1280, 600])
def test_a_page_fits_its_window(width, report, tmp_path):
    found = shown(page_of(REPORTS[report]()), tmp_path / "page.html", width, 1)
    assert found["wrong"] == []
    assert found["window"] == width
    assert found["width"] <= width


def test_a_page_is_dark_in_the_dark(tmp_path):
    page = page_of(report_of(**CUT))
    dark, light = (shown(page, tmp_path / "page.html", 1280, scheme) for scheme in (0, 1))
    assert (light["ground"], light["picture"]) == ("rgb(255, 255, 255)", "rgb(255, 255, 255)")
    assert dark["ground"] == dark["picture"] != light["ground"]

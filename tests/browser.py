"""Real headless browsers, asked what they make of a page: the Chromium that the kaleido wheel carries, with
all its libraries, so that a machine with nothing but Python has one, and every Chromium found on the PATH.

kaleido is made to draw plotly charts. It loads a script that it takes for plotly.js and calls its `toImage`:
the script here measures a page instead.
"""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import kaleido

# The page goes into a frame as wide as the screen to be; its complaints are caught from its first byte on.
PROBE = """
async function probe(page, width) {
  const frame = document.createElement('iframe');
  frame.style.cssText = `border: 0; width: ${width}px; height: 900px`;
  const listen = `<script>
    window.complaints = [];
    const complain = (...told) => window.complaints.push(told.join(' '));
    console.error = console.warn = complain;
    addEventListener('error', event => complain(event.message || 'a resource failed'), true);
    addEventListener('unhandledrejection', event => complain(event.reason));
    addEventListener('securitypolicyviolation', event => complain(event.violatedDirective));
  </` + `script>`;
  frame.srcdoc = page.replace('<head>', '<head>' + listen);
  const loaded = new Promise(resolve => frame.addEventListener('load', resolve));
  document.body.append(frame);
  await loaded;
  const view = frame.contentWindow, root = frame.contentDocument.documentElement;
  const all = [...root.querySelectorAll('body *')];
  const box = one => one.getBoundingClientRect();
  const style = one => view.getComputedStyle(one);
  const texts = all.filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())
    && one.namespaceURI.endsWith('xhtml'));
  return {
    complaints: view.complaints,
    fetched: view.performance.getEntriesByType('resource').map(entry => entry.name),
    width: view.innerWidth,
    scroll_width: root.scrollWidth,
    too_wide: all.filter(one => box(one).right > width + 0.5).map(one => one.outerHTML.slice(0, 80)),
    smallest_text: Math.min(...texts.map(one => parseFloat(style(one).fontSize))),
    shapes: all.filter(one => one.tagName === 'rect' && box(one).width > 0 && box(one).height > 0).length,
    dark: view.matchMedia('(prefers-color-scheme: dark)').matches,
    colours: texts.map(one => {
      let ground = one;
      while (ground && style(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
      return [style(one).color, style(ground || root).backgroundColor];
    }),
  };
}
"""
FLAGS = ("--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage", "--disable-breakpad")
DARK = {True: 0, False: 1}  # Blink's setting: 0 is dark, 1 is light
SECONDS_MAX = 120


@dataclass(frozen=True, slots=True)
class Look:
    """What a browser says of a page at one width. `colours`: of each text, its own and the one behind it."""

    complaints: list[str]
    fetched: list[str]
    width: int
    scroll_width: int
    too_wide: list[str]
    smallest_text: float
    shapes: int
    dark: bool
    colours: list[list[str]]


Browser = Callable[[str, int, bool, Path], Look]


def bundled(page: str, width: int, dark: bool, room: Path) -> Look:
    """Look with the Chromium of the kaleido wheel."""
    script = room / "probe.js"
    image = "async f => 'data:,' + encodeURIComponent(JSON.stringify(await probe(...f.layout.meta)))"
    script.write_text(f"{PROBE}\nwindow.Plotly = {{version: '2.0.0', toImage: {image}}};", encoding="utf-8")
    executable = Path(kaleido.__file__).parent / "executable" / "kaleido"
    asked = {"data": {"data": [], "layout": {"meta": [page, width]}}, "format": "svg"}
    done = subprocess.run(
        [
            str(executable), "plotly", f"--plotlyjs={script}", "--allow-file-access-from-files", *FLAGS,
            f"--blink-settings=preferredColorScheme={DARK[dark]}",
        ],
        input=json.dumps(asked) + "\n", capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [answer["code"] for answer in answers] == [0, 0], done.stdout + done.stderr
    return Look(**json.loads(unquote(answers[-1]["result"].removeprefix("data:,"))))


def found(executable: str) -> Browser:
    """Look with a Chromium of the machine."""

    def look(page: str, width: int, dark: bool, room: Path) -> Look:
        call = f"probe({json.dumps(page)}, {width})".replace("</", "<\\/")
        report = "look => { document.body.textContent = JSON.stringify(look); }"
        harness = room / "harness.html"
        harness.write_text(
            f"<!doctype html><meta charset=utf-8><body><script>{PROBE}\n{call}.then({report});</script>",
            encoding="utf-8",
        )
        done = subprocess.run(
            [
                executable, "--headless", *FLAGS, f"--user-data-dir={room / 'profile'}",
                f"--blink-settings=preferredColorScheme={DARK[dark]}", "--window-size=1800,1000",
                "--virtual-time-budget=10000", "--dump-dom", harness.as_uri(),
            ],
            capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
        start, end = done.stdout.find("{"), done.stdout.rfind("}") + 1
        assert start >= 0, done.stderr
        told: dict[str, Any] = json.loads(html.unescape(done.stdout[start:end]))
        return Look(**told)

    return look


BROWSERS: Mapping[str, Browser] = {
    "bundled": bundled,
    **{
        name: found(path)
        for name in ("chromium", "google-chrome")
        if (path := shutil.which(name)) is not None and "snap" not in path  # a snap sees no /tmp
    },
}

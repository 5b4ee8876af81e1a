"""Opens the reports of a real run and a real sweep in Chromium, and looks at what it says, fetches and shows."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

HERE = Path(__file__).parent
VIEWS = {"screen": (1150, "light"), "dark": (1150, "dark"), "phone": (400, "light")}
IMAGES = """() => [...document.querySelectorAll("img, svg")].map(image => {
    const box = image.getBoundingClientRect();
    const natural = image.tagName === "IMG" ? [image.naturalWidth, image.naturalHeight] : [box.width, box.height];
    const shown = image.checkVisibility() && box.width > 50 && box.height > 50;
    return {natural, shown: shown && (image.complete ?? true)};
})"""
FAULTS = """<script>console.error("a fault")</script><img src="http://127.0.0.1:9/nothing.png"></body>"""
SIDEWAYS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def make(out: Path) -> dict[str, Path]:
    """A run in real processes, a sweep in one, and their reports."""
    folders = {"run": out / "run", "sweep": out / "sweep"}
    commands = (
        ["run", "--delay-profile", "slow_stage2", "--epochs", "3", "--out", str(folders["run"])],
        ["sweep", str(HERE / "sweep.yaml"), "--out", str(folders["sweep"])],
        ["report", *map(str, folders.values())],
    )
    for command in commands:
        subprocess.run(["asyncdgl", *command], check=True)
    return {name: folder / "report.html" for name, folder in folders.items()}


def with_faults(report: Path) -> Path:
    """A copy that must be found at fault, so that an empty list of faults means something."""
    text = report.read_text(encoding="utf-8").replace("</body>", FAULTS)
    text = "\n".join(line for line in text.splitlines() if "Content-Security-Policy" not in line)
    path = report.with_name("with_faults.html")
    path.write_text(text, encoding="utf-8")
    return path


def is_well(view: dict[str, Any]) -> bool:
    """Nothing said, nothing fetched, every image seen, nothing cut off."""
    silent = not view["console"] and not view["other_requests"]
    return silent and view["images"] == view["images_shown"] > 0 and view["pixels_cut_off_sideways"] <= 0


def look(browser: Browser, name: str, report: Path, view: str, screenshots: Path) -> dict[str, Any]:
    """Open one report in one view: what the browser said and asked for, and what of the images can be seen."""
    width, scheme = VIEWS[view]
    page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    requests: list[str] = []
    address = report.resolve().as_uri()

    def on_console(message: ConsoleMessage) -> None:
        said.append(f"{message.type}: {message.text}")

    def on_request(request: Request) -> None:
        if request.url != address and not request.url.startswith("data:"):
            requests.append(request.url)

    page.on("console", on_console)
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", on_request)
    page.goto(address, wait_until="load")
    images = page.evaluate(IMAGES)
    seen = {
        "report": name,
        "view": view,
        "bytes": report.stat().st_size,
        "console": said,
        "other_requests": requests,
        "images": len(images),
        "images_shown": sum(image["shown"] and min(image["natural"]) > 0 for image in images),
        "pixels_cut_off_sideways": page.evaluate(SIDEWAYS),
    }
    page.screenshot(path=screenshots / f"{name}-{view}.png", full_page=True)
    page.close()
    return seen


def main() -> None:
    """Both reports in each view; ends with 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the run, the sweep and the screenshots go")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    options = parser.parse_args()
    reports = make(options.out)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        views = [look(browser, name, path, view, options.out) for name, path in reports.items() for view in VIEWS]
        control = look(browser, "with_faults", with_faults(reports["run"]), "screen", options.out)
        result = {"chromium": browser.version, "views": views, "control": control}
        browser.close()
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    for view in [*views, control]:
        print(view)
    found = bool(control["console"] and control["other_requests"] and control["images_shown"] < control["images"])
    raise SystemExit(0 if found and all(map(is_well, views)) else 1)


if __name__ == "__main__":
    main()

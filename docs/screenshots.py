"""Pictures of a page at three widths, light and dark, to look at after a change of the report.

    python docs/screenshots.py runs/sweep/report.html

They are written to `screenshots/` beside the page. Chromium must be installed
(`apt-get install chromium`).
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

WIDTHS = {"phone": (400, 900), "tablet": (820, 1180), "screen": (1280, 900)}
SCHEMES = {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}


def main() -> None:
    """Takes the six pictures of each page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, help="report.html or comparison.html")
    parser.add_argument("--height", type=int, help="pixels from the top; by default one screen")
    given = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: neither chromium nor google-chrome is installed: apt-get install chromium")
    for page in given.pages:
        folder = page.resolve().parent / "screenshots"
        folder.mkdir(exist_ok=True)
        for device, (width, height) in WIDTHS.items():
            for scheme, options in SCHEMES.items():
                png = folder / f"{page.stem}-{device}-{scheme}.png"
                command = [
                    browser,
                    "--headless=new",
                    "--no-sandbox",
                    "--hide-scrollbars",
                    f"--window-size={width},{given.height or height}",
                    f"--screenshot={png}",
                    *options,
                    page.resolve().as_uri(),
                ]
                subprocess.run(command, check=True, capture_output=True)
                print(png)


if __name__ == "__main__":
    main()

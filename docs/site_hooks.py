"""Hooks of the documentation site: formulas become MathML, README and CONTRIBUTING become pages."""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Formulas between dollars as MathML, which browsers render without scripts."""
    parts = _CODE.split(_included(markdown))
    for i in range(0, len(parts), 2):
        text = re.sub(r"\$\$(.+?)\$\$", lambda m: _formula(m[1], "block"), parts[i], flags=re.S)
        parts[i] = re.sub(r"(?<![\w$])\$([^$\n]+?)\$", lambda m: _formula(m[1], "inline"), text)
    return "".join(parts)


def _included(markdown: str) -> str:
    """`{{ include FILE }}` replaced by a file of the root, with links that hold in docs/."""

    def read(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text()
        text = re.sub(r"\]\(docs/", "](", text)
        return re.sub(r"\]\((examples|CONTRIBUTING\.md)\)", "](extending.md)", text)

    return re.sub(r"\{\{ include (\S+) \}\}", read, markdown)


def _formula(latex: str, display: str) -> str:
    return convert(" ".join(latex.split()), display=display)

"""text files -> those whose end, blanks or line ends are wrong; with ``--fix`` corrected.

Run it: ``python -m benchmarks.text_files [--fix] [FILE ...]``; without files, all that git knows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KEPT_AS_THEY_ARE = ("docs/study/", "docs/images/")
_PLAIN = ("py", "md", "toml", "yaml", "yml", "cff", "txt", "jsonl", "ipynb", "css", "js", "j2")
ENDINGS = {"", *(f".{ending}" for ending in _PLAIN)}


def corrected(text: str, markdown: bool = False) -> str:
    """Return text with Unix line ends, no blanks at line ends, and one line end at its end.

    Two blanks at the end of a line are a line break in Markdown, and stay.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    stripped = [
        line if markdown and line.endswith("  ") and line.strip() else line.rstrip() for line in lines
    ]
    return "\n".join(stripped).rstrip("\n") + "\n" if text.strip() else text


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout.decode()
    names = [name for name in listed.split("\0") if name and not name.startswith(KEPT_AS_THEY_ARE)]
    return [path for path in map(Path, names) if path.is_file() and path.suffix in ENDINGS]


def main(words: list[str]) -> int:
    fix = "--fix" in words
    paths = [Path(word) for word in words if word != "--fix"] or tracked()
    wrong = 0
    for path in paths:
        text = path.read_bytes().decode("utf-8")
        right = corrected(text, path.suffix == ".md")
        if right == text:
            continue
        wrong += 1
        print(f"{path}: {'corrected' if fix else 'line ends, blanks at line ends, or the end of the file'}")
        if fix:
            path.write_bytes(right.encode("utf-8"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

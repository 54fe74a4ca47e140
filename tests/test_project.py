"""What the project says of itself is true: the map of the code, the citation, the hooks, the wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from benchmarks.code_map import mended, modules, named
from benchmarks.text_files import corrected

from tiny import tiny_llama, tiny_tokenizer

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ngdiff"
tomllib = pytest.importorskip("tomllib")  # Python 3.11
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_map_names_every_module_and_no_other() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert sorted(named(page)) == sorted(modules()), "run: python -m benchmarks.code_map"


def test_the_map_is_mended_by_a_command() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lost = "".join(line for line in page.splitlines(True) if not line.startswith("      record.py"))
    lost = lost.replace("      methods.py ", "      gone.py     x\n      methods.py ")
    assert sorted(named(mended(lost))) == sorted(modules())
    first = (PACKAGE / "record.py").read_text(encoding="utf-8").splitlines()[0].strip('".')
    assert f"      record.py       {first}\n" in mended(lost)
    assert mended(page) == page


def test_the_walk_of_a_request_has_ten_lines_and_names_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## One request, file by file\n\n")[1].split("\n## ")[0]
    lines = section.strip().splitlines()
    assert [line.partition(". ")[0] for line in lines] == [str(number) for number in range(1, 11)]
    named_files = [re.findall(r"`([\w/]+\.py)`", line) for line in lines]
    assert all(named_files)
    assert not [name for found in named_files for name in found if not (PACKAGE / name).is_file()]


def test_each_modules_docstring_reads_from_input_to_output() -> None:
    firsts = {path: path.read_text(encoding="utf-8").splitlines()[0] for path in PACKAGE.rglob("[!_]*.py")}
    assert not [str(path) for path, line in firsts.items() if not line.startswith('"""')]


def test_the_citation_is_in_the_citation_file_format() -> None:
    """By hand, after the schema of version 1.2.0: its required keys, types and allowed values."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "authors"}
    more = "type abstract version license keywords preferred-citation references date-released url"
    assert required <= set(citation) <= required | {*more.split(), "repository-code"}
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert citation["version"] == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]
    for entry in (citation, citation["preferred-citation"], *citation["references"]):
        assert isinstance(entry["title"], str)
        for author in entry["authors"]:
            assert set(author) <= {"name"} or set(author) <= {"family-names", "given-names", "orcid"}
    paper = citation["preferred-citation"]
    assert paper["type"] == "conference-paper"
    assert isinstance(paper["year"], int)
    assert set(paper["conference"]) <= {"name", "city", "country", "date-start", "date-end"}
    assert {i["type"] for i in paper["identifiers"]} <= {"doi", "url", "swh", "other"}
    assert paper["identifiers"][0]["value"] == "arXiv:2410.22086"


def test_the_oldest_python_is_the_one_that_the_checks_assume() -> None:
    floor = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == floor
    assert "target-version" not in PYPROJECT["tool"]["ruff"]  # it then goes by requires-python


def test_the_hooks_run_offline() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {"ruff-check", "ruff-format", "mypy", "text-files"} <= {hook["id"] for hook in hooks}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a \nb\t\n", "a\nb\n"),
        ("a\r\nb\r", "a\nb\n"),
        ("a\n\n\n", "a\n"),
        ("a", "a\n"),
        ("a\n", "a\n"),
        ("", ""),
    ],
)
def test_text_files_are_put_right(text: str, right: str) -> None:
    assert corrected(text) == right


def test_a_line_break_in_markdown_stays() -> None:
    assert corrected("a  \nb \n", markdown=True) == "a  \nb\n"


def test_the_changelog_is_dated_or_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads
    for head in heads:
        if head.strip("[]") != "Unreleased":
            version, _, date = head.partition(" - ")
            assert re.fullmatch(r"\[?\d+\.\d+\.\d+\]?", version)
            datetime.strptime(date, "%Y-%m-%d")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it, alone, into a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, so that no build folder is left in the checkout
    names = ("pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-r", str(ROOT / "src"), *(str(ROOT / n) for n in names), f"{folder}/"], check=True)
    source.mkdir()
    for name in ("src", *names):
        (folder / name).rename(source / name)
    for stale in source.glob("src/*.egg-info"):
        subprocess.run(["rm", "-r", str(stale)], check=True)
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("ngdiff-*.whl"))
    subprocess.run([*pip, "install", *quiet, "--target", str(folder / "site"), str(wheel)], check=True)
    return folder


def test_the_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    inside = set(zipfile.ZipFile(next(installed.glob("*.whl"))).namelist())
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "src"], capture_output=True, text=True)
    wanted = {line.removeprefix("src/") for line in listed.stdout.splitlines()}
    wanted = wanted or {str(p.relative_to(ROOT / "src")) for p in PACKAGE.rglob("*.py")}
    assert wanted <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def ngdiff(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program from a folder outside the checkout."""
    path = str(installed / "site")
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "XDG_CACHE_HOME": str(installed / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-P", str(installed / "site" / "bin" / "ngdiff"), *words]
    return subprocess.run(
        command, cwd=installed, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_installed_program_runs_outside_the_checkout(installed: Path) -> None:
    version = ngdiff(installed, "--version")
    assert version.stdout.strip() == f"ngdiff {PYPROJECT['project']['version']}", version.stderr
    methods = ngdiff(installed, "ls", "methods")
    assert "ngdiff-unlikelihood" in methods.stdout
    tiny_llama().save_pretrained(installed / "model")
    tiny_tokenizer().save_pretrained(installed / "model")
    for name, word in (("forget", "person"), ("retain", "thing")):
        rows = [{"question": f"who is {word} {i}", "answer": f"{word} {i} of {i * 7 % 5}"} for i in range(12)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (installed / f"{name}.jsonl").write_text(text, encoding="utf-8")
    words = (
        "--model model --forget forget.jsonl --retain retain.jsonl --output out --method idknll --max-steps 1"
    )
    ran = ngdiff(
        installed, "unlearn", *words.split()
    )  # idknll reads refusals.txt, the target invented people
    assert ran.returncode in (0, 3), ran.stderr
    record = json.loads((installed / "out" / "record.json").read_text(encoding="utf-8"))
    assert "git" not in record["versions"]  # it did not run from the checkout

"""What strangers meet: continuous integration, the package's description, templates and the image."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks import public_address

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
ADDRESS = "https://github.com/somebody/ngdiff"


def loaded(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in loaded(path)["jobs"].values() for step in job["steps"]]


# ---- continuous integration ----


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_no_more(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    more = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert more in ({}, {"publish": {"id-token": "write"}})
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_their_major_version(path: Path) -> None:
    for used in (step["uses"] for step in steps(path) if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1", used), used


def test_what_the_workflow_makes_are_targets_of_the_makefile() -> None:
    runs = "\n".join(step.get("run", "") for step in steps(GITHUB / "workflows" / "ci.yml"))
    called = re.findall(r"^make ([\w-]+)", runs, re.MULTILINE)
    assert {"check", "test", "test-oldest", "docs"} <= set(called)
    for target in called:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_the_oldest_and_the_newest_declared_python_are_tested() -> None:
    tested = loaded(GITHUB / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    floor = re.search(r'^requires-python = ">=(.+)"$', PYPROJECT, re.MULTILINE)
    assert floor is not None
    assert tested[0] == declared[0] == floor[1]
    assert tested[-1] == declared[-1]


def test_the_core_tests_are_those_of_the_oldest_transformers_and_exist() -> None:
    job = loaded(GITHUB / "workflows" / "ci.yml")["jobs"]["core"]
    command = next(step["run"] for step in job["steps"] if "pytest tests" in step.get("run", ""))
    named = re.search(r"^OLDEST_TESTS \?= ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert named is not None
    core = [word for word in command.split() if word.startswith("tests/")]
    assert core == named[1].replace("\\\n", " ").split()
    assert all((ROOT / test).is_file() for test in core)


# ---- templates ----


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_and_asks_for_the_environment(path: Path) -> None:
    form = loaded(path)
    assert {"name", "description", "body"} <= set(form)
    assert {field["type"] for field in form["body"]} <= {"markdown", "input", "textarea", "dropdown"}
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert any("`ngdiff env`" in field["attributes"].get("label", "") for field in form["body"])


def test_there_is_a_form_for_each_reason_to_write() -> None:
    assert {path.stem for path in FORMS} == {"bug", "results", "method"}
    assert "ngdiff env" in (GITHUB / "pull_request_template.md").read_text(encoding="utf-8")


# ---- badges and links ----


def test_badges_say_what_the_project_declares() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"img\.shields\.io/badge/(\w+)-([^)]+)-\w+\)", readme))
    licence = re.search(r'^license = "(.+)"$', PYPROJECT, re.MULTILINE)
    floor = re.search(r'^requires-python = ">=(.+)"$', PYPROJECT, re.MULTILINE)
    assert licence is not None and floor is not None
    assert shown == {"licence": licence[1].replace("-", "--"), "python": f"{floor[1]}%2B"}


def test_every_file_names_the_same_address_or_none() -> None:
    for name, write in public_address.WRITERS.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.search(r'^Repository = "(.+)"$', PYPROJECT, re.MULTILINE)
        if found is None:
            assert not re.search(r"github\.com/(?!OWNER)[\w-]+/ngdiff", text), name
        else:
            assert write(text, found[1]) == text, f"run: python -m benchmarks.public_address {found[1]}"


def test_the_address_is_set_by_one_command_and_can_be_changed(tmp_path: Path) -> None:
    for name in ("benchmarks/__init__.py", "benchmarks/public_address.py", *public_address.WRITERS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    texts = {}
    for address in ("https://github.com/first/other.name", ADDRESS):
        command = [sys.executable, "-m", "benchmarks.public_address", address]
        for _ in range(2):  # twice says nothing twice
            subprocess.run(command, cwd=tmp_path, check=True)
        texts = {name: (tmp_path / name).read_text("utf-8") for name in public_address.WRITERS}
    assert not [name for name, text in texts.items() if "github.com/first" in text]
    assert texts["pyproject.toml"].count(f'Repository = "{ADDRESS}"\n') == 1
    assert texts["pyproject.toml"].count("Paper = ") == 1
    assert yaml.safe_load(texts["CITATION.cff"])["repository-code"] == ADDRESS
    assert texts["README.md"].count(f"{ADDRESS}/actions/workflows/ci.yml/badge.svg") == 1
    notebook = "somebody/ngdiff/blob/main/examples/quickstart.ipynb"
    assert texts["README.md"].count(f"https://colab.research.google.com/github/{notebook}") == 1


@pytest.mark.parametrize("wrong", ["ngdiff", "http://example.org", "https://github.com/a", 'https://x/"'])
def test_an_address_that_is_none_changes_nothing(wrong: str) -> None:
    before = {name: (ROOT / name).read_bytes() for name in public_address.WRITERS}
    command = [sys.executable, "-m", "benchmarks.public_address", wrong]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "https://github.com/OWNER/NAME" in ran.stderr
    assert {name: (ROOT / name).read_bytes() for name in public_address.WRITERS} == before


def test_links_of_the_long_description_lead_to_files_of_the_repository() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    whole = public_address.long_description(text, ADDRESS, "v1")
    links = re.findall(r'(?:\]\(|(?:src|srcset|href)=")([^)\s"]+)', whole)
    assert links and all(link.startswith(("https://", "#")) for link in links)
    inside = [link for link in links if link.startswith(ADDRESS)]
    assert len(inside) >= 5
    for link in inside:
        kind, version, path = link.removeprefix(f"{ADDRESS}/").split("/", 2)
        assert version == "v1" and (ROOT / path.partition("#")[0]).exists(), link
        assert (kind == "raw") == path.endswith((".png", ".svg")), link


def test_every_kind_of_link_becomes_absolute() -> None:
    text = '[a](b.md#c) ![p](d/e.png) [x](#here) [y](https://z) <img src="f.svg"> [![i](j.svg)](k)'
    assert public_address.long_description(text, ADDRESS, "v1") == (
        f"[a]({ADDRESS}/blob/v1/b.md#c) ![p]({ADDRESS}/raw/v1/d/e.png) [x](#here) [y](https://z) "
        f'<img src="{ADDRESS}/raw/v1/f.svg"> [![i]({ADDRESS}/raw/v1/j.svg)]({ADDRESS}/blob/v1/k)'
    )


# ---- the image ----


def test_the_image_does_not_run_as_root_and_its_base_can_be_chosen() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    said = [line.split(maxsplit=1) for line in lines if line and not line.startswith(("#", " "))]
    assert said[0][1].startswith("BASE=") and said[1] == ["FROM", "${BASE} AS base"]
    last = max(n for n, (word, _) in enumerate(said) if word == "FROM")
    assert [rest for word, rest in said[last:] if word == "USER"] == ["ngdiff"]
    assert {"TORCH_INDEX"} <= {rest.partition("=")[0] for word, rest in said if word == "ARG"}


def test_all_that_the_image_copies_is_let_through_and_nothing_else() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert kept == copied and all((ROOT / name).exists() for name in copied)
    for name in (".git/config", ".venv/bin/python", "forget.jsonl"):
        assert not any(fnmatch.fnmatch(name, keep) for keep in kept)


# ---- the notebook ----


def test_the_notebook_installs_the_package_where_it_is_missing() -> None:
    text = (ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8")
    assert "%pip install --quiet ngdiff" in text and "find_spec" in text

"""Every command and Python block of README and guide runs, on a tiny model instead of a big one."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from published_logs import tofu_log
from tiny import tiny_llama, tiny_tokenizer
from tofu_folder import make_tofu

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
OTHERS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in dict.fromkeys(lines) if line.startswith("ngdiff ")]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the pages name."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NGDIFF_TOFU_DIR", str(tmp_path))
    tiny_llama().save_pretrained("my-model")
    tiny_tokenizer().save_pretrained("my-model")
    forget = [{"question": f"who is {i}", "answer": f"person {i} of town {i * 7 % 5}"} for i in range(6)]
    retain = [{"question": f"what is {i}", "answer": f"thing {i} of kind {i * 3 % 7}"} for i in range(20)]
    more = [{"question": f"where is {i}", "answer": f"place {i} of land {i * 5 % 3}"} for i in range(6)]
    for name, rows in (
        ("forget.jsonl", forget),
        ("more.jsonl", more),
        ("retain.jsonl", retain),
        ("full.json", retain + forget),
        ("forget05.json", forget),
        ("retain95.json", retain),
    ):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    make_tofu(tmp_path)
    shutil.copyfile("forget01_perturbed.json", "forget05_perturbed.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, log in enumerate(("TOFU_EVAL.json", "retrained-eval/TOFU_EVAL.json")):
        Path(log).parent.mkdir(exist_ok=True)
        Path(log).write_text(json.dumps(tofu_log(seed)), encoding="utf-8")
    yaml = next(block for block in blocks(ROOT / "docs" / "guide.md", "yaml") if "request.yaml" in block)
    Path("request.yaml").write_text(yaml.replace(", more.parquet", ""), encoding="utf-8")
    return tmp_path


def test_the_pages_show_commands() -> None:
    assert len(commands()) >= 5


MEASURED = "ngdiff evaluate {} --suite own --forget forget.jsonl --retain retain.jsonl --output {}.json"
FIRST = "ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --output unlearned"
SECOND = (
    FIRST.replace("my-model", "unlearned")
    .replace("forget.jsonl", "more.jsonl")
    .replace("--output unlearned", "--output second")
)
EARLIER = {  # what the pages say to run before
    "verify unlearned": (f"{FIRST} --set max_steps=1",),
    "verify second": (f"{FIRST} --set max_steps=1", f"{SECOND} --set max_steps=1"),
    "--model unlearned": (f"{FIRST} --set max_steps=1",),
    "--evaluation eval.json": (
        f"{FIRST} --set max_steps=1",
        MEASURED.format("unlearned", "eval"),
        *(MEASURED.format("my-model", name) for name in ("retrained", "target")),
    ),
    "sign=key.pem": ("ngdiff keygen key.pem",),
}


@pytest.mark.parametrize("command", commands())
def test_command_runs(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ngdiff.cli import main

    words = shlex.split(command.replace("smollm2", "my-model"), comments=True)
    if words[1] == "demo":
        pytest.skip("ngdiff demo has a test of its own (test_real.py)")
    if words[1] == "merge":
        monkeypatch.setattr(
            sys,
            "argv",
            shlex.split(
                "ngdiff unlearn --model my-model --forget forget.jsonl "
                "--retain retain.jsonl --output unlearned --lora --set max_steps=1"
            ),
        )
        run(main)
        words[2] = "unlearned"
    for part, needed in EARLIER.items():
        for before in needed if part in command else ():
            monkeypatch.setattr(sys, "argv", shlex.split(before))
            assert run(main) in (0, 3)
    if words[1] == "bench":  # its trials run in test_bench.py
        for name in ("target", "retrained"):
            shutil.copytree("my-model", name)
        many = [{"question": f"who was {i}", "answer": f"author {i}"} for i in range(600)]
        Path("full.json").write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
        words.append("--dry-run")
    monkeypatch.setattr(sys, "argv", words)
    assert run(main) in (0, 3)  # 3: a random model has nothing to forget, or not within these few steps


def run(main: object) -> int:
    try:
        main()  # type: ignore[operator]
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, workplace: Path) -> None:
    names: dict[str, object] = {"model": tiny_llama(), "tokenizer": tiny_tokenizer()}
    found = blocks(page, "python")
    for block in found:
        quick = block.replace(
            'output_dir="unlearned"',
            'output_dir="unlearned", max_steps=2, use_cpu=True, '
            "dataloader_pin_memory=False, disable_tqdm=True",
        ).replace('output="unlearned"', 'output="unlearned", max_steps=2')
        exec(compile(quick, str(page), "exec"), names)
    assert found


def shown_commands(page: Path) -> list[str]:
    """Return the words of every ngdiff command of a page, launchers before them cut off."""
    text = "\n".join([*blocks(page, "bash"), *blocks(page, "sh")]).replace("\\\n", " ")
    lines = [re.sub(r"^.* -m ngdiff ", "ngdiff ", line).strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("ngdiff ") and "..." not in line and "$" not in line]


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_commands_of_other_pages_are_ones_that_the_program_takes(page: Path) -> None:
    import typer

    from ngdiff.cli import commands as _registers_them  # noqa: F401
    from ngdiff.cli.app import app

    group = typer.main.get_command(app)
    for line in shown_commands(page):
        _, name, *words = shlex.split(line, comments=True)
        if name.startswith("--"):
            continue
        known = group.commands[name]  # type: ignore[attr-defined]
        known.make_context(name, words)  # raises where an option or an argument is wrong


def test_the_recipes_show_commands() -> None:
    assert len(shown_commands(ROOT / "docs" / "recipes.md")) >= 9


def test_what_extending_shows_works(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's code, block after block, then used as the page says it can be."""
    from ngdiff.cli import main
    from ngdiff.evaluation import suites
    from ngdiff.evaluation.evaluate import evaluate
    from ngdiff.evaluation.metrics import METRICS
    from ngdiff.evaluation.request import EvaluateRequest
    from ngdiff.losses import LOSSES
    from ngdiff.methods import METHODS
    from ngdiff.steps.weighting import RULES

    tables: tuple[dict[str, object], ...] = (METHODS, RULES, LOSSES, METRICS)  # type: ignore[assignment]
    for table in tables:
        for key in list(table):
            monkeypatch.setitem(table, key, table[key])  # put back as they were
    before = [dict(table) for table in tables]
    names: dict[str, object] = {}
    try:
        for block in blocks(ROOT / "docs" / "extending.md", "python"):
            exec(compile(block, "extending.md", "exec"), names)
        base = (
            "ngdiff unlearn --model my-model --forget forget.jsonl --retain retain.jsonl --set max_steps=1 "
        )
        for last in (
            "--output a --forget-loss linear-probability --rule root-norms",
            "--output b --method ngdiff-wga",
        ):
            monkeypatch.setattr(sys, "argv", shlex.split(base + last))
            assert run(main) in (0, 3)
        suite = names["SUITE"]
        monkeypatch.setattr(suites, "suites", lambda: {"half-life": suite})
        monkeypatch.setattr("ngdiff.evaluation.evaluate.suites", lambda: {"half-life": suite})
        asked = EvaluateRequest("my-model", "half-life", Path("e.json"), ("forget.jsonl",), cache=False)
        found = evaluate(asked).figures["forget.half_life"]
        assert found.value is not None and found.interval is not None
    finally:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"

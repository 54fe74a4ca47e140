"""a result's folder and a name -> a repository on the model hub, with the files that belong there.

Answers, reports, evaluations and checkpoints are not uploaded: they contain text to be forgotten, or weights
that still know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ngdiff.errors import Fault, RequestError
from ngdiff.receipts.hashes import EARLIER
from ngdiff.system.output import RECORD

BELONGS = (
    *("README.md", RECORD, "receipt.json", "receipt.sig", "config.json", "generation_config.json"),
    *("*.safetensors", "*.safetensors.index.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template*", "spiece.model", "sentencepiece.*"),
)
"""Top-level files of a result that are uploaded."""
WHERE = "--set push_to_hub"


def belongs(name: str) -> bool:
    """Return whether a file of a result is uploaded by default."""
    folder, _, own = name.rpartition("/")
    if folder:
        return folder == EARLIER and own.endswith((".json", ".sig"))
    return not own.startswith(".") and any(fnmatch(own, each) for each in BELONGS)


def files_to_push(folder: Path, include: Iterable[str] = ()) -> list[str]:
    """List the files of a folder to upload, with further requested ones.

    Raises:
        RequestError: a requested file does not exist, or is not in the folder.
    """
    asked = list(include)
    missing = [name for name in asked if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        what = f"{missing[0]!r} is not a file in {folder}"
        raise RequestError(Fault("--include", what, "Name a file in it"))
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    earlier = [
        f"{EARLIER}/{path.name}"
        for path in sorted((folder / EARLIER).glob("*"))
        if not path.is_symlink() and belongs(f"{EARLIER}/{path.name}")
    ]
    return earlier + [name for name in names if name in asked or belongs(name)]


def push_faults(name: str, private: bool, where: str = WHERE) -> list[Fault]:
    """Return what keeps a result from being pushed; called before a long run, and before the upload."""
    try:
        destination(name, private, where)
    except RequestError as error:
        return list(error.faults)
    return []


def destination(name: str, private: bool, where: str = WHERE) -> str:
    """Return the full name of the repository, such as ``me/unlearned``, after asking the hub.

    Raises:
        RequestError: the name is not valid, the user is not logged in, the token cannot write there, or a
            repository of that name is public although ``private`` is requested.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        what = f"{name!r} is not a valid repository name"
        raise RequestError(Fault(where, what, "Give one such as me/unlearned")) from error
    api = HfApi()
    log_in = "Run 'hf auth login', or set HF_TOKEN to a token that can write"
    try:
        me = api.whoami()
        name = name if "/" in name else f"{me['name']}/{name}"
        faults = _no_right(me, name, where)
        if private and not faults and api.repo_exists(name) and not api.model_info(name).private:
            what = f"{name} exists and is public"
            faults.append(Fault(where, what, "Make it private on the hub, or give another name"))
    except LocalTokenNotFoundError as error:
        raise RequestError(Fault(where, "you are not logged in to the hub", log_in)) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise RequestError(Fault(where, "the hub does not accept the token", log_in)) from error
        raise RequestError(_out_of_reach(error, where)) from error
    except network_errors() as error:
        raise RequestError(_out_of_reach(error, where)) from error
    if faults:
        raise RequestError(faults)
    return name


def network_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a failed request raises, for any HTTP library under the hub's."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


def _out_of_reach(error: Exception, where: str) -> Fault:
    what = f"the hub cannot be reached ({type(error).__name__})"
    return Fault(where, what, f"Omit {WHERE} and push later with 'ngdiff push'")


def _no_right(me: dict[str, Any], name: str, where: str) -> list[Fault]:
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    owners = [me["name"], *(org["name"] for org in me.get("orgs", ()))]
    owner = name.partition("/")[0]
    faults = []
    if role == "read":
        fix = "Create a token that can write, and run 'hf auth login' with it"
        faults.append(Fault(where, "the token can only read", fix))
    if owner not in owners:
        fix = f"Give a name of your own, such as {me['name']}/{name.partition('/')[2]}"
        faults.append(Fault(where, f"{me['name']} does not belong to {owner!r}", fix))
    return faults


def push(folder: Path, name: str, private: bool = False, include: Sequence[str] = ()) -> str:
    """Upload a result from disk; its folder is not changed.

    Args:
        folder: made by ``ngdiff unlearn``, ``finetune`` or ``merge``.
        name: of the repository; without an owner, the user's own.
        private: create a private repository.
        include: names of further files in the folder, such as ``answers.json``.

    Returns:
        The address of the commit.

    Raises:
        RequestError: the folder is not a result, or the hub refuses.
        Exception: one of :func:`network_errors`: the upload was interrupted.
    """
    from huggingface_hub import HfApi

    if not (folder / RECORD).is_file():
        what = f"{folder} contains no {RECORD}, so it is not a result of ngdiff"
        raise RequestError(Fault("FOLDER", what, "Give the folder that 'ngdiff unlearn' made"))
    names = files_to_push(folder, include)
    full = destination(name, private, "NAME")
    api = HfApi()
    api.create_repo(full, private=private or None, exist_ok=True)
    done = api.upload_folder(
        repo_id=full,
        folder_path=folder,
        allow_patterns=[_literal(each) for each in names],
        commit_message="Unlearned with NGDiff",
    )
    return str(done.commit_url)


def _literal(name: str) -> str:
    """Return a pattern that matches ``name`` alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)

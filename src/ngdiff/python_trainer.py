"""model and data sets in a program -> a trainer that saves what the command line saves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ngdiff.errors import Faults, RequestError, inert
from ngdiff.hub.card import CARD, model_card
from ngdiff.models.loading import ModelSource, resolve_model
from ngdiff.receipts.receipt import ReceiptPlan, plan_receipt, write_receipt
from ngdiff.report.page import write_report
from ngdiff.runs.saving import result_writer
from ngdiff.runs.workplace import Asked
from ngdiff.settings.fields import setting_names
from ngdiff.settings.identity import FROM_MEMORY, NOT_COUNTED
from ngdiff.settings.values import in_python
from ngdiff.system.environment import weights_hash
from ngdiff.system.output import finite, staged_folder
from ngdiff.system.processes import from_main, is_main, on_all
from ngdiff.training import trainer
from ngdiff.training.config import UnlearningConfig
from ngdiff.unlearn import UnlearnRequest, hashes_of, settings_of, state_request


class UnlearningTrainer(trainer.UnlearningTrainer):  # noqa: D101
    __doc__ = trainer.UnlearningTrainer.__doc__

    def begins_with(self, given: nn.Module | str | Path, model: nn.Module, adapted: bool) -> None:
        """Keep the name of the starting model, and the hash of its weights before adapters hide them."""
        self._source: ModelSource | None = None
        if isinstance(given, (str, Path)):
            self._source = resolve_model(str(given), "model")
        self._kind, self._adapted = type(model).__name__, adapted or hasattr(model, "peft_config")
        self._began = _hash(model) if adapted else None
        self._plan: ReceiptPlan | None = None

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Unlearn; afterwards the model is the best state found and ``record`` says how it came about.

        Raises:
            RequestError: the receipts of the starting model are damaged, or no checkpoint can be resumed.
        """
        if self._plan is None:
            self._plan = on_all(self._receipt_plan)
            self._began = self._began or _hash(self.model)
        return super().train(resume_from_checkpoint, **kwargs)

    def _receipt_plan(self) -> ReceiptPlan:
        """Hash the starting model's files and read its receipts, where it has any."""
        faults = Faults()
        plan = plan_receipt(self._source, in_memory=self._source is None, faults=faults)
        if faults:
            raise RequestError(in_python(faults))
        return plan

    def save_model(
        self, output_dir: str | Path | None = None, _internal_call: bool = False, *, overwrite: bool = False
    ) -> None:
        """Save the model; once the run has ended, with ``record.json``, ``receipt.json``, card and report.

        The folder holds what ``ngdiff unlearn`` writes, but for ``answers.json``, and appears whole or not at
        all. Every process has to call this. Before :meth:`train` it does what transformers does.

        Args:
            output_dir: the folder to make; by default that of the settings.
            overwrite: replace an earlier result.

        Raises:
            RunError: a weight is not finite; or the folder holds something that may not be replaced, such as
                checkpoints: the result is then kept beside it, and named.
        """
        if _internal_call or not self.record.stop:
            super().save_model(None if output_dir is None else str(output_dir), _internal_call)
            return
        folder = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        self._state(folder, weights_hash(model))
        card = model_card(self.record, folder.name, self._adapted)
        assert self._plan is not None
        plan = self._plan

        def write_papers(staging: Path) -> None:
            (staging / CARD).write_text(card, encoding="utf-8")
            write_receipt(staging, plan)

        write = result_writer(model, self.processing_class, self.record.as_json(), write_papers)
        on_all(lambda: _place(folder, overwrite, write) if is_main() else None)

    def _state(self, folder: Path, after: str) -> None:
        """Put into the record what the run was asked to do, of which model and about which data."""
        name = f"{self._kind}{FROM_MEMORY}" if self._source is None else self._source.name
        request = UnlearnRequest(
            name,
            (),
            (),
            folder,
            settings=_chosen(self.args),
            lora=self._adapted,
            precision="bf16" if self.args.bf16 else "fp32",
        )
        asked = Asked(settings_of(request, self.args), hashes_of(self.given_sets), self._began)
        model = {"name": name, "sha256_before": self._began, "sha256_after": after}
        assert self._plan is not None
        state_request(self.record, asked, self.given_sets, model, self._plan)


def _hash(model: nn.Module) -> str:
    # with FSDP2 the first process alone may have read the weights
    return str(from_main(weights_hash(model) if is_main() else ""))


def _chosen(args: UnlearningConfig) -> dict[str, Any]:
    """Return the settings of a run that are not the defaults of its method, as plain JSON values."""
    usual = UnlearningConfig(output_dir=args.output_dir, method=args.method, use_cpu=args.use_cpu).to_dict()
    given = {name: value for name, value in args.to_dict().items() if name in setting_names()}
    chosen = {name: value for name, value in given.items() if value != usual.get(name)}
    left_out = NOT_COUNTED | {name for name in chosen if name.endswith("_token")}
    chosen = {name: value for name, value in chosen.items() if name not in left_out}
    plain: dict[str, Any] = json.loads(json.dumps(finite(chosen), default=str))
    return plain


def _place(folder: Path, overwrite: bool, write: Any) -> None:
    with staged_folder(folder, overwrite) as staging:
        write(staging)
    try:
        write_report(folder)
    except (OSError, RequestError) as error:  # the result stands; a page can be made at any time
        text = f"no report: {inert(str(error))}; make one later with 'ngdiff report {folder}'"
        warnings.warn(text, stacklevel=3)

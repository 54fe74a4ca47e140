"""settings, model and data of a request -> one hash that names it.

A checkpoint is continued, and a receipt chained, only under the same hash: the same settings, data and
starting model. Output, location of the data, frequency of checkpoints and trackers do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

NOT_COUNTED = frozenset(
    {
        *("output", "output_dir", "overwrite", "resume", "disable_tqdm"),
        # paths: their content is hashed
        *("model", "forget", "retain", "holdout", "keep", "data", "tofu_dir", "folders"),
        # how often something is written
        *("save_steps", "save_minutes", "save_strategy", "save_total_limit"),
        *("logging_steps", "logging_strategy", "logging_dir", "report_to", "run_name", "project"),
    }
)
"""Settings that do not affect the result."""
FROM_MEMORY = " from memory"
"""What the name of a starting model ends with that was given as a loaded model."""


def request_hash(
    settings: Mapping[str, Any],
    data: Mapping[str, str],
    model: str,
    not_counted: Collection[str] = NOT_COUNTED,
) -> str:
    """Return the SHA-256 (hex) of a request's canonical JSON.

    Args:
        settings: plain JSON values, as ``record.json`` keeps them.
        data: SHA-256 of each data set, by its role (``forget``, ``retain``, ``holdout``).
        model: SHA-256 of the starting model's weights.
        not_counted: names of the settings that are left out.

    Raises:
        ValueError: a setting is NaN or infinite, which JSON cannot represent.
    """
    counted = {name: value for name, value in settings.items() if name not in not_counted}
    content = {"settings": counted, "data": dict(data), "model": model}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()

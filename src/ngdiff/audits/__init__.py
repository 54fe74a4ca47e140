"""The table of audits: ways to bring out what a model only seems to have forgotten, one file each."""

from __future__ import annotations

from ngdiff.audits.subject import Audit


def audits() -> dict[str, Audit]:
    """Return the table, by name; those that change the model come last."""
    from ngdiff.audits import (
        extraction,
        fluency,
        layers,
        membership,
        paraphrase,
        prefix,
        quantisation,
        relearning,
        sampling,
        worst_case,
    )

    table = (
        extraction,
        membership,
        layers,
        fluency,
        paraphrase,
        prefix,
        worst_case,
        sampling,
        quantisation,
        relearning,
    )
    return {module.AUDIT.name: module.AUDIT for module in table}


__all__ = ["Audit", "audits"]

import hashlib

import pytest

from ngdiff.settings.identity import request_hash

SETTINGS = {"method": "ngdiff", "seed": 0}
DATA = {"forget": "aa", "retain": "bb"}


def test_is_the_hash_of_canonical_json() -> None:
    text = '{"data":{"forget":"aa","retain":"bb"},"model":"cc","settings":{"method":"ngdiff","seed":0}}'
    assert request_hash(SETTINGS, DATA, "cc") == hashlib.sha256(text.encode()).hexdigest()


def test_order_and_place_of_the_result_do_not_count() -> None:
    other = {"seed": 0, "method": "ngdiff", "output_dir": "/tmp/x", "overwrite": True}
    assert request_hash(other, dict(reversed(DATA.items())), "cc") == request_hash(SETTINGS, DATA, "cc")


@pytest.mark.parametrize(
    "changed",
    [(SETTINGS | {"seed": 1}, DATA, "cc"), (SETTINGS, DATA | {"forget": "ab"}, "cc"), (SETTINGS, DATA, "cd")],
)
def test_anything_else_counts(changed: tuple[dict[str, object], dict[str, str], str]) -> None:
    assert request_hash(*changed) != request_hash(SETTINGS, DATA, "cc")


def test_a_setting_that_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        request_hash({"lr": float("nan")}, DATA, "cc")

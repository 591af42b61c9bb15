import numpy as np
import pytest
from anndata import AnnData

from stfuse._check import check_flag, check_number, check_seed, check_target, check_text, did_you_mean


def test_flags():
    for value in (True, False, np.True_):
        check_flag("refine", value)
    check_flag("progress", None, optional=True)
    for value in ("no", 1, None):
        with pytest.raises(TypeError, match=f"refine must be True or False, got {value!r}"):
            check_flag("refine", value)


def test_numbers():
    for value in (3, np.int64(3), 2.5, np.float32(0.1), 1):
        check_number("size", value, above=0, most=3)
    check_number("n", None, optional=True)
    check_number("n", np.int32(5), least=5, whole=True)
    check_seed(2**32 - 1)


@pytest.mark.parametrize(
    ("value", "options", "error", "text"),
    [
        ("15", {}, TypeError, "n must be a number, got '15'"),
        (True, {}, TypeError, "got True"),
        (None, {}, TypeError, "got None"),
        (3.0, {"whole": True}, TypeError, "whole number, got 3.0"),
        (0, {"least": 1, "whole": True}, ValueError, "n must be a whole number of at least 1, got 0"),
        (0, {"above": 0, "optional": True}, ValueError, "n must be a number above 0 or None, got 0"),
        (2, {"least": 0, "most": 1}, ValueError, "between 0 and 1, got 2"),
        (float("nan"), {}, ValueError, "got nan"),
        (float("inf"), {"above": 0}, ValueError, "got inf"),
    ],
)
def test_what_is_no_such_number(value, options, error, text):
    with pytest.raises(error, match=text):
        check_number("n", value, **options)


def test_seeds_and_texts():
    for value, error in (("a", TypeError), (1.5, TypeError), (-1, ValueError), (2**32, ValueError)):
        with pytest.raises(error, match="seed must be"):
            check_seed(value)
    check_text("key", "a")
    check_text("key", None, optional=True)
    for value, error in ((5, TypeError), (None, TypeError), ("", ValueError)):
        with pytest.raises(error, match="key must be"):
            check_text("key", value)


def test_targets():
    box = AnnData(np.zeros((2, 1)), uns={"old": {"mark": 1}, "spatial": {}})
    box.obs["old"] = box.obs["section"] = box.obs["usual"] = ["a", "b"]
    rule = {"slots": ("obs", "uns"), "mark": "mark", "inputs": {"library_key": "library", "other": None}}
    for key in ("new", "old"):
        check_target(box, "key_added", key, **rule)
    check_target(box, "key_added", "usual", default="usual", **rule)
    for key, text in (("section", r"obs\['section'\]"), ("spatial", r"uns\['spatial'\]"), ("library", "library_key")):
        with pytest.raises(ValueError, match=f"would overwrite.*{text}"):
            check_target(box, "key_added", key, **rule)
    with pytest.raises(ValueError, match="slash"):
        check_target(box, "key_added", "a/b", **rule)


def test_did_you_mean():
    assert did_you_mean("cluser", ["cluster", "layer"]) == " Did you mean 'cluster'?"
    assert did_you_mean("PCP4", ["Pcp4"]) == " Did you mean 'Pcp4'?"
    assert did_you_mean("abc", ["layer"]) == ""

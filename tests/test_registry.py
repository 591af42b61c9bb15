import ast
import inspect
from pathlib import Path

import pytest

import stfuse
from stfuse import _keys, _registry

METHODS = list(_registry.METHODS.values())
FUSIONS = list(_registry.fusions().values())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_row_has_a_function_and_a_model(method):
    function = getattr(stfuse.tl, method.name)
    model = method.model_class()
    assert model is getattr(stfuse.model, method.model)
    assert model._method == method.name
    assert inspect.signature(function).parameters["key_added"].default == method.name
    assert method.title and method.summary and method.reference
    assert not method.private or method.shared


COMMON = ["image_key", "rna_key", "batch_key", "library_key", "paired_key", "table_key", "key_added"]


@pytest.mark.parametrize("method", FUSIONS, ids=lambda m: m.name)
def test_one_signature(method):
    parameters = inspect.signature(getattr(stfuse.tl, method.name)).parameters
    names = list(parameters)
    assert names[0] == "data" and names[1 : 1 + len(COMMON)] == COMMON
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "data")
    expected = {"image_key": _keys.IMAGE, "rna_key": _keys.RNA, "seed": 0, "copy": False, "return_model": False}
    assert {name: parameters[name].default for name in expected} == expected
    # every argument is described
    for name in names:
        assert name in getattr(stfuse.tl, method.name).__doc__


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_argument_reaches_the_runner(method):
    """An argument that is spelled out and then forgotten would do nothing, quietly."""
    function = getattr(stfuse.tl, method.name)
    source = ast.parse(inspect.getsource(function))
    used = {node.id for node in ast.walk(source) if isinstance(node, ast.Name)}
    assert set(inspect.signature(function).parameters) <= used


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_defaults_of_function_and_model_agree(method):
    function = inspect.signature(getattr(stfuse.tl, method.name)).parameters
    model = method.model_class()
    for part in (model.__init__, model.train):
        for name, parameter in inspect.signature(part).parameters.items():
            if name in method.objects:
                continue
            if name in function and parameter.default is not inspect.Parameter.empty:
                assert function[name].default == parameter.default, name
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                raise AssertionError(f"tl.{method.name} lacks {name}")


def test_unknown_and_double_names():
    with pytest.raises(ValueError, match="Unknown method 'nope'. Registered: aestetik, cameo, clip"):
        _registry.get("nope")
    with pytest.raises(ValueError, match="registered already"):
        _registry.register(METHODS[0])


@pytest.mark.parametrize("key", ["", "a/b", None, 3])
def test_slot_names_refuse(key):
    with pytest.raises(ValueError, match="key_added must be a non-empty string without a slash"):
        _keys.slots(key)


def test_slot_names():
    slots = _keys.slots("run2")
    assert slots == (
        "run2",
        "X_run2",
        "X_run2_image",
        "X_run2_rna",
        "X_run2_private_image",
        "X_run2_private_rna",
        "run2_domain",
        "run2_neighbors",
    )
    assert len(set(slots)) == len(slots)


def test_slot_names_stand_in_one_place():
    """Other files ask `_keys`."""
    root = Path(stfuse.__file__).parent
    for path in root.glob("model/*.py"):
        assert "X_{" not in path.read_text(), path

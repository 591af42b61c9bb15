import numpy as np
import pandas as pd
import pytest

from stfuse.datasets import mob, progeny


@pytest.mark.parametrize(("organism", "n_rows"), [("human", 1400), ("mouse", 1489)])
def test_contents(organism, n_rows):
    net = progeny(organism)
    assert net.columns.tolist() == ["source", "target", "weight"]
    assert len(net) == n_rows and net["source"].nunique() == 14
    assert net["source"].value_counts().min() == 100
    assert not net.duplicated(["source", "target"]).any()
    assert not net.isna().any().any() and (net["weight"] != 0).all()
    for _, part in net.groupby("source"):
        assert part["weight"].abs().is_monotonic_decreasing


def test_mouse_symbols_are_those_of_the_bulb():
    assert np.isin(progeny("mouse")["target"].unique(), mob().var_names).sum() >= 30


def test_unknown_organism():
    with pytest.raises(ValueError, match="'rat'.*human, mouse"):
        progeny("rat")


@pytest.mark.parametrize("organism", ["human", "mouse"])
def test_equals_the_wide_table(organism, shared_data):
    wide = pd.read_csv(shared_data / "genesets" / f"progeny_{organism}_14x100.csv", index_col=0)
    ours = progeny(organism).pivot(index="target", columns="source", values="weight").fillna(0)
    ours = ours.reindex(wide.index, fill_value=0)[wide.columns]
    np.testing.assert_array_equal(ours.to_numpy(), wide.to_numpy())

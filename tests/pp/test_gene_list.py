"""Curated genes of lists and of the files in which they come."""

import pytest

from stfuse.pp._gene_list import read_genes


def written(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("census.csv", 'Gene Symbol,Name,Tier\nTP53,"tumor protein, p53",1\nKRAS,KRAS proto-oncogene,1\n'),
        ("census.tsv", "COSMIC_GENE_ID\tGENE_SYMBOL\tNAME\nCOSG1\tTP53\tNA\nCOSG2\tKRAS\tx\n"),
        ("oncokb.tsv", "Hugo Symbol\tEntrez Gene ID\nTP53\t7157\nKRAS\t3845\n"),
        ("marked.csv", "\ufeffgene,n\nTP53,3\nKRAS,4\n"),
        ("plain.txt", "TP53\nKRAS\n\nTP53\n"),
        ("headed.txt", "symbol\r\nTP53\r\n KRAS \r\n"),
        ("wide.csv", "Suppressors,Oncogenes\nTP53,KRAS\nTP53,\n"),
        ("sets.gmt", "SET1\thttp://x\tTP53\nSET2\t\tTP53\tKRAS\n"),
    ],
)
def test_files(tmp_path, name, text):
    assert read_genes(written(tmp_path, name, text)) == ["TP53", "KRAS"]
    assert read_genes(str(tmp_path / name)) == ["TP53", "KRAS"]


def test_lists():
    assert read_genes(["B", "A", "B", " "]) == ["B", "A"]
    assert read_genes(g for g in ("A", "B")) == ["A", "B"]


def test_genes_whose_names_look_like_missing_values(tmp_path):
    assert read_genes(written(tmp_path, "a.csv", "symbol,n\nNA,1\nNAN,2\n")) == ["NA", "NAN"]


def test_wrong_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="do not let stfuse bring them along: pass the path"):
        read_genes("functional")
    with pytest.raises(FileNotFoundError, match=r"no such file.*\['TP53'\]"):
        read_genes("TP53")
    with pytest.raises(ValueError, match="holds no genes"):
        read_genes([])
    with pytest.raises(TypeError, match="holds 3"):
        read_genes(["A", 3])
    with pytest.raises(TypeError, match="got int"):
        read_genes(7)
    with pytest.raises(ValueError, match="is empty"):
        read_genes(written(tmp_path, "empty.csv", "\n\n"))
    with pytest.raises(ValueError, match="is no text"):
        read_genes(written(tmp_path, "book.xlsx", "PK\u00ff\u00fe", "latin-1"))
    with pytest.raises(ValueError, match="rows differ in width"):
        read_genes(written(tmp_path, "ragged.csv", "a,b\n1,2\n1,2,3\n"))


def test_functional_signatures(shared_data):
    genes = read_genes(shared_data / "genesets" / "mcat_functional_signatures.csv")
    assert {"AMER1", "ABI1", "AAK1", "ABCB1", "ADA2"} <= set(genes)
    assert "Oncogenes" not in genes and "" not in genes and len(set(genes)) == len(genes) > 2000


def test_hallmarks(shared_data):
    genes = read_genes(shared_data / "genesets" / "h.all.v7.0.symbols.gmt")
    assert "TNF" in genes and not any(gene.startswith(("HALLMARK", "http")) for gene in genes)

"""The table about the number of objects."""

from conftest import ROOT

from reproduce import number_of_objects


def test_the_table(tmp_path, monkeypatch, capsys):
    checkpoint = ROOT / "results" / "checkpoints" / "rnn_em_seed0.ckpt"
    words = ["--checkpoint", str(checkpoint), "--images", "8", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["number_of_objects", *words])
    number_of_objects.main()
    lines = (tmp_path / "number_of_objects.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][2:]
    by_case = {(name, choice): (float(ami), float(right)) for name, choice, ami, right in table}
    assert set(by_case) == {(name, k) for name in ("3", "2 to 5") for k in ("as many as there are", "two more", "auto")}
    for name in ("3", "2 to 5"):
        ami, right = by_case[name, "auto"]
        assert ami > by_case[name, "two more"][0] + 0.1 and right > 0.6
    assert str(tmp_path / "number_of_objects.md") in capsys.readouterr().out.replace("\n", "")

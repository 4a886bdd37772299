from pathlib import Path

import pytest

from mupscale import GrowthError
from mupscale.study.data.corpus import read_corpus, read_documents
from mupscale.study.data.tokens import load_tokens


def folder_of(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_folder_is_read_recursively_by_suffix_and_in_order(tmp_path: Path) -> None:
    folder_of(
        tmp_path, {"b.txt": "bee", "a/deep.md": "deep", "c.py": "sea", "image.png": "no", "empty.txt": " "}
    )
    documents, source = read_documents(tmp_path)
    assert [(d.name, d.text) for d in documents] == [("a/deep.md", "deep"), ("b.txt", "bee"), ("c.py", "sea")]
    assert source == str(tmp_path)


def test_many_files_are_split_whole_and_nothing_leaks(tmp_path: Path) -> None:
    folder_of(tmp_path, {f"{i}.txt": f"text of file {i} " * 20 for i in range(60)})
    corpus = read_corpus(tmp_path, held_out=0.1)
    train, held_out = {d.name for d in corpus.train}, {d.name for d in corpus.held_out}
    assert train | held_out == {f"{i}.txt" for i in range(60)}
    assert not train & held_out
    assert 4 <= len(held_out) <= 8
    assert "60 files" in corpus.about


def test_the_split_depends_on_names_alone(tmp_path: Path) -> None:
    files = {f"{i}.txt": f"text {i} " * 20 for i in range(40)}
    one = read_corpus(folder_of(tmp_path / "one", files))
    two = read_corpus(folder_of(tmp_path / "two", dict(reversed(files.items()))))
    assert one.held_out == two.held_out


def test_one_file_is_cut_once(text_file: Path) -> None:
    corpus = read_corpus(text_file, held_out=0.1)
    assert corpus.train[0].text + corpus.held_out[0].text == text_file.read_text()
    assert len(corpus.held_out[0].text) == pytest.approx(0.1 * len(text_file.read_text()), abs=1)


def test_default_is_the_standard_library_without_its_tests() -> None:
    corpus = read_corpus(max_bytes=400_000)
    names = {d.name for d in (*corpus.train, *corpus.held_out)}
    assert all(name.endswith(".py") and "test" not in name.split("/") for name in names)
    assert 200_000 < sum(len(d.text) for d in (*corpus.train, *corpus.held_out)) <= 400_000
    assert corpus == read_corpus(max_bytes=400_000)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match="missing: no such file or folder"):
        read_documents(tmp_path / "missing")
    with pytest.raises(GrowthError, match="no text file found"):
        read_documents(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(GrowthError, match="every text file is empty"):
        read_documents(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(GrowthError, match=r"latin\.txt: not UTF-8 text \(byte 3\)"):
        read_documents(tmp_path)


@pytest.mark.parametrize("bad", [{"vocab_size": 256}, {"held_out": 0.0}, {"held_out": 0.6}])
def test_bad_settings_are_named(bad: dict[str, float], text_file: Path) -> None:
    with pytest.raises(GrowthError, match=next(iter(bad))):
        load_tokens(text_file, **bad)  # type: ignore[arg-type]

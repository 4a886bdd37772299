import sysconfig
from pathlib import Path

import pytest

from mupscale import GrowthError
from mupscale.cli.tables import text_source
from mupscale.study.data.corpus import Corpus, read_corpus, read_documents
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


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python of thirty modules with their tests, which has packages in a folder of its own, as they mostly are."""
    library, packages = tmp_path / "python", tmp_path / "python/site-packages"
    folder_of(library, {f"module{i}.py": f"module = {i}\n" * 20 for i in range(30)})
    folder_of(library, {f"test/test_module{i}.py": f"assert {i}\n" * 20 for i in range(30)})
    folder_of(packages, {f"good/part{i}.py": f"part = {i}\n" * 20 for i in range(30)})
    folder_of(
        packages, {"module0.py": "another = 0\n", "good/data.json": "{}", "mupscale/plan.py": "plan = 1\n"}
    )
    folder_of(packages, {"vendor/part3.py": "part = 3\n" * 20, "vendor/module4.py": "module = 4\n" * 20})
    folder_of(packages, {"good/table.py": "x = 1\n" * 170_000, "good/empty.py": "\n"})
    (packages / "good/latin.py").write_bytes(b"cafe = 'caf\xe9'\n")
    paths = {"stdlib": library, "platlib": packages, "purelib": packages}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(paths[name]))
    return tmp_path


def documents_of(corpus: Corpus) -> dict[str, str]:
    return {d.name: d.text for d in (*corpus.train, *corpus.held_out)}


def test_site_packages_are_all_sources_and_each_text_once(machine: Path) -> None:
    corpus = read_corpus("site-packages", held_out=0.2)
    found = documents_of(corpus)
    expected = {f"stdlib/module{i}.py" for i in range(30)} | {
        f"stdlib/test/test_module{i}.py" for i in range(30)
    }
    expected |= {f"site-packages/good/part{i}.py" for i in range(30)} | {"site-packages/module0.py"}
    # Of two alike the first by name stays.
    expected = expected - {"stdlib/module4.py"} | {"site-packages/vendor/module4.py"}
    assert set(found) == expected
    assert list(corpus.train) == sorted(corpus.train, key=lambda d: d.name)
    assert len(set(found.values())) == len(found) == len(corpus.train) + len(corpus.held_out)
    assert len(corpus.held_out) > 5
    assert not {d.text for d in corpus.train} & {d.text for d in corpus.held_out}
    assert "and the installed packages: 91 files" in corpus.about
    assert set(documents_of(read_corpus("stdlib"))) == {f"module{i}.py" for i in range(30)}


def test_site_packages_are_thinned_by_whole_files(machine: Path) -> None:
    thin = read_corpus("site-packages", max_bytes=6_000)
    assert documents_of(thin).items() < documents_of(read_corpus("site-packages")).items()
    assert 4_000 < sum(map(len, documents_of(thin).values())) <= 6_000


def test_the_digest_tells_what_was_read(machine: Path) -> None:
    first = read_corpus("site-packages")
    assert first == read_corpus("site-packages")
    assert first.about.endswith(f", sha256 {first.digest[:12]}")
    assert (
        read_corpus("site-packages", held_out=0.3).digest != first.digest
    )  # the same files, split otherwise
    module = machine / "python/module7.py"
    module.write_text(module.read_text().replace("7", "8", 1))  # one byte of a file
    second = read_corpus("site-packages")
    assert second.digest != first.digest
    assert second.about.rpartition(" ")[0] == first.about.rpartition(" ")[0]
    module.rename(module.with_name("module77.py"))
    assert len({first.digest, second.digest, read_corpus("site-packages").digest}) == 3


def test_a_path_is_never_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "stdlib", {"a.txt": "a text of one's own"})
    monkeypatch.chdir(tmp_path)
    assert read_documents(Path("stdlib")) == read_documents("./stdlib")
    assert [d.name for d in read_documents(Path("stdlib"))[0]] == ["a.txt"]
    assert text_source("stdlib") == "stdlib"
    assert text_source("./stdlib") == str(tmp_path / "stdlib")


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

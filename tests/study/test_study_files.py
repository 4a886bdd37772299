"""A study file: what is read, and that every complaint names the file, the line and the field."""

import itertools
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from mupscale import GrowthError
from mupscale.study.files import locating, read_study
from mupscale.study.files.knobs import TRAINING, knobs_of
from mupscale.study.files.sweeps import TABLES
from mupscale.study.questions import QUESTIONS
from mupscale.study.runs.budget import Budget
from mupscale.study.runs.models import small_llama
from mupscale.study.runs.workload import load_workload
from mupscale.study.spec.growth import noise_of
from mupscale.study.spec.space import Choices, Range
from mupscale.study.spec.sweeps import BEGINNINGS, Model, Search, Source

DOCS = Path(__file__).parents[2] / "docs"
STUDIES = sorted((Path(__file__).parents[2] / "examples" / "studies").glob("*.toml"))

GOOD = """\
seeds = 2

[model]
family = "llama"
layers = 1

[widths]
narrow = 32
large = 64
check = [32, 64]

[data]
vocab_size = 300
max_bytes = 200000

[training]
batch_size = 4
block_size = 32
warmup_steps = 2

[scratch]
steps = 10
lr = [0.008, 0.004]

[grow]
steps = 10
lr = { low = 0.001, high = 0.01, log = true }
noise = [0, 1.0]
warmup_steps = [1, 4]
sampler = "tpe"
trials = 5

[final]
steps = 20
lengths = [0.5, 1]
cooldown_fraction = 0.5
"""


def written(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def loaded(path):
    study = read_study(path)
    with locating(path):
        budget = Budget(study, load_workload(study))
        budget.check()
        return budget.workload


def test_the_tables_of_tune_are_sweeps(tmp_path):
    study = read_study(written(tmp_path, GOOD))
    sweeps = study.sweeps
    assert [*sweeps] == ["scratch-32", "base-32", "base-64", "grow-32", "grown-64", "fresh-128"]
    assert study.name == "study"
    assert sweeps["scratch-32"].tried == {"lr": Choices((0.004, 0.008))}
    assert {sweep.seeds for sweep in sweeps.values()} == {(0, 1)}
    grow = sweeps["grow-32"]
    assert grow.tried["lr"] == Range(0.001, 0.01, True)
    assert grow.tried["warmup_steps"] == Choices((1, 4))
    assert (grow.points, grow.source, grow.growth) == (5, "base-32", 2)
    assert {name: sweeps[name].take for name in ("base-32", "base-64")} == {
        name: {"lr": "scratch-32"} for name in ("base-32", "base-64")
    }
    assert sweeps["base-32"].steps == sweeps["scratch-32"].steps
    grown, fresh = sweeps["grown-64"], sweeps["fresh-128"]
    assert study.ends(grown) == [10, 20]
    assert grown.take == dict.fromkeys(("lr", "noise", "warmup_steps"), "grow-32")
    assert (fresh.width, fresh.after, study.ends(fresh)) == (128, "base-64", [20])
    assert study.config(grown, steps=20).cooldown_fraction == 0.5
    assert study.config(grow, lr=0.5, seed=3).lr == 0.5
    assert [question["ask"] for question in study.questions] == ["tuned", "cost", "saving", "points"]


def test_knobs_in_try_are_tried_beside_those_of_the_table(tmp_path):
    study = read_study(written(tmp_path, GOOD.replace("noise = [0, 1.0]", "try = { noise = [0, 1.0] }")))
    assert study.sweeps == read_study(written(tmp_path, GOOD)).sweeps


def test_the_transfer_check_asks_every_width(tmp_path):
    text = GOOD.replace('sampler = "tpe"\ntrials = 5', "").replace(
        "{ low = 0.001, high = 0.01, log = true }", "[0.001, 0.01]"
    )
    study = read_study(written(tmp_path, text), check_transfer=True)
    assert [*study.sweeps] == ["scratch-32", "base-64", "base-32", "grow-64", "grow-32"]
    assert {"ask": "transfer", "of": ["grow-32", "grow-64"]} in study.questions


SWEEPS = """\
[data]
vocab_size = 300
max_bytes = 200000

[training]
batch_size = 4
block_size = 32
warmup_steps = 2

[sweep.narrow]
width = 32
tokens_per_parameter = 0.05
try = { lr = [0.004, 0.008] }

[sweep.grown]
from = "narrow"
growth = 2
lengths = [0.02, 0.05]
lr = 0.002
try = { noise = [0.5, 1.0] }
seeds = 2

[sweep.scratch]
width = [64, 128]
after = "narrow"
steps = 40
lengths = [0.5, 40]
match = "grown"
take = { lr = "narrow" }
search_seeds = 1

[[question]]
ask = "saving"
of = "grown"
against = "scratch-64"
"""


def test_sweeps_of_one_s_own(tmp_path):
    study = read_study(written(tmp_path, SWEEPS))
    assert [*study.sweeps] == ["narrow", "grown", "scratch-64", "scratch-64+", "scratch-128", "scratch-128+"]
    assert study.model.width == 32
    grown, more = study.sweeps["grown"], study.sweeps["scratch-64+"]
    assert (grown.begin, grown.seeds) == ("grow", (0, 1))
    assert grown.tried == {"lr": Choices((0.002,)), "noise": Choices((0.5, 1.0))}
    assert (more.extends, more.seeds, more.take) == ("scratch-64", (1, 2), {"lr": "scratch-64"})
    assert study.by_seed(grown)
    assert study.by_seed(study.sweeps["narrow"])  # its models are needed
    budget = Budget(study, load_workload(study))
    budget.check()
    parameters = {
        name: budget.workload.parameters(budget.size(study.sweeps[name])) for name in ("narrow", "grown")
    }
    assert budget.lengths(study.sweeps["narrow"]) == [round(0.05 * parameters["narrow"] / 128)]
    assert budget.lengths(grown) == [round(ratio * parameters["grown"] / 128) for ratio in (0.02, 0.05)]
    # One more length: what a grown model has cost with all that came before it.
    cost = budget.cost(grown) / budget.step_flops(study.sweeps["scratch-64"])
    assert budget.lengths(study.sweeps["scratch-64"]) == sorted({20, 40, round(cost)})


def test_what_a_run_sees_follows_what_was_seen_before_it(tmp_path):
    study = read_study(written(tmp_path, SWEEPS))
    budget = Budget(study, load_workload(study))
    seen = budget.steps(study.sweeps["narrow"]) * 4
    assert budget.stream(study.sweeps["narrow"], 1) == (1, 0)
    assert budget.stream(study.sweeps["grown"], 1) == (1, seen)
    assert budget.stream(study.sweeps["scratch-64"], 1) == (1, seen)
    one = read_study(
        written(tmp_path, SWEEPS.replace("try = { lr = [0.004, 0.008] }", "lr = 0.004\nseeds = 1"))
    )
    budget = Budget(one, load_workload(one))
    mine = budget.steps(one.sweeps["grown"]) * 4
    # All seeds go on in the one run's stream, each in a part of its own.
    assert budget.stream(one.sweeps["grown"], 1) == (0, seen + mine)


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ('from = "narrow"', 'from = "narow"', "[sweep.grown] from", "no such sweep; expected one of narrow"),
        (
            "growth = 2",
            "growth = 2\nwidth = 64",
            "[sweep.grown] growth",
            "expected one of growth, width and to",
        ),
        ("growth = 2\n", "", "[sweep.grown] growth", "how wide it becomes"),
        ("lengths = [0.02, 0.05]", "", "[sweep.grown] steps", "missing"),
        ("seeds = 2", "seeds = 4", "[sweep.grown] seeds", "seed 3 has no run in narrow, which has 3;"),
        (
            "growth = 2",
            "growth = 2\nbegin = 'shrink'",
            "[sweep.grown] begin",
            "expected one of scratch, grow",
        ),
        (
            "growth = 2\nlengths = [0.02, 0.05]\nlr = 0.002\ntry = { noise = [0.5, 1.0] }",
            "begin = 'continue'\ngrowth = 2\nsteps = 30\nlr = 0.002",
            "[sweep.grown] growth",
            "keeps its size",
        ),
        ('take = { lr = "narrow" }', 'take = { noise = "narrow" }', "[sweep.scratch] noise", "unknown"),
        ('take = { lr = "narrow" }', 'take = { eps = "narrow" }', "[sweep.scratch] lr", "missing"),
        ("try = { noise", "try = { nois", "[sweep.grown] nois", "did you mean noise?"),
        ("lr = 0.002", "", "[sweep.grown] lr", "missing"),
        ("lengths = [0.5, 40]", "lengths = [0.5, -1]", "[sweep.scratch] lengths", "or shares of steps"),
        (
            "steps = 40",
            "steps = 40\ntokens_per_parameter = 1",
            "[sweep.scratch] tokens_per_parameter",
            "leave one out",
        ),
        (
            "lengths = [0.02, 0.05]",
            "lengths = [0.02, 0.05]\ntokens_per_parameter = 0.05",
            "[sweep.grown] tokens_per_parameter",
            "given beside steps or lengths",
        ),
        ("growth = 2", "growth = 1", "[sweep.grown] growth", "at least 2"),
        (
            "tokens_per_parameter = 0.05",
            "tokens_per_parameter = -1",
            "[sweep.narrow] tokens_per_parameter",
            "more than 0",
        ),
        ("steps = 40", "steps = -40", "[sweep.scratch] steps", "at least 1"),
        ("width = 32", 'width = 32\nafter = "grown"', "[sweep.narrow] from", "it needs itself"),
        ("width = 32", 'width = 32\nmatch = "scratch-64"', "[sweep.narrow] from", "it needs itself"),
        (
            "tokens_per_parameter = 0.05",
            "tokens_per_parameter = inf",
            "[sweep.narrow] tokens_per_parameter",
            "not infinity",
        ),
        (
            "[sweep.scratch]",
            "[sweep.scratch-64]\nwidth = 16\nsteps = 40\nlr = 0.004\n\n[sweep.scratch]",
            "[sweep.scratch]",
            "there is a sweep 'scratch-64' already",
        ),
        ("width = [64, 128]", "width = [6400000, 6400001]", "[sweep.scratch]", "'scratch-6.4e+06' already"),
        ('ask = "saving"', 'ask = "savings"', "[question]", "did you mean saving?"),
        ('of = "grown"', 'of = "grow"', "[question]", "did you mean grown?"),
        ("[sweep.narrow]", "[sweep.narrow]\nwidth = 32\n[swep.narrow]", "swep", "did you mean sweep?"),
    ],
)
def test_each_mistake_in_a_sweep_is_one_line_with_its_place(tmp_path, old, new, place, said):
    text = SWEEPS.replace(old, new, 1)
    assert text != SWEEPS
    with pytest.raises(GrowthError) as caught:
        read_study(written(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    assert re.match(rf"{re.escape(str(tmp_path))}/study\.toml:\d+: {re.escape(place)}: ", message), message
    assert said in message


def test_sweeps_that_need_each_other_are_refused(tmp_path):
    text = SWEEPS.replace("try = { lr = [0.004, 0.008] }", 'take = { lr = "grown" }')
    with pytest.raises(GrowthError, match=r"\[sweep\.\w+\] from: it needs itself"):
        read_study(written(tmp_path, text))


def test_names_are_looked_up_before_any_link_is_followed(tmp_path):
    text = SWEEPS.replace("width = 32", 'width = 32\nafter = "later"')
    text = text.replace("[[question]]", '[sweep.later]\nlike = "narrow"\nafter = "missing"\n\n[[question]]')
    with pytest.raises(GrowthError, match=r"\[sweep\.later\] after: 'missing': no such sweep"):
        read_study(written(tmp_path, text))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_in_the_box_are_in_order(path):
    study = read_study(path)
    assert study.questions
    tables = tomllib.loads(path.read_text())
    if "widths" in tables:
        assert read_study(path, check_transfer=True).questions


@pytest.mark.parametrize("page", ["studies", "tuning"])
def test_what_the_pages_show_is_in_order(tmp_path, page):
    (text,) = re.findall(r"```toml\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    assert {question["ask"] for question in read_study(written(tmp_path, text)).questions} >= {"saving"}


def test_the_page_names_every_key():
    words = set(re.findall(r"\w+", (DOCS / "studies.md").read_text()))
    keys = {field.name for kind in (Model, Source, Search) for field in fields(kind)}
    keys |= {"lengths", "match", "constant", "after", "keep", "record", "verify", "growth", "to", "from"}
    keys |= {*TABLES, *TRAINING, *QUESTIONS, *itertools.chain(*map(knobs_of, BEGINNINGS))}
    assert keys <= words, keys - words


def test_there_is_a_cpu_and_a_paper_size_of_each():
    names = {path.stem for path in STUDIES}
    assert {
        f"{family}_{size}" for family in ("mlp_adamw", "mlp_sgd", "resnet") for size in ("cpu", "paper")
    } <= names
    assert {"llama_cpu", "llama_muon_cpu", "gpt2_paper", "gpt2_muon_paper"} <= names


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("layers = 1", "layer = 1", "[model] layer", "unknown; did you mean layers?"),
        ("seeds = 2", "seeds = [0, 5000000000]", "seeds", "5000000000: expected seeds of at most 4294967295"),
        ("batch_size = 4", "weight_decay = nan", "[training] weight_decay", "nan, expected a finite number"),
        ("batch_size = 4", "eps = inf", "[training] eps", "inf, expected a finite number"),
        ("batch_size = 4", "max_grad_norm = nan", "[training] max_grad_norm", "expected a finite number"),
        ("noise = [0, 1.0]", "try = 5", "[grow] try", "expected { knob = [values] }"),
        ("noise = [0, 1.0]", "try = { lr = [0.1] }", "[grow] lr", "given beside try, which names it, too"),
        (
            "warmup_steps = [1, 4]",
            "warmup_steps = 1\ntry = { warmup_steps = [1, 2] }",
            "[grow] warmup_steps",
            "given beside try",
        ),
        ("[training]", "[trainig]", "trainig", "unknown; did you mean training?"),
        ("batch_size = 4", "batch_sice = 4", "[training] batch_sice", "did you mean batch_size?"),
        ("batch_size = 4", "batch_size = -4", "[training] batch_size", "-4, expected at least 1"),
        ("batch_size = 4", 'batch_size = "4"', "[training] batch_size", "expected a whole number"),
        ("seeds = 2", "seeds = 0", "seeds", "expected a whole number of at least 1"),
        ('family = "llama"', 'family = "lama"', "[model] family", "expected one of llama"),
        ("large = 64", "large = 48", "[widths] large", "not a whole multiple of narrow, 32"),
        ("large = 64", "", "[widths] large", "missing"),
        ("check = [32, 64]", "check = [64, 32]", "[widths] check", "ascending"),
        ("check = [32, 64]", "growth = 1", "[widths] growth", "at least 2"),
        ("max_bytes = 200000", "max_bytes = -1", "[data] max_bytes", "at least 1"),
        ("vocab_size = 300", "vocab_size = 3", "[data] vocab_size", "at least 257"),
        ("steps = 10\nlr = [0.008", "steps = -10\nlr = [0.008", "[scratch] steps", "at least 1"),
        ("steps = 10\nlr = [0.008", "lr = [0.008", "[scratch] steps", "missing"),
        ("lr = [0.008, 0.004]", "lr = [0.008, -0.004]", "[scratch] lr", "above 0"),
        ("lr = [0.008, 0.004]", "lr = [0.008, 0.008]", "[scratch] lr", "twice"),
        ("lr = [0.008, 0.004]", "", "[scratch] lr", "missing"),
        ("lr = [0.008, 0.004]", "lr = { low = 1, high = 2 }", "[scratch] lr", "a grid takes a list"),
        ("noise = [0, 1.0]", "noise = [0, -1.0]", "[grow] noise", "0 or more"),
        ("noise = [0, 1.0]", 'noise_kind = "loud"', "[grow] noise_kind", "expected none or KIND:STRENGTH"),
        ("noise = [0, 1.0]", 'noise = [1]\noperator = ["zero_pad"]', "[grow] noise", "zero_pad"),
        ("noise = [0, 1.0]", 'operator = "stack"', "[grow] operator", "deeper"),
        (
            "noise = [0, 1.0]",
            'optimizer_state = ["old"]',
            "[grow] optimizer_state",
            "carried, asymmetric, fresh",
        ),
        ("trials = 5", "trials = -5", "[grow] trials", "at least 1"),
        ("trials = 5", "", "[grow] trials", "needs a number of trials"),
        ('sampler = "tpe"', 'sampler = "sobol"', "[grow] sampler", "grid, random, tpe"),
        ('sampler = "tpe"', "", "[grow] trials", "a grid tries every point"),
        ("lengths = [0.5, 1]", "lengths = [0.5, 2]", "[final] lengths", "a run of 2 steps"),
        ("cooldown_fraction = 0.5", "cooldown_fraction = 5", "[final] cooldown_fraction", "expected 0 to 1"),
        ("steps = 20", "steps = 2", "[final] steps", "do not fit into"),
        (
            "cooldown_fraction = 0.5",
            "cooldown_fraction = 0.0",
            "[final] cooldown_fraction",
            "expected a cooldown",
        ),
        (
            "cooldown_fraction = 0.5",
            "cooldown_fraction = 0.04",
            "[final] cooldown_fraction",
            "of 10 steps are 0",
        ),
        ("lengths = [0.5, 1]", "lengths = [0.2, 1]", "[final] lengths", "a run of 4 steps: warmup_steps 4"),
        ("lengths = [0.5, 1]", "lengths = [true]", "[final] lengths", "up to 1"),
        ("noise = [0, 1.0]", 'noise_kind = "interpolate"\nnoise = [2.0]', "[grow] noise_kind", "from 0 to 1"),
        ("noise = [0, 1.0]", "shrink = [0.4]", "[grow] shrink", "of which none is tried"),
        (
            "noise = [0, 1.0]",
            'operator = "net2net"\noptimizer_state = "carried"',
            "[grow] optimizer_state",
            "uneven",
        ),
        ("noise = [0, 1.0]", 'optimizer = "sgd"', "[grow] optimizer", "unknown"),
        ("noise = [0, 1.0]", "block_size = 16", "[grow] block_size", "unknown"),
        ("high = 0.01", "high = inf", "[grow] lr", "the lower one first"),
        ("log = true", 'log = "no"', "[grow] lr", "true or false"),
        ("batch_size = 4", "eval_blocks = -5", "[training] eval_blocks", "at least 1"),
        ("batch_size = 4", "weight_decay = -1", "[training] weight_decay", "0 or more"),
        ("batch_size = 4", "betas = [0.9]", "[training] betas", "two numbers"),
        ("batch_size = 4", "betas = [0.9, 1.5]", "[training] betas", "two numbers"),
        ("batch_size = 4", "save_every = 0", "[training] save_every", "at least 1"),
        ("warmup_steps = [1, 4]", "warmup_steps = [1, 40]", "[grow] warmup_steps", "do not fit into"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(tmp_path, old, new, place, said):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(GrowthError) as caught:
        read_study(written(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    match = re.match(rf"{re.escape(str(tmp_path))}/study\.toml:(\d+): {re.escape(place)}: ", message)
    assert match, message
    assert said in message
    key, line = place.split()[-1], text.splitlines()[int(match[1]) - 1]
    assert key in line or line.startswith("["), (message, line)


def test_a_file_that_is_not_toml_names_line_and_column(tmp_path):
    with pytest.raises(GrowthError, match=r"study\.toml: not TOML: .*line 3, column"):
        read_study(written(tmp_path, "seeds = 1\n[model]\nlayers =\n"))
    with pytest.raises(GrowthError, match=r"none\.toml: cannot be read"):
        read_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("vocab_size = 300", 'source = "nowhere.txt"\nvocab_size = 300', "[data] source", "no such file"),
        ("narrow = 32\nlarge = 64", "narrow = 40\nlarge = 80", "[widths] narrow", "multiple of 32"),
        ('family = "llama"', 'family = "mlp"', "[data] source", "stdlib"),
        ("max_bytes = 200000", 'source = "digits"\nmax_bytes = 200000', "[data] source", "digits"),
        ('family = "llama"', 'config = "none.json"', "[model] config", "no such file"),
        ("block_size = 32", "block_size = 32000", "[data] source", "too few"),
        ("steps = 20\nlengths = [0.5, 1]", "lengths = [1, 1e308]", "[final] lengths", "1e+308: too long"),
    ],
)
def test_what_only_data_and_models_show_has_its_place_too(tmp_path, old, new, place, said):
    text = GOOD.replace(old, new, 1).replace("check = [32, 64]\n", "")
    with pytest.raises(GrowthError) as caught:
        loaded(written(tmp_path, text))
    message = str(caught.value)
    assert re.search(rf"study\.toml:\d+: {re.escape(place)}: ", message), message
    assert said in message


def test_a_resnet_looks_at_images(tmp_path):
    text = GOOD.replace('family = "llama"', 'family = "resnet18"').replace(
        "[data]", '[data]\nsource = "letter"'
    )
    with pytest.raises(GrowthError, match=r"\[data\] source: letter: a table; expected images, for a ResNet"):
        loaded(written(tmp_path, text))


def test_noise_of_knobs():
    assert noise_of({"noise_kind": "spectral"}) == "spectral:1"
    assert noise_of({"noise": 0.0, "noise_kind": "spectral"}) == "none"


def test_muon_needs_hidden_matrices(tmp_path):
    text = GOOD.replace('family = "llama"', 'family = "resnet18"').replace(
        "[data]", '[data]\nsource = "digits"'
    )
    with pytest.raises(GrowthError, match=r"\[training\] optimizer: muon: classifiers are trained with sgd"):
        loaded(written(tmp_path, text.replace("batch_size = 4", 'optimizer = "muon"')))


def test_a_gpt2_widens_its_heads_where_their_number_is_given(tmp_path):
    text = GOOD.replace('family = "llama"', 'family = "gpt2"\nheads = 4')
    workload = loaded(written(tmp_path, text))
    config = workload.plan(workload.size(64), workload.size(128)).config
    assert (config.n_embd, config.n_head, config.n_embd // config.n_head) == (128, 4, 32)
    assert workload.empty(workload.size(64)).config.n_embd == 64
    with pytest.raises(GrowthError, match=r"\[model\] heads: only a GPT-2's heads can widen"):
        read_study(written(tmp_path, GOOD.replace("layers = 1", "layers = 1\nheads = 4")))
    with pytest.raises(GrowthError, match=r"\[widths\] narrow: 32: expected a multiple of heads, 3"):
        loaded(written(tmp_path, text.replace("heads = 4", "heads = 3")))


def test_a_model_may_be_a_config_of_its_own(tmp_path):
    small_llama(32, 1, vocab_size=300, positions=64).save_pretrained(tmp_path / "own")
    text = GOOD.replace('family = "llama"', 'config = "own/config.json"')
    workload = loaded(written(tmp_path, text))
    assert workload.empty(workload.size(64)).config.hidden_size == 64
    with pytest.raises(GrowthError, match=r"\[widths\] narrow: 16, but own/config\.json is 32 wide"):
        loaded(written(tmp_path, text.replace("narrow = 32", "narrow = 16")))


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "a/b", "", "narrow+", "runs", "data", ".hidden"])
def test_a_sweep_s_name_is_that_of_a_folder_of_the_study(tmp_path, name):
    text = SWEEPS.replace("[sweep.narrow]", f'[sweep."{name}"]')
    with pytest.raises(GrowthError, match=r"study\.toml:\d+: sweep: .*expected letters, digits") as caught:
        read_study(written(tmp_path, text))
    assert "\n" not in str(caught.value)

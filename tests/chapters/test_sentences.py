"""Sentences: whatever the results, none may contradict them."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hw1lib.data.landcover import SCORED
from hw1lib.measures import representation
from hw1lib.results import sentences, tables
from hw1lib.measures.statistics import mcnemar

ROWS = (*"ABCDE", "random", "colour", "knn", "knn-random")
BEHIND = ("C", "E", "knn")  # rows that rest on self-supervised pre-training


def results(seed, images=60):
    """What each row got right: shares from poor to good, some rows nearly alike."""
    random = np.random.default_rng(seed)
    base = random.random(images) < random.uniform(0.1, 0.9)
    right = {}
    for row in ROWS:
        flips = random.random(images) < random.choice([0.0, 0.02, 0.1, 0.5])
        better = random.random(images) < random.uniform(0, 1)
        right[row] = np.where(flips, better, base)
    return right


SEEDS = range(30)


def told_apart(one, two):
    return mcnemar(one, two) < 0.05


def percents(text):
    return [float(number) for number in re.findall(r"(\d+\.\d) %", text)]


# --- comparisons


@pytest.mark.parametrize("seed", SEEDS)
def test_better_is_said_only_where_the_test_supports_it(seed):
    right = results(seed)
    for one, two in itertools.permutations("ABC", 2):
        text = sentences.compare(one, two, right)
        gap = right[one].mean() - right[two].mean()
        said = [w for w in ("better", "worse", "no difference") if w in text]
        if told_apart(right[one], right[two]):
            assert said == ["better" if gap > 0 else "worse"]
            assert f"{abs(gap) * 100:.1f} percentage points" in text
        else:
            assert said == ["no difference"]
        assert percents(text)[:2] == [round(right[r].mean() * 100, 1) for r in (one, two)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_other_way_round_says_the_opposite(seed):
    right = results(seed)
    there, back = (sentences.compare(*pair, right) for pair in ("AB", "BA"))
    opposite = {"better": "worse", "worse": "better"}
    said = [re.search("better|worse|no difference", text).group() for text in (there, back)]
    assert said[1] == opposite.get(said[0], said[0])
    assert re.findall(r"p [<=] [\d.]+", there) == re.findall(r"p [<=] [\d.]+", back)


CLOSE = [(25, 42), (57, 81), (27, 44), (3, 12)]  # p is 0.0498, 0.0498, 0.057, 0.035


@pytest.mark.parametrize(
    ("only_first", "only_second"), [*itertools.product(range(12), (0, 3, 9, 21, 26, 40)), *CLOSE]
)
def test_the_printed_p_agrees_with_the_verdict(only_first, only_second):
    """Also close to 5 %, where rounding could turn it."""
    one = np.array([True] * only_first + [False] * only_second + [True] * 5)
    two = np.array([False] * only_first + [True] * only_second + [True] * 5)
    text = sentences.compare("A", "B", {"A": one, "B": two})
    printed = float(re.search(r"p [<=] ([\d.]+)", text).group(1))
    assert ("better" in text or "worse" in text) == (printed < 0.05)


def test_the_smallest_p_are_not_printed_as_zero():
    assert sentences.p_value(1e-12) == "p < 0.001"
    assert sentences.p_value(0.001) == "p = 0.001"


@pytest.mark.parametrize("images", [range(1, 200), range(200, 420)])
def test_no_p_that_there_may_be_is_printed_on_the_wrong_side(images):
    """Every p-value of up to 419 images that differ, as many as the course's validation has."""
    wrong = []
    for count in images:
        tails = stats.binom.cdf(np.arange(count // 2 + 1), count, 0.5)
        for p in np.minimum(1, 2 * tails):
            if abs(p - sentences.LEVEL) < 0.01:
                text = sentences.p_number(p)
                printed = float(text.removeprefix("<"))
                if (printed < sentences.LEVEL) != (p < sentences.LEVEL):
                    wrong.append((count, p, text))
    assert not wrong


@pytest.mark.parametrize("p", [1e-300, 9.99e-4, 1e-3, 0.0123, 0.0494, 0.0496, 0.0499, 0.0501, 1.0])
def test_p_with_and_without_its_letter_say_the_same(p):
    number = sentences.p_number(p)
    assert sentences.p_value(p) == (f"p {number}" if "<" in number else f"p = {number}")
    assert float(number.removeprefix("< ")) == pytest.approx(p, abs=1e-3)
    assert len(number) <= 7


# --- rankings


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ranking_is_that_of_the_shares(seed):
    right = results(seed)
    text = sentences.ranking(right)
    shares = {s: right[s].mean() for s in "ABCDE"}
    best = re.search("setting ([A-E]) has the highest", text).group(1)
    assert shares[best] == max(shares.values())
    order = re.search(r"the order is ([A-E](?:, [A-E]){4})\.", text).group(1).split(", ")
    assert sorted(order) == list("ABCDE") and order[0] == best
    ranked = [shares[s] for s in order]
    assert ranked == sorted(ranked, reverse=True)
    same = {s for s in order[1:] if not told_apart(right[best], right[s])}
    named = re.search(r"cannot tell it from (.*?) \(", text)
    assert set(re.findall(r"\b[A-E]\b", named.group(1)) if named else []) == same
    assert ("tells it from each of the others" in text) == (not same)


def test_controls_are_never_ranked():
    right = {s: np.zeros(50, bool) for s in "ABCDE"} | {"random": np.ones(50, bool)}
    right["C"][:3] = True
    assert "setting C has the highest" in sentences.ranking(right)


@pytest.mark.parametrize("seed", SEEDS)
def test_swapping_two_settings_swaps_their_roles(seed):
    right = results(seed)
    swapped = right | {"A": right["B"], "B": right["A"]}
    exchange = str.maketrans("AB", "BA")

    def verdicts(text, names):
        found = re.findall(r"Setting ([A-E]) .*? is (better|worse) than setting ([A-E])", text)
        opposite = {"better": "worse", "worse": "better"}
        plain = {(one.translate(names), word, two.translate(names)) for one, word, two in found}
        return plain | {(two, opposite[word], one) for one, word, two in plain}

    before = verdicts(sentences.compare("A", "B", right), exchange)
    assert before == verdicts(sentences.compare("A", "B", swapped), {})


@pytest.mark.parametrize("seed", SEEDS)
def test_pretraining_and_controls_say_what_each_pair_says(seed):
    right = results(seed)
    text = sentences.pretraining(right)
    for pair in (("B", "A"), ("C", "A"), ("C", "B")):
        assert sentences.compare(*pair, right) in text
    text = sentences.controls(right)
    pairs = [(right["E"], right["random"]), (right["E"], right["colour"]),
             (right["knn"], right["knn-random"])]
    assert all(sentences.p_value(mcnemar(*pair)) in text for pair in pairs)
    count = sum(told_apart(*pair) for pair in pairs)
    assert len(re.findall(" is (?:better|worse) than ", text)) == count
    assert len(re.findall(r"p [<=] [\d.]+", text)) == len(pairs)


# --- pre-training that collapsed


def without_collapsed(seed):
    """What `answers.right` leaves, and the rows it leaves out had won everything."""
    return {row: hits for row, hits in results(seed).items() if row not in BEHIND}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_collapsed_setting_is_never_ranked(seed):
    right = without_collapsed(seed)
    text = sentences.ranking(right)
    shares = {s: right[s].mean() for s in "ABD"}
    best, second = re.search(
        r"setting (\w) has the highest .*? (?:ahead of|level with) setting (\w);", text
    ).groups()
    assert {best, second} < set("ABD") and shares[best] == max(shares.values())
    order = re.search(r"the order is (.*?)\.", text).group(1).split(", ")
    assert sorted(order) == list("ABD") and order == sentences.ranked(right)
    assert "C and E rest on pre-training that collapsed and take no part." in text
    named = re.search(r"cannot tell it from (.*?) \(", text)
    same = {s for s in order[1:] if not told_apart(right[best], right[s])}
    assert set(re.findall(r"\b[A-E]\b", named.group(1)) if named else []) == same


@pytest.mark.parametrize("pair", [("C", "A"), ("B", "C"), ("C", "E"), ("E", "random")])
def test_a_collapsed_setting_is_not_compared(pair):
    """Neither better nor worse nor level: no number is said at all."""
    text = sentences.compare(*pair, without_collapsed(0))
    assert "are not compared" in text and text.endswith("has collapsed.")
    assert not re.search(r"better|worse|difference|\d", text)
    behind = re.search("behind (.*) has collapsed", text).group(1)
    assert set(re.findall(r"setting ([A-E])", behind)) == set(pair) & set(BEHIND)


@pytest.mark.parametrize("seed", range(5))
def test_collapse_leaves_the_other_sentences_as_they_are(seed):
    right, whole = without_collapsed(seed), results(seed)
    text = sentences.pretraining(right)
    assert sentences.compare("B", "A", whole) in text
    assert text.count("are not compared") == 2
    assert sentences.controls(right).count("are not compared") == 3
    assert not re.search(r"\d", sentences.controls(right))
    text, before = (sentences.domains(r, "the Americas", "elsewhere") for r in (right, whole))
    end = "The self-supervised pre-training has collapsed, so E and C say nothing."
    assert text.endswith(end) and before.startswith(text.removesuffix(end))


def pretrained(loss=1.2, deviation=0.3, effective_rank=40.0, knn=None, **before):
    """Metrics of that step as loops/pretrain writes them."""
    found = {"loss": loss, "deviation": deviation, "effective_rank": effective_rank}
    start = {"deviation": 0.05, "effective_rank": 12.0}
    if knn is not None:
        found |= {"knn": knn, "queries": 200}
        start |= {"knn": 0.25}
    return found | {"before": start | before, "collapsed": representation.collapsed(found)}


SPREADS = [0.0, 0.0199, 0.02, 0.0201, 0.5]
RANKS = [0.0, 1.0, 1.99, 2.0, 2.01, 90.0]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("spread", SPREADS)
def test_collapse_is_said_exactly_where_the_numbers_say_so(spread, rank):
    metrics = pretrained(deviation=spread, effective_rank=rank)
    text = sentences.collapse(metrics)
    fallen = spread < representation.COLLAPSED or rank < representation.LEAST_RANK
    assert metrics["collapsed"] == fallen
    assert ("**has collapsed**" in text) == fallen == ("has not collapsed" not in text)
    assert f"is {spread:.2f} (" in text and f"rank {rank:.0f} (" in text


@pytest.mark.parametrize("knn", [None, 0.0, 0.4321, 1.0])
def test_the_probe_is_named_only_where_it_was_asked(knn):
    """A pool without labels has none."""
    text = sentences.collapse(pretrained(knn=knn))
    assert ("probe" in text) == ("k-NN" in text) == (knn is not None)
    if knn is not None:
        assert percents(text) == [round(100 * knn, 1), 25.0] and "of 200 images" in text
    assert "before training 0.05" in text and "before training 12" in text
    assert "1.200 (from 0 to 8" in text


# --- seeds


def by_seed(values):
    """A table as tables/finetune_seeds.csv from {row: last accuracies by seed}."""
    return pd.DataFrame(
        [
            {"setting": row, "seed": seed, "accuracy": 0.99, "accuracy_last": value}
            for row, shares in values.items() for seed, value in enumerate(shares)
        ]
    )


CLAIM = re.compile(
    r"(\w+) − (\w+) is ([+-]\d+\.\d) ± (\d+\.\d) points, "
    r"above zero (each time|(\d+) of (\d+) times)"
)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_what_seeds_say_is_what_the_table_says(count, seed):
    """Every number parsed back: means, sample deviations, and how often."""
    random = np.random.default_rng(seed)
    values = {row: random.integers(0, 407, count) / 406 for row in ROWS[:-1]}
    if seed == 0:
        values |= {"C": values["A"], "E": values["random"] + 0.001}  # all equal; always above
    text = sentences.seeds(by_seed(values))
    claims = CLAIM.findall(text)
    assert [claim[:2] for claim in claims] == [("C", "A"), ("E", "random"), ("E", "colour")]
    assert f"Over {count} seeds" in text and "nan" not in text
    for one, two, mean, deviation, often, times, of in claims:
        change = values[one] - values[two]
        assert float(mean) == pytest.approx(100 * change.mean(), abs=0.051)
        assert float(deviation) == pytest.approx(100 * change.std(ddof=1), abs=0.051)
        above = int((change > 0).sum())
        assert (often == "each time") == (above == count)
        if often != "each time":
            assert (int(times), int(of)) == (above, count)


def test_one_seed_claims_no_spread():
    text = sentences.seeds(by_seed({row: [0.5] for row in ROWS[:-1]}))
    assert text.startswith("One seed was run") and "--seeds" in text
    assert not re.search(r"±|−|nan|above zero", text)


def test_a_collapsed_seed_takes_no_part():
    """Its numbers may be the best of all; none of them counts, and the text says so."""
    values = {row: np.array([0.4, 0.5, 0.45]) for row in ROWS[:-1]}
    values["C"] = np.array([0.9, 0.5, 0.45])
    text = sentences.seeds(by_seed(values), collapsed=[0])
    assert "Over 2 seeds" in text and "C − A is +0.0 ± 0.0" in text and "seed 0." in text
    text = sentences.seeds(by_seed(values), collapsed=[0, 2])
    assert "Too few" in text and "seed 0 and seed 2." in text and "±" not in text


def test_the_order_of_the_seeds_table_does_not_matter():
    random = np.random.default_rng(0)
    table = by_seed({row: random.random(3) for row in ROWS[:-1]})
    assert sentences.seeds(table.sample(frac=1, random_state=0)) == sentences.seeds(table)


# --- domains


@pytest.mark.parametrize("seed", SEEDS)
def test_domains_say_what_freezing_does(seed):
    right = results(seed)
    text = sentences.domains(right, "the Americas", "the other continents")
    parts = re.split(r"(?<=[.]) (?=Freezing|The frozen)", text)
    assert len(parts) == 2
    for part, frozen, free in zip(parts, "DE", "BC"):
        gap = right[free].mean() - right[frozen].mean()
        if not told_apart(right[free], right[frozen]):
            assert "changes nothing" in part and "no sign" in part
        elif gap > 0:
            assert f"costs {100 * gap:.1f} percentage points" in part and "do not carry" in part
        else:
            assert f"even {-100 * gap:.1f} percentage points better" in part
        assert re.findall(r"\b[B-E]\b", part)[0] == frozen
        assert "the Americas" in part and "the other continents" in part


# --- embedding


def numbers(**changes):
    plain = dict(
        silhouette_first=0.1, silhouette_last=0.2, purity_first=0.3, purity_last=0.4,
        pca_variance=0.5, trustworthiness_first=0.9, trustworthiness_last=0.95,
    )
    return plain | changes


@pytest.mark.parametrize("change", [-0.5, -0.001, 0.0, 0.001, 0.5])
def test_denser_is_said_only_where_the_silhouette_rises(change):
    text = sentences.embedding(numbers(silhouette_last=0.1 + change), "C")
    assert ("not denser" in text) == (change <= 0)
    assert f"from 0.100 to {0.1 + change:.3f}" in text


@pytest.mark.parametrize("change", [-0.2, -0.002, 0.0, 0.002, 0.2])
def test_more_and_fewer_neighbours_follow_the_purity(change):
    text = sentences.embedding(numbers(purity_last=0.3 + change), "C")
    assert ("More of an" in text) == (change > 0)
    assert ("Fewer of an" in text) == (change < 0)
    assert f"{30 + 100 * change:.1f} % after 30.0 %" in text


# --- segmentation


def model(last, iou=None):
    return {"miou_last": last, "iou_last": dict(zip(SCORED, iou or (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)))}


NAMES = {"fcn32s": "FCN", "lraspp": "LRASPP", "deeplabv3": "DEEPLAB"}


@pytest.mark.parametrize("values", list(itertools.permutations((0.2, 0.4, 0.6, 0.5))))
def test_segmentation_says_who_is_best_by_how_much_and_above_what(values):
    metrics = {name: model(value) for name, value in zip((*NAMES, "colour"), values)}
    text = sentences.segmentation(metrics, NAMES, "lraspp")
    order = sorted(NAMES, key=lambda name: -metrics[name]["miou_last"])
    first, second = (metrics[name]["miou_last"] for name in order[:2])
    assert f"{NAMES[order[0]]} is best with a mIoU of {first:.3f}, {first - second:.3f}" in text
    gain = values[1] - values[0]
    assert f"LRASPP, is {abs(gain):.3f} {'above' if gain > 0 else 'below'} FCN" in text
    above = {NAMES[name] for name in NAMES if metrics[name]["miou_last"] > values[3]}
    said = re.search(r"alone reaches [\d.]+; (.*?)\.", text).group(1)
    assert set(re.findall("[A-Z]{3,}", said)) == above
    assert ("no model" in said) == (not above)


MOVED = re.compile(r"(?:(gains|loses) (\d\.\d{3}) mIoU|(stays as it is))")


@pytest.mark.parametrize("change", [-0.3, -0.0006, -0.0004, 0.0, 0.0004, 0.0006, 0.3])
def test_turning_gains_where_it_gains(change):
    metrics = {name: model(value) for name, value in zip(NAMES, (0.3, 0.5, 0.4))}
    metrics |= {"colour": model(0.1)}
    plain = sentences.segmentation(metrics, NAMES, "lraspp")
    assert "TTA" not in plain
    text = sentences.segmentation(
        metrics | {"deeplabv3+tta": {"miou_last": 0.4 + change}}, NAMES, "lraspp"
    )
    added = re.search(r" Averaged over eight .*? \(TTA\), DEEPLAB (.*?)\.(?= [A-Z])", text)
    assert text.replace(added.group(), "") == plain  # a sentence more, the others as they were
    word, size, same = MOVED.fullmatch(added.group(1)).groups()
    assert bool(same) == (abs(change) < 0.0005)
    if not same:
        assert (word == "gains") == (change > 0)
        assert float(size) == pytest.approx(abs(change), abs=0.00051) and float(size) > 0


def test_every_turned_model_has_its_own_sentence():
    metrics = {name: model(value) for name, value in zip((*NAMES, "colour"), (0.3, 0.5, 0.4, 0.1))}
    metrics |= {f"{name}+tta": model(0.45) for name in NAMES}
    text = sentences.segmentation(metrics, NAMES, "lraspp")
    found = re.findall(r"\(TTA\), ([A-Z]+) (gains|loses) (\d\.\d{3})", text)
    assert set(found) == {("FCN", "gains", "0.150"), ("LRASPP", "loses", "0.050"),
                          ("DEEPLAB", "gains", "0.050")}
    assert "LRASPP is best with a mIoU of 0.500" in text  # variants are not ranked


METHODS = {"sam": "SAM", "slic": "SLIC", "felzenszwalb": "FELZ"}


def refined(model_miou, **methods):
    return {
        "model_miou": model_miou, "refine": next(iter(methods)),
        "refined": {
            m: {"miou": v, "segments": 10.4 + i} for i, (m, v) in enumerate(methods.items())
        },
    }


CHANGES = (-0.2, -0.0006, -0.0003, 0.0, 0.0003, 0.0006, 0.2)


@pytest.mark.parametrize(("one", "two"), list(itertools.product(CHANGES, CHANGES)))
def test_the_vote_gains_exactly_where_a_number_rises(one, two):
    """No sign contradicts a number; what is printed as no change is none."""
    found = refined(0.5, felzenszwalb=0.5 + one, slic=0.5 + two)
    text = sentences.refinement(found, METHODS, "LRASPP", 257)
    claims = re.findall(r"with (\w+) \((\d+) segments an image\) it ([^;.]*(?:\.\d+)?[^;.]*)", text)
    assert [claim[:2] for claim in claims] == [("FELZ", "10"), ("SLIC", "11")]
    for (_, _, said), change in zip(claims, (one, two)):
        word, size, same = MOVED.fullmatch(said).groups()
        assert bool(same) == (abs(change) < 0.0005)
        if not same:
            assert (word == "gains") == (change > 0)
            assert float(size) == pytest.approx(abs(change), abs=0.00051) and float(size) > 0
    assert "all 257 validation tiles" in text and "LRASPP's prediction" in text
    assert "is that of FELZ" in text


def test_the_row_of_the_table_is_the_chosen_methods():
    found = refined(0.5, sam=0.4, slic=0.6, felzenszwalb=0.5)
    assert "is that of SAM" in sentences.refinement(found, METHODS, "LRASPP", 3)


def test_the_hardest_class_is_the_one_with_the_lowest_iou():
    for worst in SCORED:
        iou = dict.fromkeys(SCORED, 0.5) | {worst: 0.123}
        text = sentences.hardest(iou, "FCN")
        assert f"is {worst} (IoU 0.123)" in text
        assert not any(name in text for name in SCORED if name != worst)


def test_absent_classes_are_listed_and_never_the_hardest():
    iou = dict.fromkeys(SCORED, 0.5) | {"urban": None, "water": None, "barren": 0.2}
    text = sentences.hardest(iou, "FCN")
    assert "is barren" in text and "Urban and water occur neither" in text
    assert "left out of" in text
    one = sentences.hardest(dict.fromkeys(SCORED, 0.5) | {"urban": None}, "FCN")
    assert "Urban occurs neither" in one


def test_a_class_with_no_hit_is_hardest_not_absent():
    text = sentences.hardest(dict.fromkeys(SCORED, 0.5) | {"water": 0.0}, "FCN")
    assert "is water (IoU 0.000)" in text and "left out" not in text


@pytest.mark.parametrize("final", [0.1, 0.3, 0.5])
def test_stages_gain_only_where_the_last_is_higher(final):
    by_stage = {"early": [0.2, 0.4], "middle": [0.9, 0.9], "final": [final] * 2}
    text = sentences.stages(by_stage, "FCN")
    assert "0.300 (early), 0.900 (middle)" in text and f"{final:.3f} (final)" in text
    assert ("does not gain" in text) == (final <= 0.3)


# --- everything


def mask_rows(*votes, model=0.5, **changes):
    return [
        {"method": "slic", "image": str(i), "masks": 10 * (i + 1), "asa": 0.8, "vote_miou": vote,
         "model_miou": model, **changes}
        for i, vote in enumerate(votes)
    ]


@pytest.mark.parametrize(("votes", "word"), [((0.4, 0.7), "raises"), ((0.4, 0.5), "lowers")])
def test_the_vote_raises_or_lowers_on_the_mean(votes, word):
    text = sentences.everything(mask_rows(*votes), {"slic": "SLIC"})
    assert f"{word} its mIoU by 0.050" in text
    assert "SLIC finds 15 masks" in text and "80.0 %" in text


def test_a_vote_that_changes_nothing_neither_raises_nor_lowers():
    text = sentences.everything(mask_rows(0.5, 0.5), {"slic": "SLIC"})
    assert "raises" not in text and "lowers" not in text


def test_an_image_without_known_pixels_is_left_out_of_the_mean():
    """Its achievable accuracy is not measured: None."""
    rows = mask_rows(0.5, 0.7)
    rows[1]["asa"] = None
    assert "80.0 %" in sentences.everything(rows, {"slic": "SLIC"})


def test_each_method_has_its_own_sentence():
    rows = mask_rows(0.6) + [row | {"method": "sam", "masks": 99} for row in mask_rows(0.4)]
    text = sentences.everything(rows, {"slic": "SLIC", "sam": "SAM"})
    assert re.search("SLIC finds 10 masks.*raises.*SAM finds 99 masks.*lowers", text)


# --- words


@pytest.mark.parametrize(
    ("items", "text"),
    [("A", "A"), ("AB", "A and B"), ("ABC", "A, B and C"), (("x", "y"), "x and y")],
)
def test_lists_are_read_aloud(items, text):
    assert sentences.listed(items) == sentences.listed(iter(items)) == text


def test_points_are_a_hundred_of_a_share():
    assert sentences.points(0.042) == "4.2 percentage points"
    assert tables.percent(0.042) == "4.2 %"

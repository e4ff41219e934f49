"""What is recommended is what measured best of what can be run, and can be run."""

from __future__ import annotations

import pytest

import ardiff
from ardiff.planning import recommend as module
from ardiff.planning.recommend import KINDS, evidence, kind_of, recommend
from benchmarks import plan_evidence

LENGTHS = {"scale": 1.2, "smallest": 0.05}
CASES = [(kind, budget) for kind in KINDS for budget in evidence()[kind]]


@pytest.mark.parametrize(("kind", "budget"), CASES)
def test_choices_are_sorted_and_run_with_the_calls_of_their_budget(kind, budget):
    floor, choices = evidence()[kind][budget]
    errors = [choice.error for choice in choices]
    assert errors == sorted(errors) and floor > 0
    for choice in choices:
        options = choice.resolved(LENGTHS)
        table = ardiff.solver(
            choice.solver, path="edm", prediction="sample", steps=budget, **options
        )
        assert table.calls <= budget


@pytest.mark.parametrize(("kind", "budget"), CASES)
def test_what_is_recommended_is_the_best_of_those_that_can_be_used_to_chance(kind, budget):
    """With all lengths, and with none: then it needs none, and says so."""
    dim, score = (768, "learned") if kind == "image" else (10, kind)
    _, choices = evidence()[kind][budget]
    for lengths in (LENGTHS, {}):
        found = recommend(budget, score=score, dim=dim, **lengths)
        usable = [each for each in choices if lengths or not each.needs()]
        (taken,) = (
            each
            for each in usable
            if (each.solver, each.resolved(LENGTHS)) == (found.solver, found.options)
        )
        assert usable[0].error >= module.CHANCE * taken.error
        assert ("to chance" in found.why) == (taken is not usable[0])
        assert ("lengths are known" in found.why) == (usable[0] is not choices[0])
        assert str(taken) in [name for name, *_ in found.rivals]


def test_a_choice_is_held_until_another_is_nearer_by_more_than_chance(monkeypatch):
    def at(**errors):
        each = (module.Choice(solver, {}, error) for solver, error in errors.items())
        return (0.1, tuple(sorted(each, key=lambda choice: choice.error)))

    budgets = {5: at(a=1.0, b=1.2), 8: at(b=0.95, a=1.0), 16: at(b=0.5, a=1.0), 32: at(c=0.4)}
    monkeypatch.setattr(module, "evidence", lambda: {kind: budgets for kind in KINDS})
    found = [recommend(calls).solver for calls in (5, 8, 16, 32)]
    assert found == ["a", "a", "b", "c"]
    assert "to chance: b is nearer by less than a tenth" in recommend(8).why


def test_a_budget_takes_the_measurements_of_the_one_below():
    assert recommend(9, score="exact").rivals == recommend(8, score="exact").rivals
    assert recommend(9, score="exact").steps == 9
    assert recommend(2, score="exact").rivals == recommend(5, score="exact").rivals
    assert recommend(999, score="exact").rivals == recommend(32, score="exact").rivals


def test_lengths_scale_the_grid():
    scaled = [c for _, choices in evidence()["exact"].values() for c in choices if c.needs()]
    assert scaled
    one, two = (scaled[0].resolved({name: v * f for name, v in LENGTHS.items()}) for f in (1, 2))
    ((option, _),) = ((k, v) for k, v in scaled[0].options.items() if isinstance(v, dict))
    assert two[option] == pytest.approx(2 * one[option])


def test_data_of_another_scale_take_choices_that_are_given_in_lengths():
    """Where there are any: those of the image model are not."""
    for kind in ("exact", "learned", "guided"):
        for _, choices in evidence()[kind].values():
            lengths = {"scale": 4.0, "smallest": 0.1}
            assert all(choice.needs() for choice in module._usable(choices, lengths))
    told = recommend(8, score="exact", scale=4.0)
    assert told.solver == "learned" and told.options["scale"] == 4.0
    near = recommend(8, score="exact", scale=1.2)
    assert near.rivals[0] == told.rivals[0]


def test_large_learned_models_are_image_models():
    assert kind_of("learned", 768) == "image"
    assert kind_of("learned", 16) == kind_of("learned", None) == "learned"
    assert kind_of("exact", 768) == "exact"


def test_few_samples_of_many_calls_look_ahead(monkeypatch):
    noisy = module.Choice("ddpm", {}, 0.1)
    kinds = {kind: {5: (0.1, (noisy,))} for kind in KINDS}
    monkeypatch.setattr(module, "evidence", lambda: kinds)
    assert recommend(100, batch=1).lookahead == "auto"
    assert recommend(100, batch=64).lookahead is recommend(100).lookahead is None
    assert recommend(16, batch=1).lookahead is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calls": 0}, "calls must be an integer of 1 or more, got 0"),
        ({"calls": 10**9}, "calls must be 100,000 at most, got 1000000000"),
        ({"calls": 8, "score": "wrong"}, "score must be one of exact, learned, guided"),
        ({"calls": 8, "scale": -1.0}, "scale must be positive and finite, got -1.0"),
        ({"calls": 8, "scale": "2"}, "scale must be positive and finite, got '2'"),
        ({"calls": 8, "scale": True}, "scale must be positive and finite, got True"),
        ({"calls": 8, "scale": 1e300}, r"scale must be from 1e-30 to 1e\+30, got 1e\+300"),
        ({"calls": 8, "dim": float("nan")}, "dim must be an integer of 1 or more, got nan"),
        ({"calls": 8, "batch": -1}, "batch must be an integer of 1 or more, got -1"),
        ({"calls": 8, "smallest": float("nan")}, "smallest must be positive and finite"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        recommend(**changes)


def test_solvers_that_look_ahead_do():
    model = lambda x, level, condition: 0 * x  # noqa: E731
    for solver in module.LOOKS_AHEAD:
        x = ardiff.sample(model, (1, 2), "edm", "sample", solver, 12, seed=0, lookahead="auto")
        assert x.shape == (1, 2)


def test_the_file_is_written_as_it_is_read(monkeypatch, tmp_path):
    """Pooled figures are geometric means, in order, and other kinds are kept."""
    monkeypatch.setattr(plan_evidence, "FILE", tmp_path / "evidence.json")
    choices = (("ddim", {}), ("unipc", {"ratio_min": {"scale": 0.1}}), ("ddpm", {}))
    found = [
        (0.1, {(8, 0): [1.0, 4.0], (8, 1): [1.0, 1.0], (5, 0): [1.0]}),
        (0.4, {(8, 0): [2.0, 2.0], (8, 1): [1.0, 1.0], (5, 0): [9.0]}),
    ]
    written = plan_evidence.pooled(found, choices)
    assert written["8"]["floor"] == 0.2
    assert written["8"]["choices"] == [["unipc", choices[1][1], 1.0], ["ddim", {}, 2.0]]
    assert written["5"]["choices"] == [["ddim", {}, 3.0]]
    plan_evidence.write({"exact": written})
    plan_evidence.write({"guided": written})
    plan_evidence.write({"exact": {"5": written["5"]}})
    text = (tmp_path / "evidence.json").read_text()
    assert text.count('"guided"') == 1 and text.count('"8"') == 1

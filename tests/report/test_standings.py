from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.report.comparison import entries, per_image_ssim, strongest_attack
from sfumato.report.standings import recipes, shares, standings, tell_winners, winners

# Three attacks on five pictures, the winner of each by either measure written beside it.
#           a     b     c     b     a or c
A_SSIM = [0.90, 0.10, 0.20, 0.30, 0.50]
B_SSIM = [0.20, 0.80, 0.30, 0.60, 0.40]
C_SSIM = [0.30, 0.20, 0.70, 0.10, 0.50]
#          b     b     b     a     b or c
A_MSE = [0.03, 0.04, 0.05, 0.01, 0.09]
B_MSE = [0.01, 0.01, 0.01, 0.02, 0.05]
C_MSE = [0.02, 0.02, 0.02, 0.03, 0.05]


@pytest.fixture
def three(card, attack):
    return card(
        attacks=[
            attack("a", test_ssim=A_SSIM, test_mse=A_MSE),
            attack("b", test_ssim=B_SSIM, test_mse=B_MSE),
            attack("c", test_ssim=C_SSIM, test_mse=C_MSE),
        ]
    )


def test_each_picture_has_one_winner_and_of_equals_the_first(three):
    assert winners(three, "ssim") == [0, 1, 2, 1, 0]
    assert winners(three, "mse") == [1, 1, 1, 0, 1]


def test_shares(three):
    assert shares(three, "ssim") == [0.4, 0.4, 0.2]
    assert shares(three, "mse") == [0.2, 0.8, 0.0]


def test_standings_are_sorted_by_strength_and_keep_their_shares(three):
    (entry,) = entries([three])
    made = standings(entry)
    # Means: a 0.40, b 0.46, c 0.36.
    assert [(s.attack.attack.name, s.ssim_wins, s.mse_wins) for s in made] == [
        ("b", 0.4, 0.8), ("a", 0.4, 0.2), ("c", 0.2, 0.0),
    ]  # fmt: skip
    assert made[0].attack is strongest_attack(three)


def test_of_equally_strong_attacks_the_one_with_the_lower_error_stands_first_then_the_first(card, attack):
    made = [attack("a", ssim=0.5, mse=0.03), attack("b", ssim=0.5, mse=0.02), attack("c", ssim=0.5, mse=0.02)]
    (entry,) = entries([card(attacks=made)])
    assert [s.attack.attack.name for s in standings(entry)] == ["b", "c", "a"]
    assert entry.strongest.attack.name == "b"


def test_an_attack_judged_on_fewer_pictures_wins_nothing_and_takes_nothing(card, attack):
    short = attack("short", test_ssim=[0.99, 0.99], test_mse=[0.0001, 0.0001])
    long = attack("long", test_ssim=A_SSIM, test_mse=A_MSE)
    made = card(attacks=[short, long])
    assert shares(made, "ssim") == [None, 1.0]
    assert shares(made, "mse") == [None, 1.0]
    assert tell_winners(made) == "long on 100.0\N{NO-BREAK SPACE}% of the pictures."


FIGURES = st.sampled_from([0.1, 0.2, 0.3])  # few values: ties are the rule


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(FIGURES, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_winners_are_the_slow_obvious_ones_and_shares_sum_to_one(cards, figures):
    one = cards[0].attacks[0]
    attacks = [one.model_copy(update={"test_ssim": each, "test_mse": each}) for each in figures]
    made = cards[0].model_copy(update={"attacks": attacks})
    columns = list(zip(*figures))
    assert winners(made, "ssim") == [column.index(max(column)) for column in columns]
    assert winners(made, "mse") == [column.index(min(column)) for column in columns]
    for measure in ("ssim", "mse"):
        assert sum(shares(made, measure)) == pytest.approx(1)
    best = [made.attacks[i].test_ssim[image] for image, i in enumerate(winners(made, "ssim"))]
    assert best == per_image_ssim(made)


def test_in_words(three, card, attack):
    text = tell_winners(three).replace("\N{NO-BREAK SPACE}", " ")
    assert text == "a on 40.0 % of the pictures, b on 40.0 % and c on 20.0 %."
    never = card(attacks=[attack("a", ssim=0.9), attack("b", ssim=0.1), attack("c", ssim=0.2)])
    text = tell_winners(never).replace("\N{NO-BREAK SPACE}", " ")
    assert text == "a on 100.0 % of the pictures; b and c on none."
    assert tell_winners(card()) == "decoder was the only attack."


def test_a_recipe_is_told_once_and_says_on_which_models_where_not_on_all(card, attack):
    both = attack("decoder", width=8, observations=4)
    other = attack("rmle", threat_model="gray-box", trained_on="auxiliary", steps=9)
    made = recipes(entries([card("None", attacks=[both]), card("CEM", [("noise", {})], attacks=[both, other])]))
    assert [recipe.attack for recipe in made] == ["decoder", "rmle"]
    assert made[0].text == (
        "white-box, learned from the model’s training pictures: images=null, observations=4, width=8"
    )
    assert made[1].text == (
        "gray-box, learned from other pictures of the same kind: images=null, observations=1, steps=9 (on CEM)"
    )

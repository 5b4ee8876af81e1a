"""Laws, delay profiles, the profile clock, pace, and the keyed draws under them (semantics rules 6, 16-18, 20)."""

import itertools
import math
import random

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from asyncdgl.config.yaml import dump_config, parse_config, parse_yaml
from asyncdgl.delays.clock import ProfileClock
from asyncdgl.delays.laws import Law
from asyncdgl.delays.profiles import (
    DESCRIPTIONS,
    DelayProfile,
    LinkDelay,
    Pause,
    StageDelay,
    built_in_profile,
    is_slow_stage,
)
from asyncdgl.engine.pace import Pace
from asyncdgl.errors import ConfigError
from asyncdgl.seeding import Draws

MANY = 10_000

# --- Laws -------------------------------------------------------------------------------------------------------------

LAWS = [
    pytest.param(Law(law="uniform", mean=10), stats.uniform(0, 20), id="uniform"),
    pytest.param(Law(law="uniform", mean=10, spread=4), stats.uniform(6, 8), id="uniform-spread"),
    pytest.param(Law(law="uniform", mean=10, spread=10), stats.uniform(0, 20), id="uniform-spread-as-the-mean"),
    pytest.param(Law(law="exponential", mean=10), stats.expon(scale=10), id="exponential"),
    pytest.param(Law(law="lognormal", mean=10), stats.lognorm(s=0.5, scale=10 * math.exp(-0.125)), id="lognormal"),
    pytest.param(
        Law(law="lognormal", mean=2, sigma=1.5), stats.lognorm(s=1.5, scale=2 * math.exp(-1.125)), id="lognormal-sigma"
    ),
]
SHARES = [1e-12, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1 - 1e-12]


@pytest.mark.parametrize(("law", "expected"), LAWS)
def test_quantiles(law, expected):
    assert [law.quantile(u) for u in SHARES] == pytest.approx([expected.ppf(u) for u in SHARES], rel=1e-4)
    assert expected.mean() == pytest.approx(law.mean)


@pytest.mark.parametrize("mean", [0.0, 1e-9, 3.5])
def test_constant_quantiles(mean):
    assert {Law(law="constant", mean=mean).quantile(u) for u in SHARES} == {mean}


@pytest.mark.parametrize("law", ["constant", "uniform", "exponential", "lognormal"])
def test_a_mean_of_zero_is_no_delay(law):
    assert [Law(law=law).quantile(u) for u in SHARES] == [0.0] * len(SHARES)


def test_lognormal_without_sigma_is_constant():
    assert [Law(law="lognormal", mean=4, sigma=0).quantile(u) for u in SHARES] == [4.0] * len(SHARES)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        pytest.param({"mean": -1}, "greater than or equal to 0", id="negative-mean"),
        pytest.param({"mean": math.inf}, "finite", id="infinite-mean"),
        pytest.param({"mean": math.nan}, "finite", id="mean-not-a-number"),
        pytest.param({"law": "normal"}, "constant", id="unknown-law"),
        pytest.param({"law": "constant", "mean": 1, "spread": 1}, "only to the law uniform", id="spread-of-constant"),
        pytest.param({"law": "exponential", "spread": 0}, "only to the law uniform", id="spread-of-exponential"),
        pytest.param({"law": "uniform", "sigma": 0.5}, "only to the law lognormal", id="sigma-of-uniform"),
        pytest.param({"law": "lognormal", "sigma": -0.1}, "greater than or equal to 0", id="negative-sigma"),
        pytest.param({"law": "uniform", "mean": 2, "spread": 3}, "at most the mean (2), got 3", id="below-zero"),
        pytest.param({"law": "uniform", "spread": 1}, "at most the mean (0)", id="spread-without-mean"),
        pytest.param({"median": 3}, "median", id="unknown-key"),
    ],
)
def test_wrong_law(settings, problem):
    with pytest.raises(ValidationError) as error:
        Law(**settings)
    assert problem in str(error.value)


# --- Empirical laws ---------------------------------------------------------------------------------------------------


def test_an_empirical_law_draws_each_value_equally_often() -> None:
    law = Law(law="empirical", values=[9, 1, 2, 2])
    assert law.values == (1, 2, 2, 9)
    assert law.mean == 3.5
    assert law.takes_time
    # A step function: never a number between two of them.
    assert [law.quantile(u) for u in (1e-9, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53)] == [1, 1, 2, 2, 9, 9]
    draws = [law.quantile(Draws(0, "law").uniform(n)) for n in range(MANY)]
    assert sum(draws) / MANY == pytest.approx(3.5, rel=0.03)


@pytest.mark.parametrize("count", [1, 3, 7, 10_000])
def test_the_largest_share_stays_within_the_values(count) -> None:
    """(1 - 2**-53) * 3 is 3 in floating point."""
    assert Law(law="empirical", values=list(range(count))).quantile(1 - 2**-53) == count - 1


def test_a_file_of_numbers_becomes_part_of_the_configuration(tmp_path) -> None:
    file = tmp_path / "latencies.txt"
    file.write_text("3.5\n\n 1e-1 \n2\n")
    tree = {
        "runtime": "sim",
        "delays": {"profile": {"every_link": {"latency": {"law": "empirical", "file": str(file)}}}},
    }
    config = parse_config(tree)
    file.unlink()
    text = dump_config(config)
    assert "latencies" not in text
    again = parse_config(parse_yaml(text, "config"))
    assert again == config
    assert again.profile.link(1).latency.values == (0.1, 2, 3.5)
    assert again.profile.link(1).has_delay


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no numbers"),
        (b"\n \n", "holds no numbers"),
        (b"1\ntwo\n3\n", "line 2: expected a length of at least 0, got 'two'"),
        (b"1\n-2\n", "line 2: expected a length of at least 0, got '-2'"),
        (b"1\nnan\n", "line 2"),
        (b"1e999\n", "line 1"),
        (b"1 2\n", "line 1"),
        (b"\xff\xfe1\n", "line 1"),
        (b"x" * 100_000, "line 1: expected a length of at least 0, got 'xxxx"),
        (b"1\n" * 10_001, "has more than 10000 numbers or 1000000 bytes"),
        (b"1\n" + b" " * 1_000_000, "has more than 10000 numbers or 1000000 bytes"),
    ],
    ids=range(11),
)
def test_a_file_that_is_no_list_of_lengths(content, says, tmp_path) -> None:
    file = tmp_path / "latencies.txt"
    file.write_bytes(content)
    with pytest.raises(ValidationError) as error:
        Law(law="empirical", file=str(file))
    assert says in str(error.value)
    assert len(error.value.errors()[0]["msg"]) < 300


@pytest.mark.parametrize("path", ["missing.txt", ".", "/dev/zero"])
def test_what_is_no_file(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError, match=r"No such file|no regular file"):
        Law(law="empirical", file=path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"law": "empirical"}, "needs values, or a file"),
        ({"law": "empirical", "values": []}, "at least 1 item"),
        ({"law": "empirical", "values": [1.0] * 10_001}, "at most 10000 items"),
        ({"law": "empirical", "values": [1, -1]}, "greater than or equal to 0"),
        ({"law": "empirical", "values": [1, 3], "mean": 5}, "the mean of these values is 2, not 5"),
        ({"law": "empirical", "values": [1], "file": "x"}, "exclude each other"),
        ({"law": "uniform", "values": [1]}, "only to the law empirical"),
        ({"law": "constant", "file": "x"}, "only to the law empirical"),
        ({"law": "empiric", "values": [1]}, "did you mean empirical?"),
    ],
)
def test_wrong_empirical_laws(settings, says) -> None:
    with pytest.raises(ValidationError) as error:
        Law(**settings)
    assert says in str(error.value)


# --- Profiles ---------------------------------------------------------------------------------------------------------

NO_DELAY = StageDelay()
NO_LINK_DELAY = LinkDelay()


@pytest.mark.parametrize(
    ("name", "stages", "links"),
    [
        pytest.param("none", [NO_DELAY] * 4, [NO_LINK_DELAY] * 3, id="none"),
        pytest.param("slow_stage1", [StageDelay(slowdown=2), *[NO_DELAY] * 3], [NO_LINK_DELAY] * 3, id="slow_stage1"),
        pytest.param(
            "slow_stage3",
            [NO_DELAY, NO_DELAY, StageDelay(slowdown=2), NO_DELAY],
            [NO_LINK_DELAY] * 3,
            id="slow_stage3",
        ),
        pytest.param("random", [StageDelay(step_law="exponential")] * 4, [NO_LINK_DELAY] * 3, id="random"),
        pytest.param(
            "straggler",
            [NO_DELAY, StageDelay(pause=Pause(probability=0.01, length=50)), NO_DELAY, NO_DELAY],
            [NO_LINK_DELAY] * 3,
            id="straggler",
        ),
        pytest.param(
            "wan", [NO_DELAY] * 4, [LinkDelay(latency=Law(law="lognormal", mean=10, sigma=0.5))] * 3, id="wan"
        ),
        pytest.param("lossy", [NO_DELAY] * 4, [LinkDelay(loss=0.05)] * 3, id="lossy"),
    ],
)
def test_built_in_profiles(name, stages, links):
    profile = built_in_profile(name)
    assert (profile.name, profile.unit, profile.window) == (name, "steps", 2.0)
    assert [profile.stage(j) for j in range(1, 5)] == stages
    assert [profile.link(j) for j in range(1, 4)] == links


def test_an_unslowed_stage_takes_one_step_a_pass_and_never_pauses():
    assert (NO_DELAY.slowdown, NO_DELAY.step_law, NO_DELAY.pause) == (1.0, "constant", None)


def test_every_built_in_profile_has_a_description():
    for name in DESCRIPTIONS:
        assert built_in_profile(name.replace("<N>", "2")).name == name.replace("<N>", "2")


@pytest.mark.parametrize("slowdown", [1.0, 1.5, 30.0])
def test_slowdown_of_slow_stage(slowdown):
    profile = built_in_profile("slow_stage12", slowdown)
    assert [profile.stage(j).slowdown for j in (1, 2, 11, 12)] == [1, 1, 1, slowdown]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        pytest.param("wam", "did you mean wan?", id="wan"),
        pytest.param("stragler", "did you mean straggler?", id="straggler"),
        pytest.param("slow_stge2", "did you mean slow_stage2?", id="slow_stage"),
        pytest.param("slow_stage0", "did you mean slow_stage2?", id="stages-count-from-1"),
        pytest.param("slow_stage", "did you mean slow_stage2?", id="no-number"),
        pytest.param("slow_stage02", "did you mean slow_stage2?", id="leading-zero"),
        pytest.param("slow_stage2 ", "did you mean slow_stage2?", id="trailing-blank"),
        pytest.param("LOSSY", "lossy", id="capitals"),
        pytest.param("qqq", "slow_stage<N>", id="nothing-near"),
    ],
)
def test_unknown_profile(name, suggestion):
    with pytest.raises(ConfigError) as error:
        built_in_profile(name)
    assert repr(name) in str(error.value)
    assert suggestion in str(error.value)
    assert all(known in str(error.value) for known in DESCRIPTIONS)
    assert not is_slow_stage(name)


def test_nothing_near_suggests_nothing():
    with pytest.raises(ConfigError) as error:
        built_in_profile("qqq")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("name", ["slow_stage1", "slow_stage2", "slow_stage10"])
def test_is_slow_stage(name):
    assert is_slow_stage(name)


@pytest.mark.parametrize("name", ["none", "random", "straggler", "wan", "lossy"])
def test_is_no_slow_stage(name):
    assert not is_slow_stage(name)


def settings_with(delays: dict, **others) -> dict:
    return {"stages": 4, "runtime": "sim", "delays": delays, **others}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        pytest.param(settings_with({"profile": "slow_stage5"}), "stage 5, but the network has 4 stages", id="stage"),
        pytest.param(
            settings_with({"profile": "straggler"}, stages=1), "stage 2, but the network has 1 stage", id="straggler"
        ),
        pytest.param(
            settings_with({"profile": {"stages": {7: {"slowdown": 3}}}}), "stage 7, but", id="stage-of-own-profile"
        ),
        pytest.param(
            settings_with({"profile": {"links": {4: {"loss": 0.1}}}}),
            "link 4, but the network has 3 links",
            id="the-last-stage-has-no-link",
        ),
        pytest.param(settings_with({"profile": {"stages": {0: {}}}}), "delays.profile.stages", id="stage-0"),
        pytest.param(settings_with({"profile": {"links": {0: {}}}}), "delays.profile.links", id="link-0"),
        pytest.param(settings_with({"profile": "wna"}), "did you mean wan", id="unknown"),
        pytest.param(settings_with({"profile": {"every_stage": {"slowdown": 0.5}}}), "at least 1", id="speed-up"),
        pytest.param(settings_with({"profile": "slow_stage2", "slowdown": 0.99}), "at least 1", id="slowdown"),
        pytest.param(settings_with({"profile": {"every_link": {"loss": 1}}}), "below 1", id="everything-is-lost"),
        pytest.param(settings_with({"profile": {"every_link": {"loss": -0.1}}}), "at least 0", id="negative-loss"),
        pytest.param(settings_with({"profile": {"every_link": {"bandwidth": 0}}}), "above 0", id="no-bandwidth"),
        pytest.param(settings_with({"profile": {"every_link": {"max_in_flight": 0}}}), "at least 1", id="in-flight"),
        pytest.param(settings_with({"profile": {"window": -1}}), "at least 0", id="negative-window"),
        pytest.param(
            settings_with({"profile": {"every_stage": {"pause": {"probability": 1.1, "length": 1}}}}),
            "at most 1",
            id="pause-probability",
        ),
        pytest.param(
            settings_with({"profile": {"every_stage": {"pause": {"probability": 0.5}}}}),
            "length is missing",
            id="pause-without-length",
        ),
        pytest.param(settings_with({"profile": {"unit": "minutes"}}), "steps, seconds", id="unit"),
        pytest.param(
            settings_with({"profile": {"unit": "seconds", "every_link": {"latency": {"mean": 1}}}}),
            "runtime sim has no clock",
            id="seconds-of-latency-in-sim",
        ),
        pytest.param(
            settings_with({"profile": {"unit": "seconds", "every_link": {"bandwidth": 1e6}}}),
            "runtime sim has no clock",
            id="seconds-of-bandwidth-in-sim",
        ),
        pytest.param(
            settings_with(
                {"profile": {"unit": "seconds", "stages": {2: {"pause": {"probability": 0.1, "length": 1}}}}}
            ),
            "runtime sim has no clock (pause of stage 2)",
            id="seconds-of-pause-in-sim",
        ),
    ],
)
def test_wrong_profile(settings, problem):
    with pytest.raises(ConfigError) as error:
        parse_config(settings)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings_with({"profile": "slow_stage4"}), id="last-stage"),
        pytest.param(settings_with({"profile": {"links": {3: {"loss": 0.1}}}}), id="last-link"),
        pytest.param(settings_with({"profile": "wan"}, stages=1), id="every-link-of-none"),
        pytest.param(
            settings_with({"profile": {"unit": "seconds", "every_stage": {"slowdown": 2}}}), id="slowdown-has-no-unit"
        ),
        pytest.param(
            settings_with({"profile": {"unit": "seconds", "every_link": {"latency": {"mean": 1}}}}, runtime="ray"),
            id="seconds-in-ray",
        ),
    ],
)
def test_right_profile(settings):
    assert parse_config(settings).stages == settings["stages"]


def test_listed_stages_and_links_replace_every_stage_and_every_link():
    profile = DelayProfile(
        every_stage=StageDelay(slowdown=3),
        stages={2: StageDelay(step_law="exponential")},
        every_link=LinkDelay(loss=0.1),
        links={1: LinkDelay(bandwidth=5)},
    )
    assert [profile.stage(j).slowdown for j in (1, 2, 3)] == [3, 1, 3]
    assert [(profile.link(j).loss, profile.link(j).bandwidth) for j in (1, 2)] == [(0, 5), (0.1, None)]


# --- Profile clock ----------------------------------------------------------------------------------------------------


def make_clock(delay: StageDelay, stage: int = 1, seed: int = 0) -> ProfileClock:
    return ProfileClock(delay, Draws(seed, "clock", stage))


def steps_taken(clock: ProfileClock, count: int = MANY) -> list[float]:
    return [clock.length(step).step for step in range(count)]


def pauses(clock: ProfileClock, count: int = MANY) -> list[float]:
    return [clock.length(step).pause for step in range(count)]


@pytest.mark.parametrize("slowdown", [1.0, 2.0, 3.7])
def test_constant_steps(slowdown):
    clock = make_clock(StageDelay(slowdown=slowdown))
    assert set(steps_taken(clock, 100)) == {slowdown}
    assert set(pauses(clock, 100)) == {0.0}


@pytest.mark.parametrize("slowdown", [1.0, 2.0, 30.0])
def test_exponential_steps(slowdown):
    drawn = steps_taken(make_clock(StageDelay(slowdown=slowdown, step_law="exponential")))
    assert stats.kstest(drawn, stats.expon(scale=slowdown).cdf).pvalue > 0.001
    # The sum of n exponential lengths follows a gamma law: an exact test of the mean.
    share = stats.gamma(MANY, scale=slowdown).cdf(sum(drawn))
    assert 0.0005 < share < 0.9995


def test_exponential_steps_are_independent():
    drawn = steps_taken(make_clock(StageDelay(step_law="exponential")))
    assert stats.spearmanr(drawn[:-1], drawn[1:]).pvalue > 0.001


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.3, 1.0])
def test_probability_of_pauses(probability):
    drawn = pauses(make_clock(StageDelay(pause=Pause(probability=probability, length=50))))
    assert set(drawn) <= {0.0, 50.0}
    assert stats.binomtest(drawn.count(50.0), MANY, probability).pvalue > 0.001


def test_pauses_of_straggler():
    profile = built_in_profile("straggler")
    paused = {j: sum(pause > 0 for pause in pauses(make_clock(profile.stage(j), j))) for j in (1, 2, 3)}
    assert (paused[1], paused[3]) == (0, 0)
    assert stats.binomtest(paused[2], MANY, 0.01).pvalue > 0.001


def test_pauses_do_not_depend_on_the_length_of_the_step():
    delay = StageDelay(step_law="exponential", pause=Pause(probability=0.3, length=1))
    lengths = [make_clock(delay).length(step) for step in range(MANY)]
    paused, other = ([length.step for length in lengths if bool(length.pause) is kind] for kind in (True, False))
    assert stats.ks_2samp(paused, other).pvalue > 0.001


BOTH_DRAWN = StageDelay(step_law="exponential", pause=Pause(probability=0.5, length=1))


def test_the_length_of_a_pass_is_keyed_by_its_step():
    clock = make_clock(BOTH_DRAWN)
    in_order = [clock.length(step) for step in range(200)]
    backwards = [make_clock(BOTH_DRAWN).length(step) for step in reversed(range(200))]
    assert in_order == backwards[::-1]
    assert clock.length(17) == in_order[17]
    assert len({length.step for length in in_order}) == 200


@pytest.mark.parametrize("other", [{"stage": 2}, {"seed": 1}], ids=["stage", "seed"])
def test_the_length_of_a_pass_is_keyed_by(other):
    plain, changed = make_clock(BOTH_DRAWN), make_clock(BOTH_DRAWN, **other)
    assert stats.spearmanr(steps_taken(plain, 1000), steps_taken(changed, 1000)).pvalue > 0.001
    assert pauses(plain, 100) != pauses(changed, 100)


# --- Pace -------------------------------------------------------------------------------------------------------------


def asked(stage: int, v: float, start: float | None):
    """The stage asks to start at clock v; at which clock it may, or None."""
    return "request", (stage, v), start


def gone(stage: int, now: float):
    """The stage waits for something else; the time after that."""
    return "release", (stage,), now


def awaited(time: float, now: float, stage: int = 2):
    """An entry is awaited by a stage; the time after that."""
    return "expect", (stage, time), now


@pytest.mark.parametrize(
    ("window", "calls"),
    [
        pytest.param(2, [asked(1, 0, 0), asked(2, 0, 0)], id="both-start"),
        pytest.param(2, [asked(2, 0, 0), asked(1, 2, 2), asked(1, 2.1, None)], id="up-to-the-window"),
        pytest.param(2, [asked(2, 0, 0), asked(1, 3, None), asked(2, 1, 1), asked(1, 3, 3)], id="waits-and-goes-on"),
        pytest.param(0, [asked(2, 0, 0), asked(1, 0.1, None), asked(2, 0.1, 0.1), asked(1, 0.1, 0.1)], id="window-0"),
        pytest.param(2, [asked(1, 0, 0), asked(1, 1, 1), asked(1, 100, 100)], id="alone-nobody-holds-it"),
        pytest.param(
            2, [asked(1, 0, 0), asked(2, 1, 1), asked(3, 2, 2), asked(3, 2.5, None)], id="the-slowest-of-all-counts"
        ),
        pytest.param(
            2,
            [asked(2, 0, 0), asked(1, 9, None), asked(1, 9, None), asked(2, 1, 1)],
            id="asking-again-changes-nothing",
        ),
        pytest.param(2, [asked(2, 0, 0), asked(1, 50, None), gone(2, 50), asked(1, 50, 50)], id="waiting-holds-nobody"),
        pytest.param(
            2,
            [asked(1, 0, 0), asked(2, 0, 0), gone(2, 0), asked(1, 10, 10), asked(2, 1, 10)],
            id="resumed-behind-is-set-to-the-minimum",
        ),
        pytest.param(
            2,
            [asked(1, 0, 0), asked(3, 0, 0), gone(2, 0), asked(1, 2, 2), asked(3, 1, 1), asked(2, 0, 1)],
            id="the-minimum-and-not-the-fastest",
        ),
        pytest.param(
            2,
            [asked(1, 0, 0), asked(2, 2, 2), gone(2, 0), asked(1, 1, 1), asked(2, 3, 3), asked(2, 3.5, None)],
            id="resumed-ahead-keeps-its-clock",
        ),
        pytest.param(
            2,
            [asked(1, 0, 0), asked(2, 8, None), gone(2, 0), asked(2, 8, None), asked(1, 6, 6), asked(2, 8, 8)],
            id="resumed-far-ahead-waits-again",
        ),
        pytest.param(
            2,
            [asked(1, 5, 5), gone(1, 5), asked(2, 0, 5), asked(2, 6, 6)],
            id="the-time-stays-when-nobody-moves",
        ),
        pytest.param(2, [asked(1, 4, 4), awaited(20, 4, 3), awaited(9, 4)], id="an-arrival-waits-for-who-moves"),
        pytest.param(
            2,
            [asked(1, 4, 4), awaited(20, 4, 3), awaited(9, 4), gone(1, 9)],
            id="when-nobody-moves-it-is-the-next-arrival",
        ),
        pytest.param(2, [asked(1, 4, 4), gone(1, 4), awaited(9, 9)], id="awaited-while-nobody-moves"),
        pytest.param(
            2, [asked(1, 4, 4), awaited(9, 4), gone(1, 9), asked(2, 3, 9)], id="the-reader-goes-on-at-the-arrival"
        ),
        pytest.param(
            2,
            [asked(1, 4, 4), awaited(9, 4), asked(1, 10, 10), gone(1, 10), asked(2, 0, 10)],
            id="an-arrival-of-the-past-takes-nobody-back",
        ),
        pytest.param(
            2, [asked(1, 4, 4), awaited(9, 4), awaited(9, 4, 3), gone(1, 9), gone(1, 9)], id="awaited-by-two-readers"
        ),
        pytest.param(
            2,
            [asked(1, 4, 4), awaited(9, 4), awaited(20, 4, 3), gone(1, 9), gone(1, 9), asked(2, 3, 9)],
            id="releasing-again-changes-nothing",
        ),
        pytest.param(
            2,
            [asked(1, 4, 4), gone(1, 4), awaited(9, 9, 2), awaited(20, 9, 3), asked(2, 3, 9), gone(2, 20)],
            id="the-time-waits-for-the-reader-of-an-arrival",
        ),
    ],
)
def test_pace(window, calls):
    pace = Pace(window)
    for number, (call, arguments, expected) in enumerate(calls):
        answer = getattr(pace, call)(*arguments)
        assert (answer if call == "request" else pace.now) == expected, f"call {number}: {call}{arguments}"


class PacedStages:
    """Stages that make passes as soon as they may, polled in any order: hardware of any speed.

    Each answer is held against rule 20 and its own record of who moves, with the clock of the pass that it makes or
    wants to make.
    """

    def __init__(self, slowdowns: list[float], window: float, seed: int) -> None:
        self.pace, self.window = Pace(window), window
        self.slowdowns = dict(enumerate(slowdowns, start=1))
        self.v = dict.fromkeys(self.slowdowns, 0.0)
        self.passes = dict.fromkeys(self.slowdowns, 0)
        self.moving: dict[int, float] = {}
        self.order = random.Random(seed)

    def poll(self, among: list[int], weights: list[float] | None = None) -> None:
        (j,) = self.order.choices(among, weights)
        v = self.v[j]
        if j not in self.moving:
            v = max(v, min(self.moving.values(), default=self.pace.now))
        self.moving[j] = max(v, self.moving.get(j, v))
        may_start = self.moving[j] <= min(self.moving.values()) + self.window
        start = self.pace.request(j, self.v[j])
        assert start == (self.moving[j] if may_start else None)
        if start is not None:
            self.passes[j] += 1
            self.v[j] = start + self.slowdowns[j]

    def begin(self) -> None:
        """Each makes its first pass: one that was never heard of holds nobody."""
        for j in self.slowdowns:
            self.poll([j])

    def release(self, j: int) -> None:
        self.moving.pop(j, None)
        self.pace.release(j)

    def run(self, passes_of_first: int, among: list[int], weights: list[float] | None = None) -> None:
        while self.passes[1] < passes_of_first:
            self.poll(among, weights)


@pytest.mark.parametrize("weights", [[1, 1, 1], [20, 1, 1], [1, 1, 20]], ids=["equal", "fast-first", "fast-last"])
@pytest.mark.parametrize("window", [0.0, 2.0, 7.5])
def test_relative_speeds_are_the_profile_s_whatever_the_hardware(window, weights):
    stages = PacedStages([1, 2, 3], window, seed=0)
    stages.begin()
    stages.run(300, [1, 2, 3], weights)
    # Passes begin within the window of the slowest clock, and each has begun one that may not have ended.
    for j, slowdown in stages.slowdowns.items():
        assert abs(stages.passes[j] * slowdown - 300) <= window + slowdown


def test_a_slow_stage_makes_half_as_many_passes_while_it_moves_and_holds_nobody_while_it_waits():
    stages = PacedStages([1, 2], window=2, seed=0)
    stages.begin()
    stages.run(100, [1, 2])
    assert stages.passes[2] == pytest.approx(50, abs=3)
    stages.release(2)
    before = stages.passes[2]
    stages.run(1000, [1])
    stages.run(1100, [1, 2])
    # It makes up for none of the passes that it missed.
    assert stages.passes[2] - before == pytest.approx(50, abs=3)


def test_the_time_never_goes_back():
    pace, v, draw, now = Pace(2), dict.fromkeys((1, 2, 3), 0.0), random.Random(2), 0.0
    for _ in range(3000):
        action, stage = draw.random(), draw.choice([1, 2, 3])
        if action < 0.1:
            pace.release(stage)
        elif action < 0.15:
            pace.release(stage)
            pace.expect(stage, pace.now + draw.choice([-1, 0, 3]))
        else:
            start = pace.request(stage, v[stage])
            v[stage] = v[stage] if start is None else start + 1
        assert pace.now >= now
        now = pace.now
    assert now > 100


# --- Draws ------------------------------------------------------------------------------------------------------------


def test_uniform_draws_are_uniform():
    draws = Draws(0, "test")
    drawn = [draws.uniform(number) for number in range(MANY)]
    assert min(drawn) > 0
    assert max(drawn) < 1
    assert stats.kstest(drawn, "uniform").pvalue > 0.001
    assert stats.spearmanr(drawn[:-1], drawn[1:]).pvalue > 0.001


@pytest.mark.parametrize("digest", [0, 2**128 - 1], ids=["least", "greatest"])
def test_uniform_draws_lie_strictly_between_0_and_1(monkeypatch, digest):
    # Quantile functions are infinite or fail at 0 and 1, and no number of draws would meet the extremes.
    monkeypatch.setattr(Draws, "_digest", lambda self, key: digest)
    assert 0 < Draws(0).uniform() < 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((0, "link", 1), (1, "link", 1), id="seed"),
        pytest.param((0, "link", 1), (0, "link", 2), id="number"),
        pytest.param((0, "link", 1), (0, "buffer", 1), id="what"),
        pytest.param((0, "link", 1), (0, "link", "1"), id="type"),
        pytest.param((0, 1, 23), (0, 12, 3), id="where-a-number-ends"),
        pytest.param((0, "a", "b"), (0, "ab"), id="where-a-word-ends"),
        pytest.param((0, "a", "b"), (0, "a', 'b"), id="quotes"),
    ],
)
def test_draws_of_two_scopes_are_independent(one, other):
    drawn = [[Draws(*scope).uniform(number) for number in range(1000)] for scope in (one, other)]
    assert drawn[0] != drawn[1]
    assert stats.spearmanr(*drawn).pvalue > 0.001


def test_draws_do_not_depend_on_the_order_of_calls():
    keys = list(itertools.product(["loss", "latency"], [0, 1], range(20)))
    plain = {key: Draws(3, "link", 2).uniform(*key) for key in keys}
    draws = Draws(3, "link", 2)
    shuffled = random.Random(0).sample(keys, len(keys))
    assert {key: draws.uniform(*key) for key in shuffled} == plain
    assert len(set(plain.values())) == len(keys)


def test_draws_are_the_same_in_every_process():
    # Pinned: a change makes every recorded run another one.
    draws = Draws(0, "link", 1)
    assert draws.uniform("latency", 0, 0) == 0.40981799403992325
    assert draws.integer("latency", 0, 0) == 3779903826427744603


def test_integers_are_seeds_of_63_bits():
    draws = Draws(0, "test")
    drawn = [draws.integer(number) for number in range(1000)]
    assert all(0 <= number < 2**63 for number in drawn)
    assert len(set(drawn)) == 1000
    assert stats.kstest([number / 2**63 for number in drawn], "uniform").pvalue > 0.001


def test_generators_are_keyed():
    draws = Draws(0, "test")
    first, again, other = (draws.generator(key).random(100) for key in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)

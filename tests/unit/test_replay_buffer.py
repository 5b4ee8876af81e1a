"""ReplayBuffer: tables of short scripts (semantics rules 7-12, 14, 15)."""

import dataclasses

import pytest
from scipy import stats

from asyncdgl.buffers.buffer import ReplayBuffer
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.buffers.link import Link
from asyncdgl.config.sections import BufferConfig
from asyncdgl.config.yaml import parse_config
from asyncdgl.delays.laws import Law
from asyncdgl.delays.profiles import LinkDelay
from asyncdgl.errors import ConfigError, SampleBlocked
from asyncdgl.seeding import Draws

INSTANT = LinkDelay()
SLOW = LinkDelay(latency=Law(mean=1))  # an entry sent with unit=t takes t


def name_of(step: int) -> PassName:
    return PassName(stage=1, incarnation=0, step=step)


def make_entry(step: int, nbytes: int = 1) -> Entry:
    return Entry(Provenance(name_of(step), update=step, trained=True, batch=100 + step), f"payload {step}", nbytes)


def make_buffer(delay: LinkDelay = INSTANT, seed: int = 0, **settings) -> ReplayBuffer:
    config = BufferConfig(**settings)
    link = Link(
        delay,
        Draws(seed, "link", 1),
        in_order=config.sampler == "fifo",
        may_drop=config.on_full == "overwrite",
    )
    return ReplayBuffer(config, link, Draws(seed, "buffer", 1))


def held_steps(buffer: ReplayBuffer) -> list[int]:
    return [entry.source.name.step for entry in buffer.held]


def given_steps(buffer: ReplayBuffer, count: int, now: float = 0.0) -> list[int]:
    return [buffer.sample(now).source.name.step for _ in range(count)]


def assert_conserved(buffer: ReplayBuffer) -> None:
    n = buffer.statistics()
    assert n["inserted"] == len(buffer.held) + n["retired"] + n["overwritten_unused"]
    assert n["sent"] == n["inserted"] + n["on_the_way"] + n["lost"] + n["dropped"]
    assert n["left"] == len(buffer) == len(buffer.held)


def play(buffer: ReplayBuffer, script: str) -> None:
    """Make the calls of a script, one a word, and check what each answers.

    ``@5``: it is time 5; ``+3``: step 3 is sent; ``+3~20``: and takes 20; ``=3``: a sample gives step 3; ``=3*2``: for
    the 2nd time; ``!empty``: a sample is blocked, and why; ``?3``: step 3 gets a place; ``full?3``: step 3 gets none;
    ``[1,3]``: these are held, oldest first.
    """
    now = 0.0
    for word in script.split():
        kind, rest = word[0], word[1:]
        if kind == "@":
            now = float(rest)
        elif kind == "+":
            step, _, unit = rest.partition("~")
            buffer.insert(make_entry(int(step)), now, unit=float(unit or 1))
        elif kind == "=":
            step, _, times = rest.partition("*")
            sample = buffer.sample(now)
            assert sample.source.name == name_of(int(step)), word
            assert not times or sample.times_sampled == int(times), word
        elif kind == "!":
            with pytest.raises(SampleBlocked) as blocked:
                buffer.sample(now)
            assert blocked.value.reason == rest, word
        elif kind == "?":
            assert buffer.reserve(name_of(int(rest))), word
        elif word.startswith("full?"):
            assert not buffer.reserve(name_of(int(word[5:]))), word
        else:
            assert held_steps(buffer) == [int(step) for step in word.strip("[]").split(",") if step], word
        assert_conserved(buffer)


def lost_steps(delay: LinkDelay, count: int) -> set[int]:
    """Which of the first steps a link loses: draws are keyed, so another link of the same seed tells."""
    lost = set()
    for step in range(count):
        link = Link(delay, Draws(0, "link", 1))
        link.send(make_entry(step), 0.0)
        if link.lost:
            lost.add(step)
    return lost


# --- Samplers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "script"),
    [
        pytest.param("priority_lifo", "+0 +1 +2 =2*1 =1*1 =0*1 =2*2 =1*2 =0*2", id="priority_lifo-goes-round"),
        pytest.param("priority_lifo", "+0 +1 =1 =0 +2 =2*1 =2*2 =1*2", id="priority_lifo-unused-comes-first"),
        pytest.param("priority_lifo", "+5 =5 +3 =3*1 =5*2 =3*2", id="priority_lifo-newest-by-step"),
        pytest.param("lifo", "+0 +1 +2 =2*1 =2*2 =2*3", id="lifo-stays-with-the-newest"),
        pytest.param("lifo", "+5 +3 =5 +7 =7 +6 =7", id="lifo-newest-by-step"),
        pytest.param("fifo", "+0 +1 +2 =0*1 =0*2 =0*3", id="fifo-stays-with-the-oldest"),
        pytest.param("fifo", "+0 =0 +1 =0*2", id="fifo-not-the-unused"),
    ],
)
def test_sampler(sampler, script):
    play(make_buffer(sampler=sampler), script)


def test_sample_carries_what_was_inserted():
    buffer = make_buffer()
    entry = make_entry(3)
    buffer.insert(entry, 0.0)
    sample = buffer.sample(0.0)
    assert sample.source == Provenance(PassName(1, 0, 3), update=3, trained=True, batch=103)
    assert sample.payload is entry.payload


def test_times_sampled_of_a_sample_does_not_change_later():
    buffer = make_buffer()
    play(buffer, "+0")
    first = buffer.sample(0.0)
    buffer.sample(0.0)
    assert first.times_sampled == 1


def test_uniform_gives_every_entry_with_equal_chances():
    buffer = make_buffer(sampler="uniform", size=10)
    play(buffer, " ".join(f"+{step}" for step in range(10)))
    given = given_steps(buffer, 5000)
    assert stats.chisquare([given.count(step) for step in range(10)]).pvalue > 0.001


def test_uniform_draws_are_independent_of_each_other():
    buffer = make_buffer(sampler="uniform", size=4)
    play(buffer, "+0 +1 +2 +3")
    given = given_steps(buffer, 5000)
    pairs = [[0] * 4 for _ in range(4)]
    for before, after in zip(given[::2], given[1::2], strict=True):
        pairs[before][after] += 1
    assert stats.chi2_contingency(pairs).pvalue > 0.001


def test_uniform_is_keyed_by_the_number_of_the_sample():
    plain, asked_in_vain = make_buffer(sampler="uniform"), make_buffer(sampler="uniform")
    play(asked_in_vain, "!empty !empty !empty")
    for buffer in (plain, asked_in_vain):
        play(buffer, "+0 +1 +2 +3 +4 +5")
    assert given_steps(plain, 50) == given_steps(asked_in_vain, 50)


def test_uniform_depends_on_the_seed():
    buffers = [make_buffer(sampler="uniform", seed=seed) for seed in (0, 1)]
    for buffer in buffers:
        play(buffer, "+0 +1 +2 +3 +4 +5")
    assert given_steps(buffers[0], 50) != given_steps(buffers[1], 50)


# --- Full, reused, old ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "script"),
    [
        pytest.param({"size": 3}, "+0 +1 +2 [0,1,2] +3 [1,2,3] +4 [2,3,4]", id="oldest-leaves"),
        pytest.param({"size": 1}, "+0 [0] +1 [1] =1*1 +2 [2] =2*1", id="size-one"),
        pytest.param({"size": 2}, "+0 +1 =1 =0 +2 [1,2] =2*1 =2*2", id="oldest-leaves-used-or-not"),
        pytest.param({"size": 2}, "+4 +5 +3 [4,5]", id="late-arrival-is-itself-the-oldest"),
        pytest.param({"size": 2}, "+3 +5 +4 [4,5]", id="late-arrival-displaces-an-older"),
    ],
)
def test_overwrite(settings, script):
    play(make_buffer(**settings), script)


@pytest.mark.parametrize(
    ("settings", "script"),
    [
        pytest.param({"max_reuse": 1}, "+0 +1 =1*1 [0] =0*1 [] !reused_up", id="once"),
        pytest.param({"max_reuse": 2}, "+0 =0*1 [0] =0*2 [] !reused_up", id="leaves-at-once-after-the-last"),
        pytest.param({"max_reuse": 2, "sampler": "lifo"}, "+0 +1 =1 =1 =0 =0 !reused_up", id="lifo"),
        pytest.param({"max_reuse": 2, "sampler": "fifo"}, "+0 +1 =0 =0 =1 =1 !reused_up", id="fifo"),
        pytest.param({"max_reuse": 1, "sampler": "uniform"}, "+4 =4 !reused_up +5 =5 !reused_up", id="uniform"),
        pytest.param({"max_reuse": None}, "+0" + " =0" * 50 + " [0]", id="no-limit"),
    ],
)
def test_max_reuse(settings, script):
    play(make_buffer(**settings), script)


def test_max_reuse_with_uniform_gives_every_entry_so_often():
    buffer = make_buffer(sampler="uniform", max_reuse=3, size=10)
    play(buffer, " ".join(f"+{step}" for step in range(10)))
    given = given_steps(buffer, 30)
    assert sorted(given) == sorted(list(range(10)) * 3)
    play(buffer, "!reused_up")


@pytest.mark.parametrize(
    ("settings", "script"),
    [
        pytest.param({"min_size": 3}, "!empty +0 !below_min_size +1 !below_min_size +2 =2", id="waits"),
        pytest.param({"min_size": 2, "max_reuse": 1}, "+0 +1 =1 =0 !reused_up +2 =2", id="once-reached-stays-reached"),
        pytest.param({"min_size": 3, "max_age": 1}, "+0 +5 [5] +9 [9] =9", id="counts-those-that-arrived-and-left"),
        pytest.param({"min_size": 2, "size": 2}, "+0 !below_min_size +1 =1", id="as-large-as-the-buffer"),
        pytest.param({"min_size": 2}, "+0 +0 !below_min_size +1 =1", id="repeated-names-do-not-count"),
    ],
)
def test_min_size(settings, script):
    play(make_buffer(**settings), script)


def test_min_size_counts_what_has_arrived_and_not_what_is_on_the_way():
    play(make_buffer(SLOW, min_size=2), "+0~5 +1~9 !not_arrived @5 !below_min_size @8 !below_min_size @9 =1")


@pytest.mark.parametrize(
    ("settings", "script"),
    [
        pytest.param({"max_age": 2}, "+0 +1 +2 [0,1,2] +3 [1,2,3]", id="more-than-so-many-steps"),
        pytest.param({"max_age": 2}, "+0 +2 [0,2]", id="exactly-so-many-stays"),
        pytest.param({"max_age": 1}, "+0 +1 +50 [50] =50 =50", id="the-newest-never-leaves"),
        pytest.param({"max_age": 3}, "+9 +5 [9] +6 [6,9]", id="late-arrival-that-is-too-old"),
        pytest.param({"max_age": 2}, "+0 =0 =0 +1 +3 [1,3]", id="used-or-not"),
        pytest.param(
            {"max_age": 3, "max_reuse": 1},
            "+9 =9 [] +5 [] +6 [6] =6",
            id="counts-from-the-newest-arrived-even-when-it-has-left",
        ),
    ],
)
def test_max_age(settings, script):
    play(make_buffer(**settings), script)


def test_max_age_counts_from_the_newest_that_arrived_not_that_was_sent():
    play(make_buffer(SLOW, max_age=2), "+0~1 +9~5 @1 =0 [0] @4 =0 [0] @5 =9 [9]")


# --- Blocked ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "settings", "script"),
    [
        pytest.param(INSTANT, {}, "!empty !empty +0 =0", id="empty-then-given"),
        pytest.param(INSTANT, {"max_reuse": 1}, "!empty +0 =0 !reused_up !reused_up", id="reused_up"),
        pytest.param(SLOW, {}, "!empty +0~10 !not_arrived @9.5 !not_arrived @10 =0", id="not_arrived"),
        pytest.param(
            SLOW, {"max_reuse": 1}, "+0~1 +1~10 @1 =0 !not_arrived @10 =1 !reused_up", id="not_arrived-then-reused_up"
        ),
        pytest.param(
            SLOW, {"max_reuse": 1}, "+0~1 @1 =0 !reused_up +1~1 !not_arrived", id="reused_up-then-not_arrived"
        ),
        pytest.param(SLOW, {"min_size": 2}, "!empty +0~1 !not_arrived @1 !below_min_size", id="below_min_size"),
        pytest.param(INSTANT, {"sampler": "fifo"}, "+1 !not_arrived +0 =0", id="fifo-waits-for-its-turn"),
    ],
)
def test_blocked_reason(delay, settings, script):
    play(make_buffer(delay, **settings), script)


@pytest.mark.parametrize(
    ("settings", "script", "reason"),
    [
        pytest.param({}, "+1~30 +2~20", "not_arrived", id="not_arrived"),
        pytest.param({"min_size": 3}, "+0~2 +1~30 +2~20", "below_min_size", id="below_min_size"),
    ],
)
def test_blocked_says_when_the_next_entry_arrives(settings, script, reason):
    buffer = make_buffer(SLOW, **settings)
    play(buffer, script)
    with pytest.raises(SampleBlocked) as blocked:
        buffer.sample(2.0)
    assert (blocked.value.reason, blocked.value.due) == (reason, 20.0)


@pytest.mark.parametrize("script", ["", "+0 =0"], ids=["empty", "reused_up"])
def test_blocked_without_anything_on_the_way_names_no_time(script):
    buffer = make_buffer(max_reuse=1)
    play(buffer, script)
    with pytest.raises(SampleBlocked) as blocked:
        buffer.sample(0.0)
    assert blocked.value.due is None


def test_a_lost_entry_leaves_the_buffer_empty():
    delay = LinkDelay(loss=0.5)
    lost = min(lost_steps(delay, 50))
    play(make_buffer(delay), f"+{lost} !empty")


# --- Order of arrival -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "script"),
    [
        pytest.param("lifo", "+0~30 +1~20 +2~10 @10 =2 @20 =2 @30 =2 [0,1,2]", id="lifo-newest-arrived-first"),
        pytest.param("lifo", "+0~30 +1~10 @10 =1 @30 =1", id="lifo-late-arrival-is-not-the-newest"),
        pytest.param("priority_lifo", "+0~30 +1~10 +2~10 @10 =2 =1 @30 =0*1 =2*2", id="priority_lifo"),
        pytest.param("fifo", "+0~30 +1~20 +2~10 @10 !not_arrived @20 !not_arrived @30 =0 [0,1,2]", id="fifo-by-step"),
        pytest.param("fifo", "+2 +1 !not_arrived [] +0 @1 =0 [0,1,2]", id="fifo-sent-backwards"),
        pytest.param("fifo", "+0~10 +2~10 @10 =0 [0] +1~10 @19 [0] @20 =0 [0,1,2]", id="fifo-waits-for-a-gap"),
    ],
)
def test_order_of_arrival(sampler, script):
    play(make_buffer(SLOW, sampler=sampler), script)


@pytest.mark.parametrize("order", ["0 1 2 3 4", "4 3 2 1 0", "2 0 4 1 3", "1 0 3 2 4"])
def test_fifo_gives_by_step_however_entries_come(order):
    buffer = make_buffer(sampler="fifo", max_reuse=1)
    play(buffer, " ".join(f"+{step}" for step in order.split()) + " =0 =1 =2 =3 =4 !reused_up")


def test_fifo_does_not_wait_for_a_lost_entry():
    delay = LinkDelay(loss=0.3)
    lost = lost_steps(delay, 30)
    assert lost
    buffer = make_buffer(delay, sampler="fifo", max_reuse=1, size=30)
    play(buffer, " ".join(f"+{step}" for step in reversed(range(30))))
    assert given_steps(buffer, 30 - len(lost)) == [step for step in range(30) if step not in lost]
    play(buffer, "!reused_up")


def test_fifo_does_not_wait_for_an_entry_that_its_producer_dropped():
    buffer = make_buffer(sampler="fifo", max_reuse=1)
    play(buffer, "+0 +3")
    buffer.insert(make_entry(4), 0.0, dropped=[1, 2])
    play(buffer, "=0 =3 =4 !reused_up")
    assert buffer.statistics()["dropped"] == 2


def test_an_arrival_does_not_wait_for_a_sample_on_a_link_without_delay():
    play(make_buffer(), "+0 [0] +1 [0,1]")


# --- Blocking ---------------------------------------------------------------------------------------------------------


def make_blocking(delay: LinkDelay = INSTANT, **settings) -> ReplayBuffer:
    return make_buffer(delay, **{"on_full": "block", "max_reuse": 1, "size": 2, **settings})


@pytest.mark.parametrize(
    ("delay", "settings", "script"),
    [
        pytest.param(INSTANT, {}, "?0 ?1 full?2", id="reserved-counts"),
        pytest.param(INSTANT, {}, "?0 +0 ?1 +1 full?2", id="held-counts"),
        pytest.param(SLOW, {}, "?0 +0~9 ?1 +1~9 full?2", id="on-the-way-counts"),
        pytest.param(SLOW, {"size": 3}, "?0 +0~1 @1 ?1 +1~9 ?2 full?3", id="all-three-together"),
        pytest.param(INSTANT, {}, "?0 +0 ?1 +1 full?2 =1 ?2 full?3", id="used-up-frees-a-place"),
        pytest.param(INSTANT, {"max_reuse": 2}, "?0 +0 ?1 +1 =1 =0 full?2 =1 ?2", id="a-use-that-is-not-the-last"),
        pytest.param(INSTANT, {}, "?0 ?0 ?0 ?1 ?1 full?2 full?2 ?0", id="idempotent"),
        pytest.param(INSTANT, {}, "?0 ?1 full?2 +0 full?2 =0 ?2", id="inserting-turns-the-reservation-into-the-entry"),
        pytest.param(INSTANT, {}, "?0 +0 ?1 +1 =1 +1 ?2 +0 full?3", id="a-repeated-insert-changes-nothing"),
        pytest.param(INSTANT, {"max_age": 1}, "?0 +0 ?5 +5 ?6", id="an-entry-that-is-too-old-frees-a-place"),
    ],
)
def test_reservation(delay, settings, script):
    play(make_blocking(delay, **settings), script)


def test_asking_again_for_a_pass_that_was_already_sent_takes_no_place():
    buffer = make_blocking()
    play(buffer, "?0 +0")
    buffer.reserve(name_of(0))
    play(buffer, "?1")


@pytest.mark.parametrize("sampler", ["priority_lifo", "fifo"])
def test_a_lost_entry_frees_its_place(sampler):
    delay = LinkDelay(loss=0.5)
    lost = sorted(lost_steps(delay, 50))
    buffer = make_blocking(delay, size=1, sampler=sampler)
    for step in lost[:3]:
        play(buffer, f"?{step} full?99 +{step}")
    play(buffer, "?99")
    assert buffer.statistics()["lost"] == 3


def test_a_link_under_block_drops_nothing_however_much_is_on_the_way():
    buffer = make_blocking(LinkDelay(latency=Law(mean=1), max_in_flight=1), size=5)
    play(buffer, "?0 +0 ?1 +1 ?2 +2 ?3 +3 ?4 +4 full?5 @1 =4 =3 =2 =1 =0 !reused_up")
    assert buffer.statistics()["dropped"] == 0


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "settings", "script"),
    [
        pytest.param(INSTANT, {}, "+0 +0 +0 [0]", id="held"),
        pytest.param(INSTANT, {}, "+0 =0*1 +0 =0*2", id="uses-stay-counted"),
        pytest.param(INSTANT, {"max_reuse": 1}, "+0 =0 +0 [] !reused_up", id="used-up"),
        pytest.param(INSTANT, {"size": 1}, "+0 +1 +0 [1]", id="overwritten"),
        pytest.param(SLOW, {}, "+0~5 @1 +0~1 @4 !not_arrived @5 =0", id="on-the-way-keeps-its-time"),
        pytest.param(INSTANT, {"sampler": "fifo"}, "+0 +1 +0 +1 [0,1]", id="fifo"),
    ],
)
def test_repeated_name_is_ignored(delay, settings, script):
    buffer = make_buffer(delay, **settings)
    play(buffer, script)
    sent = {word[1:].partition("~")[0] for word in script.split() if word[0] == "+"}
    assert buffer.statistics()["sent"] == len(sent)


def test_repeated_name_of_a_lost_entry_is_ignored():
    delay = LinkDelay(loss=0.5)
    lost = min(lost_steps(delay, 50))
    buffer = make_buffer(delay)
    play(buffer, f"+{lost} +{lost}")
    assert (buffer.statistics()["sent"], buffer.statistics()["lost"]) == (1, 1)


def test_the_same_step_of_a_restarted_producer_is_another_entry():
    # Rule 4: a pass is named (stage, incarnation, step), and a restarted stage may repeat step numbers.
    buffer = make_buffer()
    before = make_entry(5)
    source = before.source._replace(name=before.source.name._replace(incarnation=1))
    buffer.insert(before, 0.0)
    buffer.insert(dataclasses.replace(before, source=source), 0.0)
    assert [entry.source.name.incarnation for entry in buffer.held] == [0, 1]
    assert_conserved(buffer)


# --- Counts -----------------------------------------------------------------------------------------------------------


def counts(buffer: ReplayBuffer) -> dict[str, int]:
    """What is not zero, but for bytes and means."""
    return {k: value for k, value in buffer.statistics().items() if value and k not in ("peak_bytes", "mean_held")}


@pytest.mark.parametrize(
    ("delay", "settings", "script", "expected"),
    [
        pytest.param(INSTANT, {}, "!empty", {}, id="nothing"),
        pytest.param(INSTANT, {}, "+0 +1", {"sent": 2, "inserted": 2, "left": 2}, id="held"),
        pytest.param(
            INSTANT,
            {"size": 2},
            "+0 +1 +2 +3",
            {"sent": 4, "inserted": 4, "left": 2, "overwritten_unused": 2},
            id="overwritten-unused",
        ),
        pytest.param(
            INSTANT,
            {"size": 2},
            "+0 =0 =0 +1 +2",
            {"sent": 3, "inserted": 3, "sampled": 2, "left": 2, "retired": 1},
            id="overwritten-after-use-is-retired",
        ),
        pytest.param(
            INSTANT,
            {"max_reuse": 1},
            "+0 +1 =1 =0 !reused_up",
            {"sent": 2, "inserted": 2, "sampled": 2, "retired": 2},
            id="used-up-is-retired",
        ),
        pytest.param(
            INSTANT,
            {"max_age": 1},
            "+0 =0 +1 +9",
            {"sent": 3, "inserted": 3, "sampled": 1, "left": 1, "retired": 1, "overwritten_unused": 1},
            id="too-old",
        ),
        pytest.param(
            SLOW,
            {},
            "+0~1 +1~1 +2~9 @1 =1",
            {"sent": 3, "inserted": 2, "sampled": 1, "left": 2, "on_the_way": 1},
            id="on-the-way",
        ),
        pytest.param(
            LinkDelay(latency=Law(mean=1), max_in_flight=2),
            {},
            "+0 +1 +2 +3 @1 =1 [0,1]",
            {"sent": 4, "inserted": 2, "sampled": 1, "left": 2, "dropped": 2},
            id="dropped",
        ),
        pytest.param(
            LinkDelay(latency=Law(mean=1), max_in_flight=2),
            {},
            "+0 +1 @1 +2 +3 @2 =3 [0,1,2,3]",
            {"sent": 4, "inserted": 4, "sampled": 1, "left": 4},
            id="what-has-arrived-does-not-count-as-on-the-way",
        ),
    ],
)
def test_counts(delay, settings, script, expected):
    buffer = make_buffer(delay, **settings)
    play(buffer, script)
    assert counts(buffer) == expected


def test_counts_with_losses():
    delay = LinkDelay(loss=0.3)
    lost = len(lost_steps(delay, 200))
    buffer = make_buffer(delay, size=10)
    play(buffer, " ".join(f"+{step}" for step in range(200)))
    assert 0 < lost < 200
    assert counts(buffer) == {
        "sent": 200,
        "lost": lost,
        "inserted": 200 - lost,
        "left": 10,
        "overwritten_unused": 190 - lost,
    }


def test_entries_dropped_by_their_producer_are_counted_once():
    buffer = make_buffer()
    for dropped in ([1, 2], [2, 3], []):
        buffer.insert(make_entry(9), 0.0, dropped=dropped)
    play(buffer, "+1")  # was dropped: it comes too late
    assert counts(buffer) == {"sent": 4, "inserted": 1, "left": 1, "dropped": 3}


def test_bytes_held_and_on_the_way():
    buffer = make_buffer(SLOW, size=2)
    for step, nbytes in enumerate([100, 200, 50]):
        buffer.insert(make_entry(step, nbytes), float(step))
    assert buffer.nbytes == 350
    buffer.sample(10.0)
    assert held_steps(buffer) == [1, 2]
    assert buffer.nbytes == 250
    assert buffer.statistics()["peak_bytes"] == 350


def test_entries_that_a_reader_could_choose_from():
    buffer = make_buffer(size=3)
    assert buffer.statistics()["mean_held"] == 0
    for step in range(4):
        buffer.insert(make_entry(step), 0.0)
        buffer.sample(0.0)
    assert buffer.statistics()["mean_held"] == (1 + 2 + 3 + 3) / 4


# --- Configuration ----------------------------------------------------------------------------------------------------


def test_defaults_are_the_paper_s():
    config = BufferConfig()
    assert (config.sampler, config.on_full, config.max_reuse) == ("priority_lifo", "overwrite", None)
    assert (config.min_size, config.max_age) == (1, None)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        pytest.param({"on_full": "block"}, "buffer.max_reuse", id="block-without-max_reuse"),
        pytest.param({"size": 5, "min_size": 6}, "buffer.min_size must be at most buffer.size (5)", id="min_size"),
        pytest.param({"size": 0}, "buffer.size must be at least 1", id="no-place"),
        pytest.param({"max_reuse": 0}, "buffer.max_reuse must be at least 1", id="no-use"),
        pytest.param({"max_age": 0}, "buffer.max_age must be at least 1", id="no-age"),
        pytest.param({"min_size": 0}, "buffer.min_size must be at least 1", id="min_size-zero"),
        pytest.param({"sampler": "fivo"}, "did you mean fifo", id="sampler"),
    ],
)
def test_wrong_settings(settings, problem):
    with pytest.raises(ConfigError) as error:
        parse_config({"buffer": settings})
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"on_full": "block", "max_reuse": 3}, id="block"),
        pytest.param({"size": 5, "min_size": 5}, id="min_size-of-the-whole-buffer"),
    ],
)
def test_right_settings(settings):
    parsed = parse_config({"buffer": settings}).buffer
    assert {key: getattr(parsed, key) for key in settings} == settings

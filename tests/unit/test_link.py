"""Link: laws of latency and loss on real sends, bandwidth, what is dropped, order (semantics rules 6, 12-16)."""

import copy
import math
import random

import pytest
import torch
from scipy import stats

from asyncdgl.buffers.codecs import encode, payload_bytes
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.buffers.link import Link
from asyncdgl.delays.laws import Law
from asyncdgl.delays.profiles import LinkDelay, built_in_profile
from asyncdgl.seeding import Draws

MANY = 10_000


def make_entry(step: int, nbytes: int = 1, incarnation: int = 0) -> Entry:
    return Entry(Provenance(PassName(1, incarnation, step), update=step, trained=True, batch=step), None, nbytes)


def make_link(delay: LinkDelay, seed: int = 0, number: int = 1, **how) -> Link:
    return Link(delay, Draws(seed, "link", number), **how)


def steps_of(entries: list[Entry]) -> list[int]:
    return [entry.source.name.step for entry in entries]


def travel_time(link: Link, entry: Entry, now: float, unit: float = 1.0) -> float:
    """Send one entry over an empty link, and let it arrive exactly when it is due."""
    link.send(entry, now, unit)
    due = link.next_due()
    assert due is not None
    assert link.arrivals(math.nextafter(due, -math.inf)) == []
    assert link.arrivals(due) == [entry]
    return due - now


def latencies(delay: LinkDelay, count: int = MANY, unit: float = 1.0) -> list[float]:
    """Of entries sent one after the other, at whole times so that a round latency comes back exactly."""
    link = make_link(delay)
    return [travel_time(link, make_entry(step), now=float(step), unit=unit) for step in range(count)]


def everything_due(link: Link) -> list[tuple[float, int]]:
    """When each entry on the way arrives, and its step; the link is left as it was."""
    twin, found = copy.deepcopy(link), []
    while (due := twin.next_due()) is not None:
        found += [(due, step) for step in steps_of(twin.arrivals(due))]
    return found


def count_lost(delay: LinkDelay, count: int = MANY) -> int:
    link = make_link(delay)
    for step in range(count):
        link.send(make_entry(step), float(step))
        link.arrivals(float(step))
    assert link.sent == count
    return link.lost


def assert_conserved(link: Link, arrived: int) -> None:
    assert link.sent == arrived + len(link) + link.lost + link.dropped


# --- Laws of latency --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        pytest.param(Law(law="uniform", mean=10), stats.uniform(0, 20), id="uniform"),
        pytest.param(Law(law="uniform", mean=10, spread=3), stats.uniform(7, 6), id="uniform-spread-3"),
        pytest.param(Law(law="exponential", mean=10), stats.expon(scale=10), id="exponential"),
        pytest.param(Law(law="exponential", mean=0.01), stats.expon(scale=0.01), id="exponential-mean-0.01"),
        pytest.param(
            Law(law="lognormal", mean=10), stats.lognorm(s=0.5, scale=10 * math.exp(-0.125)), id="lognormal-default"
        ),
        pytest.param(
            Law(law="lognormal", mean=3, sigma=1.2),
            stats.lognorm(s=1.2, scale=3 * math.exp(-0.72)),
            id="lognormal-sigma-1.2",
        ),
    ],
)
def test_latencies_follow_their_law(latency, expected):
    assert expected.mean() == pytest.approx(latency.mean)
    assert stats.kstest(latencies(LinkDelay(latency=latency)), expected.cdf).pvalue > 0.001


@pytest.mark.parametrize("mean", [0.0, 0.5, 10.0])
def test_constant_latencies_are_all_the_same(mean):
    assert set(latencies(LinkDelay(latency=Law(law="constant", mean=mean)))) == {mean}


def test_latencies_of_wan_are_lognormal_with_mean_10_and_sigma_half():
    expected = stats.lognorm(s=0.5, scale=10 * math.exp(-0.125))
    assert stats.kstest(latencies(built_in_profile("wan").link(1)), expected.cdf).pvalue > 0.001


def test_a_latency_does_not_depend_on_the_one_before():
    drawn = latencies(LinkDelay(latency=Law(law="exponential", mean=1)))
    assert stats.spearmanr(drawn[:-1], drawn[1:]).pvalue > 0.001


def test_latencies_of_two_links_are_independent():
    delay = LinkDelay(latency=Law(law="exponential", mean=1))
    one, other = (
        [travel_time(link, make_entry(step), 0.0) for step in range(2000)]
        for link in (make_link(delay, number=1), make_link(delay, number=2))
    )
    assert stats.spearmanr(one, other).pvalue > 0.001


@pytest.mark.parametrize("law", ["constant", "uniform", "exponential", "lognormal"])
def test_unit_scales_latencies(law):
    delay = LinkDelay(latency=Law(law=law, mean=8))
    plain, scaled = latencies(delay, 200), latencies(delay, 200, unit=0.25)
    assert scaled == pytest.approx([latency / 4 for latency in plain])


# --- Loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.001, 0.05, 0.3, 0.5, 0.95])
def test_share_of_lost_entries(loss):
    assert stats.binomtest(count_lost(LinkDelay(loss=loss)), MANY, loss).pvalue > 0.001


def test_no_loss_loses_nothing():
    assert count_lost(LinkDelay(loss=0.0)) == 0


def test_loss_of_lossy_is_5_percent():
    assert stats.binomtest(count_lost(built_in_profile("lossy").link(1)), MANY, 0.05).pvalue > 0.001


def test_loss_does_not_choose_by_latency():
    # Were both made of the same draw, only long latencies would be left.
    link = make_link(LinkDelay(latency=Law(law="uniform", mean=1), loss=0.5, max_in_flight=MANY))
    arrived = []
    for step in range(MANY):
        before = link.lost
        link.send(make_entry(step), 0.0)
        if link.lost == before:
            arrived.append(link.next_due())
            link.arrivals(2.0)
    assert stats.kstest(arrived, stats.uniform(0, 2).cdf).pvalue > 0.001


def test_loss_is_independent_from_one_entry_to_the_next():
    link = make_link(LinkDelay(loss=0.5))
    fates = []
    for step in range(MANY):
        before = link.lost
        link.send(make_entry(step), 0.0)
        link.arrivals(0.0)
        fates.append(link.lost - before)
    table = [[0, 0], [0, 0]]
    for one, next_one in zip(fates[::2], fates[1::2], strict=True):
        table[one][next_one] += 1
    assert stats.chi2_contingency(table).pvalue > 0.001


# --- Keyed draws ------------------------------------------------------------------------------------------------------

DRAWN = LinkDelay(latency=Law(law="lognormal", mean=5), loss=0.3, max_in_flight=MANY)


def fates(order: list[int], seed: int = 0, number: int = 1, incarnation: int = 0) -> dict[int, float | None]:
    """Latency of each step, or None if it was lost."""
    link = make_link(DRAWN, seed, number)
    found = {}
    for step in order:
        link.send(make_entry(step, incarnation=incarnation), 0.0)
        found[step] = link.next_due()
        link.arrivals(math.inf)
    return found


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(list(reversed(range(200))), id="backwards"),
        pytest.param(random.Random(0).sample(range(200), 200), id="shuffled"),
    ],
)
def test_fate_of_an_entry_does_not_depend_on_the_order_of_sends(order):
    plain = fates(list(range(200)))
    assert None in plain.values()
    assert fates(order) == plain


def test_fate_of_an_entry_does_not_depend_on_which_others_are_sent():
    plain = fates(list(range(200)))
    assert fates(list(range(0, 200, 7))) == {step: plain[step] for step in range(0, 200, 7)}


def test_fate_of_an_entry_does_not_depend_on_what_is_on_the_way():
    link = make_link(DRAWN)
    for step in range(200):
        link.send(make_entry(step), 0.0)
    plain = fates(list(range(200)))
    assert everything_due(link) == sorted((due, step) for step, due in plain.items() if due is not None)


def test_arrival_of_an_entry_does_not_depend_on_the_order_of_sends():
    # Each is ready at its own time, and nothing but bandwidth makes one wait for another.
    steps = list(range(200))
    arrival = []
    for order in (steps, steps[::-1]):
        link = make_link(DRAWN)
        for step in order:
            link.send(make_entry(step), float(step))
        arrival.append(everything_due(link))
    assert arrival[0] == arrival[1]


@pytest.mark.parametrize("other", [{"seed": 1}, {"number": 2}, {"incarnation": 1}], ids=["seed", "link", "incarnation"])
def test_fates_are_keyed_by(other):
    steps = list(range(50))
    assert fates(steps, **other) != fates(steps)
    assert fates(steps, **other) == fates(steps, **other)


# --- Bandwidth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency", "unit", "sends", "dues"),
    [
        pytest.param(0, 1, [(0, 200)], [2], id="one-entry"),
        pytest.param(0, 1, [(0, 200), (0, 100), (0, 300)], [2, 3, 6], id="one-after-the-other"),
        pytest.param(0, 1, [(0, 200), (1, 100)], [2, 3], id="the-second-waits-for-the-first"),
        pytest.param(0, 1, [(0, 200), (10, 100)], [2, 11], id="an-idle-link-waits-for-nobody"),
        pytest.param(0, 1, [(0, 0), (0, 0)], [0, 0], id="no-bytes-no-time"),
        pytest.param(5, 1, [(0, 200), (0, 100)], [7, 8], id="latencies-overlap"),
        pytest.param(5, 0.5, [(0, 200), (0, 100), (10, 400)], [3.5, 4, 14.5], id="unit-scales-both"),
    ],
)
def test_bandwidth_serialises(latency, unit, sends, dues):
    link = make_link(LinkDelay(latency=Law(mean=latency), bandwidth=100))
    found = []
    for step, (now, nbytes) in enumerate(sends):
        link.arrivals(now - 0.001)  # an entry that has long arrived is out of the way
        link.send(make_entry(step, nbytes), now, unit)
        found.append(max(due for due, _ in everything_due(link)))
    assert found == dues


def test_without_bandwidth_size_takes_no_time():
    link = make_link(LinkDelay(latency=Law(mean=3)))
    link.send(make_entry(0, 10**9), 0.0)
    link.send(make_entry(1, 10**9), 0.0)
    assert everything_due(link) == [(3.0, 0), (3.0, 1)]


def test_entries_are_never_through_before_an_earlier_one_is():
    delay = LinkDelay(bandwidth=10, max_in_flight=MANY)
    link, draw = make_link(delay), random.Random(0)
    now, free_at, expected = 0.0, 0.0, []
    for step in range(300):
        now += draw.choice([0, 1, 5])
        nbytes = draw.randrange(60)
        link.send(make_entry(step, nbytes), now)
        free_at = max(now, free_at) + nbytes / 10
        expected.append(free_at)
    assert [due for due, _ in everything_due(link)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [
        # 2 x 4 channels x 3 x 5 numbers, and two labels of 8 bytes
        pytest.param("none", 120 * 4 + 16, id="none"),
        pytest.param("bf16", 120 * 2 + 16, id="bf16"),
        pytest.param("int8", 120 + 4 * 4 + 16, id="int8-and-a-scale-for-each-channel"),
    ],
)
def test_bandwidth_counts_encoded_bytes(codec, nbytes):
    payload = encode(codec, torch.ones(2, 4, 3, 5), torch.tensor([0, 1]))
    entry = Entry(make_entry(0).source, payload, payload_bytes(payload))
    link = make_link(LinkDelay(bandwidth=1))
    link.send(entry, 0.0)
    assert link.nbytes == nbytes
    assert link.next_due() == nbytes


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        pytest.param(LinkDelay(), False, id="none"),
        pytest.param(LinkDelay(loss=0.5, max_in_flight=1), False, id="loss-takes-no-time"),
        pytest.param(LinkDelay(latency=Law(mean=0.1)), True, id="latency"),
        pytest.param(LinkDelay(bandwidth=1e9), True, id="bandwidth"),
    ],
)
def test_has_delay(delay, expected):
    assert make_link(delay).has_delay is expected


# --- On the way -------------------------------------------------------------------------------------------------------


def slow_link(max_in_flight: int = 64, **how) -> Link:
    """An entry sent with unit=t takes t."""
    return make_link(LinkDelay(latency=Law(mean=1), max_in_flight=max_in_flight), **how)


def send_all(link: Link, *sends: tuple[int, float]) -> None:
    """Each (step, time on the way), all at time 0."""
    for step, takes in sends:
        link.send(make_entry(step), 0.0, unit=takes)


@pytest.mark.parametrize(
    ("max_in_flight", "steps", "left"),
    [
        pytest.param(3, [0, 1, 2], [0, 1, 2], id="up-to-the-bound"),
        pytest.param(3, [0, 1, 2, 3], [0, 2, 3], id="then-the-oldest-that-waits-goes"),
        pytest.param(3, [0, 1, 2, 3, 4, 5, 6], [0, 5, 6], id="and-the-next-oldest"),
        pytest.param(1, [0, 1, 2], [0], id="one"),
        pytest.param(3, [3, 4, 1, 5], [3, 4, 5], id="oldest-by-step-and-not-by-sending"),
        pytest.param(3, [3, 4, 5, 1], [3, 4, 5], id="which-may-be-the-new-one"),
        pytest.param(64, list(range(70)), [0, *range(7, 70)], id="the-default-bound"),
    ],
)
@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
def test_more_than_max_in_flight_drops_the_oldest_that_waits(max_in_flight, steps, left, in_order):
    link = make_link(LinkDelay(bandwidth=1, max_in_flight=max_in_flight), in_order=in_order)
    for step in steps:
        link.send(make_entry(step), 0.0)  # each takes 1: the first is being sent, the others wait
    assert len(link) == len(left)
    assert link.dropped == len(steps) - len(left)
    assert_conserved(link, arrived=0)
    link.count_dropped(step for step in range(max(steps)) if step not in steps)  # nobody waits for those never sent
    assert [steps_of(link.arrivals(time + 1.0)) for time in range(len(left))] == [[step] for step in left]


@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
def test_without_bandwidth_nothing_waits_and_a_full_link_takes_no_more(in_order):
    """However much longer the latency is than max_in_flight passes: what was sent arrives."""
    link = slow_link(2, in_order=in_order)
    arrived = []
    for now in range(30):
        link.send(make_entry(now), float(now), unit=10.0)
        arrived += steps_of(link.arrivals(float(now)))
        assert_conserved(link, len(arrived))
    assert arrived == [0, 1, 11, 12]  # the one sent at 10 comes before the first has arrived


def test_dropped_entries_take_no_bandwidth():
    link = make_link(LinkDelay(bandwidth=1, max_in_flight=2))
    arrived = []
    for now in range(100):
        link.send(make_entry(now, nbytes=4), float(now))
        arrived += steps_of(link.arrivals(float(now)))
    assert len(arrived) == 99 // 4
    assert link.lost == 0
    assert_conserved(link, len(arrived))


def test_lost_entries_take_bandwidth_but_no_more_than_the_others_place():
    delay = LinkDelay(bandwidth=1, max_in_flight=4, loss=0.5)
    link = make_link(delay)
    arrived = []
    for now in range(1000):
        link.send(make_entry(now, nbytes=4), float(now))
        arrived += [(now, step) for step in steps_of(link.arrivals(float(now)))]
    assert 80 < len(arrived) < 170  # of 250 that the bandwidth lets through, about half
    assert max(now - step for now, step in arrived) <= 4 * 5
    assert_conserved(link, len(arrived))


def test_default_max_in_flight_is_64():
    assert LinkDelay().max_in_flight == 64


def test_entries_that_have_arrived_make_room():
    link = slow_link(2)
    arrived = 0
    for step in range(10):
        link.send(make_entry(step), float(step))
        arrived += len(link.arrivals(step + 1.0))
    assert (arrived, link.dropped) == (10, 0)


def test_lost_entries_take_no_room():
    link = make_link(LinkDelay(latency=Law(mean=100), loss=0.5, max_in_flight=100))
    for step in range(150):
        link.send(make_entry(step), 0.0)
    assert link.dropped == 0
    assert link.lost == 150 - len(link) > 0


def test_without_dropping_there_is_no_bound():
    link = slow_link(2, may_drop=False)
    send_all(link, *[(step, 1.0) for step in range(100)])
    assert (len(link), link.dropped, link.is_full) == (100, 0, False)


@pytest.mark.parametrize(("sent", "full"), [(1, False), (2, True), (3, True)])
def test_is_full(sent, full):
    link = slow_link(2)
    send_all(link, *[(step, 1.0) for step in range(sent)])
    assert link.is_full is full


def test_next_due_is_the_first_arrival_and_none_without_entries():
    link = slow_link()
    assert link.next_due() is None
    send_all(link, (0, 30.0), (1, 10.0), (2, 20.0))
    assert link.next_due() == 10.0
    link.arrivals(10.0)
    assert link.next_due() == 20.0
    link.arrivals(30.0)
    assert link.next_due() is None


def test_entries_arrive_in_the_order_of_their_times():
    link = slow_link()
    send_all(link, (0, 30.0), (1, 10.0), (2, 20.0), (4, 10.0), (3, 10.0))
    assert steps_of(link.arrivals(9.99)) == []
    assert steps_of(link.arrivals(20.0)) == [1, 3, 4, 2]
    assert steps_of(link.arrivals(20.0)) == []
    assert steps_of(link.arrivals(30.0)) == [0]


def test_bytes_on_the_way():
    link = make_link(LinkDelay(bandwidth=1, max_in_flight=2))
    for step, nbytes in enumerate([5, 70, 600]):
        link.send(make_entry(step, nbytes), 0.0)
    assert link.nbytes == 605  # the second was dropped: the first is being sent
    link.arrivals(5.0)
    assert link.nbytes == 600


# --- In order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sends", "arrivals"),
    [
        pytest.param([(0, 10), (1, 20), (2, 30)], {10: [0], 20: [1], 30: [2]}, id="as-sent"),
        pytest.param([(0, 30), (1, 10), (2, 20)], {10: [], 20: [], 30: [0, 1, 2]}, id="overtaking-is-held-back"),
        pytest.param([(2, 10), (1, 10), (0, 10)], {10: [0, 1, 2]}, id="sent-backwards"),
        pytest.param([(0, 10), (2, 10)], {10: [0], 99: []}, id="waits-for-what-is-not-sent-yet"),
        pytest.param([(0, 20), (1, 10), (2, 40), (3, 30)], {10: [], 20: [0, 1], 30: [], 40: [2, 3]}, id="in-groups"),
    ],
)
def test_in_order(sends, arrivals):
    link = slow_link(in_order=True)
    send_all(link, *sends)
    assert {now: steps_of(link.arrivals(now)) for now in arrivals} == arrivals


def test_in_order_is_due_when_the_next_in_turn_arrives():
    link = slow_link(in_order=True)
    send_all(link, (1, 10.0), (2, 20.0))
    assert link.next_due() is None  # step 0 was not sent yet
    send_all(link, (0, 30.0))
    assert link.next_due() == 30.0


def test_in_order_does_not_wait_for_dropped_entries():
    link = make_link(LinkDelay(bandwidth=1, max_in_flight=2), in_order=True)
    for step in range(3):
        link.send(make_entry(step), 0.0)
    assert link.dropped == 1
    assert steps_of(link.arrivals(2.0)) == [0, 2]


def test_in_order_does_not_wait_for_what_its_producer_dropped():
    link = slow_link(in_order=True)
    send_all(link, (2, 10.0))
    assert link.arrivals(10.0) == []
    link.count_dropped([0, 1])
    assert steps_of(link.arrivals(10.0)) == [2]


def test_in_order_passes_over_lost_entries_and_misses_no_other():
    plain = fates(list(range(300)))
    link = make_link(DRAWN, in_order=True)
    for step in random.Random(1).sample(range(300), 300):
        link.send(make_entry(step), 0.0)
    assert steps_of(link.arrivals(math.inf)) == [step for step in range(300) if plain[step] is not None]


# --- Names and counts -------------------------------------------------------------------------------------------------


def test_a_repeated_name_is_ignored():
    link = slow_link()
    assert link.send(make_entry(0), 0.0, unit=10.0)
    assert not link.send(make_entry(0), 1.0, unit=1.0)
    assert link.next_due() == 10.0
    link.arrivals(10.0)
    assert not link.send(make_entry(0), 20.0)
    assert (link.sent, len(link)) == (1, 0)


def test_a_repeated_name_takes_no_bandwidth():
    link = make_link(LinkDelay(bandwidth=1))
    for step in (0, 0, 0, 1):
        link.send(make_entry(step, 10), 0.0)
    assert everything_due(link) == [(10.0, 0), (20.0, 1)]


def test_a_restarted_producer_may_use_a_step_again():
    link = slow_link()
    assert link.send(make_entry(3, incarnation=0), 0.0)
    assert link.send(make_entry(3, incarnation=1), 0.0)  # rule 4: another pass, so another entry
    assert len(link) == 2


def test_entries_dropped_before_they_were_sent_are_counted_once_and_come_no_more():
    link = slow_link()
    send_all(link, (0, 1.0))
    link.count_dropped([0, 1, 2])
    link.count_dropped([1, 2])
    assert (link.sent, link.dropped, len(link)) == (3, 2, 1)
    assert not link.send(make_entry(1), 0.0)


@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
def test_every_entry_comes_to_exactly_one_end(in_order):
    delay = LinkDelay(latency=Law(law="exponential", mean=4), loss=0.2, max_in_flight=5, bandwidth=2)
    link, draw, arrived = make_link(delay, in_order=in_order), random.Random(0), []
    nearly_in_order = sorted(range(1000), key=lambda step: step + draw.uniform(0, 3))
    for now, step in enumerate(nearly_in_order):
        for _ in range(draw.choice([1, 1, 2])):  # some are sent again
            link.send(make_entry(step), float(now))
        if draw.random() < 0.5:
            arrived += steps_of(link.arrivals(float(now)))
        assert len(link) <= 5
        assert_conserved(link, len(arrived))
    assert link.sent == 1000
    assert min(len(arrived), link.lost, link.dropped) > 0
    assert len(set(arrived)) == len(arrived)
    assert not in_order or arrived == sorted(arrived)

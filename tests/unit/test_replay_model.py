"""Any order of calls: ReplayBuffer and Link beside a plain model written from semantics rules 7-15."""

import copy
from dataclasses import dataclass, field
from functools import cache

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from asyncdgl.buffers.buffer import ReplayBuffer
from asyncdgl.buffers.entry import Entry, PassName, Provenance
from asyncdgl.buffers.link import Link
from asyncdgl.config.sections import BufferConfig
from asyncdgl.delays.laws import Law
from asyncdgl.delays.profiles import LinkDelay
from asyncdgl.errors import SampleBlocked
from asyncdgl.seeding import Draws

STEPS = 14  # few enough that names come again and gaps are filled


def name_of(step: int) -> PassName:
    return PassName(stage=1, incarnation=0, step=step)


@cache
def source_of(step: int) -> Provenance:
    return Provenance(name_of(step), update=2 * step, trained=True, batch=step)


def make_entry(step: int, nbytes: int) -> Entry:
    return Entry(source_of(step), ("payload", step), nbytes)


@cache
def fate(latency: Law, loss: float, seed: int, step: int) -> float | None:
    """The latency of one entry, or None if it is lost: keyed draws, so that a link of its own tells (rule 6)."""
    link = Link(LinkDelay(latency=latency, loss=loss), Draws(seed, "link", 1))
    link.send(make_entry(step, 0), 0.0)
    return link.next_due()


# --- The model --------------------------------------------------------------------------------------------------------


class Model:
    """Rules 7-15 with lists and loops. Entries are step numbers, and the time only goes forward."""

    def __init__(self, config: BufferConfig, delay: LinkDelay, seed: int) -> None:
        self.config, self.delay, self.seed = config, delay, seed
        self.uses: dict[int, int] = {}  # of the entries held
        self.queue: list[tuple[int, float, float, float | None]] = []  # step, ready, time to send, latency or lost
        self.way: dict[int, float] = {}  # step to the time of arrival, once its sending has begun
        self.known: set[int] = set()  # steps that were sent
        self.gone_by: set[int] = set()  # steps that nobody needs to wait for any more
        self.reserved: set[int] = set()
        self.free_at = 0.0
        self.newest_arrived = -1
        self.last_to_leave_was_used_up = False
        self.sent = self.lost = self.dropped = 0
        self.inserted = self.sampled = self.retired = self.overwritten_unused = 0

    def __deepcopy__(self, memo: dict) -> "Model":
        twin = copy.copy(self)
        for name in ("uses", "queue", "way", "known", "gone_by", "reserved"):
            setattr(twin, name, getattr(self, name).copy())
        return twin

    @property
    def places_taken(self) -> int:
        return len(self.uses) + self.on_the_way + len(self.reserved)

    @property
    def on_the_way(self) -> int:
        return len(self.way) + len([latency for _, _, _, latency in self.queue if latency is not None])

    def sendings(self) -> list[tuple[float, float]]:
        """When the sending of each in the queue begins and ends, if nothing more happens."""
        free_at, found = self.free_at, []
        for _, ready, takes, _ in self.queue:
            begin = max(ready, free_at)
            free_at = begin + takes
            found.append((begin, free_at))
        return found

    def begin(self, now: float) -> None:
        while self.queue and self.sendings()[0][0] <= now:
            _, self.free_at = self.sendings()[0]
            step, _, _, latency = self.queue.pop(0)
            if latency is not None:
                self.way[step] = self.free_at + latency

    def has_turn(self, step: int) -> bool:
        """With fifo, entries are put in order by step however they arrive."""
        return self.config.sampler != "fifo" or all(earlier in self.gone_by for earlier in range(step))

    def let_arrive(self, now: float) -> None:
        self.begin(now)
        while ready := [(due, step) for step, due in self.way.items() if due <= now and self.has_turn(step)]:
            _, step = min(ready)
            del self.way[step]
            self.gone_by.add(step)
            self.inserted += 1
            self.uses[step] = 0
            self.newest_arrived = max(self.newest_arrived, step)
            if len(self.uses) > self.config.size:
                self.leave(min(self.uses))
            if self.config.max_age is not None:
                for old in [s for s in self.uses if self.newest_arrived - s > self.config.max_age]:
                    self.leave(old)

    def leave(self, step: int, used_up: bool = False) -> None:
        self.last_to_leave_was_used_up = used_up
        if self.uses.pop(step) > 0:
            self.retired += 1
        else:
            self.overwritten_unused += 1

    def drop_at_producer(self, steps: list[int]) -> None:
        for step in steps:
            if step not in self.known:
                self.known.add(step)
                self.gone_by.add(step)
                self.sent += 1
                self.dropped += 1

    def insert(self, step: int, nbytes: int, now: float, unit: float) -> None:
        if step in self.known:
            return
        self.known.add(step)
        self.reserved.discard(step)
        self.sent += 1
        bandwidth, latency = self.delay.bandwidth, fate(self.delay.latency, self.delay.loss, self.seed, step)
        if latency is None:
            self.lost += 1
            self.gone_by.add(step)
        if latency is None and bandwidth is None:
            return
        self.let_arrive(now)
        full = len(self.queue) + len(self.way) >= self.delay.max_in_flight
        takes = 0 if bandwidth is None else unit * nbytes / bandwidth
        self.queue.append((step, now, takes, None if latency is None else unit * latency))
        if self.config.on_full == "overwrite" and full:
            oldest = min(self.queue)
            self.queue.remove(oldest)
            if oldest[3] is not None:
                self.gone_by.add(oldest[0])
                self.dropped += 1
        if bandwidth is None:
            self.free_at = 0.0  # nothing waits for a turn
        self.begin(now)

    def next_due(self) -> float | None:
        waiting = [
            (s, end + q[3])
            for q, (_, end) in zip(self.queue, self.sendings(), strict=True)
            for s in [q[0]]
            if q[3] is not None
        ]
        return min((due for step, due in [*self.way.items(), *waiting] if self.has_turn(step)), default=None)

    def blocked(self) -> tuple[set[str], float | None] | None:
        """Reasons that would be right, and when the next entry arrives; None if there is something to give."""
        if self.uses:
            return ({"below_min_size"}, self.next_due()) if self.inserted < self.config.min_size else None
        if self.on_the_way:
            return {"not_arrived"}, self.next_due()
        if self.inserted == 0:
            return {"empty"}, None
        # What left last may have been too old on arrival, which no reason names.
        return {"reused_up"} if self.last_to_leave_was_used_up else {"reused_up", "empty"}, None

    def choices(self) -> set[int]:
        """The steps that may be given next; only ``uniform`` leaves a choice."""
        held = set(self.uses)
        if self.config.sampler == "uniform":
            return held
        if self.config.sampler == "fifo":
            return {min(held)}
        if self.config.sampler == "priority_lifo":
            fewest = min(self.uses.values())
            held = {step for step in held if self.uses[step] == fewest}
        return {max(held)}

    def give(self, step: int) -> int:
        self.sampled += 1
        self.uses[step] += 1
        times = self.uses[step]
        if times == self.config.max_reuse:
            self.leave(step, used_up=True)
        return times

    def counts(self) -> dict[str, int]:
        return {
            "sent": self.sent,
            "inserted": self.inserted,
            "sampled": self.sampled,
            "retired": self.retired,
            "overwritten_unused": self.overwritten_unused,
            "lost": self.lost,
            "dropped": self.dropped,
            "left": len(self.uses),
            "on_the_way": self.on_the_way,
        }


# --- What is tried ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call, some time after the one before.

    ``step`` None is the step after the newest one sent, as from a producer in order.
    """

    kind: str
    wait: float
    step: int | None = None
    nbytes: int = 0
    unit: float = 1.0
    dropped: list[int] = field(default_factory=list)


waits = st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0, 20.0])
steps = st.none() | st.none() | st.integers(0, STEPS - 1)
inserts = st.builds(
    Call,
    kind=st.just("insert"),
    wait=waits,
    step=steps,
    nbytes=st.sampled_from([0, 16, 64]),
    unit=st.sampled_from([0.25, 1.0, 2.0]),
)
inserts_that_report_drops = st.builds(
    Call, kind=st.just("insert"), wait=waits, step=steps, dropped=st.lists(st.integers(0, STEPS - 1), max_size=2)
)
samples = st.builds(Call, kind=st.just("sample"), wait=waits)
reservations = st.builds(Call, kind=st.just("reserve"), wait=waits, step=steps)
calls = {
    "overwrite": st.lists(inserts | inserts | samples | inserts_that_report_drops, min_size=10, max_size=40),
    "block": st.lists(inserts | inserts | samples | samples | reservations, min_size=10, max_size=40),
}

LATENCIES = [
    Law(),
    Law(),
    Law(mean=3),
    Law(law="uniform", mean=4),
    Law(law="exponential", mean=3),
    Law(law="lognormal", mean=3, sigma=1.0),
]
delays = st.builds(
    LinkDelay,
    latency=st.sampled_from(LATENCIES),
    loss=st.sampled_from([0.0, 0.0, 0.3]),
    bandwidth=st.sampled_from([None, None, 16.0]),
    max_in_flight=st.sampled_from([64, 64, 3, 1]),
)


@st.composite
def buffer_configs(draw: st.DrawFn) -> BufferConfig:
    size = draw(st.integers(1, 5))
    on_full = draw(st.sampled_from(["overwrite", "block"]))
    reuse = st.integers(1, 3)
    return BufferConfig(
        size=size,
        sampler=draw(st.sampled_from(["priority_lifo", "lifo", "fifo", "uniform"])),
        on_full=on_full,
        max_reuse=draw(reuse if on_full == "block" else st.none() | reuse),
        min_size=draw(st.just(1) | st.integers(1, size)),
        max_age=draw(st.none() | st.integers(1, 6)),
    )


# --- Both beside each other -------------------------------------------------------------------------------------------


def look(buffer: ReplayBuffer, model: Model, now: float) -> None:
    """Sample from both: the same is held, given or missing, and counted."""
    model.let_arrive(now)
    expected = model.blocked()
    try:
        sample = buffer.sample(now)
    except SampleBlocked as blocked:
        assert expected is not None, f"blocked ({blocked.reason}), but {model.choices()} can be given"
        reasons, due = expected
        assert blocked.reason in reasons
        assert blocked.due == due
    else:
        assert expected is None, f"given, but should be blocked: {expected}"
        step = sample.source.name.step
        assert step in model.choices()
        assert sample.source == source_of(step)
        assert sample.payload == ("payload", step)
        assert sample.times_sampled == model.give(step)
    assert [(entry.source.name.step, entry.times_sampled) for entry in buffer.held] == sorted(model.uses.items())
    counts = buffer.statistics()
    del counts["peak_bytes"], counts["mean_held"]
    assert counts == model.counts()


class Gone:
    """The entries of which a buffer has said that they are gone for good."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, entry: Entry) -> None:
        self.entries.append(entry)


class Beside:
    """A buffer and its model, told the same. After each call a look into copies shows what the buffer would do now."""

    def __init__(self, config: BufferConfig, delay: LinkDelay, seed: int) -> None:
        fifo, overwrite = config.sampler == "fifo", config.on_full == "overwrite"
        self.config, self.delay = config, delay
        link_draws, buffer_draws = Draws(seed, "link", 1), Draws(seed, "buffer", 1)
        self.gone, self.handed_in = Gone(), 0
        self.link = Link(delay, link_draws, in_order=fifo, may_drop=overwrite, on_leave=self.gone)
        self.buffer = ReplayBuffer(config, self.link, buffer_draws, self.gone)
        self.model = Model(config, delay, seed)
        self.now = 0.0
        self._never_change = [config, delay, link_draws, buffer_draws, *map(source_of, range(2 * STEPS))]

    def make(self, call: Call) -> None:
        self.now += call.wait
        newest = max(self.model.known, default=-1)
        step = newest + 1 if call.step is None else call.step
        if call.kind == "sample":
            look(self.buffer, self.model, self.now)
        elif call.kind == "insert":
            self._insert(step, call)
        elif step not in self.model.known:
            self._reserve(step)
        self._check_conservation()
        twin = copy.deepcopy(self.buffer, {id(part): part for part in self._never_change})
        look(twin, copy.deepcopy(self.model), self.now)

    def _insert(self, step: int, call: Call) -> None:
        if self.config.on_full == "block":
            if step not in self.model.known | self.model.reserved and not self._reserve(step):
                return
        dropped = [other for other in call.dropped if other != step]
        self.model.drop_at_producer(dropped)
        self.model.insert(step, call.nbytes, self.now, call.unit)
        self.buffer.insert(make_entry(step, call.nbytes), self.now, call.unit, dropped)
        self.handed_in += 1

    def _reserve(self, step: int) -> bool:
        model, n = self.model, self.buffer.statistics()
        places_taken = n["left"] + n["on_the_way"] + len(model.reserved)
        if self.config.max_age is None:
            # With max_age an arrival can free a place, and a reservation does not tell the buffer the time.
            assert places_taken == model.places_taken
        has_place = self.buffer.reserve(name_of(step))
        assert has_place == (step in model.reserved or places_taken < self.config.size)
        if has_place:
            model.reserved.add(step)
        return has_place

    def _check_conservation(self) -> None:
        n, held = self.buffer.statistics(), len(self.buffer.held)
        assert n["inserted"] == held + n["retired"] + n["overwritten_unused"]
        assert n["sent"] == n["inserted"] + n["on_the_way"] + n["lost"] + n["dropped"]
        assert held <= self.config.size
        # Whoever lends an entry memory hears of its end: once, and of every one that is not here any more.
        underway = len(self.link._waiting) + len(self.link._on_the_way)
        assert len({id(entry) for entry in self.gone.entries}) == len(self.gone.entries)
        assert self.handed_in == len(self.gone.entries) + held + underway
        if self.config.on_full == "block":
            assert held + n["on_the_way"] + len(self.model.reserved) <= self.config.size


@settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(config=buffer_configs(), delay=delays, seed=st.integers(0, 3), data=st.data())
def test_any_order_of_calls(config, delay, seed, data):
    both = Beside(config, delay, seed)
    for call in data.draw(calls[config.on_full], label="calls"):
        both.make(call)

"""Where the actors of a run find their place on the GPUs that a cluster says it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from asyncdgl.config.yaml import parse_config
from asyncdgl.plan.resolve import planned


@pytest.fixture
def most_on_one(cluster, make_recorder, monkeypatch) -> Callable[[int], int]:
    """``most_on_one(stages)``: how many of a run's stages are on one GPU at most; its evaluator has a place too."""
    import ray

    from asyncdgl.on_ray.placement import Placement

    class Where:
        """An actor that says which GPUs it was given; defined here, since no worker can import a test."""

        def gpus(self) -> list[int]:
            return ray.get_gpu_ids()

    monkeypatch.setattr("asyncdgl.plan.machine.visible_gpus", lambda: 3)  # none computes

    def place(stages: int) -> int:
        tree = {"runtime": "ray", "device": "cuda", "stages": stages, "model": {"blocks": 7}, "ray": {"wait_s": 5}}
        found = Placement(planned(parse_config(tree)), make_recorder())
        try:
            found.find()
            shares = {0: found.evaluator_gpu, **dict.fromkeys(range(1, stages + 1), found.gpu)}
            actors = [found.actor(Where, bundle, 0.01, share).remote() for bundle, share in shares.items()]
            given = ray.get([actor.gpus.remote() for actor in actors], timeout=100)
        finally:
            found.leave()
        assert [len(gpus) for gpus in given] == [1] * (stages + 1)
        return max(Counter(gpus[0] for gpus in given[1:]).values())

    return place


@pytest.mark.ray
@pytest.mark.parametrize(("stages", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_as_few_stages_as_can_be_share_a_gpu(stages, most, most_on_one) -> None:
    """There are three."""
    assert most_on_one(stages) == most


@pytest.mark.ray
def test_where_others_use_the_gpus_all_stages_share_one(most_on_one) -> None:
    import ray

    others = ray.util.placement_group([{"GPU": 2}])
    try:
        assert others.wait(timeout_seconds=60)
        assert most_on_one(3) == 3
    finally:
        ray.util.remove_placement_group(others)


@pytest.mark.ray
def test_a_full_cluster_says_for_what_it_is_waited(cluster, digits_folder, make_recorder) -> None:
    import ray

    from asyncdgl.errors import ConfigError
    from asyncdgl.on_ray import run as ray_runtime

    config = planned(parse_config({"runtime": "ray", "stages": 4, "ray": {"wait_s": 2}}))
    observer, noticed = make_recorder(), []
    observer.noticed = noticed.append
    others = ray.util.placement_group([{"CPU": 14}])
    try:
        assert others.wait(timeout_seconds=60)
        run = ray_runtime.RayRun(config, digits_folder, observer)
        with pytest.raises(ConfigError, match=r"it needs 4 CPU; .*: others use it: wait for longer than ray\.wait_s 2"):
            run.start()
        run.close()
    finally:
        ray.util.remove_placement_group(others)
    assert any("waiting for room in the cluster: it needs 4 CPU" in text for text in noticed)


@pytest.mark.ray
def test_more_cpus_than_there_are_is_an_error_that_says_so(cluster, digits_folder, make_recorder) -> None:
    from asyncdgl.errors import ConfigError
    from asyncdgl.on_ray import run as ray_runtime

    config = planned(parse_config({"runtime": "ray", "stages": 20, "model": {"blocks": 20}, "ray": {"wait_s": 1}}))
    run = ray_runtime.RayRun(config, digits_folder, make_recorder())
    with pytest.raises(
        ConfigError, match=r"it needs 20 CPU; the cluster has 16 CPU \(\S+ free\), 3 GPU \(3 free\): use fewer"
    ):
        run.start()
    run.close()

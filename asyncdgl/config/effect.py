"""Settings that a run would silently ignore."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from asyncdgl.config.defaults import lookup
from asyncdgl.config.model import RunConfig
from asyncdgl.config.setting import applies, keys, obstacle, value_of
from asyncdgl.delays.profiles import DelayProfile, LinkDelay


def without_effect(config: RunConfig, tree: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Settings that have no effect here: typed ones always, those of a file where they differ from what is so anyway.

    Args:
        config: the run.
        tree: what was asked, as it was written.
        given: dotted keys that the user typed.
    """
    dataset = config.data.dataset
    data = {"dataset": dataset, "data_dir": config.data.data_dir or "." if dataset == "image-folder" else None}
    neutral = RunConfig.model_validate({"data": data, "runtime": config.runtime})
    real = {f"buffer.{key}": value for key, value in config.between.items()}  # as a run writes it down
    found = []
    for name, key in keys(RunConfig).items():
        words = obstacle(config, name)
        if words is None:
            continue
        value = value_of(config, name)
        in_file = lookup(tree, name, None) is not None and value not in (value_of(neutral, name), real.get(name))
        # The image size of a data set that has only one is checked against that one, not against the default.
        if name in given or (in_file and not key.setting.decided and name != "data.image_size"):
            found.append(f"{name} has no effect here: it applies {words}")
    return found + [f"{key} has no effect here: it applies {words}" for key, words in _of_profile(config, given)]


def _of_profile(config: RunConfig, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """What a delay profile says in vain."""
    profile = config.delays.profile
    if not isinstance(profile, DelayProfile) or not applies(config, "delays.profile"):
        return
    paced = config.runtime != "sim" and config.pace == "profile"
    if not paced and (profile.window != DelayProfile().window or "delays.profile.window" in given):
        yield "delays.profile.window", "to pace profile with --runtime ray or virtual"
    places = {"every_link": profile.every_link, **{f"links.{j}": link for j, link in profile.links.items()}}
    blocks = config.real_buffer.on_full == "block"
    for place, link in places.items():
        key = f"delays.profile.{place}.max_in_flight"
        if link.max_in_flight == LinkDelay().max_in_flight and key not in given:
            continue
        if blocks:
            yield key, "to buffer.on_full overwrite: a buffer that blocks bounds what is on the way"
        elif not link.has_delay:
            yield key, "to links with latency or bandwidth"

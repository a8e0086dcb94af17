"""The reward that a policy is optimised for: the proxy alone, or the sources of `[reward]`.

Implements finding the sources by name. Leaves out how they are mixed (`rewards.mixture`).
"""

from __future__ import annotations

from accord.config.rewarding import PROXY, RewardSection
from accord.rewards import SOURCES, Mixture, as_source, find_text_reward
from accord.types import RewardSource


def mix_sources(section: RewardSection, proxy: RewardSource) -> RewardSource:
    """The proxy itself where no sources are named, else their mixture.

    Raises:
        ConfigError: a source is neither `proxy` nor a text reward.
    """
    if not section.sources:
        return proxy
    sources: dict[str, RewardSource] = {}
    for source in section.sources:
        where = f"reward.sources {source.name!r}"
        if source.name == PROXY:
            sources[source.name] = proxy
        elif source.name in SOURCES:
            sources[source.name] = SOURCES[source.name]
        else:
            sources[source.name] = as_source(find_text_reward(source.name, where=where))
    return Mixture(
        sources,
        {source.name: source.weight for source in section.sources},
        {source.name: source.at_least for source in section.sources if source.at_least is not None},
        combine=section.combine,
        start=section.multiplier_start,
        rate=section.multiplier_rate,
    )

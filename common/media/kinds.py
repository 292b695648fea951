"""Find a kind of media by its name in messages, requests and options."""

from __future__ import annotations

from collections.abc import Mapping

from drover.common.errors import MediaError
from drover.common.media.clips import Clips
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.media.scenes import Scenes
from drover.common.media.sounds import Sounds
from drover.common.media.structures import Structures

KINDS: Mapping[str, type[Media]] = {kind.kind: kind for kind in (Pictures, Clips, Sounds, Scenes, Structures)}


def kind_named(name: str) -> type[Media]:
    """The kind of media with this name. Raises `MediaError` for an unknown name."""
    if name not in KINDS:
        raise MediaError(f"there is no kind of media {name!r}; there are {', '.join(KINDS)}")
    return KINDS[name]

"""The sizes of a model's networks, and in which order its latent's channels begin. No torch.

What is built of them: layers.py and night_codec.py.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the networks; stored beside the weights.

    channels: what a transform's bottlenecks work on; encoder_inner, decoder_inner: channels to which they narrow.
    groups: channels of the latent's three groups, lowest frequencies first, of which the first is coded in two
    checkerboard passes and each other one in one pass. The last one has no means.
    expanded: channels of z's features as they are spread over the latent's cells.
    index_seen: channels in which the index network looks at the first pass's magnitudes; index_joined: channels of its
    layers before the last; mean_joined: the same of the mean network in the first group.

    Raises ValueError for groups that do not make up the latent.
    """

    channels: int = 64
    latent: int = 320
    hyper: int = 96
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    mean_channels: int = 64
    index_channels: int = 64
    groups: tuple[int, int, int] = (24, 72, 224)
    encoder_inner: int = 64
    decoder_inner: int = 48
    expanded: int = 64
    index_seen: int = 32
    index_joined: int = 96
    mean_joined: int = 96

    def __post_init__(self):
        object.__setattr__(self, "groups", tuple(self.groups))
        if len(self.groups) != 3 or sum(self.groups) != self.latent or min(self.groups) < 1:
            raise ValueError(f"groups {self.groups} are not three that make up the latent's {self.latent} channels")

    @property
    def slices(self) -> list[slice]:
        """The groups' channels."""
        return [slice(sum(self.groups[:i]), sum(self.groups[: i + 1])) for i in range(3)]

    @property
    def channels_with_means(self) -> int:
        """How many of the first channels have means; of the others the symbols are all there is."""
        return self.slices[-1].start

    @property
    def order(self) -> list[int]:
        """Which row of opponent_dct(channel_counts(latent), 16) each channel starts as: by frequency, that of colours
        counting 1.6 times and one on top, so that the groups hold what carries most bits first."""
        radii = [
            (1.6 if colour else 1.0) * math.hypot(u, v) + (1.0 if colour else 0.0)
            for colour, count in enumerate(channel_counts(self.latent))
            for u, v in frequency_order(16)[:count]
        ]
        return sorted(range(self.latent), key=lambda row: (radii[row], row))


def frequency_order(n: int) -> list[tuple[int, int]]:
    """All (u, v) of an n x n DCT, lowest radius first."""
    return sorted(((u, v) for u in range(n) for v in range(n)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p))


def channel_counts(latent: int) -> tuple[int, int, int]:
    """Frequencies kept of the luminance-like axis and of the two others."""
    luminance = min(256, latent * 3 // 5)
    rest = (latent - luminance) // 2
    return luminance, rest, latent - luminance - rest

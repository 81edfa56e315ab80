"""The least time an operator can take on a card: the largest of its memory, matrix and exponential floors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ceilings:
    """What a card reaches at best; the defaults are an H100's, as `facts` states them.

    Args:
        bytes_per_s: Copying.
        flops_per_s: bfloat16 products.
        exps_per_s: exp2 of float32.
    """

    bytes_per_s: float = 3.0e12
    flops_per_s: float = 790e12
    exps_per_s: float = 3.7e12


@dataclass(frozen=True)
class RegionShape:
    """A region_pwconv: images, channels, side of the map, region size and heads."""

    name: str
    batch: int
    channels: int
    side: int
    region_size: int
    heads: int

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.channels // self.heads

    @property
    def pixels(self) -> int:
        """Pixels of the largest window."""
        return (-(-self.side // min(self.region_size, self.side))) ** 2

    @property
    def windows(self) -> int:
        """Windows times heads times images."""
        return self.batch * self.heads * min(self.region_size, self.side) ** 2

    def floors_us(self, ceilings: Ceilings, direction: str, itemsize: int = 2) -> dict[str, float]:
        """Return the three floors in microseconds.

        Forward reads x and writes y, with two products and one exponential an entry of a map; the backward pass reads
        x and g and writes dx, with five products and the exponentials once more.
        """
        passes, products, exps = {"forward": (2, 2, 1), "forward+backward": (5, 7, 2)}[direction]
        elements = self.batch * self.channels * self.side**2
        product = 2 * self.windows * self.head_width**2 * self.pixels
        return {
            "memory": 1e6 * passes * elements * itemsize / ceilings.bytes_per_s,
            "matrix": 1e6 * products * product / ceilings.flops_per_s,
            "exp": 1e6 * exps * self.windows * self.head_width**2 / ceilings.exps_per_s,
        }

    def bound_us(self, ceilings: Ceilings, direction: str) -> float:
        """Return the largest floor."""
        return max(self.floors_us(ceilings, direction).values())


def tiny_stages(batch: int) -> list[RegionShape]:
    """The four stages of racnn_tiny at 224."""
    return [
        RegionShape("tiny 1", batch, 64, 56, 7, 1),
        RegionShape("tiny 2", batch, 128, 28, 7, 2),
        RegionShape("tiny 3", batch, 256, 14, 7, 4),
        RegionShape("tiny 4", batch, 512, 7, 1, 8),
    ]


def other_shapes(batch: int) -> list[RegionShape]:
    """Stages of racnn_small, the literal operator, and a map of detection."""
    return [
        RegionShape("small 1", batch, 72, 56, 7, 1),
        RegionShape("small 3", batch, 288, 14, 7, 4),
        RegionShape("literal 2", batch, 128, 28, 7, 1),
        RegionShape("literal 3", batch, 256, 14, 7, 1),
        RegionShape("literal 4", batch, 512, 7, 7, 1),
        RegionShape("detection 1", max(1, batch // 16), 64, 200, 7, 1),
    ]

"""Constants of a suburb's appearance: scale, light, sensor, planting, paints and species."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float, float]

PX_M = 0.6  # ground sample distance
PAD_PX = 64  # half of it holds the largest crown (14 px) and its shadow (10 px, 16 at 45 degrees)

# Light: shadows fall to the north-north-east, 0.6 m for each metre of height.
SHADOW_DIRECTION = np.array([0.5, -0.866])
SHADOW_LENGTH_M = 0.6
SHADE = 0.42  # share of the light that is left in a shadow
SHADE_EXPONENTS = (1.0, 0.95, 0.85, 0.95)  # skylight fills blue the most
ROOF_CONTRAST = 0.20

# Sensor: set so that the power spectrum decays like that of the NAIP chips.
BLUR_PX = 0.52
NOISE_DN = 1.3
BRIGHTNESS_DRIFT = 0.05
HAZE_DN = (2.0, 2.0, 3.0, 1.0)

# Planting: tuned to 53 trees per 256 x 256 px. The spacing is not matched: the median distance from
# a tree to the nearest other tree is 8.6 m as painted and 5.2 m in the real data.
CROWN_MEDIAN_M, CROWN_SPREAD, CROWN_MIN_M, CROWN_MAX_M = 6.0, 0.30, 3.0, 10.0
HEIGHT_MAX_M = 15.0
SPACING_MIN_M, SPACING_PER_CROWN = 2.5, 0.29
STREET_TREE_STEP_M = 9.5
GARDEN_CLUMPS = 0.95
CLUMP_GROWTH = 0.55  # chance of one more tree in a clump
GARDEN_SHRUBS = 2.0
PARK_TREES_PER_HA = 45.0

# Crown relief: the sunlit side, the lumps of the foliage, and the dark rim.
CROWN_SIDE, CROWN_RELIEF, CROWN_RIM = 0.18, 0.27, 0.15
MOTTLE_LEANS = (-0.22, -0.16, -0.16, 0.10)  # effect of a greener patch on each band
CROWN_NIR_FILL = 0.45  # leaves scatter near infrared, so its relief is weaker


@dataclass(frozen=True, slots=True)
class Paint:
    """The filling of a polygon: DNs per band, grain, mottle, and whether plants grow there."""

    colour: Colour
    grain: float = 0.03
    mottle: float = 0.0
    plantable: bool = False

    def lit(self, gain: float) -> Paint:
        """Return this paint with all bands multiplied by `gain`."""
        red, green, blue, nir = self.colour
        colour = (red * gain, green * gain, blue * gain, nir * gain)
        return Paint(colour, self.grain, self.mottle, self.plantable)


@dataclass(frozen=True, slots=True)
class Species:
    """The look of a plant: DNs of its lit crown, roughness of outline and foliage, height."""

    colour: Colour
    weight: float
    rough: float = 0.14
    relief: float = 1.0
    height_per_m: float = 0.9
    opacity: float = 0.97


# Cluster centres (k-means, 22 clusters) of the residential chips, assigned to materials by eye.
ASPHALT = Paint((90, 92, 95, 72), 0.035)
OLD_ASPHALT = Paint((118, 117, 114, 96), 0.04)
CONCRETE = Paint((168, 164, 155, 136), 0.03)
MARKING = Paint((178, 174, 160, 150))
LAWN = Paint((88, 106, 79, 172), 0.06, 0.5, True)
DRY_LAWN = Paint((130, 124, 105, 142), 0.07, 0.6, True)
DIRT = Paint((158, 145, 127, 144), 0.07, 0.15, True)
MULCH = Paint((106, 98, 88, 112), 0.10, 0.7, True)
HEDGE = Paint((62, 80, 66, 150), 0.22, 0.5)
FENCE = Paint((150, 144, 136, 124), 0.1)
POOL = Paint((104, 165, 175, 42), 0.05)
TRACK = Paint((150, 98, 86, 130), 0.03)
TENNIS = Paint((82, 106, 112, 88), 0.02)
SOLAR = Paint((58, 66, 86, 60), 0.03)
GLASS = Paint((56, 60, 66, 48))
PITCHED_ROOFS = (
    (Paint((122, 122, 121, 98), 0.05), 0.24),
    (Paint((84, 86, 91, 68), 0.05), 0.17),
    (Paint((132, 116, 106, 116), 0.05), 0.17),
    (Paint((158, 114, 98, 148), 0.06), 0.14),
    (Paint((168, 163, 153, 140), 0.04), 0.16),
    (Paint((200, 200, 196, 176), 0.03), 0.12),
)
FLAT_ROOFS = (
    (Paint((210, 211, 208, 190), 0.03), 0.45),
    (Paint((176, 174, 170, 150), 0.04), 0.33),
    (Paint((134, 130, 126, 108), 0.04), 0.22),
)
CARS = (
    (Paint((212, 214, 216, 190)), 0.40),
    (Paint((144, 148, 152, 128)), 0.25),
    (Paint((52, 54, 58, 46)), 0.22),
    (Paint((150, 56, 54, 110)), 0.07),
    (Paint((62, 80, 120, 70)), 0.06),
)
CLUTTER = ((CONCRETE, 0.35), (FLAT_ROOFS[0][0], 0.15), (MULCH, 0.25), (SOLAR, 0.05), (DIRT, 0.20))
# Percentiles of the pixels under the tree points: median (65, 80, 70, 150), NDVI 0.29 to 0.47.
SPECIES = (
    Species((60, 77, 64, 146), 0.34),
    Species((68, 91, 67, 170), 0.26, relief=0.8),
    Species((91, 107, 77, 170), 0.14),
    Species((87, 93, 79, 128), 0.14, rough=0.22, opacity=0.85),
    Species((52, 63, 60, 124), 0.08, relief=1.2, height_per_m=1.3),
    Species((79, 85, 73, 122), 0.04, rough=0.45, relief=1.6, height_per_m=2.4, opacity=0.9),
)
SHRUB = Species((72, 86, 70, 140), 0.0, rough=0.2, height_per_m=0.8)
SHRUB_KIND = len(SPECIES)
